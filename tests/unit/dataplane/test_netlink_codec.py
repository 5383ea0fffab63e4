"""Values -> bytes -> values, the same bytes as pyroute2 makes, and no bytes that break a decoder."""

from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.address import decode_address, encode_address
from poplin.dataplane.netlink.attribute import MalformedMessageError, parse
from poplin.dataplane.netlink.frame import NLMSGHDR, Message, decode_answer, decode_messages, encode_message
from poplin.dataplane.netlink.link import (
    IFINFOMSG,
    decode_link,
    encode_link,
    encode_link_group,
    encode_link_name,
    encode_new_link,
    encode_new_link_rest,
    encode_new_veth,
    encode_no_link_local,
    encode_rename,
)
from poplin.dataplane.netlink.neighbour import (
    decode_neighbour,
    encode_fdb_entry,
    encode_neighbour,
    is_permanent,
)
from poplin.dataplane.netlink.route import decode_protocol, decode_route, encode_route
from poplin.model.kernel import Address, FdbEntry, Link, Neighbour, Route, RouteKind, Scope, Veth, Vxlan

LINKS = {"eth0": 2, "flannel.1": 7, "pop0123456789ab": 1_000_000}
NAMES = {index: name for name, index in LINKS.items()}
index_of = LINKS.__getitem__


def name_of(index):
    return NAMES.get(index, f"if{index}")


REJECTS = [RouteKind.BLACKHOLE, RouteKind.UNREACHABLE, RouteKind.PROHIBIT, RouteKind.THROW]
NUMBERS = st.integers(0, 2**32 - 1)
BYTES = st.integers(0, 255)
LINK_NAMES = st.sampled_from(sorted(LINKS))
MACS = st.binary(min_size=6, max_size=6).map(lambda octets: octets.hex(":"))
IPV4 = st.integers(0, 2**32 - 1).map(IPv4Address)
IPV6 = st.integers(0, 2**128 - 1).map(IPv6Address)
IPS = IPV4 | IPV6
NETWORKS4 = st.builds(lambda ip, length: IPv4Network((ip, length), strict=False), IPV4, st.integers(0, 32))
NETWORKS6 = st.builds(lambda ip, length: IPv6Network((ip, length), strict=False), IPV6, st.integers(0, 128))
INTERFACES = st.builds(lambda ip, length: IPv4Interface((ip, length)), IPV4, st.integers(0, 32)) | st.builds(
    lambda ip, length: IPv6Interface((ip, length)), IPV6, st.integers(0, 128)
)


def routes_of(networks, gateways, sources, metrics):
    common = {
        "destination": networks,
        "scope": st.sampled_from(Scope),
        "source": st.none() | sources,
        "mtu_bytes": NUMBERS,
        "metric": metrics,
        "table": st.integers(1, 2**32 - 1),
        "protocol": BYTES,
    }
    forwarding = st.builds(
        Route,
        kind=st.sampled_from([kind for kind in RouteKind if kind not in REJECTS]),
        gateway=st.none() | gateways,
        link=st.just("") | LINK_NAMES,
        onlink=st.booleans(),
        **common,
    )
    return forwarding | st.builds(Route, kind=st.sampled_from(REJECTS), **common)


ROUTES = routes_of(NETWORKS4, IPV4 | IPV6, IPV4, NUMBERS) | routes_of(
    NETWORKS6, IPV6, IPV6, NUMBERS.filter(lambda metric: metric != 1024)
)
ADDRESSES = st.builds(Address, LINK_NAMES, INTERFACES, st.sampled_from(Scope), BYTES)
NEIGHBOURS = st.builds(Neighbour, LINK_NAMES, IPS, MACS, BYTES)
FDB_ENTRIES = st.builds(FdbEntry, LINK_NAMES, MACS, IPS)
TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), min_size=1, max_size=15)
VXLANS = st.builds(
    Vxlan,
    vni=st.integers(0, 2**24 - 1),
    port=st.integers(0, 65535),
    underlay=st.just("") | LINK_NAMES,
    local=st.none() | IPS,
    learning=st.booleans(),
    gbp=st.booleans(),
)
NEW_LINKS = st.builds(
    Link,
    name=TEXT,
    kind=st.just("vxlan"),
    mac=MACS,
    mtu_bytes=NUMBERS,
    up=st.just(value=False),
    group=NUMBERS,
    vxlan=VXLANS,
)


@given(ROUTES)
def test_a_route_is_read_as_it_was_written(route):
    body = encode_route(route, index_of)
    assert decode_route(body, name_of) == route
    assert decode_protocol(body) == route.protocol


@given(ADDRESSES)
def test_an_address_is_read_as_it_was_written(address):
    found = decode_address(encode_address(address, index_of), name_of)
    assert found == address
    assert found.protocol == address.protocol


@given(NEIGHBOURS)
def test_a_neighbour_is_read_as_it_was_written(neighbour):
    body = encode_neighbour(neighbour, index_of)
    assert decode_neighbour(body, name_of) == neighbour
    assert is_permanent(body)


@given(FDB_ENTRIES)
def test_a_forwarding_entry_is_read_as_it_was_written(entry):
    body = encode_fdb_entry(entry, index_of)
    assert decode_neighbour(body, name_of) == entry
    assert is_permanent(body)


@given(NEW_LINKS)
def test_a_vxlan_link_is_read_as_it_was_written(link):
    assert decode_link(encode_new_link(link, index_of), name_of) == link


@given(NEW_LINKS, st.booleans(), TEXT)
def test_a_changed_link_is_read_as_it_was_written(link, up, alias):
    changed = replace(link, kind="", vxlan=None, master="eth0", up=up, alias=alias)
    assert decode_link(encode_link(changed, index_of), name_of) == changed


@given(NEW_LINKS, NEW_LINKS, st.integers(0, 2**31 - 1))
def test_both_ends_of_a_veth_are_in_one_message(host, peer, netns_fd):
    host, peer = (replace(link, kind="", vxlan=None) for link in (host, peer))
    body = encode_new_veth(Veth(host, peer, netns_fd))
    assert decode_link(body, name_of) == replace(host, kind="veth")
    data = parse(parse(parse(body, IFINFOMSG.size)[uapi.IFLA_LINKINFO])[uapi.IFLA_INFO_DATA])
    inside = data[uapi.VETH_INFO_PEER]
    assert decode_link(inside, name_of) == peer
    assert parse(inside, IFINFOMSG.size)[uapi.IFLA_NET_NS_FD] == netns_fd.to_bytes(4, "little")


@given(NEW_LINKS)
def test_values_that_mean_as_it_is_are_not_sent(link):
    found = parse(encode_link(replace(link, mac="", mtu_bytes=0), index_of), IFINFOMSG.size)
    assert set(found) == {uapi.IFLA_IFNAME, uapi.IFLA_GROUP, uapi.IFLA_IFALIAS}


def test_the_default_metric_of_ipv6_reads_as_none():
    route = Route(IPv6Network("fd00::/64"), link="eth0", metric=1024)
    assert decode_route(encode_route(route, index_of), name_of) == replace(route, metric=0)


def test_a_multipath_route_keeps_its_key_and_equals_none_of_ours():
    route = Route(IPv4Network("10.1.0.0/24"), metric=3)
    hops = b"".join(
        NEXTHOP + (2).to_bytes(4, "little") for NEXTHOP in (b"\x08\x00\x00\x00", b"\x08\x00\x00\x00")
    )
    multipath = encode_route(route, index_of) + (20).to_bytes(2, "little") + b"\x09\x00" + hops
    assert decode_route(multipath, name_of) == route


@pytest.mark.parametrize(
    ("body", "decode"),
    [
        (b"\x80" + bytes(11), decode_route),
        (b"\x02" + bytes(6) + b"\x0b" + bytes(4), decode_route),
        (b"\x02" + bytes(5) + b"\x64\x01" + bytes(4), decode_route),
        (b"\x02\x20\x00\x64" + bytes(4), decode_address),
        (b"\x07" + bytes(15), decode_link),
        (b"\x07" + bytes(11), decode_neighbour),
    ],
    ids=["multicast family", "kind 11", "scope 100", "address of scope 100", "bridge port", "bridge entry"],
)
def test_what_a_value_cannot_say_is_none(body, decode):
    assert decode(body, name_of) is None


# pyroute2 as the oracle: its encoder, given the same attributes in the same order.


def oracle(message_class, fields, attributes):
    message = message_class()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)[NLMSGHDR.size :]


def test_route_as_pyroute2_encodes_it():
    route = Route(
        IPv4Network("10.244.1.0/24"),
        gateway=IPv4Address("10.0.0.2"),
        link="flannel.1",
        onlink=True,
        source=IPv4Address("10.0.0.1"),
        mtu_bytes=1400,
        metric=5,
        table=1000,
    )
    assert encode_route(route, index_of) == oracle(
        rtmsg,
        {"family": 2, "dst_len": 24, "table": 0, "proto": 112, "scope": 0, "type": 1, "flags": 4},
        [
            ("RTA_DST", "10.244.1.0"),
            ("RTA_GATEWAY", "10.0.0.2"),
            ("RTA_OIF", 7),
            ("RTA_TABLE", 1000),
            ("RTA_PREFSRC", "10.0.0.1"),
            ("RTA_PRIORITY", 5),
            ("RTA_METRICS", {"attrs": [("RTAX_MTU", 1400)]}),
        ],
    )


def test_ipv6_route_as_pyroute2_encodes_it():
    route = Route(IPv6Network("fd00:1::/64"), gateway=IPv6Address("fe80::1"), link="eth0")
    assert encode_route(route, index_of) == oracle(
        rtmsg,
        {"family": 10, "dst_len": 64, "table": 254, "proto": 112, "scope": 0, "type": 1, "flags": 0},
        [("RTA_DST", "fd00:1::"), ("RTA_GATEWAY", "fe80::1"), ("RTA_OIF", 2)],
    )


@pytest.mark.parametrize(("text", "family"), [("10.1.2.3/24", 2), ("fd00::3/64", 10)])
def test_address_as_pyroute2_encodes_it(text, family):
    interface = IPv4Interface(text) if family == 2 else IPv6Interface(text)
    ip, length = text.split("/")
    assert encode_address(Address("eth0", interface), index_of) == oracle(
        ifaddrmsg,
        {"family": family, "prefixlen": int(length), "flags": 2, "scope": 0, "index": 2},
        [("IFA_LOCAL", ip), ("IFA_ADDRESS", ip), ("IFA_PROTO", 112)],
    )


@pytest.mark.parametrize(("ip", "family"), [(IPv4Address("10.1.2.3"), 2), (IPv6Address("fd00::3"), 10)])
def test_neighbour_as_pyroute2_encodes_it(ip, family):
    assert encode_neighbour(Neighbour("eth0", ip, "0a:58:0a:f4:00:05"), index_of) == oracle(
        ndmsg,
        {"family": family, "ifindex": 2, "state": 0x80, "flags": 0, "ndm_type": 0},
        [("NDA_DST", str(ip)), ("NDA_LLADDR", "0a:58:0a:f4:00:05"), ("NDA_PROTOCOL", 112)],
    )


def test_forwarding_entry_as_pyroute2_encodes_it():
    entry = FdbEntry("flannel.1", "0a:58:0a:f4:00:05", IPv4Address("192.0.2.1"))
    assert encode_fdb_entry(entry, index_of) == oracle(
        ndmsg,
        {"family": 7, "ifindex": 7, "state": 0x80, "flags": 2, "ndm_type": 0},
        [("NDA_LLADDR", "0a:58:0a:f4:00:05"), ("NDA_DST", "192.0.2.1")],
    )


def decoded_by_pyroute2(body):
    message = ifinfmsg(NLMSGHDR.pack(NLMSGHDR.size + len(body), uapi.RTM_NEWLINK, 0, 0, 0) + body)
    message.decode()
    return message


def test_vxlan_as_pyroute2_decodes_it():
    vxlan = Vxlan(1, 8472, underlay="eth0", local=IPv4Address("192.0.2.1"), gbp=True)
    link = Link("flannel.1", "vxlan", "0a:58:0a:f4:00:05", 1450, group=9, vxlan=vxlan)
    message = decoded_by_pyroute2(encode_new_link(link, index_of))
    info = message.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA")
    assert message.get_attr("IFLA_IFNAME") == "flannel.1"
    assert message.get_attr("IFLA_ADDRESS") == "0a:58:0a:f4:00:05"
    assert (message.get_attr("IFLA_MTU"), message.get_attr("IFLA_GROUP")) == (1450, 9)
    assert info.get_attr("IFLA_INFO_KIND") == "vxlan"
    assert (data.get_attr("IFLA_VXLAN_ID"), data.get_attr("IFLA_VXLAN_PORT")) == (1, 8472)
    assert (data.get_attr("IFLA_VXLAN_LINK"), data.get_attr("IFLA_VXLAN_LOCAL")) == (2, "192.0.2.1")
    assert data.get_attr("IFLA_VXLAN_LEARNING") == 0
    assert data.get_attr("IFLA_VXLAN_GBP") is not None


def test_small_link_requests_as_pyroute2_decodes_them():
    mode = decoded_by_pyroute2(encode_no_link_local("eth0")).get_attr("IFLA_AF_SPEC")
    assert mode.get_attr("AF_INET6").get_attr("IFLA_INET6_ADDR_GEN_MODE") == 1
    renamed = decoded_by_pyroute2(encode_rename(5, "new0"))
    assert (renamed["index"], renamed.get_attr("IFLA_IFNAME")) == (5, "new0")
    assert decoded_by_pyroute2(encode_link_name("eth0")).get_attr("IFLA_IFNAME") == "eth0"
    assert decoded_by_pyroute2(encode_link_group(3)).get_attr("IFLA_GROUP") == 3
    rest = decoded_by_pyroute2(
        encode_new_link_rest(Link("eth0", alias="a pod", master="br0"), {"br0": 9}.__getitem__)
    )
    assert (rest["flags"], rest["change"], rest.get_attr("IFLA_IFALIAS")) == (1, 1, "a pod")
    assert rest.get_attr("IFLA_MASTER") == 9
    rest = decoded_by_pyroute2(encode_new_link_rest(Link("eth0"), index_of))
    assert (rest.get_attr("IFLA_IFALIAS"), rest.get_attr("IFLA_MASTER")) == (None, None)


# Framing, and bytes that no kernel sends.


@given(st.lists(st.tuples(st.integers(0, 65535), NUMBERS, st.binary(max_size=8)), max_size=5))
def test_messages_are_read_as_they_were_written(messages):
    wire = b"".join(
        encode_message(kind, uapi.NLM_F_ACK, sequence, body + bytes(-len(body) % 4))
        for kind, sequence, body in messages
    )
    assert list(decode_messages(wire)) == [
        Message(kind, uapi.NLM_F_REQUEST | uapi.NLM_F_ACK, sequence, 0, body + bytes(-len(body) % 4))
        for kind, sequence, body in messages
    ]


def test_the_kernels_own_words_are_in_its_answer():
    request = NLMSGHDR.pack(52, uapi.RTM_NEWROUTE, 0, 1, 0)
    attribute = b"\x0b\x00\x01\x00" + b"no way\0" + b"\0"
    body = (-22).to_bytes(4, "little", signed=True) + request + attribute
    answer = decode_answer(Message(uapi.NLMSG_ERROR, 0x300, 1, 0, body))
    assert (answer.errno, answer.text) == (22, "no way")


DECODERS = [decode_route, decode_address, decode_link, decode_neighbour]
VALID = [
    encode_route(
        Route(IPv4Network("10.0.0.0/8"), IPv4Address("10.0.0.1"), "eth0", mtu_bytes=1, table=300), index_of
    ),
    encode_address(Address("eth0", IPv6Interface("fd00::1/64")), index_of),
    encode_new_link(
        Link("v", "vxlan", "0a:58:0a:f4:00:05", vxlan=Vxlan(1, 2, local=IPv6Address("::1"))), index_of
    ),
    encode_neighbour(Neighbour("eth0", IPv4Address("10.0.0.1"), "0a:58:0a:f4:00:05"), index_of),
]


@st.composite
def damaged(draw):
    """A message cut off somewhere, with a few bytes changed: further into a decoder than random bytes get."""
    body = bytearray(draw(st.sampled_from(VALID)))
    for position in draw(st.lists(st.integers(0, len(body) - 1), max_size=4)):
        body[position] = draw(BYTES)
    return bytes(body[: draw(st.integers(0, len(body)))])


@given(st.binary(max_size=200) | damaged(), st.sampled_from(DECODERS))
def test_bytes_end_in_a_value_or_a_typed_error(data, decode):
    try:
        value = decode(data, name_of)
    except MalformedMessageError:
        return
    assert value is None or isinstance(value, Route | Address | Link | Neighbour | FdbEntry)


@given(st.binary(max_size=200) | damaged())
def test_framing_ends_in_messages_or_a_typed_error(data):
    try:
        for message in decode_messages(data):
            decode_answer(message)
        is_permanent(data)
        decode_protocol(data)
    except MalformedMessageError:
        return
