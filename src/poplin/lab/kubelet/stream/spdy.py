"""SPDY/3.1 frames, bytes to values and back. Pure; what kubectl port-forward speaks inside a WebSocket.

https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/ . Settings, window updates and
priorities of the other side are taken in and mean nothing here: the peers that are left (moby/spdystream)
do not use flow control.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

VERSION: Final = 3
FIN: Final = 0x01
MAX_FRAME_BYTES: Final = (1 << 24) - 1
_HEADER: Final = struct.Struct("!II")
_NUMBER: Final = struct.Struct("!I")
_PAIR: Final = struct.Struct("!II")
_STREAM_BITS: Final = 0x7FFFFFFF

_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age "
    "allow authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200+OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_TAIL: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _make_dictionary() -> bytes:
    words = [word.replace("+", " ").encode() for word in _WORDS.split()]
    return b"".join(_NUMBER.pack(len(word)) + word for word in words) + _TAIL.encode()


DICTIONARY: Final = _make_dictionary()
"""What both sides' header compressors have seen before the first header (section 2.6.10.1)."""


class Kind(IntEnum):
    """Types of control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Reset(IntEnum):
    """Why a stream is reset (section 2.4.2)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    INTERNAL_ERROR = 6
    STREAM_ALREADY_CLOSED = 9


class SpdyError(ValueError):
    """The bytes are no SPDY/3.1."""


@dataclass(frozen=True, slots=True)
class Syn:
    """A stream begins: SYN_STREAM, or SYN_REPLY where `reply`. `fin`: its sender will send nothing on it."""

    stream: int
    headers: Mapping[str, str] = field(default_factory=dict)
    fin: bool = False
    reply: bool = False


@dataclass(frozen=True, slots=True)
class Headers:
    """More headers of a stream."""

    stream: int
    headers: Mapping[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream."""

    stream: int
    data: bytes
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Rst:
    """A stream ends at once, in both directions. `status` is a Reset."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class Ping:
    """To be sent back as it is by the side that did not begin it."""

    number: int


@dataclass(frozen=True, slots=True)
class GoAway:
    """The sender takes no streams after `last`; `status` 0 where nothing is wrong."""

    last: int
    status: int = 0


Frame = Syn | Headers | Data | Rst | Ping | GoAway


class Encoder:
    """Frames to bytes, in the order they are sent in: the header compressor remembers."""

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(zdict=DICTIONARY)

    def encode(self, frame: Frame) -> bytes:
        match frame:
            case Data(stream, data, fin):
                if len(data) > MAX_FRAME_BYTES:
                    raise SpdyError(f"{len(data)} bytes do not fit into a frame")
                return _HEADER.pack(stream, (FIN if fin else 0) << 24 | len(data)) + data
            case Syn(stream, headers, fin, reply):
                # A SYN_STREAM has an associated stream, a priority and a slot, all zero.
                head = _NUMBER.pack(stream) + (b"" if reply else bytes(6))
                kind = Kind.SYN_REPLY if reply else Kind.SYN_STREAM
                return _control(kind, head + self._compress(headers), fin=fin)
            case Headers(stream, headers, fin):
                return _control(Kind.HEADERS, _NUMBER.pack(stream) + self._compress(headers), fin=fin)
            case Rst(stream, status):
                return _control(Kind.RST_STREAM, _PAIR.pack(stream, status))
            case Ping(number):
                return _control(Kind.PING, _NUMBER.pack(number))
            case GoAway(last, status):
                return _control(Kind.GOAWAY, _PAIR.pack(last, status))

    def _compress(self, headers: Mapping[str, str]) -> bytes:
        block = bytearray(_NUMBER.pack(len(headers)))
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                block += _NUMBER.pack(len(text)) + text
        return self._compressor.compress(block) + self._compressor.flush(zlib.Z_SYNC_FLUSH)


class Decoder:
    """Bytes to frames; keeps the part of a frame that has come."""

    def __init__(self, limit_bytes: int = 1 << 20) -> None:
        self._limit_bytes = limit_bytes
        self._decompressor = zlib.decompressobj(zdict=DICTIONARY)
        self._received = bytearray()

    def decode(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with `data`. Raises SpdyError, after which nothing more can be decoded."""
        self._received += data
        while len(self._received) >= _HEADER.size:
            first, second = _HEADER.unpack_from(self._received)
            length = second & MAX_FRAME_BYTES
            if length > self._limit_bytes:
                raise SpdyError(f"a frame of {length} bytes is too large")
            if len(self._received) < _HEADER.size + length:
                return
            body = bytes(self._received[_HEADER.size : _HEADER.size + length])
            del self._received[: _HEADER.size + length]
            fin = bool(second >> 24 & FIN)
            if not first >> 31:
                yield Data(first, body, fin)
            elif first >> 16 & 0x7FFF != VERSION:
                raise SpdyError(f"version {first >> 16 & 0x7FFF} of SPDY")
            elif (frame := self._decode_control(first & 0xFFFF, body, fin=fin)) is not None:
                yield frame

    def _decode_control(self, kind: int, body: bytes, *, fin: bool) -> Frame | None:
        try:
            match kind:
                case Kind.SYN_STREAM:
                    return Syn(_stream(body), self._decompress(body[10:]), fin)
                case Kind.SYN_REPLY:
                    return Syn(_stream(body), self._decompress(body[4:]), fin, reply=True)
                case Kind.HEADERS:
                    return Headers(_stream(body), self._decompress(body[4:]), fin)
                case Kind.RST_STREAM:
                    return Rst(_stream(body), _PAIR.unpack(body)[1])
                case Kind.PING:
                    return Ping(*_NUMBER.unpack(body))
                case Kind.GOAWAY:
                    return GoAway(_stream(body), _PAIR.unpack(body)[1])
        except struct.error as error:
            raise SpdyError(f"a control frame of type {kind} is cut short") from error
        # What a receiver does not know it ignores (section 2.2.1).
        return None

    def _decompress(self, data: bytes) -> dict[str, str]:
        try:
            block = self._decompressor.decompress(data, self._limit_bytes)
        except zlib.error as error:
            raise SpdyError(f"headers cannot be decompressed: {error}") from error
        (count,) = _NUMBER.unpack_from(block)
        headers, at = {}, _NUMBER.size
        for _ in range(count):
            name, at = _text(block, at)
            headers[name], at = _text(block, at)
        return headers


def _control(kind: Kind, body: bytes, *, fin: bool = False) -> bytes:
    return _HEADER.pack(1 << 31 | VERSION << 16 | kind, (FIN if fin else 0) << 24 | len(body)) + body


def _stream(body: bytes) -> int:
    number: int = _NUMBER.unpack_from(body)[0]
    return number & _STREAM_BITS


def _text(block: bytes, at: int) -> tuple[str, int]:
    (length,) = _NUMBER.unpack_from(block, at)
    end = at + _NUMBER.size + length
    if end > len(block):
        raise SpdyError("a header is cut short")
    return block[at + _NUMBER.size : end].decode(errors="replace"), end
