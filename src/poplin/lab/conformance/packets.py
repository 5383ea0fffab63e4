"""The cases with real packets: a lab's pods ask each other, all at once, what the tables say of them.

One connection is made for each cell, port and family, out of the pods' own namespaces. A table that does not hold
at once is asked again for a while, since a busy machine may lose a probe: what then holds is told as late.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final

from poplin.datastore.client import JSON_MERGE, ApiClient
from poplin.lab.conformance.case import Case, Json, Question
from poplin.lab.conformance.cluster import Key, Objects, collect, pods_of, resolved, take_step
from poplin.lab.conformance.table import Pair, Table, read_table
from poplin.lab.controllers.object import Object
from poplin.lab.demo.member import Member, find_members
from poplin.lab.demo.workload import wait_for_workloads
from poplin.lab.directory import Directory
from poplin.lab.manifests import Catalogue, apply, collection_path, rank
from poplin.lab.probing import Outcome, Probe, Protocol, Result, probe_all
from poplin.lab.settings import Settings
from poplin.model.errors import TemporaryError

SETTLE_S: Final = 0.1
"""Between a change and the first probe: longer than any node takes to enforce it."""

TIMEOUT_S: Final = 0.5
AGAIN_S: Final = 0.3
TRIES: Final = 6
CONCURRENCY: Final = 64
"""Of probes that shall be answered: few enough that none waits for this process."""

READY_S: Final = 60.0
LOST_S: Final = 15.0
POLL_S: Final = 0.05
STANDING: Final = frozenset({"Namespace", "Pod"})


@dataclass(frozen=True, slots=True)
class Fault:
    """A cell that is not as its table says. `found` says what came of the probe."""

    step: int
    question: Question
    version: int
    pair: Pair
    expected: bool
    found: str

    def __str__(self) -> str:
        source, destination = self.pair
        wanted = "allowed" if self.expected else "denied"
        return (
            f"step {self.step}, {self.question}, IPv{self.version}: {source} to {destination} "
            f"is to be {wanted}, and was {self.found}"
        )


@dataclass(slots=True)
class PacketResult:
    """A case's outcome. `probes` counts those of the last tries, `late` the steps that held when asked again.

    `policy_late` are those of them in which something that shall be denied was allowed at first. A busy machine loses
    answers, and makes none: so there policy was not yet in force after SETTLE_S.
    """

    case: Case
    faults: list[Fault] = field(default_factory=list)
    probes: int = 0
    late: int = 0
    policy_late: int = 0

    def holds(self, version: int) -> bool:
        return not any(fault.version == version for fault in self.faults)


class PacketRunner:
    """Runs cases one after the other in a lab; `world` is what each begins with."""

    def __init__(
        self, directory: Directory, settings: Settings, client: ApiClient, world: Iterable[Json]
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._client = client
        self._catalogue = Catalogue(client)
        self._world = _fit(collect(world), settings.node_names())
        self._present: Objects = {}
        self._members: dict[str, Member] = {}
        self._made: set[str] = set()

    async def prepare(self) -> None:
        """Make the world and wait until its pods are ready. Raises PoplinError."""
        await self._become(self._world)

    async def run(self, case: Case) -> PacketResult:
        """Take a case's steps, and make the world what it was. Raises PoplinError."""
        result = PacketResult(case)
        objects = self._world
        try:
            for place, step in enumerate(case.steps, start=1):
                where = f"{case.where}, step {place}"
                objects = _fit(take_step(objects, step, where), self._settings.node_names())
                await self._become(objects, where)
                pods = pods_of(objects)
                tables = {one: read_table(text, pods, where) for one, text in step.tables(where).items()}
                await self._compare(place, tables, result)
        finally:
            await self._become(self._world)
        return result

    async def _compare(self, place: int, tables: Mapping[Question, Table], result: PacketResult) -> None:
        await asyncio.sleep(SETTLE_S)
        first: list[Fault] = []
        for tried in range(TRIES):
            cells = list(self._cells(tables))
            # Those that shall stay silent cost nothing but the wait: all of them at once, after the others.
            silent = [cell for cell in cells if not tables[cell[0]][cell[1]]]
            others = [cell for cell in cells if tables[cell[0]][cell[1]]]
            faults: list[Fault] = []
            for some, concurrency in ((others, CONCURRENCY), (silent, len(silent))):
                results = await probe_all(
                    [probe for _, _, probe in some],
                    timeout_s=TIMEOUT_S * (tried + 1),
                    concurrency=concurrency,
                )
                for (question, pair, _), found in zip(some, results, strict=True):
                    expected, said = tables[question][pair], self._judge(pair, found)
                    if said != ("allowed" if expected else "denied"):
                        version = found.probe.address.version
                        faults.append(Fault(place, question, version, pair, expected, said))
            if not faults:
                result.late += tried > 0
                result.policy_late += any(not fault.expected for fault in first)
                break
            first = first or faults
            await asyncio.sleep(AGAIN_S)
        result.probes += len(cells)
        result.faults += faults

    def _cells(self, tables: Mapping[Question, Table]) -> Iterable[tuple[Question, Pair, Probe]]:
        """Everything to ask but SCTP, which kernels without its sockets cannot ask by."""
        for question, (pair, version) in product(tables, product(self._pairs(), self._settings.versions)):
            if question.protocol in Protocol.__members__:
                source, destination = (self._members[one] for one in pair)
                address = next(one for one in destination.addresses if one.version == version)
                yield (
                    question,
                    pair,
                    Probe(source.netns, source.title, address, question.port, Protocol(question.protocol)),
                )

    def _pairs(self) -> list[Pair]:
        return list(product(self._members, self._members))

    def _judge(self, pair: Pair, result: Result) -> str:
        """What the probe says of policy: "allowed", "denied", or in words what should not be."""
        source, destination = (self._members[one] for one in pair)
        asked = result.probe
        if result.outcome is Outcome.TIMED_OUT:
            return "denied"
        if result.outcome is Outcome.REFUSED and (asked.protocol, asked.port) not in destination.ports:
            # The pod itself says that it does not serve this port.
            return "allowed"
        if result.outcome is Outcome.CONNECTED:
            # A handshake takes packets both ways; only the echo was late.
            return "allowed"
        if result.outcome is not Outcome.ANSWERED:
            return f"{result.outcome.value} {result.reason}".rstrip()
        if asked.protocol is not Protocol.ICMP:
            if result.name != destination.hostname:
                return f"answered by {result.name!r}"
            if result.client not in source.addresses:
                return f"seen as {result.client}"
        return "allowed"

    async def _become(self, objects: Objects, where: str = "the world") -> None:
        """Make the cluster hold these objects, and no others of ours."""
        other = {
            key for key, one in self._present.items() if key[0] == "Pod" and _is_other(one, objects.get(key))
        }
        if other:
            # A pod's spec does not change: it goes before the one of its name comes.
            lasting = {key: one for key, one in objects.items() if key not in other and key[0] in STANDING}
            await self._become(lasting, where)
        before = self._present
        standing = {key for key in objects if key[0] in STANDING}
        if standing != {key for key in before if key[0] in STANDING}:
            # Pods first: a policy may name their addresses.
            kept = {key: one for key, one in before.items() if key in standing or key[0] not in STANDING}
            await self._change(before, kept | {key: objects[key] for key in standing if key not in kept})
            await self._wait_for_pods(objects, where)
            before = self._present
        addresses = {
            ("Pod", member.namespace, member.name): [{"ip": str(one)} for one in member.addresses]
            for member in self._members.values()
        }
        living = {
            key: {**one, "status": {"podIPs": addresses[key]}} if key in addresses else one
            for key, one in objects.items()
        }
        networks = self._settings.addressing.pod_networks()
        named = resolved(living, networks, where)
        await self._change(
            before, {key: named[key] if key[0] == "NetworkPolicy" else objects[key] for key in named}
        )

    async def _change(self, before: Objects, after: Objects) -> None:
        gone = sorted((key for key in before if key not in after), key=lambda key: -rank(before[key]))
        for key in gone:
            path = await self._path(before[key])
            await self._client.request("DELETE", f"{path}/{key[2]}", body={"gracePeriodSeconds": 0})
        await apply(self._client, [one for key, one in after.items() if key not in before])
        for key, one in after.items():
            if key in before and before[key] != one:
                await self._update(key, before[key], one)
        self._present = after

    async def _update(self, key: Key, old: Json, new: Json) -> None:
        path = f"{await self._path(new)}/{key[2]}"
        if key[0] == "NetworkPolicy":
            # A merge would leave what the new spec does not say.
            await self._client.request("PUT", path, body=new)
            return
        had = old["metadata"].get("labels") or {}
        labels = dict.fromkeys(had) | (new["metadata"].get("labels") or {})
        await self._client.request(
            "PATCH", path, body={"metadata": {"labels": labels}}, content_type=JSON_MERGE
        )

    async def _path(self, one: Json) -> str:
        return collection_path(await self._catalogue.find(one), one)

    async def _wait_for_pods(self, objects: Objects, where: str) -> None:
        wanted = set(pods_of(objects))
        deadline_s = asyncio.get_running_loop().time() + LOST_S
        while True:
            workloads, pods = await wait_for_workloads(self._client, READY_S)
            missing = [f"{one.namespace}/{one.name}: {one.reason}" for one in workloads if not one.ready]
            if missing:
                raise TemporaryError(f"pods are not ready: {'; '.join(missing)}", where=where)
            ours: list[Object] = [pod for pod in pods if f"{pod.namespace}/{pod.name}" in wanted]
            members = {member.title: member for member in find_members(self._directory, ours)}
            # A pod that was deleted is listed until its kubelet has let it go.
            lingering = {f"{pod.namespace}/{pod.name}" for pod in pods} & self._made - wanted
            if members.keys() == wanted and not lingering:
                self._members = members
                self._made |= wanted
                return
            if asyncio.get_running_loop().time() > deadline_s:
                wrong = sorted(lingering | wanted - members.keys())
                raise TemporaryError(f"pods neither come nor go: {', '.join(wrong)}", where=where)
            await asyncio.sleep(POLL_S)


def _is_other(present: Json, wanted: Json | None) -> bool:
    return wanted is not None and present["spec"] != wanted["spec"]


def _fit(objects: Objects, nodes: Sequence[str]) -> Objects:
    """The objects with every pod on a node that there is."""
    fitted = dict(objects)
    for number, key in enumerate(sorted(key for key in objects if key[0] == "Pod")):
        spec = objects[key]["spec"]
        if spec.get("nodeName") not in nodes:
            fitted[key] = {**objects[key], "spec": {**spec, "nodeName": nodes[number % len(nodes)]}}
    return fitted


async def run_all(
    runner: PacketRunner, cases: Sequence[Case], progress: Callable[[PacketResult], None] = lambda _: None
) -> list[PacketResult]:
    """Each case's result, in their order. Raises PoplinError."""
    await runner.prepare()
    results = []
    for case in cases:
        results.append(await runner.run(case))
        progress(results[-1])
    return results
