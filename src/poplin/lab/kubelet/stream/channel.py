"""The channels of exec and attach in a WebSocket: one byte names the channel, the rest is its data. Pure.

https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/4006-transition-spdy-to-websockets
(v5.channel.k8s.io, which is v4.channel.k8s.io and a message that closes a channel).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import msgspec

PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""What a client may ask for, best first."""


class Channel(IntEnum):
    """What a message is about. CLOSE is followed by the channel that its sender will not use again."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    STATUS = 3
    RESIZE = 4
    CLOSE = 255


class ChannelError(ValueError):
    """A message that no client sends."""


@dataclass(frozen=True, slots=True)
class Size:
    """A terminal's, in characters."""

    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Input:
    """For standard input; no data: its end."""

    data: bytes


def decode(message: bytes) -> Input | Size | None:
    """What a client says, None where it is nothing. Raises ChannelError."""
    if not message:
        return None
    match message[0]:
        case Channel.STDIN:
            # An empty message only wakes the connection.
            return Input(message[1:]) if len(message) > 1 else None
        case Channel.RESIZE:
            return _decode_size(message[1:])
        case Channel.CLOSE if message[1:] == bytes([Channel.STDIN]):
            return Input(b"")
    raise ChannelError(f"a message for channel {message[0]}")


class _Resize(msgspec.Struct):
    width: int = msgspec.field(name="Width")
    height: int = msgspec.field(name="Height")


def _decode_size(data: bytes) -> Size | None:
    try:
        size = msgspec.json.decode(data, type=_Resize)
    except msgspec.DecodeError as error:
        raise ChannelError(f"a terminal's size that cannot be read: {error}") from None
    if not (0 < size.width < 1 << 16 and 0 < size.height < 1 << 16):
        return None
    return Size(size.width, size.height)


def encode(channel: Channel, data: bytes) -> bytes:
    """A message to the client."""
    return bytes([channel]) + data


def make_status(code: int) -> dict[str, Any]:
    """What the status channel says of a command that ended with `code`."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def make_failure(message: str) -> dict[str, Any]:
    """What the status channel says of a command or connection that failed for a reason of ours."""
    return {
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    }
