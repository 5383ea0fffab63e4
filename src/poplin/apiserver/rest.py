"""The verbs on resources, over HTTP.

https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

import base64
import binascii
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from poplin.apiserver import jsonpatch, patch, status
from poplin.apiserver.collection import Entry, Key, Object
from poplin.apiserver.fieldmanager import begin_applied, prepare_apply
from poplin.apiserver.form import PIECE_BYTES, Form, choose_form
from poplin.apiserver.lifecycle import Lifecycle
from poplin.apiserver.options import Options
from poplin.apiserver.request import Call, parse_delete_options
from poplin.apiserver.resource import Resource, lookup
from poplin.apiserver.watch import serve_watch

SNAPSHOTS: Final = 32
SNAPSHOT_LIFETIME_S: Final = 300.0
JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"


class Snapshots:
    """The lists that clients are still paging through, by collection and revision.

    Entries never change, so a snapshot is a list of references.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], tuple[float, list[Entry]]] = OrderedDict()

    def keep(self, store: str, revision: int, entries: list[Entry]) -> None:
        self._kept[store, revision] = (time.monotonic(), entries)
        self._kept.move_to_end((store, revision))
        while len(self._kept) > SNAPSHOTS:
            self._kept.popitem(last=False)

    def find(self, store: str, revision: int) -> list[Entry] | None:
        made_s, entries = self._kept.get((store, revision), (0.0, []))
        if not made_s or time.monotonic() - made_s > SNAPSHOT_LIFETIME_S:
            self._kept.pop((store, revision), None)
            return None
        return entries


def respond(body: bytes | Object, code: int = 200, options: Options | None = None) -> web.Response:
    """A JSON answer, with the warnings that `options` gathered (RFC 7234, section 5.5)."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    response = web.Response(body=data, status=code, content_type="application/json")
    for text in options.warnings if options else ():
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{escaped}"')
    return response


async def respond_list(call: Call, items: Sequence[bytes], metadata: Object) -> web.StreamResponse:
    """A list in pieces, each sent before the next is made: many large lists at once cost little memory."""
    pieces = _form(call).many(items, metadata)
    if sum(map(len, items)) < PIECE_BYTES:
        return respond(b"".join(pieces))
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(call.request)
    for piece in pieces:
        await response.write(piece)
    await response.write_eof()
    return response


class Rest:
    """Get, list, watch, create, update, patch and delete for every type alike."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._store = lifecycle.store
        self._snapshots = Snapshots()

    async def handle(self, call: Call) -> web.StreamResponse:
        """Answer a request for a resource without subresource."""
        method, named = call.request.method, bool(call.target.name)
        verb = {
            ("GET", True): "get",
            ("GET", False): "list",
            ("HEAD", True): "get",
            ("POST", False): "create",
            ("PUT", True): "update",
            ("PATCH", True): "patch",
            ("DELETE", True): "delete",
            ("DELETE", False): "deletecollection",
        }.get((method, named))
        if verb == "list" and call.flag("watch"):
            verb = "watch"
        if verb is None or verb not in call.resource.verbs:
            raise status.method_not_allowed()
        if call.resource.namespaced and not call.target.namespace and verb not in {"list", "watch"}:
            raise status.bad_request("an empty namespace may not be set when a resource name may be provided")
        if call.target.namespace and not call.resource.namespaced:
            raise status.no_such_path()
        return await getattr(self, f"_{verb}")(call)  # type: ignore[no-any-return]  # each returns a response

    async def _get(self, call: Call) -> web.StreamResponse:
        if call.flag("watch"):
            return await self._watch(call)
        self._check_revision(call)
        entry = self._lifecycle.get(call.resource, call.key)
        return respond(_form(call).one(entry.data))

    async def _watch(self, call: Call) -> web.StreamResponse:
        selection = call.selection(self._lifecycle.collection(call.resource))
        return await serve_watch(call, selection, _form(call), self._store)

    def _check_revision(self, call: Call) -> int:
        """The revision asked for, 0 for none. Refuses one that has not come yet."""
        text = call.query.get("resourceVersion", "") or "0"
        if not text.isdecimal():
            raise status.bad_request(f"invalid resource version: {text!r}")
        revision = int(text)
        if revision > self._store.revision:
            message = f"Too large resource version: {revision}, current: {self._store.revision}"
            causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
            raise status.StatusError(504, "Timeout", message, {"retryAfterSeconds": 1, "causes": causes})
        return revision

    async def _list(self, call: Call) -> web.StreamResponse:
        collection = self._lifecycle.collection(call.resource)
        selection = call.selection(collection)
        wanted = self._check_revision(call)
        revision = self._store.revision
        if token := call.query.get("continue"):
            revision, start = _decode_continue(token)
            snapshot = self._snapshots.find(collection.name, revision)
            if snapshot is None:
                message = "The provided continue parameter is too old to display a consistent list result."
                raise status.expired(f"{message} Start a new list without the continue parameter.")
            entries = snapshot[bisect_right(snapshot, start, key=lambda entry: entry.key) :]
        else:
            if call.query.get("resourceVersionMatch") == "Exact" and wanted != revision:
                raise status.expired(f"The resourceVersion for the provided list is too old: {wanted}")
            snapshot, entries = None, collection.slice(selection.namespace)
        if not selection.is_all:
            entries = [entry for entry in entries if selection.matches(entry)]
        metadata: Object = {"resourceVersion": str(revision)}
        limit = _limit(call)
        if limit and len(entries) > limit:
            remaining, entries = len(entries) - limit, entries[:limit]
            metadata["continue"] = _encode_continue(revision, entries[-1].key)
            if not selection.labels.requirements and not selection.fields.requirements:
                metadata["remainingItemCount"] = remaining
            self._snapshots.keep(collection.name, revision, snapshot or collection.slice(None))
        return await respond_list(call, [entry.data for entry in entries], metadata)

    async def _create(self, call: Call) -> web.StreamResponse:
        options = call.options()
        document = await call.document()
        entry = await self._lifecycle.create(call.resource, call.target.namespace, document, options)
        return respond(_form(call).one(entry.data), 201, options)

    async def _update(self, call: Call) -> web.StreamResponse:
        return await self.update(call, "")

    async def _patch(self, call: Call) -> web.StreamResponse:
        return await self.patch(call, "")

    async def update(self, call: Call, part: str) -> web.StreamResponse:
        """PUT the object, or the subresource `part` of it."""
        options = call.options()
        document = await call.document()
        if call.resource.custom and not lookup(document, "metadata.resourceVersion"):
            cause = status.Cause(
                "metadata.resourceVersion", "Invalid value: 0: must be specified for an update"
            )
            raise status.invalid(call.resource.kind, call.resource.group, call.target.name, [cause])
        # The body is decoded once; a second attempt after a conflict needs it unchanged.
        data = msgspec.json.encode(document)
        entry = await self._lifecycle.update(
            call.resource, call.key, lambda _: msgspec.json.decode(data), options, part=part
        )
        return respond(_form(call).one(entry.data), 200, options)

    async def patch(self, call: Call, part: str) -> web.StreamResponse:
        """PATCH the object, or the subresource `part` of it."""
        options = call.options()
        if call.request.content_type == APPLY:
            return await self._apply(call, options, part)
        if "force" in call.query:
            raise _bad_options(
                "force", "Forbidden: may not be specified for non-apply patch", "FieldValueForbidden"
            )
        change = prepare_patch(call.request.content_type, await call.body(), call.resource)
        entry = await self._lifecycle.update(call.resource, call.key, change, options, part=part)
        return respond(_form(call).one(entry.data), 200, options)

    async def _apply(self, call: Call, options: Options, part: str) -> web.StreamResponse:
        """Server-side apply, which creates the object where there is none."""
        if not call.query.get("fieldManager"):
            raise _bad_options(
                "fieldManager", "Required value: is required for apply patch", "FieldValueRequired"
            )
        given = await call.body()
        change = prepare_apply(call.resource, given, options, force=call.flag("force"), part=part)
        name = call.target.name
        while True:
            try:
                entry = await self._lifecycle.update(call.resource, call.key, change, options, part=part)
                return respond(_form(call).one(entry.data), 200, options)
            except status.StatusError as error:
                absent = error.code == 404 and error.details == status.details(
                    call.resource.plural, call.resource.group, name
                )
                if part or not absent:
                    raise
            try:
                document = begin_applied(call.resource, given, options, name)
                entry = await self._lifecycle.create(call.resource, call.target.namespace, document, options)
                return respond(_form(call).one(entry.data), 201, options)
            except status.StatusError as error:
                # Somebody else created it meanwhile.
                if error.reason != "AlreadyExists":
                    raise

    async def _delete(self, call: Call) -> web.StreamResponse:
        options, dry_run = parse_delete_options(call, await _optional_body(call))
        entry = await self._lifecycle.delete(call.resource, call.key, options, dry_run=dry_run)
        resource = call.resource
        if resource.kind == "Pod" or (not dry_run and not self._lifecycle.is_gone(resource, entry)):
            return respond(_form(call).one(entry.data))
        return respond(
            status.success(status.details(resource.plural, resource.group, call.target.name, uid=entry.uid))
        )

    async def _deletecollection(self, call: Call) -> web.StreamResponse:
        options, dry_run = parse_delete_options(call, await _optional_body(call))
        collection = self._lifecycle.collection(call.resource)
        selection = call.selection(collection)
        chosen = [entry for entry in collection.slice(selection.namespace) if selection.matches(entry)]
        deleted = await self._lifecycle.delete_all(call.resource, chosen, options, dry_run=dry_run)
        metadata = {"resourceVersion": str(self._store.revision)}
        return await respond_list(call, [entry.data for entry in deleted], metadata)


def prepare_patch(content_type: str, body: Any, resource: Resource) -> Callable[[Object], Object]:
    """The change that a patch of `content_type` makes."""
    known = (JSON_PATCH, MERGE_PATCH) if resource.custom else (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH)
    if content_type not in known:
        listed = ", ".join(known)
        message = "the body of the request was in an unknown format - accepted media types include"
        raise status.unsupported_media_type(f"{message}: {listed}")

    def change(document: Object) -> Object:
        try:
            if content_type == JSON_PATCH:
                result = jsonpatch.apply_json(document, body)
            elif content_type == MERGE_PATCH:
                result = patch.apply_merge(document, body)
            else:
                result = patch.apply_strategic(document, body, resource.schema)
        except patch.PatchError as error:
            if error.unprocessable:
                raise status.StatusError(
                    422, "Invalid", f"the server rejected our request due to an error in our request: {error}"
                ) from None
            raise status.bad_request(str(error)) from None
        if not isinstance(result, dict):
            raise status.bad_request("the patch leaves no object")
        return result

    return change


def _bad_options(field: str, message: str, reason: str) -> status.StatusError:
    return status.invalid("PatchOptions", "meta.k8s.io", "", [status.Cause(field, message, reason)])


def _form(call: Call) -> Form:
    return choose_form(
        call.resource, call.request.headers.get("Accept", ""), call.query.get("includeObject", "")
    )


async def _optional_body(call: Call) -> Any:
    return await call.body() if await call.request.read() else {}


def _limit(call: Call) -> int:
    text = call.query.get("limit", "0")
    if not text.isdecimal():
        raise status.bad_request(f"limit is not a number: {text!r}")
    return int(text)


def _encode_continue(revision: int, last: Key) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([revision, *last])).decode().rstrip("=")


def _decode_continue(token: str) -> tuple[int, Key]:
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        revision, namespace, name = msgspec.json.decode(raw, type=tuple[int, str, str])
    except (msgspec.DecodeError, binascii.Error, ValueError):
        raise status.bad_request("continue key is not valid") from None
    return revision, (namespace, name)
