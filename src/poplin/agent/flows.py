"""What policy has denied of late, and what goes on: the denials that the kernel tells of, and connections.

The nflog socket is always open, so that what was denied a minute ago can be asked for. Connections are heard of only
while somebody asks for them. Both sockets read at a bounded rate, and a reader that is too slow loses its
oldest flows: what is lost anywhere is counted, and told to who follows.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from poplin.compile.policy.denial import NFLOG_GROUP
from poplin.dataplane.conntrack import ConntrackSocket
from poplin.dataplane.conntrack_monitor import ConnectionEvent, ConntrackMonitor
from poplin.dataplane.nflog import NflogSocket
from poplin.model.connection import Connection
from poplin.model.errors import KernelError
from poplin.model.flow import Flow, FlowVerdict, LoggedPacket
from poplin.model.policy import protocol_name

log = logging.getLogger(__name__)

RECENT: Final = 1000
"""Denied flows that are kept; those that differ in the client's port or their time alone are one."""

WAITING: Final = 1000
"""Flows that may wait for one follower."""

RETRY_S: Final = 30.0
AT_ONCE: Final = 64

UNTOLD: Final = 2000
"""Packets and connections that may wait until the pods behind their addresses are known."""

Key = tuple[object, ...]
Seen = LoggedPacket | Connection
Describe = Callable[[Sequence[Seen], float], Awaitable[Sequence[Flow | None]]]
"""The flows of packets and connections seen at a time, in seconds since 1970; None for what is no pod's."""


@dataclass(slots=True, eq=False)
class Follower:
    """Flows on their way to one reader. `lost` are those since it was last told of any lost."""

    verdicts: Collection[FlowVerdict]
    flows: deque[Flow] = field(default_factory=deque)
    lost: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, flow: Flow) -> None:
        if flow.verdict in self.verdicts:
            if len(self.flows) == WAITING:
                self.flows.popleft()
                self.lost += 1
            self.flows.append(flow)
            self.news.set()

    def lose(self, flows: int) -> None:
        self.lost += flows
        self.news.set()


@dataclass(frozen=True, slots=True)
class Lost:
    """So many flows were not told, at least."""

    flows: int


class Flows:
    """One node's flows, in the network namespace of the thread that makes it; needs a running event loop."""

    def __init__(self, describe: Describe, *, now_s: Callable[[], float] = time.time) -> None:
        self._describe = describe
        self._now_s = now_s
        self._seen: deque[Seen] = deque()
        self._arrived = asyncio.Event()
        self._recent: OrderedDict[Key, Flow] = OrderedDict()
        self._followers: set[Follower] = set()
        self._monitor: ConntrackMonitor | None = None
        self._overruns = 0
        self._untold = 0
        self._closed = False
        self._problem: KernelError | None = None

    @property
    def problems(self) -> list[str]:
        """Why denials are not seen, where they are not. They are denied all the same."""
        return [f"denied packets are not seen: {self._problem}"] if self._problem else []

    async def run(self) -> None:
        """Take denials in for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen_to_denials(), name="denials")
            tasks.create_task(self._tell(), name="flows told")

    def close(self) -> None:
        """End every follower's reading."""
        self._closed = True
        for follower in self._followers:
            follower.news.set()

    def see(self, one: Seen) -> None:
        """Take in what the kernel has told of."""
        if len(self._seen) == UNTOLD:
            self._seen.popleft()
            self._untold += 1
        self._seen.append(one)
        self._arrived.set()

    async def _listen_to_denials(self) -> None:
        while True:
            try:
                nflog = NflogSocket(NFLOG_GROUP, self.see)
            except KernelError as error:
                if self._problem is None:
                    log.warning("denied packets are not seen", extra={"problem": str(error)})
                self._problem = error
                await asyncio.sleep(RETRY_S)
                continue
            self._problem = None
            with closing(nflog):
                await self._count_losses(nflog)

    async def _tell(self) -> None:
        """Find out who the addresses are, as many at once as have come meanwhile, and tell of them."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            seen, self._seen = self._seen, deque()
            async for flow in self._flows_of(seen):
                self._take(flow)

    async def _flows_of(self, seen: Iterable[Seen]) -> AsyncGenerator[Flow, None]:
        """The flows, found a few at a time: who describes them has policy to enforce in between."""
        now_s, waiting = self._now_s(), iter(seen)
        while some := list(islice(waiting, AT_ONCE)):
            for flow in await self._describe(some, now_s):
                if flow is not None:
                    yield flow

    def _take(self, flow: Flow) -> None:
        for follower in self._followers:
            follower.take(flow)
        if flow.verdict is FlowVerdict.ALLOWED:
            return
        _merge(self._recent, flow)
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def recent(self) -> list[Flow]:
        """What was denied of late, the latest last."""
        return list(self._recent.values())

    async def current(self) -> list[Flow]:
        """The connections of pods that stand now, those of one client to one port as one. Raises KernelError."""
        connections = await asyncio.to_thread(_read_connections)
        told: OrderedDict[Key, Flow] = OrderedDict()
        async for flow in self._flows_of(connections):
            _merge(told, flow)
        return list(told.values())

    async def follow(
        self, verdicts: Collection[FlowVerdict], idle_s: float
    ) -> AsyncGenerator[Flow | Lost | None, None]:
        """What comes from now on, until `close`. None after every `idle_s` in which nothing came."""
        follower = Follower(verdicts)
        self._followers.add(follower)
        self._listen()
        try:
            while not self._closed:
                try:
                    async with asyncio.timeout(idle_s):
                        await follower.news.wait()
                except TimeoutError:
                    yield None
                    continue
                follower.news.clear()
                lost, follower.lost = follower.lost, 0
                if lost:
                    yield Lost(lost)
                while follower.flows:
                    yield follower.flows.popleft()
        finally:
            self._followers.discard(follower)
            self._listen()

    async def _count_losses(self, nflog: NflogSocket) -> None:
        """Tell followers of what could not be told."""
        known = 0
        while True:
            await asyncio.sleep(1)
            untold, self._untold = self._untold, 0
            if nflog.lost + untold > known:
                self._lose(FlowVerdict.DENIED, nflog.lost + untold - known)
                known = nflog.lost
            if self._monitor is not None and self._monitor.overruns > self._overruns:
                # How many connections were lost the kernel does not tell.
                self._lose(FlowVerdict.ALLOWED, self._monitor.overruns - self._overruns)
                self._overruns = self._monitor.overruns

    def _lose(self, verdict: FlowVerdict, flows: int) -> None:
        for follower in self._followers:
            if verdict in follower.verdicts:
                follower.lose(flows)

    def _listen(self) -> None:
        """Hear of connections exactly while somebody wants to."""
        wanted = any(FlowVerdict.ALLOWED in follower.verdicts for follower in self._followers)
        if wanted and self._monitor is None:
            self._overruns = 0
            self._monitor = ConntrackMonitor(self._take_connection)
        elif not wanted and self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def _take_connection(self, event: ConnectionEvent, connection: Connection) -> None:
        if event is ConnectionEvent.NEW:
            self.see(connection)


def _merge(flows: OrderedDict[Key, Flow], flow: Flow) -> None:
    """Put the flow at the end, as one with what was told of the same two ends and port before."""
    key = (flow.verdict, flow.source, flow.destination, flow.protocol, flow.port, flow.rulings)
    known = flows.pop(key, None)
    flows[key] = replace(flow, count=known.count + 1) if known is not None else flow


def _read_connections() -> list[Connection]:
    with ConntrackSocket() as conntrack:
        return conntrack.read()


def encode(one: Flow | Lost) -> dict[str, object]:
    """For JSON: a flow, or {"lost": number}."""
    if isinstance(one, Lost):
        return {"lost": one.flows}
    return dict(_fields(one))


def _fields(flow: Flow) -> Iterator[tuple[str, object]]:
    yield "time", flow.time_s
    yield "verdict", flow.verdict.value
    for name, end in (("source", flow.source), ("destination", flow.destination)):
        yield name, {"address": str(end.address), "namespace": end.namespace, "name": end.name}
    yield "protocol", protocol_name(flow.protocol)
    yield "port", flow.port
    yield (
        "rulings",
        [
            {"direction": one.direction, "policy": one.policy, "rule": one.rule, "reason": one.reason}
            for one in flow.rulings
        ],
    )
    if flow.service is not None:
        yield "service", {"address": str(flow.service[0]), "port": flow.service[1]}
    yield "count", flow.count
