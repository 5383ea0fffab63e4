"""DaemonSets: one pod on each node that is fit for it.

Source: Kubernetes documentation, "DaemonSet" (how daemon pods are scheduled, taints and tolerations) and
"Perform a Rolling Update on a DaemonSet".
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import Cluster, Controller
from poplin.lab.controllers.object import DAEMON_SETS, NODES, PODS, REVISIONS, Json, Key, Object
from poplin.lab.controllers.ownership import candidates, claim, owners
from poplin.lab.controllers.placement import wants_node
from poplin.lab.controllers.pod import (
    is_active,
    is_available,
    is_finished,
    is_ready,
    make_pod,
    resolve_count,
    wake_when_available,
)
from poplin.lab.controllers.revision import HASH, forget_old, keep_history
from poplin.lab.controllers.taint import (
    DISK_PRESSURE,
    MEMORY_PRESSURE,
    NETWORK_UNAVAILABLE,
    NOT_READY,
    PID_PRESSURE,
    UNREACHABLE,
    UNSCHEDULABLE,
    find_untolerated,
)
from poplin.lab.controllers.write import Agenda, Event, Outcome, Write, delete, patch_status

FAILED_REST: Final = timedelta(seconds=10)
"""How old a failed pod must be before another takes its place: a daemon that fails at once must not spin."""


@dataclass(slots=True)
class Place:
    """A node and the DaemonSet's pods there: `serving` are those that are neither finished nor on their way out."""

    node: Object
    runs: bool
    stays: bool
    pods: list[Object] = field(default_factory=list)

    @property
    def serving(self) -> list[Object]:
        return [pod for pod in self.pods if is_active(pod)]


def spread(
    daemon_set: Object,
    nodes: Iterable[Object],
    pods: Iterable[Object],
    revisions: Iterable[Object],
    now: datetime,
) -> Outcome:
    """Have one pod of the present template on every node that fits, in steps that the update strategy allows.

    `pods` and `revisions` are its own and those without a controller.
    """
    agenda = Agenda()
    mine, agenda.writes = claim(daemon_set, PODS, pods, fits=is_active)
    history = keep_history(daemon_set, revisions)
    agenda.writes += history.writes
    tolerations = find_tolerations(daemon_set)
    places = _find_places(daemon_set, nodes, mine, tolerations)
    if not daemon_set.deleting:
        for place in places.values():
            _fill(agenda, daemon_set, place, history.hash, tolerations, now)
        if (daemon_set.spec.get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate":
            _update(agenda, daemon_set, places, history.hash, tolerations, now)
        in_use = {f"{daemon_set.name}-{pod.labels.get(HASH, '')}" for pod in mine}
        agenda.writes += forget_old(daemon_set, history, in_use)
    agenda.writes += patch_status(DAEMON_SETS, daemon_set, _describe(daemon_set, places, history.hash, now))
    wake_when_available(agenda, mine, daemon_set.spec.get("minReadySeconds", 0), now)
    return agenda.outcome()


def find_tolerations(daemon_set: Object) -> list[Json]:
    """The template's tolerations and those that every daemon has."""
    spec = daemon_set.spec["template"].get("spec") or {}
    keys = [DISK_PRESSURE, MEMORY_PRESSURE, PID_PRESSURE, UNSCHEDULABLE]
    keys += [NETWORK_UNAVAILABLE] if spec.get("hostNetwork") else []
    every = [{"key": key, "operator": "Exists", "effect": "NoExecute"} for key in (NOT_READY, UNREACHABLE)]
    every += [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]
    own = spec.get("tolerations") or []
    return [*own, *(one for one in every if one not in own)]


def target_of(pod: Object) -> str:
    """The node a daemon pod is on or meant for, "" where it is meant for none."""
    if pod.spec.get("nodeName"):
        return str(pod.spec["nodeName"])
    affinity = ((pod.spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    for term in affinity.get("nodeSelectorTerms") or ():
        for one in term.get("matchFields") or ():
            if one["key"] == "metadata.name" and one["operator"] == "In" and len(one["values"]) == 1:
                return str(one["values"][0])
    return ""


def _find_places(
    daemon_set: Object, nodes: Iterable[Object], mine: Iterable[Object], tolerations: Sequence[Json]
) -> dict[str, Place]:
    spec = daemon_set.spec["template"].get("spec") or {}
    places = {}
    for node in sorted(nodes, key=lambda one: one.name):
        fits = wants_node(spec, node) and spec.get("nodeName") in {None, "", node.name}
        taints = node.spec.get("taints") or ()
        runs = fits and find_untolerated(tolerations, taints, {"NoSchedule", "NoExecute"}) is None
        stays = fits and find_untolerated(tolerations, taints, {"NoExecute"}) is None
        places[node.name] = Place(node, runs, stays)
    for pod in mine:
        if (place := places.get(target_of(pod))) is not None:
            place.pods.append(pod)
    return places


def _fill(
    agenda: Agenda, daemon_set: Object, place: Place, digest: str, tolerations: Sequence[Json], now: datetime
) -> None:
    """A pod where one is missing; none where none belongs, and none twice."""
    failed = [pod for pod in place.pods if is_finished(pod) and not pod.deleting]
    for pod in failed:
        due = pod.created + FAILED_REST
        if place.stays and due > now:
            agenda.wake(due)
        else:
            text = f"Found failed daemon pod {pod.namespace}/{pod.name} on node {place.node.name}, will try to kill it"
            agenda.writes.append(
                delete(PODS, pod, event=Event(daemon_set, "FailedDaemonPod", text, warning=True))
            )
    if place.runs and not place.pods:
        agenda.writes.append(_make_daemon(daemon_set, place.node, digest, tolerations))
    serving = place.serving
    if not place.stays:
        agenda.writes += [_retire(daemon_set, pod) for pod in serving]
    else:
        # Two of the same template on a node: the elder stays. One of each is an update that surges.
        for template in {pod.labels.get(HASH) for pod in serving}:
            same = [pod for pod in serving if pod.labels.get(HASH) == template]
            same.sort(key=lambda pod: (not pod.spec.get("nodeName"), pod.created, pod.name))
            agenda.writes += [_retire(daemon_set, pod) for pod in same[1:]]


def _make_daemon(daemon_set: Object, node: Object, digest: str, tolerations: Sequence[Json]) -> Write:
    """A pod that only this node may take: the scheduler still has the last word."""
    spec = daemon_set.spec["template"].get("spec") or {}
    affinity = dict(spec.get("affinity") or {})
    field_term = {"key": "metadata.name", "operator": "In", "values": [node.name]}
    required = {"nodeSelectorTerms": [{"matchFields": [field_term]}]}
    affinity["nodeAffinity"] = {
        **(affinity.get("nodeAffinity") or {}),
        "requiredDuringSchedulingIgnoredDuringExecution": required,
    }
    labels = {HASH: digest, "pod-template-generation": str(daemon_set.metadata.generation)}
    over = {"affinity": affinity, "tolerations": list(tolerations)}
    return make_pod(daemon_set, daemon_set.spec["template"], labels=labels, spec=over)


def _retire(daemon_set: Object, pod: Object) -> Write:
    return delete(PODS, pod, event=Event(daemon_set, "SuccessfulDelete", f"Deleted pod: {pod.name}"))


def _update(
    agenda: Agenda,
    daemon_set: Object,
    places: Mapping[str, Place],
    digest: str,
    tolerations: Sequence[Json],
    now: datetime,
) -> None:
    """Replace pods of older templates: some before their successors (maxUnavailable) or after (maxSurge)."""
    rolling = (daemon_set.spec.get("updateStrategy") or {}).get("rollingUpdate") or {}
    running = [place for place in places.values() if place.runs]
    surge = resolve_count(rolling.get("maxSurge", 0), len(running), up=True)
    unavailable = resolve_count(rolling.get("maxUnavailable", 1), len(running), up=True)
    if not surge and not unavailable:
        unavailable = 1
    min_ready_s = daemon_set.spec.get("minReadySeconds", 0)
    due: list[tuple[Place, Object]] = []
    for place in running:
        old = [pod for pod in place.serving if pod.labels.get(HASH) != digest]
        new = [pod for pod in place.serving if pod.labels.get(HASH) == digest]
        available = [pod for pod in (*old, *new) if is_available(pod, min_ready_s, now)]
        if not available:
            unavailable -= 1
        surge -= bool(old and new)
        for pod in old:
            if any(is_available(one, min_ready_s, now) for one in new) or pod not in available:
                # Nothing that serves is lost by its end.
                if new or not rolling.get("maxSurge"):
                    agenda.writes.append(_retire(daemon_set, pod))
                else:
                    agenda.writes.append(_make_daemon(daemon_set, place.node, digest, tolerations))
            elif not new:
                due.append((place, pod))
    if rolling.get("maxSurge"):
        for place, _ in due[: max(0, surge)]:
            agenda.writes.append(_make_daemon(daemon_set, place.node, digest, tolerations))
    else:
        agenda.writes += [_retire(daemon_set, pod) for _, pod in due[: max(0, unavailable)]]


def _describe(daemon_set: Object, places: Mapping[str, Place], digest: str, now: datetime) -> dict[str, Any]:
    min_ready_s = daemon_set.spec.get("minReadySeconds", 0)
    desired = scheduled = ready = available = updated = misplaced = 0
    for place in places.values():
        serving = place.serving
        if not place.runs:
            misplaced += bool(serving)
            continue
        desired += 1
        scheduled += bool(serving)
        ready += any(map(is_ready, serving))
        available += any(is_available(pod, min_ready_s, now) for pod in serving)
        updated += any(pod.labels.get(HASH) == digest for pod in serving)
    return {
        "currentNumberScheduled": scheduled,
        "desiredNumberScheduled": desired,
        "numberMisscheduled": misplaced,
        "numberReady": ready,
        "numberAvailable": available or None,
        "numberUnavailable": desired - available or None,
        "updatedNumberScheduled": updated or None,
        "observedGeneration": daemon_set.metadata.generation,
    }


def _decide(cluster: Cluster, key: Key, now: datetime) -> Outcome:
    daemon_set = cluster[DAEMON_SETS].get(key)
    if daemon_set is None:
        return Outcome()
    pods = candidates(cluster, PODS, daemon_set)
    return spread(daemon_set, cluster[NODES], pods, candidates(cluster, REVISIONS, daemon_set), now)


def _affected(cluster: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    if resource is DAEMON_SETS:
        return (one.key,)
    if resource is NODES:
        return [daemon_set.key for daemon_set in cluster[DAEMON_SETS]]
    return owners(cluster, DAEMON_SETS, one)


DAEMON_SET: Final = Controller(
    "daemonset-controller", (DAEMON_SETS, NODES, PODS, REVISIONS), _affected, _decide
)
