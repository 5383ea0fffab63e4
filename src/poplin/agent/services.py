"""Services on this node: their watches, the loop that keeps the table, what is told of them."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Final, TypeVar

import msgspec

from poplin.agent.cluster import View
from poplin.agent.health_checks import HealthChecks
from poplin.agent.loop import Loop
from poplin.agent.service_rules import KEY as SERVICE_TABLE
from poplin.agent.service_rules import ServiceInputs, ServiceOutcome, ServiceRules, Wanted
from poplin.compile.services.listing import COUNTED, ServedFrontend, list_frontends
from poplin.compile.services.table import Name
from poplin.dataplane.nftables.socket import NftSocket
from poplin.datastore.service import ENDPOINT_SLICES, SERVICES
from poplin.datastore.source import Deleted, Put, Rejected, Replaced, Source, WatchEvent
from poplin.model.cluster import Node, ObjectReference
from poplin.model.errors import PoplinError, TemporaryError
from poplin.model.service import EndpointSlice, Service

log = logging.getLogger(__name__)

T = TypeVar("T", Service, EndpointSlice)

REASON: Final = "ServiceNotServed"
PATIENCE_S: Final = 2.0
"""How long something is wrong before an Event says so; and the wait before one that failed is tried again."""


class Services:
    """Keeps the rules as the watches tell. `own` gives this node's Node, None while it is not known."""

    def __init__(
        self,
        source: Source,
        rules: ServiceRules,
        own: Callable[[], Node | None],
        *,
        coalesce_s: float,
        audit_s: float,
    ) -> None:
        self._source = source
        self.rules = rules
        self._own = own
        self._services: View[Service] = View("services")
        self._slices: View[EndpointSlice] = View("endpointslices.discovery.k8s.io")
        self._by_service: dict[Name, dict[str, EndpointSlice]] = {}
        self._dirty: set[Name] = set()
        self._outcome = ServiceOutcome(TemporaryError("the first pass has not run yet"))
        self._checks = HealthChecks(lambda: self.problem is None)
        self._news = asyncio.Event()
        self._told: dict[ObjectReference, str] = {}
        self._loop = Loop(
            rules,
            inputs=self._inputs,
            pods=lambda: (),
            done=self._done,
            coalesce_s=coalesce_s,
            audit_s=audit_s,
            name="services",
        )
        self.wake = self._loop.wake
        self.suspect = self._loop.suspect
        self.run_audit = self._loop.run_audit

    @property
    def problem(self) -> PoplinError | None:
        """Why Services are not served as they should be, None where they are."""
        failed = self._outcome.failures[0] if self._outcome.failures else None
        return self._services.not_in_sync or self._slices.not_in_sync or self._outcome.hold or failed

    @property
    def problems(self) -> list[str]:
        """What is wrong with single Services and slices."""
        return [
            f"{about.kind} {about.namespace}/{about.name}: {text}" for about, text in self._wrong().items()
        ]

    async def close(self) -> None:
        """Wait for the pass under way; answer no more health checks."""
        self._loop.close()
        await self._checks.close()
        self.rules.close()

    async def run(self) -> None:
        """Serve for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_services(), name="watch of services")
            tasks.create_task(self._follow_slices(), name="watch of endpointslices")
            tasks.create_task(self._publish(), name="events of services")
            tasks.create_task(self._checks.run(), name="health checks of services")
            tasks.create_task(self._loop.run(), name="loop of services")

    async def _follow_services(self) -> None:
        async with aclosing(self._source.watch(SERVICES)) as events:
            async for event in events:
                self.take_service(event)

    async def _follow_slices(self) -> None:
        async with aclosing(self._source.watch(ENDPOINT_SLICES)) as events:
            async for event in events:
                self.take_slice(event)

    async def listing(self) -> bytes:
        """Give what the kernel serves now, as JSON. Raises KernelError."""
        served = await asyncio.to_thread(self._read_back)
        node = self._own()
        return msgspec.json.encode(
            {"node": node.name if node else "", "frontends": served}, enc_hook=str, order="deterministic"
        )

    def _read_back(self) -> list[ServedFrontend]:
        with NftSocket() as nft:
            table = nft.read_table(SERVICE_TABLE)
            sets = {one.name: one for one in table.sets} if table else {}
            counts = {name: nft.read_counts(SERVICE_TABLE, sets[name]) for name in COUNTED if name in sets}
        return list_frontends(table, counts, self.rules.claims())

    def take_service(self, event: WatchEvent[Service]) -> None:
        """Take an event of a Service in."""
        self._dirty.update(key for key, _, _ in _apply(self._services, event))
        self._news.set()
        self._loop.wake()

    def take_slice(self, event: WatchEvent[EndpointSlice]) -> None:
        """Take an event of an EndpointSlice in: it may have been another Service's before."""
        for (namespace, name), before, after in _apply(self._slices, event):
            if before is not None and before.service:
                owner = (namespace, before.service)
                left = self._by_service[owner]
                del left[name]
                if not left:
                    del self._by_service[owner]
                self._dirty.add(owner)
            if after is not None and after.service:
                self._by_service.setdefault((namespace, after.service), {})[name] = after
                self._dirty.add((namespace, after.service))
        self._news.set()
        self._loop.wake()

    def _inputs(self) -> ServiceInputs:
        for view in (self._services, self._slices):
            if not view.filled:
                return ServiceInputs(view.not_in_sync)
        own = self._own()
        if own is None:
            return ServiceInputs(TemporaryError("this node is not among the cluster's nodes yet"))
        dirty, self._dirty = self._dirty, set()
        return ServiceInputs(None, own, {name: self._wanted(name) for name in dirty})

    def _wanted(self, name: Name) -> Wanted | None:
        service = self._services.objects.get(name)
        if service is None:
            return None
        slices = self._by_service.get(name, {})
        return service, tuple(slices[one] for one in sorted(slices))

    def _done(self, outcome: ServiceOutcome) -> None:
        """Take a pass's outcome in; what one that failed has found of single Services stands."""
        before = self.problem
        if outcome.failures or outcome.hold:
            outcome = replace(outcome, problems=self._outcome.problems, checks=self._outcome.checks)
        self._outcome = outcome
        if str(before) != str(self.problem):
            if self.problem is not None:
                log.warning("problem", extra={"problem": f"Services: {self.problem}"})
            else:
                log.info("Services in force", extra={"services": len(self._services.objects)})
        self._checks.want(outcome.checks)
        self._news.set()

    def _wrong(self) -> dict[ObjectReference, str]:
        """Give what is wrong with single objects; a part of the text is for the node."""
        wrong: dict[ObjectReference, str] = {}
        for (namespace, name), text in (*self._outcome.problems.items(), *self._checks.problems().items()):
            service = self._services.objects.get((namespace, name))
            about = ObjectReference("Service", name, namespace, service.uid if service else "")
            wrong[about] = f"{wrong[about]}; {text}" if about in wrong else text
        for error in self._services.rejected.values():
            wrong[ObjectReference("Service", error.name, error.namespace)] = str(error)
        for error in self._slices.rejected.values():
            about = ObjectReference(
                "EndpointSlice", error.name, error.namespace, "", ENDPOINT_SLICES.api_version
            )
            wrong[about] = str(error)
        return wrong

    async def _publish(self) -> None:
        """Make an Event, for ever, of what has been wrong with an object for a while: once for each reason."""
        while True:
            await self._news.wait()
            await asyncio.sleep(PATIENCE_S)
            self._news.clear()
            wrong = self._wrong()
            self._told = {about: text for about, text in self._told.items() if wrong.get(about) == text}
            for about, text in wrong.items():
                if about in self._told:
                    continue
                try:
                    await self._source.create_event(about, reason=REASON, message=text, warning=True)
                except PoplinError as error:
                    log.warning("event not written", extra={"about": str(about), "error": str(error)})
                    self._news.set()
                else:
                    log.warning(
                        "problem", extra={"problem": f"{about.kind} {about.namespace}/{about.name}: {text}"}
                    )
                    self._told[about] = text


def _apply(view: View[T], event: WatchEvent[T]) -> list[tuple[Name, T | None, T | None]]:
    """Take an event in. Give the objects that changed by it: key, before, after."""
    before: Mapping[Name, T]
    match event:
        case Replaced():
            before = view.objects
            view.apply(event)
            keys: Iterable[Name] = {**before, **view.objects}
        case Put() | Deleted() | Rejected():
            thing = (
                event.object
                if isinstance(event, Put)
                else event.error
                if isinstance(event, Rejected)
                else event
            )
            key = (thing.namespace, thing.name)
            before = {key: view.objects[key]} if key in view.objects else {}
            view.apply(event)
            keys = [key]
        case _:
            view.apply(event)
            return []
    changed = ((key, before.get(key), view.objects.get(key)) for key in keys)
    return [row for row in changed if row[1] is not row[2] and row[1] != row[2]]
