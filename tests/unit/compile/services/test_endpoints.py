"""Who serves a port, row by row: ready, terminating, hinted, here or elsewhere."""

from ipaddress import ip_address

import pytest

from poplin.compile.services.endpoints import Place, Reason, choose_endpoints, judge_endpoint, list_endpoints
from poplin.model.cluster import TransportProtocol
from poplin.model.service import Endpoint, EndpointPort, EndpointSlice, ServicePort

TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
HERE = Place("here", zone="a")
HTTP = ServicePort("http", TCP, 80)


def endpoint(number, *, node="here", **changes):
    return Endpoint(ip_address(f"10.244.1.{number}"), node_name=node, **changes)


def ending(number, **changes):
    return endpoint(number, ready=False, terminating=True, **changes)


def in_slice(*endpoints, name="web-1", port=8080, port_name="http", protocol=TCP):
    return EndpointSlice("shop", name, "web", (EndpointPort(port_name, protocol, port),), endpoints)


def chosen(targets):
    return [int(target[3]) for target in targets]


NONE = []
ROWS = {
    "none at all": ((), NONE, NONE, False),
    "ready ones serve, in the order of their addresses": (
        (endpoint(2), endpoint(1), endpoint(3, node="there")),
        [1, 2, 3],
        [1, 2],
        True,
    ),
    "ready elsewhere alone": ((endpoint(1, node="there"),), [1], NONE, True),
    "on no node": ((endpoint(1, node=""),), [1], NONE, True),
    "neither ready nor terminating": ((endpoint(1, ready=False),), NONE, NONE, False),
    "terminating beside ready": ((endpoint(1), ending(2)), [1], [1], True),
    "terminating alone": ((ending(1), ending(2, node="there")), [1, 2], [1], True),
    "terminating that has stopped serving": ((ending(1, serving=False),), NONE, NONE, False),
    "terminating here, ready there": ((ending(1), endpoint(2, node="there")), [2], [1], True),
    "hinted to this zone": ((endpoint(1, zones=("a",)), endpoint(2, zones=("b",))), [1], [1, 2], True),
    "one without a hint": ((endpoint(1, zones=("a",)), endpoint(2)), [1, 2], [1, 2], True),
    "hinted to other zones": ((endpoint(1, zones=("b",)), endpoint(2, zones=("c",))), [1, 2], [1, 2], True),
    "hinted to this node before its zone": (
        (
            endpoint(1, zones=("a",), nodes=("there",), node="there"),
            endpoint(2, zones=("a",), nodes=("here",)),
        ),
        [2],
        [2],
        True,
    ),
    "hinted to other nodes, in this zone": (
        (endpoint(1, zones=("a",), nodes=("there",)), endpoint(2, zones=("b",), nodes=("there",))),
        [1],
        [1, 2],
        True,
    ),
    "hints of terminating ones are none": (
        (ending(1, zones=("b",)), ending(2, zones=("a",))),
        [1, 2],
        [1, 2],
        True,
    ),
    "a ready one's missing hint counts, a terminating one's not": (
        (endpoint(1, zones=("a",)), ending(2)),
        [1],
        [1],
        True,
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_who_serves(row):
    endpoints, cluster, local, anywhere = ROWS[row]
    choice = choose_endpoints([in_slice(*endpoints)], HTTP, 4, HERE)
    assert (chosen(choice.cluster), chosen(choice.local), choice.anywhere) == (cluster, local, anywhere)


def reasons(*endpoints, local=False, place=HERE):
    slices = [in_slice(*endpoints)]
    choice = choose_endpoints(slices, HTTP, 4, place)
    chosen_by = choice.local if local else choice.cluster
    return [
        judge_endpoint(target, one, choice, place, local=local, drawn=target in chosen_by).name
        for target, one in list_endpoints(slices, HTTP, 4)
    ]


@pytest.mark.parametrize(
    ("endpoints", "cluster", "local"),
    [
        ((endpoint(1), endpoint(2, node="there")), ["READY", "READY"], ["READY", "ELSEWHERE"]),
        ((endpoint(1), endpoint(2, ready=False)), ["READY", "NOT_READY"], ["READY", "NOT_READY"]),
        ((endpoint(1), ending(2)), ["READY", "ENDING"], ["READY", "ENDING"]),
        ((ending(1), ending(2, node="there")), ["LAST", "LAST"], ["LAST", "ELSEWHERE"]),
        ((ending(1), endpoint(2, node="there")), ["ENDING", "READY"], ["LAST", "ELSEWHERE"]),
        ((ending(1, serving=False),), ["STOPPED"], ["STOPPED"]),
        (
            (endpoint(1, zones=("a",)), endpoint(2, zones=("b",))),
            ["READY", "HINTED_AWAY"],
            ["READY", "READY"],
        ),
        ((endpoint(1, zones=("b",)), endpoint(2)), ["HINTS_UNUSED", "READY"], ["READY", "READY"]),
    ],
)
def test_why_an_endpoint_is_drawn_or_not(endpoints, cluster, local):
    assert (reasons(*endpoints), reasons(*endpoints, local=True)) == (cluster, local)


DRAWN = {Reason.READY, Reason.HINTS_UNUSED, Reason.LAST}


@pytest.mark.parametrize("row", ROWS)
def test_a_reason_is_one_for_what_was_chosen(row):
    endpoints, cluster, local, _ = ROWS[row]
    for expected, by_local in ((cluster, False), (local, True)):
        said = {
            int(one.address.packed[3]): Reason[name] in DRAWN
            for one, name in zip(endpoints, reasons(*endpoints, local=by_local), strict=True)
        }
        assert sorted(number for number, drawn in said.items() if drawn) == expected


def test_a_node_without_a_zone_is_in_none():
    slices = [in_slice(endpoint(1, zones=("",)), endpoint(2, zones=("a",)))]
    assert chosen(choose_endpoints(slices, HTTP, 4, Place("here")).cluster) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1]),
        ({"port_name": "admin"}, NONE),
        ({"port_name": ""}, NONE),
        ({"protocol": UDP}, NONE),
        ({"protocol": TransportProtocol.SCTP}, NONE),
    ],
)
def test_ports_go_by_name_and_protocol(changes, expected):
    assert chosen(choose_endpoints([in_slice(endpoint(1), **changes)], HTTP, 4, HERE).cluster) == expected


def test_families_are_apart():
    six = Endpoint(ip_address("fd00::1"), node_name="here")
    slices = [in_slice(endpoint(1)), in_slice(six, name="web-2")]
    assert choose_endpoints(slices, HTTP, 4, HERE).cluster == (bytes([10, 244, 1, 1]) + b"\x1f\x90\0\0",)
    assert choose_endpoints(slices, HTTP, 6, HERE).cluster == (six.address.packed + b"\x1f\x90\0\0",)


def test_slices_join_and_an_endpoint_in_two_is_one():
    slices = [
        in_slice(endpoint(1), endpoint(2)),
        in_slice(endpoint(2), ending(1), name="web-2"),
        in_slice(endpoint(2), name="web-3", port=8081),
    ]
    choice = choose_endpoints(slices, HTTP, 4, HERE)
    assert [(target[3], int.from_bytes(target[4:6])) for target in choice.cluster] == [
        (1, 8080),
        (2, 8080),
        (2, 8081),
    ]
