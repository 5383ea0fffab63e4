"""Pods as workloads see them: states, and how one is made of a template.

Source: Kubernetes documentation, "Pod Lifecycle".
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from poplin.lab.controllers.object import PODS, Json, Object, find_condition, owner_reference, parse_time
from poplin.lab.controllers.write import Agenda, Create, Event


def is_finished(pod: Object) -> bool:
    """Whether its containers have stopped for good."""
    return pod.status.get("phase") in {"Succeeded", "Failed"}


def is_active(pod: Object) -> bool:
    """Whether it runs or will: neither finished nor on its way out."""
    return not pod.deleting and not is_finished(pod)


def is_ready(pod: Object) -> bool:
    condition = find_condition(pod.status, "Ready")
    return condition is not None and condition.get("status") == "True"


def ready_since(pod: Object) -> datetime | None:
    """When it became ready; None where it is not."""
    condition = find_condition(pod.status, "Ready")
    if condition is None or condition.get("status") != "True":
        return None
    return parse_time(condition.get("lastTransitionTime"))


def available_at(pod: Object, min_ready_s: int) -> datetime | None:
    """When it will have been ready for `min_ready_s` seconds; None where it is not ready."""
    since = ready_since(pod)
    return None if since is None else since + timedelta(seconds=min_ready_s)


def is_available(pod: Object, min_ready_s: int, now: datetime) -> bool:
    """Whether it has been ready for `min_ready_s` seconds."""
    if not min_ready_s:
        return is_ready(pod)
    when = available_at(pod, min_ready_s)
    return when is not None and when <= now


def wake_when_available(agenda: Agenda, pods: Iterable[Object], min_ready_s: int, now: datetime) -> None:
    """Look again when the next of `pods` becomes available by time alone."""
    for pod in pods if min_ready_s else ():
        when = available_at(pod, min_ready_s)
        if when is not None and when > now:
            agenda.wake(when)


def restarts(pod: Object) -> int:
    return sum(one.get("restartCount", 0) for one in pod.status.get("containerStatuses") or ())


def make_pod(
    owner: Object,
    template: Mapping[str, Any],
    *,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    spec: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> Create:
    """A pod of the owner's from a PodTemplateSpec.

    `labels`, `annotations` and `spec` are laid over the template's. Without `name` the server completes
    `prefix`, by default the owner's name and a dash.
    """
    given = template.get("metadata") or {}
    metadata: Json = {"namespace": owner.namespace, "ownerReferences": [owner_reference(owner)]}
    metadata |= {"name": name} if name else {"generateName": prefix or f"{owner.name}-"}
    for key, over in (("labels", labels), ("annotations", annotations)):
        if merged := {**(given.get(key) or {}), **(over or {})}:
            metadata[key] = merged
    if given.get("finalizers"):
        metadata["finalizers"] = given["finalizers"]
    body = {"metadata": metadata, "spec": {**(template.get("spec") or {}), **(spec or {})}}
    return Create(
        PODS, owner.namespace, body, Event(owner, "SuccessfulCreate", f"{CREATED[owner.kind]}: {{name}}")
    )


CREATED = {
    "ReplicaSet": "Created pod",
    "DaemonSet": "Created pod",
    "Job": "Created pod",
    "StatefulSet": "create Pod in StatefulSet successful",
}


def resolve_count(value: int | str | None, total: int, *, up: bool) -> int:
    """An IntOrString such as maxSurge: a number, or a percentage of `total`, rounded `up` or down."""
    if isinstance(value, int):
        return value
    if not value:
        return 0
    share = int(value.rstrip("%")) * total
    return -(-share // 100) if up else share // 100
