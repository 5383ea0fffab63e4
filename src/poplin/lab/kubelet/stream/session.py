"""One client's session with a console, over a WebSocket: kubectl exec and attach."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import msgspec
from aiohttp import WSMsgType, web

from poplin.lab.kubelet.stream.channel import Channel, ChannelError, Size, decode, encode
from poplin.lab.kubelet.stream.console import Console

log = logging.getLogger(__name__)

LINGER_S: Final = 2.0
"""How long the output of a process that has ended is waited for: a child of its may hold it open for ever."""


async def carry(socket: web.WebSocketResponse, console: Console) -> None:
    """Carry everything in both directions until either side ends; the client is told how the process did."""
    tasks: list[asyncio.Task[None]] = []
    taking = asyncio.create_task(_take_input(socket, console), name="input of a stream session")
    outputs = [
        asyncio.create_task(_send_output(socket, channel, output), name=f"output {channel.name}")
        for channel, output in console.outputs.items()
    ]
    waiting = asyncio.create_task(console.wait(), name="end of a stream session")
    tasks = [taking, *outputs]
    try:
        await asyncio.wait([waiting, taking], return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            if outputs:
                await asyncio.wait(outputs, timeout=LINGER_S)
            with suppress(ConnectionError):
                await socket.send_bytes(encode(Channel.STATUS, msgspec.json.encode(waiting.result())))
                await socket.close()
    finally:
        waiting.cancel()
        for task in tasks:
            task.cancel()
        console.close()
        await asyncio.gather(waiting, *tasks, return_exceptions=True)


async def _take_input(socket: web.WebSocketResponse, console: Console) -> None:
    async for message in socket:
        if message.type is not WSMsgType.BINARY:
            continue
        try:
            said = decode(message.data)
        except ChannelError as error:
            log.info("stream session ended", extra={"error": str(error)})
            await socket.close(code=1002, message=str(error).encode())
            return
        if isinstance(said, Size):
            console.resize(said)
        elif said is not None:
            await console.write(said.data)


async def _send_output(socket: web.WebSocketResponse, channel: Channel, output: AsyncIterator[bytes]) -> None:
    # A client that has gone is noticed by whoever takes its input.
    with suppress(ConnectionError):
        async for data in output:
            await socket.send_bytes(encode(channel, data))
