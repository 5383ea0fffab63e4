"""Framing of netlink messages: headers and answers, and the attribute values that links to routes share. Pure.

Source: Documentation/userspace-api/netlink/intro.rst, include/uapi/linux/netlink.h. Everything is in the
host's byte order and padded to four bytes; lengths leave the last padding out.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final, ParamSpec, TypeVar, cast

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import MalformedMessageError, pack, parse
from poplin.model.kernel import IPAddress

P = ParamSpec("P")
T = TypeVar("T")

NameOf = Callable[[int], str]
"""The name of the link of this index."""

IndexOf = Callable[[str], int]
"""The index of the link of this name."""

NLMSGHDR: Final = Struct("=IHHII")
"""Length, type, flags, sequence, port."""

U32: Final = Struct("=I")
_I32: Final = Struct("=i")
_HEADER_BYTES: Final = NLMSGHDR.size


@dataclass(frozen=True, slots=True)
class Message:
    """One message without its header. `port` is the socket whose request this answers or follows, 0 for none."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """NLMSG_ERROR or NLMSG_DONE: `errno` is positive, 0 for success; `text` is the kernel's own, or ""."""

    errno: int
    text: str


def decoder(function: Callable[P, T]) -> Callable[P, T]:
    """Make every way in which bytes can be wrong a MalformedMessageError."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (struct.error, ValueError) as error:
            raise MalformedMessageError(f"{function.__name__}: {error}") from error

    return checked


def encode_message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A request. The body of every message of ours is a multiple of four bytes."""
    return NLMSGHDR.pack(_HEADER_BYTES + len(body), kind, flags | uapi.NLM_F_REQUEST, sequence, 0) + body


def decode_messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. Raises MalformedMessageError where one is cut short."""
    offset = 0
    end = len(data)
    while end - offset >= _HEADER_BYTES:
        length, kind, flags, sequence, port = NLMSGHDR.unpack_from(data, offset)
        if length < _HEADER_BYTES or offset + length > end:
            raise MalformedMessageError(f"netlink message of {length} bytes where {end - offset} are left")
        yield Message(kind, flags, sequence, port, data[offset + _HEADER_BYTES : offset + length])
        offset += (length + 3) & ~3


@decoder
def decode_answer(message: Message) -> Answer:
    """What NLMSG_ERROR or NLMSG_DONE says, on a socket with NETLINK_CAP_ACK and NETLINK_EXT_ACK."""
    (error,) = _I32.unpack_from(message.body)
    text = ""
    if message.flags & uapi.NLM_F_ACK_TLVS:
        # NLMSG_ERROR quotes the header of the request before its own attributes; NLMSG_DONE does not.
        quoted = _HEADER_BYTES if message.kind == uapi.NLMSG_ERROR else 0
        text = unpack_text(parse(message.body, _I32.size + quoted).get(uapi.NLMSGERR_ATTR_MSG, b""))
    return Answer(-error, text)


def pack_u32(kind: int, number: int) -> bytes:
    """An attribute that is a number of 32 bits."""
    return pack(kind, U32.pack(number))


def unpack_u32(value: bytes) -> int:
    """The number in an attribute of 32 bits. Raises struct.error for another length."""
    return cast("int", U32.unpack(value)[0])


def pack_text(kind: int, text: str) -> bytes:
    """A string attribute, with its terminating zero."""
    return pack(kind, text.encode("utf-8", "surrogateescape") + b"\0")


def unpack_text(value: bytes) -> str:
    """A string; an interface's name may be any bytes, so what is not UTF-8 is kept escaped."""
    return value.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def pack_mac(kind: int, mac: str) -> bytes:
    """A link-layer address from "0a:58:0a:f4:00:05"."""
    return pack(kind, bytes.fromhex(mac.replace(":", "")))


def unpack_mac(value: bytes) -> str:
    """A link-layer address as text, "" where there is none."""
    return value.hex(":") if value else ""


def unpack_ip(value: bytes) -> IPAddress:
    """An address of either family, told by its length. Raises ValueError for another length."""
    return IPv4Address(value) if len(value) == 4 else IPv6Address(value)


def family(ip_version: int) -> int:
    """AF_INET or AF_INET6 for the `version` of an ipaddress object."""
    return uapi.AF_INET if ip_version == 4 else uapi.AF_INET6
