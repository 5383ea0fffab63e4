"""Requests and the record of who manages what: server-side apply, and every other write to an object that is followed."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Final

from poplin.apiserver import ownership, status
from poplin.apiserver.collection import Object
from poplin.apiserver.deletion import timestamp
from poplin.apiserver.fieldset import FieldError, render
from poplin.apiserver.options import Options
from poplin.apiserver.ownership import APPLY, UPDATE, ConflictError, Manager, read_managed, write_managed
from poplin.apiserver.resource import META, Resource, builtin_compiler
from poplin.apiserver.schema import Node

RESET: Final[list[Object]] = [{}]
"""What a client writes to metadata.managedFields to end the record (documentation, "Clearing managedFields")."""


@lru_cache(maxsize=512)
def find_node(resource: Resource) -> Node:
    """The schema of a type's objects, metadata included: a custom type's says nothing of that."""
    metadata = builtin_compiler().definition(META + "ObjectMeta")
    return replace(resource.schema, properties={**resource.schema.properties, "metadata": metadata})


def prepare_apply(
    resource: Resource, given: Object, options: Options, *, force: bool, part: str
) -> Callable[[Object], Object]:
    """The change that applying `given` makes; it leaves the new record in `options`."""
    applied = _check_applied(resource, given, part)
    node = find_node(resource)

    def change(live: Object) -> Object:
        _check_uid(resource, live, applied)
        now = timestamp()
        managed = _read(live) or ownership.begin(live, node, resource.api_version, now)
        manager = Manager(options.manager, APPLY, resource.api_version, part)
        # An apply of another version of the type is the same manager's earlier one.
        managed = {replace(one, version=manager.version) if _is_same(one, manager) else one: owned
                   for one, owned in managed.items()}  # fmt: skip
        try:
            merged, managed = ownership.apply(live, applied, managed, manager, node, force=force, now=now)
        except ConflictError as error:
            raise _conflict(error) from None
        except FieldError as error:
            raise _untyped(resource, live, error) from None
        written = write_managed(managed)
        options.managed = live["metadata"].get("managedFields") if _read(live) == managed else written
        return merged

    return change


def begin_applied(resource: Resource, given: Object, options: Options, name: str) -> Object:
    """The object that applying `given` creates; its record is in `options`."""
    applied = _check_applied(resource, given, "")
    applied["metadata"]["name"] = name
    if "uid" in applied["metadata"]:
        raise status.conflict(resource.plural, resource.group, name, "uid mismatch: there is no such object")
    manager = Manager(options.manager, APPLY, resource.api_version)
    try:
        document, managed = ownership.apply(
            {}, applied, {}, manager, find_node(resource), force=False, now=timestamp()
        )
    except FieldError as error:
        raise _untyped(resource, applied, error) from None
    options.managed = write_managed(managed)
    return document


def follow(
    resource: Resource, before: Object, after: Object, wish: object, options: Options, part: str
) -> None:
    """Bring the record of `after`, about to be stored over `before`, up to date.

    `wish` is what the client's own document has as managedFields, None for nothing.
    """
    metadata = after["metadata"]
    if options.managed is not None:
        metadata["managedFields"] = options.managed
        return
    known = _read(before)
    if wish == RESET:
        metadata.pop("managedFields", None)
        return
    if isinstance(wish, list) and wish and wish != before["metadata"].get("managedFields"):
        try:
            known = read_managed({"managedFields": wish})
        except (ValueError, AttributeError, TypeError):
            known = _read(before)
        else:
            metadata["managedFields"] = wish
    if not known:
        return
    manager = Manager(options.manager, UPDATE, resource.api_version, part)
    old, new = resource.present(before), resource.present(after)
    managed = ownership.record(old, new, known, manager, find_node(resource), now=timestamp())
    if managed is not known:
        metadata["managedFields"] = write_managed(managed)


def _read(document: Object) -> ownership.Managed:
    return read_managed(document["metadata"])


def _is_same(one: Manager, manager: Manager) -> bool:
    return (one.name, one.operation, one.subresource) == (
        manager.name,
        manager.operation,
        manager.subresource,
    )


def _check_applied(resource: Resource, given: object, part: str) -> Object:
    """The part of an apply's body that it is about. Raises StatusError."""
    if not isinstance(given, dict):
        raise status.bad_request("the body of the request is not an object")
    applied: Object = copy.deepcopy(given)
    kind = {"apiVersion": resource.api_version, "kind": resource.kind}
    for name, value in kind.items():
        if applied.get(name) != value:
            raise status.bad_request(
                f"failed to create typed patch object: {name} is {applied.get(name)!r}, not {value!r}"
            )
    metadata = applied.setdefault("metadata", {})
    if metadata.get("managedFields"):
        raise status.bad_request("metadata.managedFields must be nil")
    if part == "status":
        names = {
            name: metadata[name]
            for name in ("name", "namespace", "uid", "resourceVersion")
            if name in metadata
        }
        return {**kind, "metadata": names, **({"status": applied["status"]} if "status" in applied else {})}
    if resource.status:
        applied.pop("status", None)
    return applied


def _check_uid(resource: Resource, live: Object, applied: Object) -> None:
    wanted, uid = applied["metadata"].get("uid"), live["metadata"]["uid"]
    if wanted and wanted != uid:
        why = f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
        raise status.conflict(resource.plural, resource.group, live["metadata"]["name"], why)


def _conflict(error: ConflictError) -> status.StatusError:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {ownership.describe(manager, time)}",
            "field": render(path),
        }
        for manager, time, path in error.conflicts
    ]
    return status.StatusError(409, "Conflict", str(error), {"causes": causes})


def _untyped(resource: Resource, document: Object, error: FieldError) -> status.StatusError:
    metadata = document["metadata"]
    name = "/".join(filter(None, (metadata.get("namespace"), metadata.get("name"))))
    what = f"{name}; {resource.api_version}, Kind={resource.kind}"
    return status.bad_request(f"failed to create typed patch object ({what}): {error}")
