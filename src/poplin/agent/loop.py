"""When to reconcile: a change wakes the loop, which coalesces, runs a pass in its thread, and tries again."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Generic, Protocol, TypeVar

from poplin.model.errors import PoplinError

log = logging.getLogger(__name__)

RETRY_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits before a pass is tried again after failures in a row; the last one repeats."""

REST: Final = 4.0
"""How many times its own length a pass is followed by a pause: under endless changes a fifth of a CPU is ours."""

REST_S_MAX: Final = 0.1
"""The longest such pause: what breaks after a pass that read everything is mended soon all the same."""


class Ended(Protocol):
    """What a pass gives back: at least what it could not do and wants to try again."""

    @property
    def failures(self) -> tuple[PoplinError, ...]: ...


Inputs = TypeVar("Inputs")
Outcome = TypeVar("Outcome", bound=Ended)
Inputs_contra = TypeVar("Inputs_contra", contravariant=True)
Outcome_co = TypeVar("Outcome_co", bound=Ended, covariant=True)


class Passes(Protocol[Inputs_contra, Outcome_co]):
    """Who runs passes, in the loop's thread."""

    def forget(self) -> None:
        """Read the kernel anew in the next pass."""

    def run(self, inputs: Inputs_contra, pods: Collection[str]) -> Outcome_co:
        """Compile, compare and apply; `pods` are those whose own side is to be looked at too."""


class Loop(Generic[Inputs, Outcome]):
    """Runs passes, one at a time. All but the passes happens on the event loop.

    `inputs` gives what a pass depends on, `pods` the host links of all pods; `done` hears of each outcome.
    """

    def __init__(
        self,
        reconciler: Passes[Inputs, Outcome],
        *,
        inputs: Callable[[], Inputs],
        pods: Callable[[], Iterable[str]],
        done: Callable[[Outcome], None],
        coalesce_s: float,
        audit_s: float,
        name: str = "reconcile",
    ) -> None:
        self._reconciler = reconciler
        self._inputs = inputs
        self._pods = pods
        self._done = done
        self._coalesce_s = coalesce_s
        self._audit_s = audit_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._wanted = asyncio.Event()
        self._suspect = False
        self._suspect_pods: set[str] = set()
        self._failed_in_a_row = 0
        self._rested_s = 0.0
        self._waiting: list[asyncio.Future[Outcome]] = []
        self.passes = 0

    def wake(self) -> None:
        """Ask for a pass: something that it depends on has changed."""
        self._wanted.set()

    def look_at(self, pods: Iterable[str]) -> None:
        """Ask for a pass that reads the namespaces of these pods (by host link)."""
        self._suspect_pods.update(pods)
        self._wanted.set()

    def suspect(self, pods: Iterable[str] = ()) -> None:
        """Ask for a pass that reads the kernel anew, and the namespaces of these pods (by host link)."""
        self._suspect = True
        self.look_at(pods)

    def audit(self) -> None:
        """Ask for a pass that takes nothing for granted."""
        self.suspect(self._pods())

    async def run_audit(self) -> Outcome:
        """Have an audit, and wait for its outcome."""
        self.audit()
        end: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append(end)
        return await end

    def close(self) -> None:
        """Wait for the pass under way."""
        self._thread.shutdown()

    async def run(self) -> None:
        """Run passes for ever; the first at once, as an audit."""
        self.audit()
        while True:
            await self._wait()
            waiting, self._waiting = self._waiting, []
            outcome = await self._pass()
            self._done(outcome)
            for end in waiting:
                if not end.done():
                    end.set_result(outcome)

    async def _wait(self) -> None:
        """Wait for a wish, and a moment longer for others; for a retry; or for the next audit."""
        last = len(RETRY_S) - 1
        wait_s = RETRY_S[min(self._failed_in_a_row - 1, last)] if self._failed_in_a_row else self._audit_s
        try:
            async with asyncio.timeout(wait_s):
                await self._wanted.wait()
        except TimeoutError:
            if self._failed_in_a_row:
                self.wake()
            else:
                self.audit()
        else:
            now_s = asyncio.get_running_loop().time()
            await asyncio.sleep(max(self._coalesce_s, self._rested_s - now_s))

    async def _pass(self) -> Outcome:
        self._wanted.clear()
        suspect, self._suspect = self._suspect, False
        pods, self._suspect_pods = self._suspect_pods, set()
        inputs = self._inputs()

        def work() -> Outcome:
            if suspect:
                self._reconciler.forget()
            return self._reconciler.run(inputs, pods)

        running = asyncio.get_running_loop()
        began_s = running.time()
        outcome = await running.run_in_executor(self._thread, work)
        ended_s = running.time()
        self._rested_s = ended_s + min(REST_S_MAX, REST * (ended_s - began_s))
        if outcome.failures:
            self._failed_in_a_row += 1
            self._suspect_pods |= pods
        else:
            self._failed_in_a_row = 0
        self.passes += 1
        return outcome
