"""A command's streams from the container runtime's streaming server: channels over a WebSocket.

The server listens on the node's 127.0.0.1, so it is reached from the node's network namespace. It speaks
v4.channel.k8s.io (k8s.io/kubelet's remotecommand): a byte names the channel, the rest is data.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from poplin.dataplane.netns import in_namespace
from poplin.lab.cri.client import CriError

PROTOCOL: Final = "v4.channel.k8s.io"


class Channel(IntEnum):
    """What a message is about."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    STATUS = 3
    RESIZE = 4


class CommandStreams:
    """A command that runs in a container."""

    def __init__(self, web_socket: aiohttp.ClientWebSocketResponse) -> None:
        self._web_socket = web_socket
        self.exit_code: int | None = None
        """Once `output` has ended: the command's exit status, None where the runtime could not run it."""
        self.message = ""
        """Why it could not be run."""

    async def write(self, data: bytes) -> None:
        """Give the command input. This protocol cannot say that there is no more."""
        await self._web_socket.send_bytes(bytes([Channel.STDIN]) + data)

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the command its terminal's size, in characters."""
        size = msgspec.json.encode({"Width": columns, "Height": rows})
        await self._web_socket.send_bytes(bytes([Channel.RESIZE]) + size)

    async def output(self) -> AsyncIterator[tuple[Channel, bytes]]:
        """(STDOUT or STDERR, data) until the command ends; with a terminal all is STDOUT."""
        async for message in self._web_socket:
            data = message.data.encode() if isinstance(message.data, str) else message.data
            if not data:
                continue
            channel = Channel(data[0])
            if channel is Channel.STATUS:
                self.exit_code, self.message = read_status(data[1:])
            elif len(data) > 1:
                yield channel, data[1:]


@asynccontextmanager
async def open_streams(url: str, netns_fd: int) -> AsyncIterator[CommandStreams]:
    """Connect to what `Cri.exec_url` gave, from the node's namespace. Raises CriError."""
    where = urlsplit(url)
    connection = in_namespace(netns_fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    connection.setblocking(False)

    def give(_: Any) -> socket.socket:
        return connection

    try:
        connector = aiohttp.TCPConnector(socket_factory=give)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.ws_connect(url, protocols=(PROTOCOL,)) as web_socket,
        ):
            yield CommandStreams(web_socket)
    except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError) as error:
        raise CriError(f"no streams: {error}", where=where.netloc) from error
    finally:
        connection.close()


def read_status(data: bytes) -> tuple[int | None, str]:
    """The exit status and message of a metav1.Status, as remotecommand ends a command with it."""
    status = msgspec.json.decode(data, type=dict[str, Any])
    if status.get("status") == "Success":
        return 0, ""
    causes = (status.get("details") or {}).get("causes") or ()
    codes = [int(one["message"]) for one in causes if one.get("reason") == "ExitCode"]
    return (codes[0] if codes else None), str(status.get("message") or "")
