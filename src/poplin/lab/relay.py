"""A TCP relay: an API server somewhere else, reached at a listening socket of the fabric."""

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10


async def relay(listeners: Sequence[socket.socket], host: str, port: int) -> None:
    """Carry each connection to `host`:`port` until cancelled."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward = await asyncio.open_connection(host, port)
        except OSError as error:
            log.warning("API server not reached", extra={"server": f"{host}:{port}", "error": str(error)})
            writer.close()
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_carry(reader, onward[1]), name="relay to the server")
            tasks.create_task(_carry(onward[0], writer), name="relay from the server")

    servers = [await asyncio.start_server(serve, sock=one, backlog=1024) for one in listeners]
    try:
        await asyncio.Event().wait()
    finally:
        for server in servers:
            server.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # A connection that breaks is closed on the other side too; there is nobody to tell.
    with suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
