"""ReplicaSets: as many pods as `replicas` says.

Source: Kubernetes documentation, "ReplicaSet" (scaling down), and KEP-2255 (pod deletion cost).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import Cluster, Controller
from poplin.lab.controllers.object import EPOCH, PODS, REPLICA_SETS, Key, Object, controller_of
from poplin.lab.controllers.ownership import candidates, claim, owners
from poplin.lab.controllers.pod import (
    is_active,
    is_available,
    is_ready,
    make_pod,
    ready_since,
    restarts,
    wake_when_available,
)
from poplin.lab.controllers.write import Agenda, Event, Outcome, delete, patch_status

BURST: Final = 500
"""Pods made or deleted in one step."""
COST: Final = "controller.kubernetes.io/pod-deletion-cost"
PHASES: Final = {"Pending": 0, "Unknown": 1, "Running": 2}


def scale(replica_set: Object, pods: Iterable[Object], crowd: Mapping[str, int], now: datetime) -> Outcome:
    """Create or delete pods until there are as many as wanted, and tell the state.

    `pods` are its own and those without a controller; `crowd` counts the pods of the same workload on each
    node, so that doubles go first.
    """
    agenda = Agenda()
    mine, agenda.writes = claim(replica_set, PODS, pods, fits=is_active)
    active = [pod for pod in mine if is_active(pod)]
    wanted = replica_set.spec.get("replicas", 1)
    template = replica_set.spec.get("template") or {}
    if not replica_set.deleting:
        missing = min(wanted - len(active), BURST)
        agenda.writes += [make_pod(replica_set, template) for _ in range(missing)]
        if missing < 0:
            for pod in choose_victims(active, crowd, min(-missing, BURST)):
                event = Event(replica_set, "SuccessfulDelete", f"Deleted pod: {pod.name}")
                agenda.writes.append(delete(PODS, pod, event=event))
    status = describe(replica_set, mine, template, now)
    agenda.writes += patch_status(REPLICA_SETS, replica_set, status)
    wake_when_available(agenda, active, replica_set.spec.get("minReadySeconds", 0), now)
    return agenda.outcome()


def describe(
    replica_set: Object, mine: Iterable[Object], template: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """The ReplicaSet's status. Counts of zero are left out, save `replicas`, as the API writes them."""
    active = [pod for pod in mine if is_active(pod)]
    labels = ((template.get("metadata") or {}).get("labels") or {}).items()
    min_ready_s = replica_set.spec.get("minReadySeconds", 0)
    return {
        "replicas": len(active),
        "fullyLabeledReplicas": sum(labels <= pod.labels.items() for pod in active) or None,
        "readyReplicas": sum(map(is_ready, active)) or None,
        "availableReplicas": sum(is_available(pod, min_ready_s, now) for pod in active) or None,
        "observedGeneration": replica_set.metadata.generation,
    }


def choose_victims(active: Iterable[Object], crowd: Mapping[str, int], count: int) -> list[Object]:
    """The `count` pods whose end hurts least: the order in which Kubernetes scales down."""

    def rank(pod: Object) -> tuple[object, ...]:
        since = ready_since(pod)
        return (
            bool(pod.spec.get("nodeName")),
            PHASES.get(pod.status.get("phase", "Pending"), 1),
            is_ready(pod),
            _cost(pod),
            -crowd.get(pod.spec.get("nodeName", ""), 0),
            -(since or EPOCH).timestamp(),
            -restarts(pod),
            -pod.created.timestamp(),
            pod.name,
        )

    return sorted(active, key=rank)[:count]


def _cost(pod: Object) -> int:
    try:
        return int(pod.annotations.get(COST, "0"))
    except ValueError:
        return 0


def _decide(cluster: Cluster, key: Key, now: datetime) -> Outcome:
    replica_set = cluster[REPLICA_SETS].get(key)
    if replica_set is None:
        return Outcome()
    return scale(replica_set, candidates(cluster, PODS, replica_set), _crowd(cluster, replica_set), now)


def _crowd(cluster: Cluster, replica_set: Object) -> Mapping[str, int]:
    """Active pods on each node of this ReplicaSet and of those with the same controller."""
    reference = controller_of(replica_set)
    siblings = cluster[REPLICA_SETS].find("owner", reference["uid"]) if reference else [replica_set]
    return Counter(
        pod.spec.get("nodeName", "")
        for one in siblings
        for pod in cluster[PODS].find("owner", one.uid)
        if is_active(pod)
    )


def _affected(cluster: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    return (one.key,) if resource is REPLICA_SETS else owners(cluster, REPLICA_SETS, one)


REPLICA_SET: Final = Controller("replicaset-controller", (REPLICA_SETS, PODS), _affected, _decide)
