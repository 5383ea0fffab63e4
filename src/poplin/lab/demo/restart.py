"""An agent killed and started again while pods talk: what the pods notice of it."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import aiohttp

from poplin.lab.demo.member import Member
from poplin.lab.directory import Directory
from poplin.lab.message import ProcessState, Question, agent_name
from poplin.lab.probing import Probe, Protocol
from poplin.lab.runtime import ask
from poplin.lab.traffic import FlowReport, run_flow
from poplin.model.errors import TemporaryError

T = TypeVar("T")

INTERVAL_S: Final = 0.01
"""100 messages a second and flow."""

BEFORE_S: Final = 0.3
AFTER_S: Final = 0.5
TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class RestartReport:
    """`down_s` is from the kill until the new agent says that the node is ready."""

    node: str
    killed_pid: int
    new_pid: int
    down_s: float
    flows: Sequence[FlowReport]

    @property
    def held(self) -> bool:
        """Whether no flow lost anything."""
        return all(flow.whole for flow in self.flows)


def choose_flows(source: Member, target: Member) -> list[Probe]:
    """One TCP connection and one flow of UDP in each family, as far as the target serves them."""
    first: dict[Protocol, int] = {}
    for protocol, port in target.ports:
        first.setdefault(protocol, port)
    return [
        Probe(source.netns, source.title, address, port, protocol)
        for protocol, port in first.items()
        for address in target.addresses
    ]


async def restart_agent(
    directory: Directory, node: str, flows: Sequence[Probe], meanwhile: Callable[[], Awaitable[T]]
) -> tuple[RestartReport, T]:
    """Kill the node's agent by SIGKILL under the flows, and do `meanwhile`; the lab starts it again.

    Raises PoplinError where it does not come back.
    """
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(run_flow(flow, stop, interval_s=INTERVAL_S), name=f"flow to {flow.address}")
            for flow in flows
        ]
        try:
            await asyncio.sleep(BEFORE_S)
            before = _find_agent(directory, node)
            killed_s = time.monotonic()
            ask(directory.socket, Question(0, signal=agent_name(node), number=signal.SIGKILL))
            returning = tasks.create_task(_wait_for_agent(directory, node, before), name="agent's return")
            done = await meanwhile()
            after, back_s = await returning
            await asyncio.sleep(AFTER_S)
        finally:
            stop.set()
    report = RestartReport(
        node, before.pid, after.pid, back_s - killed_s, [task.result() for task in running]
    )
    return report, done


def _find_agent(directory: Directory, node: str) -> ProcessState:
    return next(state for state in ask(directory.socket, Question(0)) if state.id == agent_name(node))


async def _wait_for_agent(
    directory: Directory, node: str, before: ProcessState
) -> tuple[ProcessState, float]:
    """The new agent, and when it was ready."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        await asyncio.sleep(POLL_S)
        now = _find_agent(directory, node)
        if now.code is None and now.pid != before.pid and await _is_ready(directory, node):
            return now, time.monotonic()
    raise TemporaryError(
        f"its agent is not back after {TIMEOUT_S:g} s",
        where=f"node {node}",
        remedy=f"see {directory.log(agent_name(node))}",
    )


async def _is_ready(directory: Directory, node: str) -> bool:
    """Whether the agent says so; one that is just starting says nothing."""
    connector = aiohttp.UnixConnector(path=str(directory.node(node).run / "agent.sock"))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=2)) as session,
            session.get("http://agent/readyz") as response,
        ):
            return response.ok
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
