"""kubectl port-forward: TCP connections as pairs of SPDY streams, carried to ports of a pod.

For each connection the client opens two streams with the same `requestid` and `port`: one of `streamtype` error,
which it closes at once and on which it is told what went wrong, and one of `streamtype` data.
https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.32/#-strong-misc-operations-pod-v1-core-strong-
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from poplin.dataplane.netns import in_namespace
from poplin.lab.kubelet.stream.spdy import (
    Data,
    Decoder,
    Encoder,
    Frame,
    GoAway,
    Ping,
    Reset,
    Rst,
    SpdyError,
    Syn,
)

PROTOCOL: Final = "portforward.k8s.io"
CHUNK_BYTES: Final = 32 << 10
WAITING_FRAMES: Final = 64
"""How much of a connection waits for a pod that does not read, before the client's others wait as well."""
LOOPBACKS: Final = (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6))


@dataclass(slots=True, eq=False)
class Connection:
    """A forwarded connection: its two streams, 0 before they are there, and what the client has sent."""

    port: int
    error: int = 0
    data: int = 0
    sent: "asyncio.Queue[bytes]" = field(default_factory=lambda: asyncio.Queue(WAITING_FRAMES))
    task: "asyncio.Task[None] | None" = None


class Forwarder:
    """One client's connections into the network namespace `netns_fd`. `send` sends bytes to the client."""

    def __init__(self, netns_fd: int, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._netns_fd = netns_fd
        self._write = send
        self._encoder = Encoder()
        self._by_request: dict[str, Connection] = {}
        self._by_stream: dict[int, Connection] = {}
        self._last = 0

    async def run(self, received: AsyncIterator[bytes]) -> None:
        """Serve until the client goes. Raises SpdyError where it does not speak SPDY."""
        decoder = Decoder()
        try:
            async for data in received:
                for frame in decoder.decode(data):
                    await self._take(frame)
        except SpdyError:
            await self._send(GoAway(self._last, 1))
            raise
        finally:
            tasks = [one.task for one in self._by_request.values() if one.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, frame: Frame) -> None:
        # Encoded and handed over without a pause in between: the order is part of the compression.
        with suppress(ConnectionError):
            await self._write(self._encoder.encode(frame))

    async def _take(self, frame: Frame) -> None:
        match frame:
            case Syn(stream, headers, reply=False):
                self._last = stream
                await self._open(stream, headers.get("streamtype", ""), headers)
            case Data(stream, data, fin):
                connection = self._by_stream.get(stream)
                if connection is not None and stream == connection.data:
                    if data:
                        await connection.sent.put(data)
                    if fin:
                        await connection.sent.put(b"")
            case Rst(stream):
                connection = self._by_stream.get(stream)
                if connection is not None and stream == connection.data and connection.task is not None:
                    connection.task.cancel()
            case Ping(number) if number % 2:
                await self._send(frame)

    async def _open(self, stream: int, kind: str, headers: Mapping[str, str]) -> None:
        port, request = headers.get("port", ""), headers.get("requestid", "")
        if kind not in {"error", "data"} or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            await self._send(Rst(stream, Reset.REFUSED_STREAM))
            return
        # Clients older than request ids open the data stream right after the error stream.
        key = request or str(stream if kind == "error" else stream - 2)
        connection = self._by_request.setdefault(key, Connection(int(port)))
        setattr(connection, kind, stream)
        self._by_stream[stream] = connection
        await self._send(Syn(stream, reply=True))
        if connection.error and connection.data:
            name = f"connection to port {port} of a pod"
            connection.task = asyncio.create_task(self._serve(key, connection), name=name)

    async def _serve(self, key: str, connection: Connection) -> None:
        failure = ""
        try:
            reader, writer = await _connect(self._netns_fd, connection.port)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            failure = f"failed to connect to port {connection.port} inside the pod: {why}"
        else:
            await self._exchange(connection, reader, writer)
        finally:
            await self._send(Data(connection.error, failure.encode(), fin=True))
            if failure:
                await self._send(Data(connection.data, b"", fin=True))
            for stream in (connection.error, connection.data):
                self._by_stream.pop(stream, None)
            self._by_request.pop(key, None)
            # Whoever waits to add to it need not wait any more.
            while not connection.sent.empty():
                connection.sent.get_nowait()

    async def _exchange(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async def carry_in() -> None:
            with suppress(OSError):
                while data := await connection.sent.get():
                    writer.write(data)
                    await writer.drain()
                writer.write_eof()

        sending = asyncio.create_task(carry_in(), name=f"to port {connection.port} of a pod")
        try:
            with suppress(OSError):
                while data := await reader.read(CHUNK_BYTES):
                    await self._send(Data(connection.data, data))
            await self._send(Data(connection.data, b"", fin=True))
        finally:
            sending.cancel()
            writer.close()


async def _connect(netns_fd: int, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the pod's own loopback, IPv4 first. Raises OSError."""
    failure: OSError | None = None
    for host, family in LOOPBACKS:
        try:
            connection = in_namespace(netns_fd, partial(socket.socket, family, socket.SOCK_STREAM))
        except OSError as error:
            failure = failure or error
            continue
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, (host, port))
            return await asyncio.open_connection(sock=connection)
        except OSError as error:
            failure = failure or error
            connection.close()
    assert failure is not None  # noqa: S101  - every loopback was tried
    raise failure
