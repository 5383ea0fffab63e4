"""Packets that rules tell of (`log group N`), over nfnetlink_log.

Source: include/uapi/linux/netfilter/nfnetlink_log.h; headers by RFC 791, RFC 8200, RFC 9293, RFC 768.
"""

import errno as codes
from collections.abc import Callable
from struct import Struct
from typing import Final

from poplin.dataplane.event_socket import EventSocket
from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import pack, parse
from poplin.dataplane.netlink.frame import Message, decoder, unpack_ip, unpack_text
from poplin.dataplane.nfnetlink import (
    decode_body,
    decode_number,
    encode_number,
    encode_request,
    kernel_error,
)
from poplin.model.connection import FlowTuple
from poplin.model.flow import LoggedPacket

MSG_PACKET: Final = 0x400
MSG_CONFIG: Final = 0x401

_CFG_CMD: Final = 1
_CFG_MODE: Final = 2
_CFG_BUFFER: Final = 3
_CFG_TIMEOUT: Final = 4
_CFG_THRESHOLD: Final = 5
_CFG_FLAGS: Final = 6
_BIND: Final = 1
_COPY_PACKET: Final = 2
_FLAG_SEQUENCE: Final = 1

_IN_LINK: Final = 4
_OUT_LINK: Final = 5
_PAYLOAD: Final = 9
_PREFIX: Final = 10
_SEQUENCE: Final = 12

SNAPLEN_BYTES: Final = 128
BATCH_BYTES: Final = 8192
BATCH_PACKETS: Final = 32
"""So many packets in one datagram; fewer where BATCH_TIMEOUT passes first."""

BUFFER_BYTES: Final = 128 * 1024
"""About 1,000 packets, or 0.6 s of the fastest that is read."""

BATCH_TIMEOUT: Final = 5
"""In hundredths of a second."""

_IPV4: Final = Struct(">B8xB2x4s4s")
_IPV4_FRAGMENT: Final = Struct(">6xH")
_OFFSET_MASK: Final = 0x1FFF
_IPV6: Final = Struct(">6xBx16s16s")
_PORTS: Final = Struct(">HH")
_PORTED: Final = frozenset({6, 17, 33, 132, 136})
_ICMP: Final = frozenset({1, 58})
_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51
_EXTENSIONS: Final = frozenset({0, 43, 60, _AUTHENTICATION, 135})
"""Headers that have the next one's number first and their length after it (RFC 8200, 4; RFC 4302; RFC 6275)."""


class NflogSocket(EventSocket):
    """The packets of one group, each given to `taken`. `lost` counts those that could not be delivered.

    The kernel numbers the packets of a group, those included that it then had to drop. Raises KernelError:
    EPERM where another process has the group.
    """

    def __init__(self, group: int, taken: Callable[[LoggedPacket], None]) -> None:
        super().__init__(datagrams=1, buffer_bytes=BUFFER_BYTES)
        self._taken = taken
        self._expected: int | None = None
        self.lost = 0
        try:
            self._bind(group)
        except BaseException:
            self._socket.close()
            raise
        self.start()

    def _bind(self, group: int) -> None:
        sequence = self.next_sequence()
        self.send(encode_binding(sequence, group))
        for answered, answer in self.pending_answers():
            if answered == sequence and answer.errno:
                remedy = "end the other process that reads this group" if answer.errno == codes.EPERM else ""
                raise kernel_error(answer, where=f"nflog group {group}", remedy=remedy)

    def _take(self, message: Message) -> None:
        if message.kind != MSG_PACKET:
            return
        sequence, packet = decode_packet(decode_body(message)[1])
        if sequence is not None:
            if self._expected is not None:
                self.lost += sequence - self._expected & 0xFFFFFFFF
            self._expected = sequence + 1 & 0xFFFFFFFF
        if packet is not None:
            self._taken(packet)


def encode_binding(sequence: int, group: int) -> bytes:
    """The request that binds the socket to a group, to be told the first SNAPLEN_BYTES of each packet."""
    attributes = (
        pack(_CFG_CMD, bytes([_BIND]))
        + pack(_CFG_MODE, SNAPLEN_BYTES.to_bytes(4, "big") + bytes([_COPY_PACKET, 0]))
        + encode_number(_CFG_BUFFER, BATCH_BYTES)
        + encode_number(_CFG_TIMEOUT, BATCH_TIMEOUT)
        + encode_number(_CFG_THRESHOLD, BATCH_PACKETS)
        + pack(_CFG_FLAGS, _FLAG_SEQUENCE.to_bytes(2, "big"))
    )
    return encode_request(MSG_CONFIG, uapi.NLM_F_ACK, sequence, 0, attributes, resource=group)


@decoder
def decode_packet(attributes: bytes) -> tuple[int | None, LoggedPacket | None]:
    """The packet's number within its group, and the packet; None for one that is not of IP.

    Raises MalformedMessageError.
    """
    fields = parse(attributes)
    sequence = decode_number(fields[_SEQUENCE]) if _SEQUENCE in fields else None
    payload = fields.get(_PAYLOAD, b"")
    version = payload[0] >> 4 if payload else 0
    if version not in _HEADS:
        return sequence, None
    source, destination, protocol, start = _HEADS[version](payload)
    ports, icmp = (0, 0), None
    if start is not None:
        if protocol in _PORTED and len(payload) >= start + _PORTS.size:
            ports = _PORTS.unpack_from(payload, start)
        elif protocol in _ICMP and len(payload) >= start + 2:
            icmp = payload[start], payload[start + 1]
    packet = LoggedPacket(
        prefix=unpack_text(fields.get(_PREFIX, b"")),
        flow=FlowTuple(unpack_ip(source), unpack_ip(destination), protocol, *ports),
        icmp=icmp,
        in_link=decode_number(fields.get(_IN_LINK, b"")),
        out_link=decode_number(fields.get(_OUT_LINK, b"")),
    )
    return sequence, packet


Head = tuple[bytes, bytes, int, int | None]
"""Source, destination, protocol, and where that begins: None in a fragment that is not the first."""


def _read_ipv4(payload: bytes) -> Head:
    first, protocol, source, destination = _IPV4.unpack_from(payload)
    (fragment,) = _IPV4_FRAGMENT.unpack_from(payload)
    return source, destination, protocol, None if fragment & _OFFSET_MASK else (first & 0x0F) * 4


def _read_ipv6(payload: bytes) -> Head:
    protocol, source, destination = _IPV6.unpack_from(payload)
    start = _IPV6.size
    while protocol in _EXTENSIONS or protocol == _FRAGMENT:
        if len(payload) < start + 8:
            return source, destination, protocol, None
        following, length = payload[start], payload[start + 1]
        if protocol == _FRAGMENT:
            if int.from_bytes(payload[start + 2 : start + 4], "big") >> 3:
                return source, destination, following, None
            start += 8
        else:
            start += (length + 2) * 4 if protocol == _AUTHENTICATION else (length + 1) * 8
        protocol = following
    return source, destination, protocol, start


_HEADS: Final[dict[int, Callable[[bytes], Head]]] = {4: _read_ipv4, 6: _read_ipv6}
