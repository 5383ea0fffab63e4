from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.compile.host_ports import (
    Entry,
    clashes,
    compile_host_ports,
    entries_of,
    stale_flows,
)
from poplin.model.attachment import Attachment, PortMapping
from poplin.model.cluster import TransportProtocol
from poplin.model.connection import Connection, ConnectionStatus, FlowTuple
from poplin.plan.nftables import AddElements, DeleteElements, DeleteTable, plan_table

TCP, UDP, SCTP = TransportProtocol.TCP, TransportProtocol.UDP, TransportProtocol.SCTP
NODE = ip_address("192.0.2.1")


def mapping(host_port=8080, container_port=80, protocol=TCP, host=None):
    return PortMapping(protocol, host_port, container_port, ip_address(host) if host else None)


def attachment(*mappings, number=5, addresses=("10.244.1.{}", "fd00::{}")):
    return Attachment(
        container_id=f"c{number}",
        ifname="eth0",
        netns="/run/netns/c",
        addresses=tuple(ip_address(a.format(number)) for a in addresses),
        mac="02:00:00:00:00:05",
        mtu_bytes=1450,
        host_link=f"pop{number}",
        port_mappings=mappings,
    )


def elements(table):
    return {one.name: {(e.key, e.data) for e in one.elements} for one in table.sets if one.elements}


def test_without_mappings_there_is_no_table():
    assert compile_host_ports([]) is None
    assert compile_host_ports([attachment()]) is None


def test_a_mapping_is_one_element_in_each_family_of_the_pod():
    four, six = ip_address("10.244.1.5").packed, ip_address("fd00::5").packed
    key, port = b"\x06\0\0\0\x1f\x90\0\0", b"\0\x50\0\0"
    assert elements(compile_host_ports([attachment(mapping())])) == {
        "port-4": {(key, four + port)},
        "port-6": {(key, six + port)},
    }
    only_v6 = attachment(mapping(), addresses=("fd00::{}",))
    assert elements(compile_host_ports([only_v6])) == {"port-6": {(key, six + port)}}


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("192.0.2.1", {"address-port-4"}),
        ("2001:db8::1", {"address-port-6"}),
        ("0.0.0.0", {"port-4"}),
        ("::", {"port-6"}),
        (None, {"port-4", "port-6"}),
    ],
)
def test_which_map_a_host_address_belongs_to(host, found):
    table = compile_host_ports([attachment(mapping(host=host))])
    assert elements(table).keys() == found
    if host and len(found) == 1 and "address" in min(found):
        [[(key, _)]] = elements(table).values()
        assert key.startswith(ip_address(host).packed)


@pytest.mark.parametrize(("protocol", "number"), [(TCP, 6), (UDP, 17), (SCTP, 132)])
def test_protocols_are_told_apart(protocol, number):
    for found in elements(compile_host_ports([attachment(mapping(protocol=protocol))])).values():
        assert {key[0] for key, _ in found} == {number}


CLASHES = [
    (mapping(), mapping(), True),
    (mapping(), mapping(container_port=81), True),
    (mapping(), mapping(8081), False),
    (mapping(), mapping(protocol=UDP), False),
    (mapping(), mapping(host="192.0.2.1"), True),
    (mapping(), mapping(host="::"), True),
    (mapping(host="192.0.2.1"), mapping(host="192.0.2.2"), False),
    (mapping(host="192.0.2.1"), mapping(host="192.0.2.1"), True),
    (mapping(host="192.0.2.1"), mapping(host="0.0.0.0"), True),
    (mapping(host="192.0.2.1"), mapping(host="::"), False),
    (mapping(host="0.0.0.0"), mapping(host="::"), False),
]


@pytest.mark.parametrize(("one", "other", "expected"), CLASHES)
def test_which_mappings_clash(one, other, expected):
    assert clashes(one, other) == clashes(other, one) == expected


HOSTS = st.sampled_from([None, "0.0.0.0", "::", "192.0.2.1", "192.0.2.2", "2001:db8::1"])
MAPPINGS = st.builds(
    mapping,
    st.sampled_from([80, 81]),
    st.sampled_from([8080, 8081]),
    st.sampled_from(TransportProtocol),
    HOSTS,
)


@st.composite
def pods(draw):
    """Attachments whose mappings do not clash, as the registry lets them in."""
    taken, found = [], []
    for number in range(draw(st.integers(0, 4))):
        mine = []
        for one in draw(st.lists(MAPPINGS, max_size=3)):
            if not any(clashes(one, other) for other in taken):
                taken.append(one)
                mine.append(one)
        found.append(attachment(*mine, number=number + 5))
    return found


@given(pods())
def test_no_key_leads_to_two_pods_and_every_mapping_has_its_elements(given_pods):
    table = compile_host_ports(given_pods)
    entries = [entry for pod in given_pods for entry in entries_of(pod)]
    assert (table is None) == (not entries)
    if table is not None:
        assert sum(len(one.elements) for one in table.sets) == len(entries)
        for one in table.sets:
            assert len({e.key for e in one.elements}) == len(one.elements)


@given(pods(), st.data())
def test_one_pod_more_or_less_moves_its_own_elements_alone(given_pods, data):
    if not given_pods:
        return
    gone = data.draw(st.sampled_from(given_pods))
    rest = [pod for pod in given_pods if pod is not gone]
    whole, less = compile_host_ports(given_pods), compile_host_ports(rest)
    count = len(list(entries_of(gone)))
    there, back = plan_table(less, whole), plan_table(whole, less)
    if less is None:
        assert all(isinstance(one, DeleteTable) for one in there)
        return
    assert all(isinstance(one, DeleteElements) for one in there)
    assert all(isinstance(one, AddElements) for one in back)
    assert sum(len(one.elements) for one in there) == sum(len(one.elements) for one in back) == count


def flow(to, port, source, source_port, status=ConnectionStatus.NONE, protocol=17):
    client = ip_address("198.51.100.9" if ip_address(to).version == 4 else "2001:db8::9")
    return Connection(
        FlowTuple(client, ip_address(to), protocol, 40000, port),
        FlowTuple(ip_address(source), client, protocol, source_port, 40000),
        status,
    )


TO_POD = flow("192.0.2.1", 5300, "10.244.1.5", 53, ConnectionStatus.DESTINATION_NAT)
UNHEARD = flow("192.0.2.1", 5300, "192.0.2.1", 5300)
HEARD = flow("192.0.2.1", 5300, "192.0.2.1", 5300, ConnectionStatus.SEEN_REPLY)
OTHER_PORT = flow("192.0.2.1", 5301, "192.0.2.1", 5301)
OTHER_POD = flow("192.0.2.1", 5300, "10.244.1.6", 53, ConnectionStatus.DESTINATION_NAT)
BY_TCP = flow("192.0.2.1", 5300, "192.0.2.1", 5300, protocol=6)
BY_IPV6 = flow("2001:db8::1", 5300, "2001:db8::1", 5300)
FLOWS = [TO_POD, UNHEARD, HEARD, OTHER_PORT, OTHER_POD, BY_TCP, BY_IPV6]


def entry(protocol=UDP, host=None):
    return Entry(protocol, host, 5300, ip_address("10.244.1.5"), 53)


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({}, []),
        ({"removed": [entry()]}, [TO_POD]),
        ({"removed": [entry(TCP)]}, []),
        ({"added": [entry()]}, [UNHEARD]),
        ({"added": [entry(host=NODE)]}, [UNHEARD]),
        ({"added": [entry(host=ip_address("192.0.2.2"))]}, []),
        ({"added": [entry(TCP)]}, []),
        ({"added": [entry()], "removed": [entry()]}, [TO_POD, UNHEARD]),
    ],
)
def test_which_flows_are_stale(changes, stale):
    assert stale_flows(FLOWS, **changes) == stale
