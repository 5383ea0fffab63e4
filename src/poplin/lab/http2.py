"""As much of HTTP/2 (RFC 9113) and gRPC as a health check takes (grpc.health.v1, "GRPC Health Checking Protocol").

Headers are sent without compression (RFC 7541, 6.2.2) and never decoded: of those received, it is enough to
find the path, written either plainly or in the Huffman code.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
CONTINUATION: Final = 9
ACK: Final = 1
END_STREAM: Final = 1
END_HEADERS: Final = 4
MAX_FRAME_BYTES: Final = 16_384
"""SETTINGS_MAX_FRAME_SIZE's initial value, which we leave as it is."""

CHECK: Final = b"/grpc.health.v1.Health/Check"
CHECK_HUFFMAN: Final = bytes.fromhex("626b2b22f394742675fb857c651d099d8bd3949d7f")
SERVING: Final = 1
UNIMPLEMENTED: Final = 12
"""gRPC's code for a method that the server has not."""

_HEAD: Final = Struct(">HBBBI")
_STATUS_200: Final = b"\x88"
"""Entry 8 of the static table: ":status: 200"."""


class Frame(NamedTuple):
    """A frame of a stream; stream 0 is the connection itself."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def encode_frame(frame: Frame) -> bytes:
    """The frame on the wire."""
    length = len(frame.payload)
    return _HEAD.pack(length >> 8, length & 0xFF, frame.kind, frame.flags, frame.stream) + frame.payload


class FrameReader:
    """Bytes as they come -> frames. Raises ValueError for a frame larger than we allow."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(self._buffer)
            length = high << 8 | low
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                return
            payload, self._buffer = self._buffer[_HEAD.size : end], self._buffer[end:]
            yield Frame(kind, flags, stream & 0x7FFFFFFF, payload)


class HealthServer:
    """The server's side of one connection, after the preface. What it answers to bytes is bytes."""

    def __init__(self) -> None:
        self._frames = FrameReader()
        self._calls: dict[int, bytes] = {}

    def start(self) -> bytes:
        """What the server says first."""
        return encode_frame(Frame(SETTINGS, 0, 0, b""))

    def feed(self, data: bytes) -> bytes:
        """The answer to what has come. Raises ValueError where it is no HTTP/2."""
        return b"".join(self._answer(frame) for frame in self._frames.feed(data))

    def _answer(self, frame: Frame) -> bytes:
        if frame.kind == SETTINGS and not frame.flags & ACK:
            return encode_frame(Frame(SETTINGS, ACK, 0, b""))
        if frame.kind == PING and not frame.flags & ACK:
            return encode_frame(Frame(PING, ACK, 0, frame.payload))
        if frame.kind == RST_STREAM:
            self._calls.pop(frame.stream, None)
        if frame.kind in {HEADERS, CONTINUATION}:
            self._calls[frame.stream] = self._calls.get(frame.stream, b"") + frame.payload
        # The message itself is not looked at: every service is served here.
        if frame.kind in {HEADERS, DATA} and frame.flags & END_STREAM and frame.stream in self._calls:
            return answer_call(frame.stream, self._calls.pop(frame.stream))
        return b""


def answer_call(stream: int, headers: bytes) -> bytes:
    """The whole answer to a call with these (encoded) headers."""
    first = _STATUS_200 + encode_header("content-type", "application/grpc")
    if CHECK not in headers and CHECK_HUFFMAN not in headers:
        trailer = first + encode_header("grpc-status", str(UNIMPLEMENTED))
        return encode_frame(Frame(HEADERS, END_HEADERS | END_STREAM, stream, trailer))
    answer = encode_message(bytes((0x08, SERVING)))
    trailer = encode_header("grpc-status", "0")
    return (
        encode_frame(Frame(HEADERS, END_HEADERS, stream, first))
        + encode_frame(Frame(DATA, 0, stream, answer))
        + encode_frame(Frame(HEADERS, END_HEADERS | END_STREAM, stream, trailer))
    )


def encode_check(authority: str, service: str = "") -> bytes:
    """All that a client sends to call Health/Check once."""
    name = service.encode()[:127]
    # HealthCheckRequest.service is field 1, a string; an empty one is left out.
    request = bytes((0x0A, len(name))) + name if name else b""
    headers = b"".join(
        (
            b"\x83\x86",  # ":method: POST" and ":scheme: http" of the static table
            encode_header(":path", CHECK.decode()),
            encode_header(":authority", authority),
            encode_header("content-type", "application/grpc"),
            encode_header("te", "trailers"),
        )
    )
    return (
        PREFACE
        + encode_frame(Frame(SETTINGS, 0, 0, b""))
        + encode_frame(Frame(HEADERS, END_HEADERS, 1, headers))
        + encode_frame(Frame(DATA, END_STREAM, 1, encode_message(request)))
    )


def read_health(frames: list[Frame]) -> int | None:
    """HealthCheckResponse.status among the frames of an answer, None where there is none (1 is SERVING).

    A message is a flag byte, four bytes of length, then field 1 as a varint; a default value is left out.
    """
    data = b"".join(frame.payload for frame in frames if frame.kind == DATA and frame.stream == 1)
    if len(data) < 5:
        return None
    message = data[5 : 5 + int.from_bytes(data[1:5], "big")]
    return message[1] if len(message) >= 2 and message[0] == 0x08 else 0


def encode_message(message: bytes) -> bytes:
    """A gRPC message, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def encode_header(name: str, value: str) -> bytes:
    """A header field in the plainest of HPACK's forms: literal, new name, not indexed (RFC 7541, 6.2.2)."""
    return b"\0" + _encode_text(name) + _encode_text(value)


def _encode_text(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) >= 127:
        raise ValueError("a header of 127 bytes or more")
    return bytes((len(encoded),)) + encoded
