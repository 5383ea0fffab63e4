"""When passes run: coalesced, retried with growing waits, audited now and then, one at a time."""

import asyncio
import threading

import pytest

from poplin.agent import loop as loop_module
from poplin.agent.loop import Loop
from poplin.agent.reconcile import Inputs, Outcome
from poplin.model.errors import TemporaryError
from unit.agent.waiting import BOUND_S, until

NOTHING = Inputs(TemporaryError("no matter"))
GOOD = Outcome(None)
BAD = Outcome(None, failures=(TemporaryError("EBUSY"),))
LONG_S = 3600.0


class StandInReconciler:
    """Records its passes; gives the outcomes it is told to, then good ones."""

    def __init__(self):
        self.passes = []
        self.outcomes = []
        self.forgotten = False
        self.hold = threading.Event()
        self.hold.set()
        self.running = 0

    def forget(self):
        self.forgotten = True

    def run(self, inputs, pods):
        self.running += 1
        assert self.running == 1
        assert inputs is NOTHING
        assert self.hold.wait(10)
        self.passes.append((self.forgotten, frozenset(pods)))
        self.forgotten = False
        self.running -= 1
        return self.outcomes.pop(0) if self.outcomes else GOOD


class Run:
    def __init__(self, coalesce_s=0.0, audit_s=LONG_S):
        self.reconciler = StandInReconciler()
        self.done = []
        self.loop = Loop(
            self.reconciler,
            inputs=lambda: NOTHING,
            pods=lambda: ["pod1", "pod2"],
            done=self.done.append,
            coalesce_s=coalesce_s,
            audit_s=audit_s,
        )

    async def passes(self, number):
        await until(lambda: len(self.done) >= number)
        return self.reconciler.passes

    async def __aenter__(self):
        self.task = asyncio.create_task(self.loop.run())
        return self

    async def __aexit__(self, *_):
        self.reconciler.hold.set()
        self.task.cancel()
        await asyncio.wait([self.task])
        self.loop.close()


AUDIT = (True, frozenset({"pod1", "pod2"}))
PLAIN = (False, frozenset())


async def test_the_first_pass_is_an_audit_and_comes_by_itself():
    async with Run() as run:
        assert await run.passes(1) == [AUDIT]
        assert run.loop.passes == 1


async def test_each_wish_reads_what_it_suspects_and_no_more():
    async with Run() as run:
        await run.passes(1)
        run.loop.wake()
        await run.passes(2)
        run.loop.suspect()
        await run.passes(3)
        run.loop.suspect(["pod1"])
        await run.passes(4)
        run.loop.look_at(["pod2"])
        await run.passes(5)
        run.loop.audit()
        await run.passes(6)
        assert run.reconciler.passes == [
            AUDIT,
            PLAIN,
            (True, frozenset()),
            (True, frozenset({"pod1"})),
            (False, frozenset({"pod2"})),
            AUDIT,
        ]


async def test_wishes_that_come_together_are_one_pass():
    async with Run(coalesce_s=0.02) as run:
        await run.passes(1)
        for _ in range(50):
            run.loop.wake()
            run.loop.suspect(["pod1"])
        await run.passes(2)
        await asyncio.sleep(0.06)
        assert run.reconciler.passes == [AUDIT, (True, frozenset({"pod1"}))]


async def test_a_wish_during_a_pass_is_another_pass():
    async with Run() as run:
        run.reconciler.hold.clear()
        await until(lambda: run.reconciler.running)
        run.loop.wake()
        await asyncio.sleep(0.01)
        run.reconciler.hold.set()
        assert await run.passes(2) == [AUDIT, PLAIN]


async def test_a_failure_is_tried_again_without_a_wish_with_the_pods_it_concerned(monkeypatch):
    monkeypatch.setattr(loop_module, "RETRY_S", (0.001, 0.002))
    run = Run()
    run.reconciler.outcomes = [BAD, BAD, BAD, GOOD]
    async with run:
        passes = await run.passes(4)
        assert [pods for _, pods in passes] == [AUDIT[1]] * 4
        await asyncio.sleep(0.02)
        assert len(run.done) == 4


async def test_waits_grow_and_begin_anew_after_success(monkeypatch):
    waits = []
    real = asyncio.timeout

    def timeout(delay):
        if delay != BOUND_S:
            waits.append(delay)
        return real(0.001 if delay in loop_module.RETRY_S else delay)

    monkeypatch.setattr(loop_module.asyncio, "timeout", timeout)
    run = Run()
    count = len(loop_module.RETRY_S)
    run.reconciler.outcomes = [*[BAD] * (count + 2), GOOD, BAD, GOOD]
    async with run:
        await until(lambda: len(run.done) >= count + 3)
        run.loop.wake()
        await until(lambda: len(run.done) >= count + 5)
    retries = [*loop_module.RETRY_S, loop_module.RETRY_S[-1], loop_module.RETRY_S[-1]]
    assert waits[: count + 5] == [LONG_S, *retries, LONG_S, loop_module.RETRY_S[0]]


async def test_an_audit_comes_when_nothing_else_does():
    async with Run(audit_s=0.01) as run:
        assert await run.passes(3) == [AUDIT] * 3


async def test_an_audit_that_was_asked_for_ends_after_a_pass_that_began_later():
    async with Run() as run:
        run.reconciler.hold.clear()
        await until(lambda: run.reconciler.running)
        asked = asyncio.create_task(run.loop.run_audit())
        await asyncio.sleep(0.01)
        run.reconciler.hold.set()
        await run.passes(1)
        async with asyncio.timeout(10):
            await asked
        assert run.reconciler.passes[:2] == [AUDIT, AUDIT]


async def test_closing_waits_for_the_pass_under_way():
    run = Run()
    async with run:
        run.reconciler.hold.clear()
        await until(lambda: run.reconciler.running)
    assert run.reconciler.running == 0
    assert run.reconciler.passes == [AUDIT]


@pytest.mark.parametrize("waits", [loop_module.RETRY_S])
def test_retries_wait_ever_longer(waits):
    assert list(waits) == sorted(waits)
    assert waits[0] > 0


async def test_after_a_long_pass_the_next_waits_but_not_for_long(monkeypatch):
    monkeypatch.setattr(loop_module, "REST_S_MAX", 0.2)
    async with Run() as run:
        await run.passes(1)
        run.reconciler.hold.clear()
        run.loop.wake()
        await until(lambda: run.reconciler.running)
        await asyncio.sleep(0.1)
        run.reconciler.hold.set()
        await run.passes(2)
        ended_s = asyncio.get_running_loop().time()
        run.loop.wake()
        await run.passes(3)
        assert asyncio.get_running_loop().time() - ended_s > 0.15
        await asyncio.sleep(0.3)
        run.loop.wake()
        rested_s = asyncio.get_running_loop().time()
        await run.passes(4)
        assert asyncio.get_running_loop().time() - rested_s < BOUND_S
