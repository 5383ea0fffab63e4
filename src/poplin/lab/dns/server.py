"""The sockets: UDP, and TCP for what is too long (RFC 7766)."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

from poplin.lab.dns.answer import TCP_BYTES, answer
from poplin.lab.dns.zone import Zone

PORT: Final = 53
IDLE_S: Final = 10.0
CONNECTIONS: Final = 256
"""TCP connections at once; a client beyond them is turned away, and asks again."""


class Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """See asyncio."""
        reply = answer(self._zone, data)
        if reply is not None:
            self._transport.sendto(reply, addr)


class Streams:
    """Answers the queries of TCP connections, one after the other."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection."""
        if len(self._tasks) >= CONNECTIONS:
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="DNS over TCP")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until it ends or idles. A client that goes away, or says half a message, is no matter of ours."""
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                while await self._answer_one(reader, writer):
                    pass
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with asyncio.timeout(IDLE_S):
            size = int.from_bytes(await reader.readexactly(2))
            reply = answer(self._zone, await reader.readexactly(size), TCP_BYTES)
            if reply is not None:
                writer.write(len(reply).to_bytes(2) + reply)
                await writer.drain()
        return reply is not None


@asynccontextmanager
async def serving(zone: Zone, port: int = PORT, host: str = "") -> AsyncIterator[int]:
    """Answer at an address, "" for all of them in both families, until the context ends; the port that it is."""
    loop = asyncio.get_running_loop()
    stream = _bind(socket.SOCK_STREAM, host, port)
    port = stream.getsockname()[1]
    datagrams = _bind(socket.SOCK_DGRAM, host, port)
    transport, _ = await loop.create_datagram_endpoint(lambda: Datagrams(zone), sock=datagrams)
    streams = Streams(zone)
    server = await asyncio.start_server(streams.accept, sock=stream)
    try:
        yield port
    finally:
        transport.close()
        server.close()
        await streams.close()


def _bind(kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    """A bound socket, for both families where no address is given and the kernel has IPv6."""
    family = socket.AF_INET if "." in host or not socket.has_dualstack_ipv6() else socket.AF_INET6
    one = socket.socket(family, kind)
    if family == socket.AF_INET6 and not host:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((host, port))
    return one
