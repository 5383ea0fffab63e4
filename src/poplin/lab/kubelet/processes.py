"""The containers' processes, as the lab's init knows them: which there are, and the end of each."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from poplin.lab.container import ContainerSpec
from poplin.lab.message import ProcessState
from poplin.lab.runtime import Runtime

T = TypeVar("T")


def process_name(uid: str, container: str, attempt: int) -> str:
    """What the init calls a container's process; `attempt` counts restarts from 0."""
    return f"{uid}/{container}/{attempt}"


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even when cancelled meanwhile: what it makes must be known to whoever tidies up."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


class Processes:
    """Processes of containers by name. Those of an earlier kubelet are known from the start."""

    def __init__(self, path: Path) -> None:
        self._runtime = Runtime(path, self._ended)
        self._stack = AsyncExitStack()
        self._states: dict[str, ProcessState] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._runtime)
        for state in await self._runtime.list_processes():
            if state.id.count("/") == 2:
                self._states[state.id] = state
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def start(self, name: str, spec: ContainerSpec) -> ProcessState:
        """Start a container. Raises RuntimeFailedError."""

        async def begin() -> ProcessState:
            state = await self._runtime.start_container(name, spec)
            # The news of its end may have come before the answer.
            return self._states.setdefault(name, state)

        return await finish(begin())

    async def wait(self, name: str) -> ProcessState:
        """The process once it has ended."""
        while (state := self._states[name]).code is None:
            await self._ends.setdefault(name, asyncio.Event()).wait()
        return state

    async def kill(self, name: str, number: int) -> None:
        """Send a signal; one that has ended is success."""
        if name in self._states and self._states[name].code is None:
            await self._runtime.send_signal(name, number)

    async def forget(self, name: str) -> None:
        """Drop what is known of a process that has ended."""
        if self._states.pop(name, None) is not None:
            self._ends.pop(name, None)
            await self._runtime.forget(name)

    def get(self, name: str) -> ProcessState:
        """A process. Raises KeyError for one that is not known."""
        return self._states[name]

    def find(self, uid: str, container: str) -> dict[int, ProcessState]:
        """The processes of a container by attempt."""
        prefix = f"{uid}/{container}/"
        return {
            int(name.rpartition("/")[2]): state
            for name, state in self._states.items()
            if name.startswith(prefix)
        }

    def of_pod(self, uid: str) -> list[str]:
        """Names of all processes of a pod."""
        return [name for name in self._states if name.startswith(f"{uid}/")]

    def pods(self) -> set[str]:
        """The uids of pods that have processes."""
        return {name.partition("/")[0] for name in self._states}

    def _ended(self, state: ProcessState) -> None:
        if state.id.count("/") == 2:
            self._states[state.id] = state
            if state.id in self._ends:
                self._ends[state.id].set()
