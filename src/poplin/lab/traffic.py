"""A flow that goes on while something is done to the network, and what it lost meanwhile."""

import asyncio
import os
import socket
import struct
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Final

from poplin.dataplane.netns import in_namespace, open_netns
from poplin.lab.probing import Probe, Protocol, open_socket

CONNECT_S: Final = 2.0
GRACE_S: Final = 0.5
"""How long after the last message its echo may come."""

_MARK: Final = b"flow"
_MESSAGE: Final = struct.Struct("!4sI")
_CHUNK_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class FlowReport:
    """A flow at its end: messages sent and echoed, and the longest time without an echo.

    `broken` says what ended it before its time, "" where it lived.
    """

    flow: Probe
    sent: int
    received: int
    longest_gap_s: float
    broken: str = ""

    @property
    def whole(self) -> bool:
        """Whether it lived and nothing of it was lost."""
        return not self.broken and 0 < self.sent == self.received


async def run_flow(flow: Probe, stop: asyncio.Event, *, interval_s: float) -> FlowReport:
    """Send a numbered message every `interval_s` to an echo server until `stop`, and count what comes back.

    With TCP all of it is one connection. Raises KernelError where the namespace is not there.
    """
    netns_fd = open_netns(flow.netns)
    try:
        sending = in_namespace(netns_fd, lambda: open_socket(flow.protocol, flow.address.version))
    finally:
        os.close(netns_fd)
    with closing(sending):
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(sending, (str(flow.address), flow.port))
        except OSError as error:
            return FlowReport(flow, 0, 0, 0, f"cannot connect: {error.strerror or 'no answer'}")
        return await _Flow(flow, sending).run(stop, interval_s)


@dataclass(slots=True)
class _Flow:
    """A flow under way. `broken` is what either direction met with."""

    flow: Probe
    sending: socket.socket
    sent: int = 0
    broken: str = ""
    longest_gap_s: float = 0
    latest_s: float = field(default_factory=time.monotonic)
    echoed: set[int] = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, stop: asyncio.Event, interval_s: float) -> FlowReport:
        reading = asyncio.create_task(self._read(), name=f"echoes from {self.flow.address}")
        try:
            await self._send(stop, interval_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await self._catch_up()
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - self.latest_s)
        return FlowReport(self.flow, self.sent, len(self.echoed), self.longest_gap_s, self.broken)

    async def _catch_up(self) -> None:
        while len(self.echoed) < self.sent and not self.broken:
            self.news.clear()
            await self.news.wait()

    async def _send(self, stop: asyncio.Event, interval_s: float) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while not stop.is_set() and not self.broken:
            try:
                await loop.sock_sendall(self.sending, _MESSAGE.pack(_MARK, self.sent))
            except OSError as error:
                self.broken = str(error.strerror)
                return
            self.sent += 1
            due_s += interval_s
            await asyncio.sleep(max(0, due_s - loop.time()))

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        rest = b""
        while not self.broken:
            try:
                data = await loop.sock_recv(self.sending, _CHUNK_BYTES)
            except OSError as error:
                self.broken = str(error.strerror)
                return
            if not data:
                self.broken = "closed by the other end"
                return
            rest = self._take(rest + data)
            self.news.set()

    def _take(self, data: bytes) -> bytes:
        """Count the messages in `data` and return what may be the beginning of one."""
        while (start := data.find(_MARK)) >= 0 and len(data) - start >= _MESSAGE.size:
            now_s = time.monotonic()
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.latest_s)
            self.latest_s = now_s
            self.echoed.add(_MESSAGE.unpack_from(data, start)[1])
            data = data[start + _MESSAGE.size :]
        # A datagram is whole; of a stream the server's own first lines are passed over here.
        return data[-_MESSAGE.size :] if self.flow.protocol is Protocol.TCP else b""
