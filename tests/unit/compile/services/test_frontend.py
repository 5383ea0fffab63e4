"""What a Service is reached by, and what each of its addresses does, row by row of the features."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from poplin.compile.services.dispatch import Draw, inside, outside
from poplin.compile.services.endpoints import Place
from poplin.compile.services.frontend import DROP, REJECT, Kind, Shape, compile_service
from poplin.compile.services.health import HealthCheck, compile_health_check
from poplin.model.cluster import TransportProtocol
from poplin.model.service import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort

TCP = TransportProtocol.TCP
NODE = (ip_address("192.0.2.11"), ip_address("2001:db8::11"))
HERE = Place("here", addresses=NODE, node_port_addresses=NODE)


def service(**changes):
    base = {
        "ports": (ServicePort("http", TCP, 80),),
        "cluster_ips": (ip_address("10.96.0.1"),),
        **changes,
    }
    return Service("shop", "web", **base)


def slices(here=0, there=0, *, ending_here=0, version=4):
    prefix = "10.244.1." if version == 4 else "fd00::"
    rows = [("here", False)] * here + [("there", False)] * there + [("here", True)] * ending_here
    endpoints = [
        Endpoint(ip_address(f"{prefix}{i}"), ready=not ending, terminating=ending, node_name=node)
        for i, (node, ending) in enumerate(rows, 1)
    ]
    ports = (EndpointPort("http", TCP, 8080),)
    return [EndpointSlice("shop", f"web-{version}", "web", ports, tuple(endpoints))]


def served(made):
    return {(one.kind, str(one.address), one.number) for one in made}


EVERYTHING = service(
    ports=(ServicePort("http", TCP, 80, 30080),),
    external_ips=(ip_address("198.51.100.1"),),
    load_balancer_ips=(ip_address("203.0.113.1"),),
)


def test_addresses_of_every_kind():
    assert served(compile_service(EVERYTHING, slices(1), HERE)) == {
        (Kind.CLUSTER_IP, "10.96.0.1", 80),
        (Kind.NODE_PORT, "192.0.2.11", 30080),
        (Kind.EXTERNAL_IP, "198.51.100.1", 80),
        (Kind.LOAD_BALANCER, "203.0.113.1", 80),
    }


def test_dual_stack_serves_each_family_by_itself():
    both = service(
        cluster_ips=(ip_address("10.96.0.1"), ip_address("fd00:96::1")),
        ports=(ServicePort("http", TCP, 80, 30080),),
    )
    made = compile_service(both, slices(2, version=6), HERE)
    assert {str(one.address): one.shape for one in made} == {
        "10.96.0.1": REJECT,
        "192.0.2.11": REJECT,
        "fd00:96::1": Shape(2),
        "2001:db8::11": Shape(2),
    }


@pytest.mark.parametrize("changes", [{"cluster_ips": ()}, {"served_elsewhere": True}])
def test_services_that_are_none_of_ours(changes):
    assert compile_service(service(**changes), slices(1), HERE) == ()


def test_one_address_of_two_kinds_is_one_frontend():
    address = (ip_address("203.0.113.1"),)
    made = compile_service(service(external_ips=address, load_balancer_ips=address), slices(1), HERE)
    assert served(made) == {(Kind.CLUSTER_IP, "10.96.0.1", 80), (Kind.LOAD_BALANCER, "203.0.113.1", 80)}


# here, there, terminating here -> for the policy Cluster, for Local
INTERNAL = [
    ((0, 0, 0), REJECT, REJECT),
    ((2, 1, 0), Shape(3), Shape(2)),
    ((0, 1, 0), Shape(1), DROP),
    ((0, 0, 1), Shape(1), Shape(1)),
    ((0, 1, 1), Shape(1), Shape(1)),
]


@pytest.mark.parametrize(("counts", "cluster", "local"), INTERNAL)
def test_internal_traffic_policy(counts, cluster, local):
    here, there, ending = counts
    for is_local, expected in ((False, cluster), (True, local)):
        [made] = compile_service(
            service(internal_local=is_local), slices(here, there, ending_here=ending), HERE
        )
        assert made.shape == expected
        assert len(made.targets) == expected.count


# here, there, terminating here -> shape under Local, what the inside draws, what the outside draws
EXTERNAL = [
    ((0, 0, 0), REJECT, None, None),
    ((2, 1, 0), Shape(3, 0, 2), Draw(3), Draw(2)),
    ((2, 0, 0), Shape(2, 0, 2), Draw(2), Draw(2)),
    ((0, 2, 0), Shape(2, 0, 0), Draw(2), None),
    ((0, 2, 1), Shape(2, 1, 1), Draw(2, 1), Draw(1)),
    ((0, 0, 1), Shape(1, 0, 1), Draw(1), Draw(1)),
]


@pytest.mark.parametrize(("counts", "shape", "within", "without"), EXTERNAL)
@pytest.mark.parametrize("kind", [Kind.NODE_PORT, Kind.LOAD_BALANCER, Kind.EXTERNAL_IP])
def test_external_traffic_policy_local(counts, shape, within, without, kind):
    here, there, ending = counts
    local = replace(EVERYTHING, external_local=True)
    made = compile_service(local, slices(here, there, ending_here=ending), HERE)
    [one] = [one for one in made if one.kind is kind]
    assert (one.shape, inside(one.shape), outside(one.shape)) == (shape, within, without)
    if without:
        drawn = one.targets[: without.count]
        first_local = slices(here, there, ending_here=ending)[0].endpoints
        addresses = {e.address.packed for e in first_local if e.node_name == "here"}
        assert {target[:4] for target in drawn} <= addresses
    [cluster_ip] = [one for one in made if one.kind is Kind.CLUSTER_IP]
    assert cluster_ip.shape.local is None


def test_the_row_holds_both_policies_side_by_side():
    local = replace(EVERYTHING, external_local=True)
    made = compile_service(local, slices(0, 2, ending_here=1), HERE)
    [one] = [one for one in made if one.kind is Kind.NODE_PORT]
    assert [target[3] for target in one.targets] == [3, 1, 2]


def test_session_affinity_is_part_of_the_shape():
    sticky = service(affinity_timeout_s=30, external_ips=(ip_address("198.51.100.1"),), external_local=True)
    made = {one.kind: one for one in compile_service(sticky, slices(1, 1), HERE)}
    assert made[Kind.CLUSTER_IP].shape == Shape(2, affinity_timeout_s=30)
    assert outside(made[Kind.EXTERNAL_IP].shape) == Draw(1, 0, 30, "serving-here")
    assert inside(made[Kind.EXTERNAL_IP].shape) == Draw(2, 0, 30, "serving")


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([], None),
        (["198.51.100.0/24"], ["198.51.100.0/24"]),
        (["198.51.100.0/25", "198.51.100.128/25"], ["198.51.100.0/24"]),
        (["2001:db8:5::/48"], []),
        (["192.0.2.0/24"], ["192.0.2.0/24", "203.0.113.1/32"]),
    ],
)
def test_source_ranges_are_those_of_load_balancers(ranges, expected):
    ranged = replace(EVERYTHING, source_ranges=tuple(map(ip_network, ranges)))
    for one in compile_service(ranged, slices(1), HERE):
        found = None if one.sources is None else [str(source) for source in one.sources]
        assert found == (expected if one.kind is Kind.LOAD_BALANCER else None)


def test_shapes_have_numbers_of_their_own():
    shapes = [
        Shape(count, offset, local, timeout_s)
        for count in (0, 1, 2, 0xFFFF)
        for offset in (0, 1, 0x3FFE)
        for local in (None, 0, 1, 0x3FFE)
        for timeout_s in (None, 1, 10_800, 86_400)
    ]
    assert len({shape.number for shape in shapes}) == len(shapes)
    assert [Shape.of(shape.number) for shape in shapes] == shapes


HEALTH = [
    ({}, slices(2, 1), 2),
    ({}, slices(0, 1), 0),
    ({}, slices(0, 0, ending_here=1), 0),
    ({}, [*slices(2), *slices(2)], 2),
    ({"external_local": False}, slices(1), None),
    ({"health_check_node_port": 0}, slices(1), None),
]


@pytest.mark.parametrize(("changes", "given", "expected"), HEALTH)
def test_health_checks_count_ready_endpoints_here(changes, given, expected):
    checked = service(**{"health_check_node_port": 30999, "external_local": True, **changes})
    check = compile_health_check(checked, given, HERE)
    assert check == (None if expected is None else HealthCheck(30999, "shop", "web", expected))
