"""The table of all Services: what it holds, and that the way to it does not matter."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.compile.services.endpoints import Place
from poplin.compile.services.flows import stale_flows
from poplin.compile.services.listing import list_frontends
from poplin.compile.services.table import ServiceTable, capacity
from poplin.model.cluster import TransportProtocol
from poplin.model.connection import Connection, FlowTuple
from poplin.model.nftables import Lookup, Verdict, VerdictCode
from poplin.model.service import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort
from poplin.plan.nftables import AddElements, DeleteElements, plan_table

TCP, UDP, SCTP = TransportProtocol.TCP, TransportProtocol.UDP, TransportProtocol.SCTP
NODE = ip_address("192.0.2.11")
HERE = Place("here", addresses=(NODE,), node_port_addresses=(NODE,))


def service(name="web", address="10.96.0.1", *, ports=((TCP, 80, 0),), **changes):
    return Service(
        "shop",
        name,
        ports=tuple(ServicePort(f"{p}-{number}", p, number, node) for p, number, node in ports),
        cluster_ips=(ip_address(address),),
        **changes,
    )


def slice_of(name="web", *numbers, ports=((TCP, 80),)):
    endpoints = tuple(Endpoint(ip_address(f"10.244.1.{n}"), node_name="here") for n in numbers)
    return EndpointSlice(
        "shop", name, name, tuple(EndpointPort(f"{p}-{n}", p, 8000 + n) for p, n in ports), endpoints
    )


def table_of(*services):
    table = ServiceTable(HERE)
    for one, slices in services:
        table.put(one, slices)
    return table


def elements(table, name):
    [one] = [one for one in table.table().sets if one.name == name]
    return {element.key: element.data for element in one.elements}


def test_a_service_is_one_element_and_one_for_each_endpoint():
    table = table_of((service(), [slice_of("web", 1, 2)]))
    key = bytes([10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0])
    first, second = bytes([10, 244, 1, 1, 0x1F, 0x90, 0, 0]), bytes([10, 244, 1, 2, 0x1F, 0x90, 0, 0])
    [(found, value)] = elements(table, "services-4").items()
    assert (found, value[:4], value[8:]) == (key, bytes(4), bytes(4))
    assert sorted(elements(table, "endpoints-4").values()) == [first, second]
    assert elements(table, "cluster-ips-4") == {ip_address("10.96.0.1").packed: None}


@pytest.mark.parametrize(("protocol", "number"), [(TCP, 6), (UDP, 17), (SCTP, 132)])
def test_protocols(protocol, number):
    table = table_of((service(ports=((protocol, 80, 0),)), [slice_of("web", 1, ports=((protocol, 80),))]))
    assert {key[4] for key in elements(table, "services-4")} == {number}
    assert {key[4] for key in elements(table, "endpoints-4")} == {number}


def test_affinity_has_maps_of_its_own():
    table = table_of((service(affinity_timeout_s=30), [slice_of("web", 1, 2)]))
    assert not elements(table, "endpoints-4")
    assert len(elements(table, "sticky-4")) == len(elements(table, "serving-4")) == 2


def test_source_ranges_are_elements():
    ranged = service(
        load_balancer_ips=(ip_address("203.0.113.1"),), source_ranges=(ip_network("198.51.100.0/24"),)
    )
    table = table_of((ranged, [slice_of("web", 1)]))
    [guarded] = elements(table, "guarded-4")
    assert guarded[:4] == ip_address("203.0.113.1").packed
    [sources] = [one for one in table.table().sets if one.name == "sources-4"]
    [element] = sources.elements
    assert element.key == guarded + bytes([198, 51, 100, 0])
    assert element.last == guarded + bytes([198, 51, 100, 255])


def test_service_cidrs_are_elements():
    table = ServiceTable(HERE, [ip_network("10.96.0.0/16"), ip_network("fd00:96::/112")])
    assert list(elements(table, "service-cidrs-4")) == [bytes([10, 96, 0, 0])]
    assert len(elements(table, "service-cidrs-6")) == 1


def test_every_name_in_a_rule_or_a_verdict_stands():
    table = table_of(
        (service(affinity_timeout_s=30), [slice_of("web", 1)]),
        (service("b", "10.96.0.2", external_local=True, ports=((TCP, 80, 30080),)), [slice_of("b", 1)]),
        (service("c", "10.96.0.3"), []),
    ).table()
    chains = {chain.name for chain in table.chains}
    sets = {one.name for one in table.sets}
    for chain in table.chains:
        for rule in chain.rules:
            for part in rule.expressions:
                if isinstance(part, Lookup):
                    assert part.set in sets
                if isinstance(part, Verdict) and part.code in {VerdictCode.JUMP, VerdictCode.GOTO}:
                    assert part.chain in chains
    for one in table.sets:
        for element in one.elements:
            if isinstance(element.data, Verdict):
                assert element.data.chain in chains


CLASHES = [
    # Of two that want an external address the older one has it, and a name decides where ages are equal.
    ({"created": "2026-01-02T00:00:00Z"}, {"created": "2026-01-01T00:00:00Z"}, "b"),
    ({}, {}, "a"),
]


@pytest.mark.parametrize(("first", "second", "winner"), CLASHES)
@pytest.mark.parametrize("turned", [False, True])
def test_who_gets_an_address_that_two_want(first, second, winner, turned):
    wanted = {"external_ips": (ip_address("198.51.100.1"),)}
    pair = [
        (service("a", "10.96.0.1", **wanted, **first), [slice_of("a", 1)]),
        (service("b", "10.96.0.2", **wanted, **second), [slice_of("b", 2)]),
    ]
    table = table_of(*(reversed(pair) if turned else pair))
    [granted] = [claim for claim in table.frontends() if str(claim.frontend.address) == "198.51.100.1"]
    assert granted.owner == ("shop", winner)
    loser = "a" if winner == "b" else "b"
    assert table.problems() == {("shop", loser): f"198.51.100.1 TCP 80 is Service shop/{winner}'s"}
    table.remove(("shop", winner))
    [granted] = [claim for claim in table.frontends() if str(claim.frontend.address) == "198.51.100.1"]
    assert granted.owner == ("shop", loser)
    assert table.problems() == {}


def test_an_external_address_never_takes_a_cluster_address():
    thief = service("a", "10.96.0.1", external_ips=(ip_address("10.96.0.2"),), created="2020-01-01T00:00:00Z")
    table = table_of(
        (thief, [slice_of("a", 1)]),
        (service("b", "10.96.0.2", created="2026-01-01T00:00:00Z"), [slice_of("b", 2)]),
    )
    assert {claim.owner[1] for claim in table.frontends() if str(claim.frontend.address) == "10.96.0.2"} == {
        "b"
    }


NAMES = st.sampled_from(["a", "b", "c"])
SERVICES = st.builds(
    service,
    NAMES,
    st.sampled_from(["10.96.0.1", "10.96.0.2", "10.96.0.3"]),
    ports=st.sampled_from([((TCP, 80, 0),), ((TCP, 80, 30080), (UDP, 53, 0)), ((UDP, 53, 30080),)]),
    external_ips=st.sampled_from([(), (ip_address("198.51.100.1"),)]),
    load_balancer_ips=st.sampled_from([(), (ip_address("198.51.100.1"), ip_address("203.0.113.1"))]),
    source_ranges=st.sampled_from([(), (ip_network("192.0.2.0/24"),)]),
    affinity_timeout_s=st.sampled_from([None, 30]),
    external_local=st.booleans(),
    internal_local=st.booleans(),
    created=st.sampled_from(["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
)
SLICES = st.builds(
    lambda numbers: [slice_of("x", *numbers, ports=((TCP, 80), (UDP, 53)))],
    st.lists(st.integers(1, 6), max_size=4, unique=True),
)
CHANGES = st.lists(st.tuples(SERVICES, st.none() | SLICES), max_size=12)


@settings(max_examples=300)
@given(CHANGES)
def test_the_way_does_not_matter_and_changes_add_up(changes):
    table, last = ServiceTable(HERE), {}
    standing = {one.name: dict.fromkeys(one.elements) for one in table.table().sets}
    structure = table.structure()
    for one, slices in changes:
        if slices is None:
            table.remove(("shop", one.name))
            last.pop(one.name, None)
        else:
            table.put(one, slices)
            last[one.name] = one, slices
        plan_table(table.structure(), structure)
        structure = table.structure()
        for changed in table.take_changes():
            held = standing[changed.set.name]
            assert changed.gone <= held.keys()
            for element in changed.gone:
                del held[element]
            assert not changed.new & held.keys()
            held.update(dict.fromkeys(changed.new))
    fresh = table_of(*sorted(last.values(), key=lambda pair: pair[0].name, reverse=True))
    whole = table.table()
    assert whole == fresh.table()
    assert table.problems() == fresh.problems()
    for one in whole.sets:
        if one.name not in {"from-pods", "from-node", "from-outside"}:
            assert set(standing[one.name]) == one.elements
            assert len({element.key for element in one.elements}) == len(one.elements)
    assert not ServiceTable(HERE).take_changes()


def test_a_change_of_one_service_moves_its_own_elements_alone():
    table = table_of(*((service(f"s{n}", f"10.96.1.{n}"), [slice_of(f"s{n}", n)]) for n in range(1, 50)))
    before = table.table()
    table.take_changes()
    table.put(service("s7", "10.96.1.7"), [slice_of("s7", 7, 8)])
    moved = {changed.set.name: (len(changed.gone), len(changed.new)) for changed in table.take_changes()}
    assert moved == {"services-4": (1, 1), "endpoints-4": (0, 1)}
    operations = plan_table(table.table(), before)
    touched = [one for one in operations if isinstance(one, AddElements | DeleteElements)]
    assert sum(len(one.elements) for one in touched if "-4" in one.set.name) == 3


def flow(to, port, source, source_port, protocol=17):
    client = ip_address("10.244.2.9")
    return Connection(
        FlowTuple(client, ip_address(to), protocol, 40000, port),
        FlowTuple(ip_address(source), client, protocol, source_port, 40000),
    )


FLOWS = {
    "to an endpoint that serves": (flow("10.96.0.1", 53, "10.244.1.1", 8053), False),
    "to one that is gone": (flow("10.96.0.1", 53, "10.244.1.9", 8053), True),
    "to another port of one that serves": (flow("10.96.0.1", 53, "10.244.1.1", 8054), True),
    "never translated": (flow("10.96.0.1", 53, "10.96.0.1", 53), True),
    "to one that terminates and serves": (flow("10.96.0.1", 53, "10.244.1.2", 8053), False),
    "of TCP": (flow("10.96.0.1", 53, "10.244.1.9", 8053, protocol=6), False),
    "to another port of the Service": (flow("10.96.0.1", 54, "10.244.1.9", 8053), False),
    "to a Service without endpoints": (flow("10.96.0.2", 53, "10.244.1.9", 8053), False),
    "to no Service": (flow("198.51.100.7", 53, "198.51.100.7", 53), False),
}


@pytest.mark.parametrize("row", FLOWS)
def test_which_flows_are_stale(row):
    one, stale = FLOWS[row]
    endpoints = (
        Endpoint(ip_address("10.244.1.1")),
        Endpoint(ip_address("10.244.1.2"), ready=False, terminating=True),
    )
    ports = (EndpointPort("UDP-53", UDP, 8053),)
    table = table_of(
        (service(ports=((UDP, 53, 0),)), [EndpointSlice("shop", "web", "web", ports, endpoints)]),
        (service("empty", "10.96.0.2", ports=((UDP, 53, 0),)), []),
    )
    assert stale_flows([one], table.frontend_at) == ([one] if stale else [])


@pytest.mark.parametrize(
    ("count", "size"), [(0, 0), (8192, 0), (8193, 65536), (32768, 65536), (32769, 262144), (131073, 1 << 20)]
)
def test_a_large_set_has_room_for_every_element_twice(count, size):
    assert capacity(count) == size
    assert size == 0 or size >= 2 * count


def test_a_listing_is_what_the_kernel_has_and_what_it_lacks():
    wanted = table_of(
        (service("a", "10.96.0.1", external_local=True, ports=((TCP, 80, 30080),)), [slice_of("a", 1)]),
        (service("b", "10.96.0.2", affinity_timeout_s=30), [slice_of("b", 2)]),
        (service("c", "10.96.0.3"), []),
    )
    held = table_of(
        (service("a", "10.96.0.1", external_local=True, ports=((TCP, 80, 30080),)), [slice_of("a", 1)]),
        (service("b", "10.96.0.2", affinity_timeout_s=30), [slice_of("b", 2)]),
        (service("old", "10.96.0.9"), [slice_of("old", 9)]),
    )
    [sticky], [serving] = elements(held, "sticky-4"), elements(held, "serving-4")
    counts = {"sticky-4": {sticky: 2}, "serving-4": {serving: 5}}
    rows = list_frontends(held.table(), counts, wanted.frontends())
    found = [(one.name, one.kind, str(one.address), one.port, one.verdict, one.hits) for one in rows]
    assert found == [
        ("", "", "10.96.0.9", 80, "serve", 0),
        ("a", "ClusterIP", "10.96.0.1", 80, "serve", 0),
        ("a", "NodePort", "192.0.2.11", 30080, "serve", 0),
        ("b", "ClusterIP", "10.96.0.2", 80, "serve", 7),
        ("c", "ClusterIP", "10.96.0.3", 80, "missing", 0),
    ]
    [end] = rows[3].endpoints
    assert (str(end.address), end.port, end.inside, end.outside, end.hits) == (
        "10.244.1.2",
        8080,
        True,
        True,
        7,
    )
    assert rows[3].affinity_timeout_s == 30


def test_nothing_in_the_kernel_is_nothing_served():
    table = table_of((service(), [slice_of("web", 1)]))
    assert [one.verdict for one in list_frontends(None, {}, table.frontends())] == ["missing"]
