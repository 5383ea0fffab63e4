"""Workloads: whether each is available, and where one is not, why."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from poplin.datastore.client import ApiClient
from poplin.datastore.resource import Resource
from poplin.lab.controllers.object import (
    DAEMON_SETS,
    DEPLOYMENTS,
    JOBS,
    PODS,
    REPLICA_SETS,
    STATEFUL_SETS,
    Json,
    Object,
    controller_of,
    find_condition,
)
from poplin.lab.report import ObjectList

POLL_S: Final = 0.1
QUIET_S: Final = 12.0
"""A cluster in which nothing has changed for so long waits for something that will not come."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload and how much of it is available; `reason` says what it waits for, as far as that is known."""

    kind: str
    namespace: str
    name: str
    wanted: int
    available: int
    reason: str = ""

    @property
    def ready(self) -> bool:
        """Whether all of it is there."""
        return self.available >= self.wanted


def read_workload(one: Object) -> Workload:
    """A Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or Pod. What its controller has not seen is not ready."""
    status, spec = one.status, one.spec
    seen = status.get("observedGeneration", 0) >= one.metadata.generation
    match one.kind:
        case "DaemonSet":
            wanted = status.get("desiredNumberScheduled", 0) if seen else 1
            available = min(status.get("numberAvailable", 0), status.get("updatedNumberScheduled", 0))
        case "Job":
            wanted = spec.get("completions", spec.get("parallelism", 1))
            available = status.get("succeeded", 0)
            seen = True
        case "Pod":
            wanted, available, seen = 1, int(is_available(one)), True
        case "Deployment":
            wanted = spec.get("replicas", 1)
            available = min(status.get("availableReplicas") or 0, status.get("updatedReplicas") or 0)
        case _:
            wanted = spec.get("replicas", 1)
            available = status.get("availableReplicas") or 0
    return Workload(one.kind, one.namespace, one.name, wanted, available if seen else 0)


def is_available(pod: Object) -> bool:
    """Whether a pod is ready, or has done its work."""
    ready = (find_condition(pod.status, "Ready") or {}).get("status") == "True"
    return ready or pod.status.get("phase") == "Succeeded"


def workload_of(pod: Object) -> str:
    """The name of what a pod is a part of: its Deployment, StatefulSet, DaemonSet or Job, else its own."""
    owner = controller_of(pod)
    if owner is None:
        return pod.name
    name = str(owner["name"])
    template = pod.labels.get("pod-template-hash", "")
    return name.removesuffix(f"-{template}") if owner["kind"] == "ReplicaSet" and template else name


def explain_pod(pod: Object) -> str:
    """Why a pod is not ready, in the cluster's own words; "" where nobody has said."""
    scheduled: Json = find_condition(pod.status, "PodScheduled") or {}
    if scheduled.get("status") == "False":
        return str(scheduled.get("message") or "not scheduled")
    for group, word in (("initContainerStatuses", "init container"), ("containerStatuses", "container")):
        for container in pod.status.get(group) or ():
            state = container.get("state") or {}
            waiting = state.get("waiting") or {}
            if waiting.get("message"):
                return f"{word} {container['name']}: {waiting['message']}"
            if "running" in state and word == "init container":
                return f"init container {container['name']} has not ended"
            if "running" in state and not container.get("ready"):
                return f"container {container['name']} is not ready"
    return ""


async def read_workloads(client: ApiClient) -> tuple[list[Workload], list[Object]]:
    """All that stands for itself, with the reasons, and all pods."""
    controllers: tuple[Resource[Object], ...] = (DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS, REPLICA_SETS, JOBS)
    lists = await asyncio.gather(*(_list(client, resource) for resource in (*controllers, PODS)))
    pods = lists[-1]
    own = [one for objects in lists for one in objects if controller_of(one) is None]
    workloads = [read_workload(one) for one in own]
    return [w if w.ready else _with_reason(w, pods) for w in workloads], pods


async def wait_for_workloads(
    client: ApiClient, timeout_s: float, progress: Callable[[Sequence[Workload]], None] = lambda _: None
) -> tuple[list[Workload], list[Object]]:
    """Return when all are available, or when that will not come: see each workload's `ready`."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    changed_s, before = loop.time(), ""
    while True:
        workloads, pods = await read_workloads(client)
        progress(workloads)
        versions = " ".join(sorted(f"{p.uid}:{p.metadata.resource_version}" for p in pods))
        if versions != before:
            changed_s, before = loop.time(), versions
        # A Deployment's pods are not there at once.
        if pods and all(workload.ready for workload in workloads):
            return workloads, pods
        if loop.time() > min(deadline_s, changed_s + QUIET_S):
            return workloads, pods
        await asyncio.sleep(POLL_S)


def _with_reason(workload: Workload, pods: Iterable[Object]) -> Workload:
    for pod in pods:
        its = pod.namespace == workload.namespace and workload_of(pod) == workload.name
        if its and not is_available(pod) and (reason := explain_pod(pod)):
            return Workload(
                workload.kind,
                workload.namespace,
                workload.name,
                workload.wanted,
                workload.available,
                f"{pod.name}: {reason}",
            )
    return workload


async def _list(client: ApiClient, resource: Resource[Object]) -> list[Object]:
    items = msgspec.json.decode(await client.request("GET", resource.path()), type=ObjectList).items
    return [resource.to_model(item) for item in items]
