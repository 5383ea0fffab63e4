"""Conntrack entries, decoded from bytes; no bytes at all do harm."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from poplin.dataplane.conntrack import decode_connection
from poplin.dataplane.netlink.attribute import MalformedMessageError, pack
from poplin.dataplane.nfnetlink import encode_number
from poplin.model.connection import Connection, ConnectionStatus, FlowTuple


def encode_tuple(one: FlowTuple) -> bytes:
    first = 1 if one.source.version == 4 else 3
    addresses = pack(first, one.source.packed) + pack(first + 1, one.destination.packed)
    ports = pack(2, one.source_port.to_bytes(2, "big")) + pack(3, one.destination_port.to_bytes(2, "big"))
    return pack(1, addresses) + pack(2, pack(1, bytes([one.protocol])) + ports)


def flow(source: str, source_port: int, destination: str, destination_port: int) -> FlowTuple:
    return FlowTuple(ip_address(source), ip_address(destination), 6, source_port, destination_port)


SERVED = {
    4: (flow("10.0.0.1", 4000, "10.96.0.1", 80), flow("10.0.0.9", 8080, "10.0.0.1", 4000)),
    6: (flow("fd00::1", 4000, "fd00:96::1", 80), flow("fd00::9", 8080, "fd00::1", 4000)),
}


def test_an_entry_says_both_directions():
    for original, reply in SERVED.values():
        key = encode_tuple(original)
        entry = (
            pack(1, key)
            + pack(2, encode_tuple(reply))
            + encode_number(3, 0x2E)
            + encode_number(8, 0x10000005)
        )
        status = ConnectionStatus(0x2E)
        assert decode_connection(entry) == Connection(original, reply, status, 0x10000005, key)
        assert ConnectionStatus.DESTINATION_NAT in status


def test_another_zones_entry_is_left_out():
    original, reply = SERVED[4]
    entry = pack(1, encode_tuple(original)) + pack(2, encode_tuple(reply))
    assert decode_connection(entry) is not None
    assert decode_connection(entry + pack(18, b"\0\7")) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_malformed(content):
    nested = pack(1, content) + pack(2, content)
    for attributes in (content, nested, pack(1, pack(1, content) + pack(2, content)) + nested):
        try:
            decode_connection(attributes)
        except MalformedMessageError:
            continue
