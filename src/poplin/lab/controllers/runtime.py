"""The controllers at work: watches fill stores, changes wake controllers, and what they decide is written."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final

from poplin.datastore.client import ApiClient, RefusedError
from poplin.datastore.reflector import Reflector
from poplin.datastore.resource import Resource
from poplin.datastore.source import Replaced, Resumed, Unavailable
from poplin.lab.controllers.controller import Controller, make_store
from poplin.lab.controllers.object import Key, Object
from poplin.lab.controllers.store import Change, Store
from poplin.lab.controllers.table import make_controllers
from poplin.lab.controllers.write import Outcome
from poplin.lab.controllers.writer import Writer
from poplin.model.errors import PoplinError
from poplin.model.kernel import IPNetwork

log = logging.getLogger(__name__)

COALESCE_S: Final = 0.01
RETRY_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits before a key is tried again after failures in a row; the last one repeats."""
TURN: Final = 64
"""Keys that are decided about before other tasks get a turn."""

Work = tuple[Controller, Key]


async def run(
    client: ApiClient,
    *,
    cluster_networks: Sequence[IPNetwork],
    controllers: Collection[str] | None = None,
    load_balancer_pool: Sequence[IPNetwork] = (),
) -> None:
    """Run the controllers of these names, None for all of them, until cancelled.

    `cluster_networks` is what the nodes' pod CIDRs are cut from, `load_balancer_pool` what load balancers'
    addresses are taken from. Only one such process may run in a cluster.
    Raises InvalidInputError for a name that no controller has.
    """
    await Runtime(client, make_controllers(cluster_networks, controllers, load_balancer_pool)).run()


class Runtime:
    """Runs `controllers`. A key is worked on by one task at a time, and again if it changed meanwhile."""

    def __init__(self, client: ApiClient, controllers: Sequence[Controller]) -> None:
        self._client = client
        self._controllers = controllers
        resources = dict.fromkeys(resource for one in controllers for resource in one.reads)
        self._cluster: dict[Resource[Object], Store] = {one: make_store(one) for one in resources}
        self._readers = {one: [c for c in controllers if one in c.reads] for one in resources}
        self._in_sync: set[Resource[Object]] = set()
        self._writer = Writer(client, self._absorb)
        self._dirty: dict[Work, None] = {}
        self._busy: set[Work] = set()
        self._alarms: dict[Work, asyncio.TimerHandle] = {}
        self._failures: dict[Work, tuple[int, str]] = {}
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for resource in self._cluster:
                    tasks.create_task(self._follow(resource, tasks), name=f"watch {resource}")
                await self._dispatch(tasks)
        finally:
            self._writer.close()
            for alarm in self._alarms.values():
                alarm.cancel()

    async def _follow(self, resource: Resource[Object], tasks: asyncio.TaskGroup) -> None:
        store = self._cluster[resource]
        async with aclosing(Reflector(self._client, resource).events()) as events:
            async for event in events:
                self._changed(resource, store.observe(event))
                if isinstance(event, Unavailable):
                    log.warning("%s", event.error)
                    self._in_sync.discard(resource)
                elif isinstance(event, Replaced | Resumed):
                    self._in_sync.add(resource)
                    self._woken.set()
                    # A list older than our writes lacks what they made; so does one newer than its end.
                    for doubtful in store.unconfirmed() if isinstance(event, Replaced) else ():
                        tasks.create_task(self._confirm(resource, doubtful), name=f"confirm {doubtful.key}")

    async def _confirm(self, resource: Resource[Object], doubtful: Object) -> None:
        try:
            if not await self._writer.exists(resource, doubtful.key, doubtful.uid):
                self._changed(resource, self._cluster[resource].deleted(doubtful.key, doubtful.uid))
        except PoplinError as error:
            log.debug("%s", error)  # the next list asks again

    def _absorb(self, resource: Resource[Object], kind: str, value: Object) -> None:
        """Take in what a write was answered."""
        store = self._cluster.get(resource)
        if store is None:
            return
        if kind == "created":
            changes = store.created(value)
        elif kind == "updated":
            changes = store.updated(value)
        elif kind == "bound":
            changes = store.bound(value.key, value.uid, value.spec["nodeName"])
        else:
            changes = store.deleted(value.key, value.uid)
        self._changed(resource, changes)

    def _changed(self, resource: Resource[Object], changes: Iterable[Change]) -> None:
        for change in changes:
            for controller in self._readers[resource]:
                for one in change:
                    if one is not None:
                        for key in controller.affected(self._cluster, resource, one):
                            self._mark((controller, key))

    def _mark(self, work: Work) -> None:
        self._dirty[work] = None
        self._woken.set()

    async def _dispatch(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._woken.wait()
            await asyncio.sleep(COALESCE_S)
            self._woken.clear()
            ready = [work for work in self._dirty if work not in self._busy and self._may_run(work[0])]
            for number, work in enumerate(ready):
                del self._dirty[work]
                self._start(work, tasks)
                if number % TURN == TURN - 1:
                    await asyncio.sleep(0)

    def _may_run(self, controller: Controller) -> bool:
        return self._in_sync.issuperset(controller.reads)

    def _start(self, work: Work, tasks: asyncio.TaskGroup) -> None:
        controller, key = work
        if (alarm := self._alarms.pop(work, None)) is not None:
            alarm.cancel()
        now = datetime.now(UTC)
        try:
            outcome = controller.decide(self._cluster, key, now)
        except Exception as error:  # noqa: BLE001  - one object that a controller cannot cope with stops no other
            self._fail(work, error)
            return
        if outcome.again is not None:
            self._alarm(work, max(0.0, (outcome.again - now).total_seconds()))
        if outcome.writes:
            self._busy.add(work)
            tasks.create_task(self._carry_out(work, outcome), name=f"{controller.name} {'/'.join(key)}")
        else:
            self._failures.pop(work, None)

    async def _carry_out(self, work: Work, outcome: Outcome) -> None:
        controller, _ = work
        errors = await self._writer.write(outcome.writes, controller.name)
        self._busy.discard(work)
        if errors:
            self._fail(work, errors[0])
        else:
            self._failures.pop(work, None)
        self._woken.set()

    def _fail(self, work: Work, error: Exception) -> None:
        """Try again later. The same error of the same object is logged once; that others write too is none."""
        count, before = self._failures.get(work, (0, ""))
        why = str(error) if isinstance(error, PoplinError) else repr(error)
        if why != before:
            conflict = isinstance(error, RefusedError) and error.status == 409
            level = logging.DEBUG if conflict else logging.WARNING
            trace = None if isinstance(error, PoplinError) else error
            log.log(level, "%s: %s: %s", work[0].name, "/".join(work[1]), why, exc_info=trace)
        self._failures[work] = (count + 1, why)
        self._alarm(work, RETRY_S[min(count, len(RETRY_S) - 1)])

    def _alarm(self, work: Work, after_s: float) -> None:
        before = self._alarms.pop(work, None)
        loop = asyncio.get_running_loop()
        when_s = loop.time() + after_s
        if before is not None:
            before.cancel()
            when_s = min(when_s, before.when())
        self._alarms[work] = loop.call_at(when_s, self._ring, work)

    def _ring(self, work: Work) -> None:
        self._alarms.pop(work, None)
        self._mark(work)
