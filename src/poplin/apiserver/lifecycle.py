"""What happens to an object from its creation to its end: the rules that all types share.

https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md
Nothing here knows of HTTP: the REST handlers and the server's own controllers call the same methods.
"""

import asyncio
import copy
import secrets
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from poplin.apiserver import rules, status
from poplin.apiserver.admission import Findings, admit
from poplin.apiserver.collection import Collection, Entry, Key, Object, make_entry
from poplin.apiserver.defaults import carry, derive, reset_status
from poplin.apiserver.deletion import DeleteOptions, check_preconditions, is_finished, mark_deleted, timestamp
from poplin.apiserver.fieldmanager import follow
from poplin.apiserver.options import Options
from poplin.apiserver.resource import Registry, Resource
from poplin.apiserver.status import Cause, StatusError
from poplin.apiserver.store import StaleError, Store
from poplin.apiserver.syntax import check_metadata

SUFFIX_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
NAMESPACES: Final = "/namespaces"
DELETIONS_AT_ONCE: Final = 100
"""How many deletions share a commit, and how long others wait for them."""


Change = Callable[[Object], Object]


Hook = Callable[[Resource, Object, Object | None, Options], None]
"""Called with every object about to be stored whose form is right, and its old version: may change it, warn, or raise StatusError."""


class Lifecycle:
    """Create, update and delete on a store. `hooks` run before validation, in their order."""

    def __init__(self, store: Store, registry: Registry, hooks: Sequence[Hook] = ()) -> None:
        self.store = store
        self.registry = registry
        self.hooks = list(hooks)

    def collection(self, resource: Resource) -> Collection:
        return self.store.open(resource.store, resource.fields)

    def get(self, resource: Resource, key: Key) -> Entry:
        """The newest durable version. Raises StatusError NotFound."""
        entry = self.collection(resource).entries.get(key)
        if entry is None:
            raise status.not_found(resource.plural, resource.group, key[1])
        return entry

    async def create(self, resource: Resource, namespace: str, given: Object, options: Options) -> Entry:
        """Store a new object. Raises StatusError."""
        document = self.admit(resource, given, options)
        metadata = document["metadata"]
        _check_namespace(resource, metadata, namespace)
        if metadata.pop("resourceVersion", None):
            raise status.bad_request("resourceVersion should not be set on objects to be created")
        for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"):
            metadata.pop(key, None)
        if options.managed is not None:
            metadata["managedFields"] = options.managed
        prefix = metadata.get("generateName")
        generated = bool(prefix) and not metadata.get("name")
        if not metadata.get("name") and not prefix:
            cause = Cause(
                "metadata.name", "Required value: name or generateName is required", "FieldValueRequired"
            )
            raise status.invalid(resource.kind, resource.group, "", [cause])
        metadata.update(uid=str(uuid.uuid4()), creationTimestamp=timestamp())
        if resource.generation:
            metadata["generation"] = 1
        if resource.namespaced:
            self._check_namespace_lives(resource, namespace, metadata.get("name", ""))
        reset_status(resource, document)
        collection = self.collection(resource)
        for attempt in range(8):
            draft = copy.deepcopy(document) if generated else document
            if generated:
                draft["metadata"]["name"] = prefix[:58] + "".join(
                    secrets.choice(SUFFIX_ALPHABET) for _ in range(5)
                )
            self._complete(resource, draft, None, options)
            place: Key = (namespace, draft["metadata"]["name"])
            if collection.head(place) is None:
                break
            if not generated or attempt == 7:
                raise status.already_exists(resource.plural, resource.group, place[1])
        if options.dry_run:
            return _unsaved(collection, place, draft)
        return await self.store.write(collection, place, draft, None)

    async def update(
        self, resource: Resource, key: Key, change: Change, options: Options, *, part: str = ""
    ) -> Entry:
        """Store what `change` makes of the object; again on the newer version where another write was first.

        `part` is "" for all but the status, or the subresource that is written. Raises StatusError.
        """
        collection = self.collection(resource)
        while True:
            old = collection.head(key)
            if old is None:
                raise status.not_found(resource.plural, resource.group, key[1])
            before = old.decode()
            options.warnings.clear()
            document = change(resource.present(old.decode()))
            after = self._merge_update(resource, before, document, options, part)
            if after == before or options.dry_run:
                return old if after == before else _unsaved(collection, key, after)
            try:
                if is_finished(resource, after):
                    return await self.store.delete(collection, after, old)
                return await self.store.write(collection, key, after, old)
            except StaleError:
                continue

    def _merge_update(
        self, resource: Resource, before: Object, document: Object, options: Options, part: str
    ) -> Object:
        """The whole object after an update: what the client may change from `document`, the rest from `before`."""
        old = before["metadata"]
        name = old["name"]
        after = self.admit(resource, document, options)
        given = after["metadata"]
        managed = given.get("managedFields")
        if given.get("resourceVersion") not in {None, "", old["resourceVersion"]}:
            raise status.conflict(resource.plural, resource.group, name)
        if given.get("uid") not in {None, "", old["uid"]}:
            why = (
                f"Precondition failed: UID in precondition: {given['uid']}, UID in object meta: {old['uid']}"
            )
            raise status.conflict(resource.plural, resource.group, name, why)
        for key in ("name", "namespace"):
            if given.get(key) not in {None, "", old.get(key)}:
                what = f"the {key} of the object ({given[key]}) does not match the {key} on the URL"
                raise status.bad_request(f"{what} ({old.get(key, '')})")
        if part == "status":
            allowed = {key: given[key] for key in ("labels", "annotations") if key in given}
            after = {**before, "status": after.get("status", {})}
            after["metadata"] = {**old, **(allowed if resource.status_metadata else {})}
        elif part == "finalize":
            after = {**before, "spec": after.get("spec", {}), "metadata": dict(old)}
        elif resource.status and not part:
            after.pop("status", None)
            if "status" in before:
                after["status"] = before["status"]
        after["apiVersion"] = before["apiVersion"]
        metadata = after["metadata"]
        _keep_metadata(resource, metadata, old)
        if resource.kind == "Namespace" and part != "finalize":
            after["spec"] = before.get("spec", {})
        if part != "status":
            carry(resource.group, resource.kind, after, before)
        self._complete(resource, after, before, options)
        if resource.generation and _desired(after) != _desired(before):
            metadata["generation"] = old.get("generation", 0) + 1
        follow(resource, before, after, managed, options, part)
        return after

    async def delete(
        self, resource: Resource, key: Key, options: DeleteOptions, *, dry_run: bool = False
    ) -> Entry:
        """Delete, or mark for deletion where finalizers or a grace period hold it. Raises StatusError.

        Returns the object as it is now; it is gone where `is_gone` says so.
        """
        collection = self.collection(resource)
        while True:
            old = collection.head(key)
            if old is None:
                raise status.not_found(resource.plural, resource.group, key[1])
            check_preconditions(resource, old, options)
            before = old.decode()
            after = mark_deleted(resource, before, options)
            if dry_run or after == before:
                return old
            try:
                if is_finished(resource, after):
                    return await self.store.delete(collection, after, old)
                return await self.store.write(collection, key, after, old)
            except StaleError:
                continue

    async def delete_all(
        self, resource: Resource, entries: Sequence[Entry], options: DeleteOptions, *, dry_run: bool = False
    ) -> list[Entry]:
        """Delete each of `entries`, together, so that they share commits. Those already gone are left out."""
        deleted: list[Entry] = []
        for first in range(0, len(entries), DELETIONS_AT_ONCE):
            some = entries[first : first + DELETIONS_AT_ONCE]
            deletions = [self.delete(resource, entry.key, options, dry_run=dry_run) for entry in some]
            for result in await asyncio.gather(*deletions, return_exceptions=True):
                if isinstance(result, Entry):
                    deleted.append(result)
                elif not (isinstance(result, StatusError) and result.code == 404):
                    raise result
        return deleted

    def is_gone(self, resource: Resource, entry: Entry) -> bool:
        now = self.collection(resource).entries.get(entry.key)
        return now is None or now.uid != entry.uid

    def admit(self, resource: Resource, given: Object, options: Options) -> Object:
        """The document in its stored form: checked against the schema, pruned, defaults filled in."""
        if not isinstance(given, dict) or not isinstance(given.get("metadata", {}), dict | None):
            raise status.bad_request("the object provided is not an object with metadata")
        _check_type(resource, given)
        metadata = given.get("metadata") or {}
        given["metadata"] = metadata
        findings = Findings()
        admit(given, resource.schema, findings)
        if findings.unknown and options.field_validation == "Strict":
            listed = ", ".join(f'unknown field "{path}"' for path in findings.unknown)
            message = (
                f"{resource.kind} in version {resource.version!r} cannot be handled as a {resource.kind}: "
            )
            raise status.bad_request(f"{message}strict decoding error: {listed}".replace("'", '"'))
        if findings.unknown and options.field_validation == "Warn":
            options.warnings.extend(f'unknown field "{path}"' for path in findings.unknown)
        name = metadata.get("name") or ""
        if findings.mistyped and not resource.custom:
            listed = "; ".join(cause.message for cause in findings.mistyped)
            message = (
                f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            )
            raise status.bad_request(message + listed)
        options.faults = faults = findings.mistyped + findings.faults
        if not resource.custom:
            # Clients of typed languages leave zero values out of a status; nothing checks them there either.
            options.faults = [one for one in faults if not one.field.startswith(("status.", "metadata."))]
        elif faults:
            raise status.invalid(resource.kind, resource.group, name, faults)
        return resource.accept(given)

    def _complete(self, resource: Resource, document: Object, old: Object | None, options: Options) -> None:
        """Derive, let the hooks see it, and refuse the document if it has faults or breaks a rule."""
        derive(resource.group, resource.kind, document)
        if not options.faults:
            for hook in self.hooks:
                hook(resource, document, old, options)
        kind, group, metadata = resource.kind, resource.group, document["metadata"]
        causes = [*options.faults, *check_metadata(metadata, group, kind)]
        if not resource.custom:
            causes.extend(rules.validate(group, kind, document, old))
        if causes:
            raise status.invalid(kind, group, metadata.get("name", ""), causes)

    def _check_namespace_lives(self, resource: Resource, namespace: str, name: str) -> None:
        entry = self.store.open(NAMESPACES).head(("", namespace))
        if entry is None:
            raise status.not_found("namespaces", "", namespace)
        if entry.deleting:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = Cause(
                "metadata.namespace", f"namespace {namespace} is being terminated", "NamespaceTerminating"
            )
            raise status.forbidden(resource.plural, resource.group, name, why, [cause])


KEPT: Final = (
    "name", "namespace", "generateName", "uid", "creationTimestamp", "deletionTimestamp",
    "deletionGracePeriodSeconds", "resourceVersion", "generation", "managedFields", "selfLink",
)  # fmt: skip
"""What of the metadata is the server's: an update leaves it as it was."""


def _keep_metadata(resource: Resource, metadata: Object, old: Object) -> None:
    for key in KEPT:
        metadata.pop(key, None)
        if key in old:
            metadata[key] = old[key]
    for key in ("labels", "annotations", "finalizers", "ownerReferences"):
        if key in metadata and not metadata[key]:
            del metadata[key]
    added = sorted(set(metadata.get("finalizers", ())) - set(old.get("finalizers", ())))
    if "deletionTimestamp" in old and added:
        message = f"Forbidden: no new finalizers can be added if the object is being deleted, found {added}"
        cause = Cause("metadata.finalizers", message, "FieldValueForbidden")
        raise status.invalid(resource.kind, resource.group, old["name"], [cause])


def _desired(document: Object) -> Any:
    return {key: value for key, value in document.items() if key not in {"metadata", "status"}}


def _unsaved(collection: Collection, key: Key, document: Object) -> Entry:
    """The entry of a dry run: as it would be, under the revision it is based on."""
    return make_entry(key, 0, msgspec.json.encode(document), document, collection.fields)


def _check_type(resource: Resource, document: Object) -> None:
    version, kind = document.get("apiVersion"), document.get("kind")
    if version and version != resource.api_version:
        raise status.bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({resource.api_version})"
        )
    if kind and kind != resource.kind:
        raise status.bad_request(
            f"the kind in the data ({kind}) does not match the expected kind ({resource.kind})"
        )


def _check_namespace(resource: Resource, metadata: Object, namespace: str) -> None:
    given = metadata.get("namespace")
    if not resource.namespaced:
        metadata.pop("namespace", None)
    elif given and given != namespace:
        message = (
            f"the namespace of the provided object does not match the namespace sent on the request: {given}"
        )
        raise status.bad_request(message)
    else:
        metadata["namespace"] = namespace
