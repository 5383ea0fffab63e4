"""Deployments: one ReplicaSet for each template, and the way from one to the next.

Source: Kubernetes documentation, "Deployments", and the API reference's "DeploymentSpec".
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import Cluster, Controller
from poplin.lab.controllers.deployment_status import describe
from poplin.lab.controllers.fingerprint import fingerprint
from poplin.lab.controllers.object import (
    DEPLOYMENTS,
    PODS,
    REPLICA_SETS,
    Json,
    Key,
    Object,
    controller_of,
    owner_reference,
)
from poplin.lab.controllers.ownership import candidates, claim, owners
from poplin.lab.controllers.pod import is_finished
from poplin.lab.controllers.rollout import Bounds, Scale, resize, resolve_bounds, roll
from poplin.lab.controllers.write import Agenda, Create, Event, Outcome, delete, patch, patch_status

HASH: Final = "pod-template-hash"
REVISION: Final = "deployment.kubernetes.io/revision"
HISTORY: Final = "deployment.kubernetes.io/revision-history"
DESIRED: Final = "deployment.kubernetes.io/desired-replicas"
MOST: Final = "deployment.kubernetes.io/max-replicas"
OWN_ANNOTATIONS: Final = frozenset(
    {"kubectl.kubernetes.io/last-applied-configuration", REVISION, HISTORY, DESIRED, MOST}
)


@dataclass(frozen=True, slots=True)
class Family:
    """A Deployment's ReplicaSets: that of the present template, None where there is none yet, and the old ones.

    `old` is in the order of their creation. `old_pods` is how many of the old ones' pods are not yet gone.
    """

    new: Object | None
    old: Sequence[Object]
    old_pods: int = 0

    @property
    def all(self) -> Sequence[Object]:
        return [*([self.new] if self.new else []), *self.old]


def deploy(
    deployment: Object,
    replica_sets: Iterable[Object],
    old_pods: dict[str, int],
    taken: Collection[str],
    now: datetime,
) -> Outcome:
    """The next step from the ReplicaSets there are to those there should be.

    `replica_sets` are its own and those without a controller; `old_pods` counts, by uid of the ReplicaSet,
    the pods not yet gone; `taken` are the names of all ReplicaSets in the namespace.
    """
    agenda = Agenda()
    mine, agenda.writes = claim(deployment, REPLICA_SETS, replica_sets)
    family = find_family(deployment, mine, old_pods)
    if deployment.deleting:
        return agenda.outcome()
    bounds = find_bounds(deployment)
    sizes = choose_sizes(deployment, family, bounds)
    revision = _next_revision(family)
    collisions = deployment.status.get("collisionCount", 0)
    made = ""
    if family.new is None and not deployment.spec.get("paused"):
        made = f"{deployment.name}-{fingerprint(deployment.spec['template'], collisions)}"
        if made in taken:
            agenda.writes += patch_status(DEPLOYMENTS, deployment, {"collisionCount": collisions + 1})
            return agenda.outcome()
        agenda.writes.append(_make_replica_set(deployment, made, sizes[""], revision, bounds))
    for one in family.all:
        current = one is family.new and not deployment.spec.get("paused")
        agenda.writes += _adjust(deployment, one, sizes[one.uid], revision if current else 0, bounds)
    if not deployment.spec.get("paused") and deployment.annotations.get(REVISION) != str(revision):
        agenda.writes.append(
            patch(DEPLOYMENTS, deployment, {"metadata": {"annotations": {REVISION: str(revision)}}})
        )
    status, agenda.again = describe(deployment, family.new, family.old, bounds, now, made=made)
    agenda.writes += patch_status(DEPLOYMENTS, deployment, status)
    if _is_complete(deployment, status):
        agenda.writes += [delete(REPLICA_SETS, one) for one in _outlived(deployment, family.old)]
    return agenda.outcome()


def find_family(deployment: Object, mine: Iterable[Object], old_pods: dict[str, int]) -> Family:
    """Tell the ReplicaSet of the present template, the oldest where there are several, from the others."""
    wanted = _bare(deployment.spec["template"])
    ordered = sorted(mine, key=lambda one: (one.created, one.name))
    new = next((one for one in ordered if _bare(one.spec["template"]) == wanted), None)
    old = [one for one in ordered if one is not new]
    return Family(new, old, sum(old_pods.get(one.uid, 0) for one in old))


def _bare(template: Json) -> Json:
    """A template without the label that its ReplicaSet gave it."""
    metadata = dict(template.get("metadata") or {})
    labels = {key: value for key, value in (metadata.pop("labels", None) or {}).items() if key != HASH}
    return {**template, "metadata": {**{k: v for k, v in metadata.items() if v}, "labels": labels}}


def find_bounds(deployment: Object) -> Bounds:
    """What the strategy allows; Recreate allows all to be gone, and none too many."""
    replicas = deployment.spec.get("replicas", 1)
    if _is_recreated(deployment):
        return Bounds(replicas, replicas, replicas)
    rolling = (deployment.spec.get("strategy") or {}).get("rollingUpdate") or {}
    return resolve_bounds(replicas, rolling.get("maxSurge", "25%"), rolling.get("maxUnavailable", "25%"))


def choose_sizes(deployment: Object, family: Family, bounds: Bounds) -> dict[str, int]:
    """How many pods each ReplicaSet is to have, by uid; "" stands for the one that is still to be made."""
    scales = {one.uid: _scale_of(one) for one in family.all}
    sizes = {uid: one.replicas for uid, one in scales.items()}
    active = [one for one in family.all if scales[one.uid].replicas]
    recreate = _is_recreated(deployment)
    resized = any(int(one.annotations.get(DESIRED, bounds.replicas)) != bounds.replicas for one in active)
    if deployment.spec.get("paused") or (resized and family.new is not None and not recreate):
        return sizes | _resize(family, active, scales, bounds)
    old = [scales[one.uid] for one in family.old]
    new_uid, new = (family.new.uid, scales[family.new.uid]) if family.new else ("", Scale(0, 0))
    if recreate:
        sizes |= {one.uid: 0 for one in family.old}
        waiting = family.old_pods or any(one.replicas for one in old)
        return sizes | {new_uid: new.replicas if waiting else bounds.replicas}
    grown, shrunk = roll(new, old, bounds)
    return sizes | {new_uid: grown} | {one.uid: size for one, size in zip(family.old, shrunk, strict=True)}


def _is_recreated(deployment: Object) -> bool:
    return (deployment.spec.get("strategy") or {}).get("type") == "Recreate"


def _scale_of(replica_set: Object) -> Scale:
    return Scale(
        replica_set.spec.get("replicas", 1),
        replica_set.status.get("availableReplicas", 0),
        int(replica_set.annotations.get(MOST, "0")),
    )


def _resize(
    family: Family, active: Sequence[Object], scales: dict[str, Scale], bounds: Bounds
) -> dict[str, int]:
    """The sizes after `replicas` was changed: of the only one, or of all in proportion amid a rollout."""
    if len(active) <= 1:
        only = active[0] if active else family.new
        return {only.uid: bounds.replicas} if only else {}
    new = family.new
    if new is not None:
        held = scales[new.uid]
        if held.replicas == held.available == bounds.replicas:
            return {one.uid: 0 for one in family.old}
    growing = bounds.most >= sum(scales[one.uid].replicas for one in active)
    # Of equals the newest grows first, and the oldest shrinks first.
    ordered = sorted(active, key=lambda one: (one.created, one.name), reverse=growing)
    ordered.sort(key=lambda one: -scales[one.uid].replicas)
    sizes = resize([scales[one.uid] for one in ordered], bounds)
    return {one.uid: size for one, size in zip(ordered, sizes, strict=True)}


def _revision_of(replica_set: Object) -> int:
    text = replica_set.annotations.get(REVISION, "0")
    return int(text) if text.isdecimal() else 0


def _next_revision(family: Family) -> int:
    """The number of the present template: beyond all old ones, so that a rollback counts as new."""
    newest = max((_revision_of(one) for one in family.old), default=0)
    return max(newest + 1, _revision_of(family.new) if family.new else 0)


def _make_replica_set(deployment: Object, name: str, size: int, revision: int, bounds: Bounds) -> Create:
    template = deployment.spec["template"]
    metadata = template.get("metadata") or {}
    label = {HASH: name.removeprefix(f"{deployment.name}-")}
    labels = {**(metadata.get("labels") or {}), **label}
    selector = deployment.spec["selector"]
    spec: dict[str, Any] = {
        "replicas": size,
        "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), **label}},
        "template": {**template, "metadata": {**metadata, "labels": labels}},
    }
    if deployment.spec.get("minReadySeconds"):
        spec["minReadySeconds"] = deployment.spec["minReadySeconds"]
    body = {
        "metadata": {
            "name": name,
            "namespace": deployment.namespace,
            "labels": labels,
            "annotations": _inherited(deployment) | _sizes(bounds) | {REVISION: str(revision)},
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": spec,
    }
    event = Event(deployment, "ScalingReplicaSet", f"Scaled up replica set {name} from 0 to {size}")
    return Create(REPLICA_SETS, deployment.namespace, body, event)


def _inherited(deployment: Object) -> dict[str, str]:
    return {key: value for key, value in deployment.annotations.items() if key not in OWN_ANNOTATIONS}


def _sizes(bounds: Bounds) -> dict[str, str]:
    return {DESIRED: str(bounds.replicas), MOST: str(bounds.most)}


def _adjust(deployment: Object, one: Object, size: int, revision: int, bounds: Bounds) -> list[Any]:
    """The patch that gives a ReplicaSet its size, and with a `revision` (not 0) what the present one carries."""
    wanted: dict[str, str] = _sizes(bounds) if size or one.spec.get("replicas", 1) else {}
    spec: Json = {}
    event = None
    before = one.spec.get("replicas", 1)
    if size != before:
        spec["replicas"] = size
        way = "up" if size > before else "down"
        text = f"Scaled {way} replica set {one.name} from {before} to {size}"
        event = Event(deployment, "ScalingReplicaSet", text)
    if revision:
        wanted |= _inherited(deployment) | {REVISION: str(revision)}
        held = _revision_of(one)
        if held and held != revision:
            history = [part for part in one.annotations.get(HISTORY, "").split(",") if part]
            wanted[HISTORY] = ",".join([*history, str(held)])
        if one.spec.get("minReadySeconds", 0) != deployment.spec.get("minReadySeconds", 0):
            spec["minReadySeconds"] = deployment.spec.get("minReadySeconds", 0)
    annotations = {key: value for key, value in wanted.items() if one.annotations.get(key) != value}
    body: Json = {}
    if annotations:
        body["metadata"] = {"annotations": annotations}
    if spec:
        body["spec"] = spec
    return [replace(patch(REPLICA_SETS, one, body), event=event)] if body else []


def _is_complete(deployment: Object, status: dict[str, Any]) -> bool:
    replicas = deployment.spec.get("replicas", 1)
    return all((status[key] or 0) == replicas for key in ("replicas", "updatedReplicas", "availableReplicas"))


def _outlived(deployment: Object, old: Sequence[Object]) -> list[Object]:
    """Old ReplicaSets without pods, beyond those that the history keeps."""
    limit = deployment.spec.get("revisionHistoryLimit", 10)
    empty = [
        one
        for one in sorted(old, key=lambda one: (_revision_of(one), one.created, one.name))
        if not one.deleting
        and not one.spec.get("replicas", 1)
        and not one.status.get("replicas")
        and one.status.get("observedGeneration", 0) >= one.metadata.generation
    ]
    return empty[: max(0, len(empty) - limit)]


def _decide(cluster: Cluster, key: Key, now: datetime) -> Outcome:
    deployment = cluster[DEPLOYMENTS].get(key)
    if deployment is None:
        return Outcome()
    replica_sets = candidates(cluster, REPLICA_SETS, deployment)
    remaining: dict[str, int] = {}
    if _is_recreated(deployment):
        for one in replica_sets:
            pods = cluster[PODS].find("owner", one.uid)
            remaining[one.uid] = sum(not is_finished(pod) for pod in pods)
    taken = {one.name for one in cluster[REPLICA_SETS].find("namespace", deployment.namespace)}
    return deploy(deployment, replica_sets, remaining, taken, now)


def _affected(cluster: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    if resource is DEPLOYMENTS:
        return (one.key,)
    if resource is REPLICA_SETS:
        return owners(cluster, DEPLOYMENTS, one)
    reference = controller_of(one)
    if reference is None or reference["kind"] != "ReplicaSet":
        return ()
    replica_set = cluster[REPLICA_SETS].get((one.namespace, reference["name"]))
    above = controller_of(replica_set) if replica_set else None
    if above is None or above["kind"] != "Deployment":
        return ()
    deployment = cluster[DEPLOYMENTS].get((one.namespace, above["name"]))
    # Only Recreate waits for pods; otherwise a ReplicaSet's status says enough.
    return (deployment.key,) if deployment and _is_recreated(deployment) else ()


DEPLOYMENT: Final = Controller("deployment-controller", (DEPLOYMENTS, REPLICA_SETS, PODS), _affected, _decide)
