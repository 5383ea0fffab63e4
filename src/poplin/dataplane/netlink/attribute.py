"""Netlink attributes, the type-length-value coding inside every message (linux/netlink.h, struct nlattr).

Headers are in host byte order; what a value holds is its message family's business. A length counts the
header of 4 bytes and not the padding to the next multiple of 4.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final

from poplin.model.errors import TemporaryError

HEADER: Final = Struct("=HH")
TYPE_MASK: Final = 0x3FFF
"""NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER, which carry nothing we need."""

_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")


class MalformedMessageError(TemporaryError):
    """What came over netlink is not of its message's form; reading again may find it whole."""


def pack(kind: int, value: bytes) -> bytes:
    """One attribute, padded. Raises struct.error where `value` passes 65,531 bytes."""
    size = len(value)
    return HEADER.pack(size + 4, kind) + value + _PADDING[size & 3]


def walk(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Every (type, value) from offset `start` on. Raises MalformedMessageError on a length that cannot be."""
    end = len(data)
    while start + 4 <= end:
        size, kind = HEADER.unpack_from(data, start)
        if size < 4 or start + size > end:
            raise MalformedMessageError(f"netlink attribute of {size} bytes where {end - start} are left")
        yield kind & TYPE_MASK, data[start + 4 : start + size]
        start += size + 3 & ~3


def parse(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes from offset `start` on, by type; of a repeated one the last."""
    return dict(walk(data, start))
