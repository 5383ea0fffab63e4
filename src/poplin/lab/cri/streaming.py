"""The streams of a command or container, from the runtime's streaming server: SPDY/3.1 after an HTTP upgrade.

Of the two protocols that the server speaks, SPDY is the one that can say that there is no more input. It
listens on the node's 127.0.0.1, so it is reached from the node's network namespace.
Source: k8s.io/kubelet's remotecommand, "v4.channel.k8s.io"; the names of streams are its headers.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from poplin.dataplane.netns import in_namespace
from poplin.lab.cri.client import CriError
from poplin.lab.kubelet.stream.channel import Channel, Size, make_failure, make_status
from poplin.lab.kubelet.stream.spdy import Data, Decoder, Encoder, Frame, Ping, Rst, SpdyError, Syn

PROTOCOL: Final = "v4.channel.k8s.io"
STREAMS: Final = {
    Channel.STATUS: "error",
    Channel.STDIN: "stdin",
    Channel.STDOUT: "stdout",
    Channel.STDERR: "stderr",
    Channel.RESIZE: "resize",
}
CHUNK_BYTES: Final = 64 << 10
WAITING_CHUNKS: Final = 16
"""How much output waits for a client that does not read before the command waits as well."""


@dataclass(slots=True, eq=False)
class Output:
    """What comes on one stream; an empty chunk is its end."""

    chunks: "asyncio.Queue[bytes]" = field(default_factory=lambda: asyncio.Queue(WAITING_CHUNKS))

    async def read(self) -> AsyncIterator[bytes]:
        """Chunks until the end."""
        while data := await self.chunks.get():
            yield data


class RemoteConsole:
    """A Console (see kubelet.stream.console) at the other end of a connection. `open` makes one."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, channels: list[Channel]
    ) -> None:
        self._reader, self._writer = reader, writer
        self._encoder = Encoder()
        # A client's streams have odd numbers, in the order of their beginning.
        self._numbers = {channel: 2 * index + 1 for index, channel in enumerate(channels)}
        self._outputs = {
            channel: Output() for channel in channels if channel in {Channel.STDOUT, Channel.STDERR}
        }
        self._status = b""
        self._open = {Channel.STATUS, *self._outputs}
        for channel in channels:
            self._send(Syn(self._numbers[channel], {"streamtype": STREAMS[channel]}))
        self._reading = asyncio.create_task(self._read(), name="streams of a container")

    @classmethod
    async def open(cls, url: str, netns_fd: int, *, stdin: bool, tty: bool) -> "RemoteConsole":
        """Connect to what `Cri.exec_url` gave, from the node's namespace. Raises CriError."""
        where = urlsplit(url)
        connection = in_namespace(netns_fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (where.hostname, where.port))
            reader, writer = await asyncio.open_connection(sock=connection)
            writer.write(
                f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: Upgrade\r\n"
                f"Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {PROTOCOL}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            connection.close()
            raise CriError(f"no streams: {error}", where=where.netloc) from error
        if " 101 " not in head.partition("\r\n")[0]:
            writer.close()
            raise CriError(f"no streams: {head.partition(chr(13))[0]}", where=where.netloc)
        channels = [Channel.STATUS, *([Channel.STDIN] if stdin else []), Channel.STDOUT]
        channels.append(Channel.RESIZE if tty else Channel.STDERR)
        return cls(reader, writer, channels)

    @property
    def outputs(self) -> Mapping[Channel, AsyncIterator[bytes]]:
        """See Console; to be taken once."""
        return {channel: output.read() for channel, output in self._outputs.items()}

    async def write(self, data: bytes) -> None:
        """See Console."""
        if Channel.STDIN in self._numbers:
            with suppress(ConnectionError):
                self._send(Data(self._numbers[Channel.STDIN], data, fin=not data))
                await self._writer.drain()

    def resize(self, size: Size) -> None:
        """See Console."""
        if Channel.RESIZE in self._numbers:
            text = msgspec.json.encode({"Width": size.columns, "Height": size.rows})
            self._send(Data(self._numbers[Channel.RESIZE], text))

    async def wait(self) -> dict[str, Any]:
        """See Console. An attached container's end has no status of its own, which counts as success."""
        await asyncio.wait({self._reading})
        if not self._status:
            return make_status(0)
        try:
            return msgspec.json.decode(self._status, type=dict[str, Any])
        except msgspec.DecodeError:
            return make_failure(self._status.decode(errors="replace"))

    def close(self) -> None:
        """See Console."""
        self._reading.cancel()
        self._writer.close()

    def _send(self, frame: Frame) -> None:
        self._writer.write(self._encoder.encode(frame))

    async def _read(self) -> None:
        decoder = Decoder()
        # Whatever breaks the connection ends the streams.
        with suppress(OSError, SpdyError):
            while self._open and (data := await self._reader.read(CHUNK_BYTES)):
                for frame in decoder.decode(data):
                    await self._take(frame)
        for channel in list(self._open):
            await self._end(channel)

    async def _take(self, frame: Frame) -> None:
        match frame:
            case Data(stream, data, fin):
                channel = self._channel(stream)
                if channel is Channel.STATUS:
                    self._status += data
                elif channel in self._outputs and data:
                    await self._outputs[channel].chunks.put(data)
                if fin:
                    await self._end(channel)
            case Rst(stream, _) | Syn(stream, fin=True):
                await self._end(self._channel(stream))
            case Ping(number) if number % 2 == 0:
                self._send(frame)

    def _channel(self, stream: int) -> Channel | None:
        return next((channel for channel, number in self._numbers.items() if number == stream), None)

    async def _end(self, channel: Channel | None) -> None:
        if channel in self._open:
            self._open.discard(channel)
            if channel in self._outputs:
                await self._outputs[channel].chunks.put(b"")
