"""Logged packets, decoded from bytes that the test builds by the RFCs; no bytes at all do harm."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.dataplane.netlink.attribute import MalformedMessageError, pack
from poplin.dataplane.netlink.frame import pack_text
from poplin.dataplane.nflog import decode_packet, encode_binding
from poplin.model.connection import FlowTuple
from poplin.model.flow import LoggedPacket

TCP, UDP, ICMP, ICMPV6, SCTP, GRE = 6, 17, 1, 58, 132, 47
ports = st.integers(0, 65535)
extension = st.tuples(st.sampled_from([0, 43, 60]), st.integers(0, 3))


def ipv4(source, destination, protocol, content, *, options=0, offset=0):
    head = bytes([0x45 + options, 0]) + bytes(4) + offset.to_bytes(2, "big") + bytes([64, protocol, 0, 0])
    return head + source.packed + destination.packed + bytes(4 * options) + content


def ipv6(source, destination, protocol, content, extensions=()):
    """`extensions` are (header, length in units of 8 bytes beyond the first 8)."""
    chain = [header for header, _ in extensions] + [protocol]
    body = b"".join(
        bytes([following, length]) + bytes(6 + 8 * length)
        for following, (_, length) in zip(chain[1:], extensions, strict=True)
    )
    return bytes([0x60, 0, 0, 0, 0, 0, chain[0], 64]) + source.packed + destination.packed + body + content


def fragment(following, offset):
    return bytes([following, 0]) + (offset << 3).to_bytes(2, "big") + bytes(4)


def logged(payload, prefix="p", sequence=7):
    return (
        pack_text(10, prefix)
        + pack(4, (3).to_bytes(4, "big"))
        + pack(5, (4).to_bytes(4, "big"))
        + pack(12, sequence.to_bytes(4, "big"))
        + pack(9, payload)
    )


def transport(source_port, port):
    return source_port.to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(16)


@given(
    st.ip_addresses(v=4),
    st.ip_addresses(v=4),
    ports,
    ports,
    st.sampled_from([TCP, UDP, SCTP]),
    st.integers(0, 10),
)
def test_ipv4_with_any_options(source, destination, source_port, port, protocol, options):
    payload = ipv4(source, destination, protocol, transport(source_port, port), options=options)
    assert decode_packet(logged(payload, "deny ingress x/y")) == (
        7,
        LoggedPacket(
            "deny ingress x/y",
            FlowTuple(source, destination, protocol, source_port, port),
            in_link=3,
            out_link=4,
        ),
    )


@given(
    st.ip_addresses(v=6),
    st.ip_addresses(v=6),
    ports,
    ports,
    st.sampled_from([TCP, UDP, SCTP]),
    st.lists(extension, max_size=4),
)
def test_ipv6_with_any_extension_headers(source, destination, source_port, port, protocol, extensions):
    payload = ipv6(source, destination, protocol, transport(source_port, port), extensions)
    _, packet = decode_packet(logged(payload))
    assert packet.flow == FlowTuple(source, destination, protocol, source_port, port)


A4, B4, A6, B6 = (
    IPv4Address("10.0.0.1"),
    IPv4Address("10.0.0.2"),
    IPv6Address("fd00::1"),
    IPv6Address("fd00::2"),
)


@pytest.mark.parametrize(
    ("payload", "flow", "icmp"),
    [
        (ipv4(A4, B4, ICMP, bytes([8, 0, 1, 2])), FlowTuple(A4, B4, ICMP), (8, 0)),
        (ipv6(A6, B6, ICMPV6, bytes([135, 0, 1, 2])), FlowTuple(A6, B6, ICMPV6), (135, 0)),
        (ipv4(A4, B4, GRE, bytes(8)), FlowTuple(A4, B4, GRE), None),
        # What follows a fragment's head is no transport header unless it is the first one.
        (ipv4(A4, B4, UDP, transport(1, 2), offset=0x2000), FlowTuple(A4, B4, UDP, 1, 2), None),
        (ipv4(A4, B4, UDP, transport(1, 2), offset=5), FlowTuple(A4, B4, UDP), None),
        (ipv6(A6, B6, 44, fragment(UDP, 0) + transport(1, 2)), FlowTuple(A6, B6, UDP, 1, 2), None),
        (ipv6(A6, B6, 44, fragment(UDP, 9) + transport(1, 2)), FlowTuple(A6, B6, UDP), None),
        # An authentication header counts its length in units of 4 bytes, less 2 (RFC 4302).
        (ipv6(A6, B6, 51, bytes([TCP, 4]) + bytes(22) + transport(1, 2)), FlowTuple(A6, B6, TCP, 1, 2), None),
        # The part that was copied may end before the ports.
        (ipv4(A4, B4, TCP, b"\0\1"), FlowTuple(A4, B4, TCP), None),
        (ipv6(A6, B6, 0, bytes([TCP, 30]) + bytes(20)), FlowTuple(A6, B6, TCP), None),
    ],
)
def test_what_has_no_ports_has_none(payload, flow, icmp):
    _, packet = decode_packet(logged(payload))
    assert (packet.flow, packet.icmp) == (flow, icmp)


def test_what_is_not_of_ip_is_counted_and_no_packet():
    assert decode_packet(logged(b"\x00\x01\x08\x00")) == (7, None)
    assert decode_packet(logged(b"")) == (7, None)


@given(st.binary(max_size=120), st.binary(max_size=200))
def test_any_bytes_are_a_packet_or_malformed(content, attributes):
    for one in (attributes, logged(content), logged(b"\x45" + content), logged(b"\x60" + content)):
        try:
            decode_packet(one)
        except MalformedMessageError:
            continue


def test_the_binding_names_its_group():
    request = encode_binding(9, 0x1234)
    assert request[4:6] == (0x401).to_bytes(2, "little")
    assert request[18:20] == b"\x12\x34"


def test_addresses_are_of_their_family():
    _, packet = decode_packet(logged(ipv6(A6, B6, TCP, transport(1, 2))))
    assert packet.flow.source == ip_address("fd00::1")
