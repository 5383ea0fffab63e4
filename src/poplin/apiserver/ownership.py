"""Who manages which field of an object: metadata.managedFields, and server-side apply on top of it. Pure.

https://kubernetes.io/docs/reference/using-api/server-side-apply/
An object is followed from its first apply on. What it has by then belongs to "before-first-apply", and what
kubectl's annotation lists to "kubectl-client-side-apply"; objects that nobody applies carry no such record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from poplin.apiserver.collection import Object
from poplin.apiserver.fieldset import (
    CONTAINER,
    NONE,
    FieldSet,
    Path,
    decode,
    encode,
    flatten,
    is_key,
    merge,
    remove,
    render,
)
from poplin.apiserver.schema import Node

APPLY: Final = "Apply"
UPDATE: Final = "Update"
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
KUBECTL: Final = "kubectl"
UNMANAGED: Final[frozenset[Path]] = frozenset(
    [("f:apiVersion",), ("f:kind",)]
    + [
        ("f:metadata", f"f:{name}")
        for name in (
            "name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
            "generation", "managedFields", "resourceVersion", "selfLink",
        )
    ]
)  # fmt: skip
"""What nobody manages: the server's own, and what says which object it is."""


@dataclass(frozen=True, slots=True, order=True)
class Manager:
    """Somebody who writes in one way. `version` is the apiVersion that its paths are of."""

    name: str
    operation: str
    version: str
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class Ownership:
    """What a manager manages, and when that last changed (RFC 3339)."""

    fields: FieldSet
    time: str


Managed = Mapping[Manager, Ownership]


class ConflictError(Exception):
    """Other managers have other values: `conflicts` are those managers, when they set them, and the fields."""

    def __init__(self, conflicts: Sequence[tuple[Manager, str, Path]]) -> None:
        super().__init__(describe_conflicts(conflicts))
        self.conflicts = conflicts


def read_managed(metadata: Object) -> dict[Manager, Ownership]:
    """Of an object's metadata. Raises ValueError for what is no record of that kind."""
    managed: dict[Manager, Ownership] = {}
    for entry in metadata.get("managedFields") or ():
        if not entry:
            continue
        if entry.get("operation") not in {APPLY, UPDATE} or entry.get("fieldsType") != "FieldsV1":
            raise ValueError(
                "metadata.managedFields has an entry that is neither Apply nor Update of FieldsV1"
            )
        manager = Manager(
            str(entry.get("manager") or ""),
            entry["operation"],
            str(entry.get("apiVersion") or ""),
            str(entry.get("subresource") or ""),
        )
        managed[manager] = Ownership(decode(entry.get("fieldsV1") or {}), str(entry.get("time") or ""))
    return managed


def write_managed(managed: Managed) -> list[Object]:
    """As metadata.managedFields has it: Apply before Update, the oldest first."""
    entries = []
    for manager, owned in sorted(managed.items(), key=lambda one: (one[0].operation, one[1].time, one[0])):
        entry = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.version,
            "time": owned.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": encode(owned.fields),
        }
        if manager.subresource:
            entry["subresource"] = manager.subresource
        entries.append(entry)
    return entries


def begin(live: Object, node: Node, version: str, now: str) -> Managed:
    """Who manages what of an object that was not followed so far."""
    fields = owned_by_nobody_else(flatten(live, node))
    annotations = live["metadata"].get("annotations") or {}
    by_kubectl = last_applied(live, node) & fields
    if LAST_APPLIED in annotations:
        by_kubectl |= {("f:metadata", "f:annotations", f"f:{LAST_APPLIED}")}
    sets = {"kubectl-client-side-apply": by_kubectl, "before-first-apply": fields - by_kubectl}
    created = str(live["metadata"].get("creationTimestamp") or now)
    return {Manager(name, UPDATE, version): Ownership(some, created) for name, some in sets.items() if some}


def last_applied(live: Object, node: Node) -> FieldSet:
    """The fields that kubectl's client-side apply has left a note of."""
    text = (live["metadata"].get("annotations") or {}).get(LAST_APPLIED, "")
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError):
        return NONE
    return owned_by_nobody_else(flatten(document, node)) if isinstance(document, dict) else NONE


def owned_by_nobody_else(fields: Iterable[Path]) -> FieldSet:
    """Of these fields those that can be managed."""
    return frozenset(path for path in fields if path[:1] not in UNMANAGED and path[:2] not in UNMANAGED)


def apply(
    live: Object, applied: Object, managed: Managed, manager: Manager, node: Node, *, force: bool, now: str
) -> tuple[Object, Managed]:
    """The object and its managers after `manager` has applied all that it wants to manage.

    Raises ConflictError, unless `force`, and FieldError where `applied` has a list that cannot be merged.
    """
    wanted = flatten(applied, node, strict=True)
    fields = owned_by_nobody_else(wanted)
    merged: Object = merge(live, applied, node)
    before = flatten(live, node)
    changed = frozenset(path for path in fields if differs(before, wanted, path))
    others = {one: owned for one, owned in managed.items() if one != manager}
    conflicts = [
        (one, owned.time, path)
        for one, owned in sorted(others.items())
        for path in sorted(owned.fields & changed)
    ]
    if conflicts and not force and not _is_upgrade(live, conflicts, manager, node):
        raise ConflictError(conflicts)
    others = {one: Ownership(owned.fields - changed, owned.time) for one, owned in others.items()}
    previous = managed.get(manager)
    if previous is not None:
        kept = fields.union(*(owned.fields for owned in others.values()))
        merged = _prune(merged, previous.fields - fields, kept, node)
    there = flatten(merged, node).keys()
    result = {one: Ownership(owned.fields & there, owned.time) for one, owned in others.items()}
    unchanged = previous is not None and previous.fields == fields
    result[manager] = previous if unchanged and previous is not None else Ownership(fields, now)
    return merged, {one: owned for one, owned in result.items() if owned.fields}


def record(
    before: Object, after: Object, managed: Managed, manager: Manager, node: Node, *, now: str
) -> Managed:
    """The managers after `manager` has written `after` over `before` in any other way: what it changed is its own."""
    old, new = flatten(before, node), flatten(after, node)
    changed = owned_by_nobody_else(path for path in new if differs(old, new, path))
    gone = old.keys() - new.keys()
    if not changed and not gone:
        return managed
    result: dict[Manager, Ownership] = {}
    for one, owned in managed.items():
        left = owned.fields - gone - (NONE if one == manager else changed)
        if left:
            result[one] = Ownership(left, owned.time)
    if changed:
        mine = result.get(manager)
        result[manager] = Ownership(changed | (mine.fields if mine else NONE), now)
    return result


def differs(old: Mapping[Path, Any], new: Mapping[Path, Any], path: Path) -> bool:
    """Whether a field of `new` is not in `old`, or has another value there."""
    if path not in old:
        return True
    left, right = old[path], new[path]
    return left is not right and left is not CONTAINER and right is not CONTAINER and left != right


def _is_upgrade(
    live: Object, conflicts: Sequence[tuple[Manager, str, Path]], manager: Manager, node: Node
) -> bool:
    """Whether kubectl meets nobody but itself: fields that its client-side apply has set."""
    return manager.name == KUBECTL and {path for _, _, path in conflicts} <= last_applied(live, node)


def _prune(document: Object, dropped: FieldSet, kept: FieldSet, node: Node) -> Object:
    """Without the fields that nobody wants any more. One that holds a field of somebody's stays."""
    holders = {path[:length] for path in kept for length in range(1, len(path) + 1)}
    # An item before its key: without that nobody would find it.
    for path in sorted(dropped, key=len):
        if path not in holders and not (path[:-1] in holders and is_key(path)):
            document = remove(document, path, node)
    return document


def describe_conflicts(conflicts: Sequence[tuple[Manager, str, Path]]) -> str:
    """The message of a refused apply, as Kubernetes words it."""
    if len(conflicts) == 1:
        manager, time, path = conflicts[0]
        return f"Apply failed with 1 conflict: conflict with {describe(manager, time)}: {render(path)}"
    lines: list[str] = []
    for manager, time in dict.fromkeys((manager, time) for manager, time, _ in conflicts):
        lines.append(f"conflicts with {describe(manager, time)}:")
        lines += [f"- {render(path)}" for one, _, path in conflicts if one == manager]
    return f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)


def describe(manager: Manager, time: str) -> str:
    """A manager by its name and what else sets it apart."""
    subresource = f' with subresource "{manager.subresource}"' if manager.subresource else ""
    how = f" using {manager.version}" if manager.operation == UPDATE else ""
    when = f" at {time}" if how and time else ""
    return f'"{manager.name}"{subresource}{how}{when}'
