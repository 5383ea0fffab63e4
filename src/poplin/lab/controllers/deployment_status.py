"""What a Deployment's status says of its ReplicaSets: counts, and the conditions that `kubectl rollout` reads.

Source: Kubernetes documentation, "Deployments" (deployment status).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from poplin.lab.controllers.object import Json, Object, find_condition, format_time, parse_time, put_condition
from poplin.lab.controllers.rollout import Bounds

COMPLETE: Final = "NewReplicaSetAvailable"
PAUSE_REASONS: Final = frozenset({"DeploymentPaused", "DeploymentResumed"})


def describe(
    deployment: Object,
    new: Object | None,
    old: Sequence[Object],
    bounds: Bounds,
    now: datetime,
    *,
    made: str = "",
) -> tuple[dict[str, Any], datetime | None]:
    """The status, and when it changes by time alone: at the progress deadline, None where none runs.

    `made` is the name of the ReplicaSet that is being created, "" if none is.
    """
    replica_sets = [*([new] if new else []), *old]
    counts = {
        key: sum(one.status.get(key, 0) for one in replica_sets)
        for key in ("replicas", "readyReplicas", "availableReplicas")
    }
    counts["updatedReplicas"] = new.status.get("replicas", 0) if new else 0
    wanted = sum(one.spec.get("replicas", 1) for one in replica_sets)
    counts["unavailableReplicas"] = max(0, wanted - counts["availableReplicas"])
    conditions = list(deployment.status.get("conditions") or ())
    enough = counts["availableReplicas"] >= bounds.least
    conditions = _put(
        conditions,
        "Available",
        "True" if enough else "False",
        "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
        f"Deployment {'has' if enough else 'does not have'} minimum availability.",
        now,
    )
    conditions, again = _put_progress(deployment, conditions, counts, new, made, now)
    status: dict[str, Any] = {key: count or None for key, count in counts.items()}
    status |= {"observedGeneration": deployment.metadata.generation, "conditions": conditions}
    return status, again


def _put_progress(
    deployment: Object,
    conditions: list[Json],
    counts: dict[str, int],
    new: Object | None,
    made: str,
    now: datetime,
) -> tuple[list[Json], datetime | None]:
    deadline_s = deployment.spec.get("progressDeadlineSeconds", 600)
    present = find_condition({"conditions": conditions}, "Progressing")
    if deployment.spec.get("paused"):
        return _put(
            conditions, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", now
        ), None
    if made:
        text = f'Created new replica set "{made}"'
        return _put(conditions, "Progressing", "True", "NewReplicaSetCreated", text, now, renew=True), None
    name = new.name if new else ""
    replicas = deployment.spec.get("replicas", 1)
    if all(counts[key] == replicas for key in ("replicas", "updatedReplicas", "availableReplicas")):
        text = f'ReplicaSet "{name}" has successfully progressed.'
        return _put(conditions, "Progressing", "True", COMPLETE, text, now), None
    settled = present is not None and present.get("reason") == COMPLETE
    if settled and counts["replicas"] == counts["updatedReplicas"]:
        return conditions, None  # replicas that fail after the rollout, or scaling, are no rollout
    if (
        present is None
        or present["reason"] in PAUSE_REASONS
        or settled
        or _has_progressed(deployment, counts)
    ):
        text = f'ReplicaSet "{name}" is progressing.'
        conditions = _put(conditions, "Progressing", "True", "ReplicaSetUpdated", text, now, renew=True)
        return conditions, now + timedelta(seconds=deadline_s)
    since = parse_time(present.get("lastUpdateTime")) or now
    deadline = since + timedelta(seconds=deadline_s)
    if now < deadline:
        return conditions, deadline
    text = f'ReplicaSet "{name}" has timed out progressing.'
    return _put(conditions, "Progressing", "False", "ProgressDeadlineExceeded", text, now), None


def _has_progressed(deployment: Object, counts: dict[str, int]) -> bool:
    """Whether more pods are new, ready or available than the status knows, or fewer are old."""
    before = {key: deployment.status.get(key, 0) for key in counts}
    grown = any(
        counts[key] > before[key] for key in ("updatedReplicas", "readyReplicas", "availableReplicas")
    )
    return (
        grown
        or counts["replicas"] - counts["updatedReplicas"] < before["replicas"] - before["updatedReplicas"]
    )


def _put(
    conditions: list[Json],
    kind: str,
    status: str,
    reason: str,
    message: str,
    now: datetime,
    *,
    renew: bool = False,
) -> list[Json]:
    """With the condition in place; one that says the same already stays as it is, unless it is to `renew`."""
    present = find_condition({"conditions": conditions}, kind)
    if present is not None and not renew and (present["status"], present["reason"]) == (status, reason):
        return conditions
    instant = format_time(now)
    condition = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastUpdateTime": instant,
        "lastTransitionTime": instant,
    }
    return put_condition(conditions, condition)
