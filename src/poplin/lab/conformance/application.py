"""An application and its policies: every pair of pods probed, beside what the evaluator says of the same objects."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from poplin.compile.policy.world import Explanation
from poplin.datastore.client import ApiClient
from poplin.datastore.core import NAMESPACES, NODES, PODS
from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.datastore.resource import Resource
from poplin.lab.conformance.case import Json, Question
from poplin.lab.conformance.evaluation import ask, world_of
from poplin.lab.demo.member import Member, make_probes
from poplin.lab.probing import Outcome, Result, probe_all

TIMEOUT_S: Final = 1.0
CONCURRENCY: Final = 200
TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """One probe from pod to pod, and what the evaluator says of it."""

    source: Member
    target: Member
    result: Result
    explanation: Explanation

    @property
    def fault(self) -> str:
        """What is wrong, "" where the kernel did what the evaluator says."""
        found = "denied" if self.result.outcome is Outcome.TIMED_OUT else self.result.outcome.value
        if self.explanation.allowed:
            return "" if self.result.reached else f"is to be allowed, and was {found}"
        return "" if found == "denied" else f"is to be denied, and was {found}"


async def try_all(client: ApiClient, members: Sequence[Member]) -> list[Trial]:
    """Probe every pair by ICMP and every declared port. Raises PoplinError.

    Probes that are not as they should be are made again: a busy machine may lose one.
    """
    world = world_of(await read_objects(client))
    asked = make_probes(members)
    trials: dict[int, Trial] = {}
    waiting = list(range(len(asked)))
    for _ in range(TRIES):
        results = await probe_all(
            [asked[number][2] for number in waiting], timeout_s=TIMEOUT_S, concurrency=CONCURRENCY
        )
        for number, result in zip(waiting, results, strict=True):
            source, target, probe = asked[number]
            address = next(one for one in source.addresses if one.version == probe.address.version)
            question = Question(probe.protocol.value, probe.port)
            explanation = ask(world, address, probe.address, question)
            trials[number] = Trial(source, target, result, explanation)
        waiting = [number for number in waiting if trials[number].fault]
        if not waiting:
            break
    return [trials[number] for number in range(len(asked))]


async def read_objects(client: ApiClient) -> list[Json]:
    """All that policy depends on, as the API server has it. Raises PoplinError."""
    lists = await asyncio.gather(
        *(_list(client, resource) for resource in (NAMESPACES, PODS, NODES, NETWORK_POLICIES))
    )
    return [one for some in lists for one in some]


async def _list(client: ApiClient, resource: Resource[Any]) -> list[Json]:
    items = msgspec.json.decode(await client.request("GET", resource.path()))["items"]
    return [{**one, "kind": resource.kind, "apiVersion": resource.api_version} for one in items]
