"""How an object ends: marked first, gone when nothing holds it any more.

https://kubernetes.io/docs/concepts/overview/working-with-objects/finalizers/
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from poplin.apiserver import status
from poplin.apiserver.collection import Entry, Object
from poplin.apiserver.resource import Resource

ORPHAN: Final = "orphan"
FOREGROUND: Final = "foregroundDeletion"


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """None is the type's default. `policy` is Background, Foreground or Orphan."""

    grace_period_s: int | None = None
    policy: str | None = None
    uid: str | None = None
    revision: str | None = None


def timestamp(after_s: float = 0) -> str:
    """Now, or some seconds later, as metav1.Time is written."""
    return (datetime.now(UTC) + timedelta(seconds=after_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


PROTECTED: Final = frozenset({"default", "kube-system", "kube-public"})
"""Namespaces that nobody may delete."""


def check_preconditions(resource: Resource, entry: Entry, options: DeleteOptions) -> None:
    """Raise StatusError where the object is not the one that `options` mean, or must not go."""
    if resource.kind == "Namespace" and entry.key[1] in PROTECTED:
        raise status.forbidden(
            resource.plural, resource.group, entry.key[1], "this namespace may not be deleted"
        )
    for what, wanted, actual in (
        ("UID", options.uid, entry.uid),
        ("ResourceVersion", options.revision, str(entry.revision)),
    ):
        if wanted and wanted != actual:
            why = f"Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {actual}"
            raise status.conflict(resource.plural, resource.group, entry.key[1], why)


def mark_deleted(resource: Resource, before: Object, options: DeleteOptions) -> Object:
    """The object with a deletion timestamp, the finalizers of the policy, and the grace period it gets."""
    metadata = dict(before["metadata"])
    after = {**before, "metadata": metadata}
    finalizers = [
        name
        for name in metadata.get("finalizers", ())
        if options.policy is None or name not in {ORPHAN, FOREGROUND}
    ]
    wanted = {"Orphan": ORPHAN, "Foreground": FOREGROUND}.get(options.policy or "")
    if wanted and wanted not in finalizers:
        finalizers.append(wanted)
    metadata.pop("finalizers", None)
    if finalizers:
        metadata["finalizers"] = finalizers
    grace_s = _grace_period(resource, before, options)
    previous = metadata.get("deletionGracePeriodSeconds")
    if "deletionTimestamp" not in metadata or (previous is not None and grace_s < previous):
        metadata["deletionTimestamp"] = timestamp(grace_s)
        metadata["deletionGracePeriodSeconds"] = grace_s
        if resource.generation and "generation" in metadata and previous is None:
            metadata["generation"] += 1
    if (resource.group, resource.kind) == ("", "Namespace"):
        after["status"] = {**before.get("status", {}), "phase": "Terminating"}
    return after


def _grace_period(resource: Resource, document: Object, options: DeleteOptions) -> int:
    """Seconds; only pods that a node runs have any."""
    spec = document.get("spec") or {}
    if (resource.group, resource.kind) != ("", "Pod") or not spec.get("nodeName"):
        return 0
    if (document.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
        return 0
    if options.grace_period_s is not None:
        return max(0, options.grace_period_s)
    return int(spec.get("terminationGracePeriodSeconds", 30))


def is_finished(resource: Resource, document: Object) -> bool:
    """Whether nothing holds an object that is being deleted any more."""
    metadata = document["metadata"]
    if "deletionTimestamp" not in metadata or metadata.get("finalizers"):
        return False
    if (resource.group, resource.kind) == ("", "Namespace") and (document.get("spec") or {}).get(
        "finalizers"
    ):
        return False
    return not metadata.get("deletionGracePeriodSeconds")
