"""Watches: the changes of a selection, one JSON line each.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import asyncio
import random
import time
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from aiohttp import web

from poplin.apiserver import status
from poplin.apiserver.collection import Entry, Event, GoneError, encode_event
from poplin.apiserver.form import Form
from poplin.apiserver.request import Call, Selection
from poplin.apiserver.store import Store

BOOKMARK_PERIOD_S: Final = 60.0
LEAST_TIMEOUT_S: Final = 1800.0
WRITE_GRACE_S: Final = 10.0
EVENTS_A_WRITE: Final = 500
INITIAL_EVENTS_END: Final = {"k8s.io/initial-events-end": "true"}


async def serve_watch(call: Call, selection: Selection, form: Form, store: Store) -> web.StreamResponse:
    """Stream events until the client leaves, its timeout passes, or it falls behind the history."""
    timeout_s = _timeout(call)
    stream = _Stream(call, selection, form, store, timeout_s)
    initial, position = stream.start()
    response = web.StreamResponse(
        headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
    )
    response.enable_chunked_encoding()
    await response.prepare(call.request)
    try:
        # A client that stops reading holds the connection no longer than one that reads.
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + timeout_s + WRITE_GRACE_S):
            await stream.run(response, initial, position)
    except GoneError:
        await response.write(_gone(call.query.get("resourceVersion", "")))
    except (ConnectionResetError, TimeoutError):
        pass
    return response


def _gone(revision: str) -> bytes:
    error = status.expired(f"too old resource version: {revision}")
    return encode_event("ERROR", msgspec.json.encode(error.document()))


class _Stream:
    def __init__(self, call: Call, selection: Selection, form: Form, store: Store, timeout_s: float) -> None:
        self._query = call.query
        self._bookmarks = call.flag("allowWatchBookmarks")
        self._selection = selection
        self._collection = selection.collection
        self._form = form
        self._store = store
        self._initial = self._wants_initial(call)
        self._plain = (
            selection.is_all
            and form.name == "object"
            and not form.resource.rename
            and not form.resource.custom
        )
        self._headings = True
        self._deadline = time.monotonic() + timeout_s

    @staticmethod
    def _wants_initial(call: Call) -> bool:
        """Whether the watch begins with the present state: asked for, or no revision to begin at."""
        asked = call.query.get("sendInitialEvents")
        match = call.query.get("resourceVersionMatch")
        if asked is None:
            if match:
                raise status.bad_request(
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
                )
            return call.query.get("resourceVersion", "") in {"", "0"}
        if match != "NotOlderThan":
            raise status.bad_request(
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            )
        return asked == "true"

    def start(self) -> tuple[list[Entry], int]:
        """The present objects that match, where they are wanted, and where the changes after them begin."""
        collection = self._collection
        if self._initial:
            entries = [
                entry
                for entry in collection.slice(self._selection.namespace)
                if self._selection.matches(entry)
            ]
            return entries, collection.base + len(collection.events)
        given = self._query.get("resourceVersion", "")
        if given in {"", "0"}:
            return [], collection.base + len(collection.events)
        if not given.isdecimal():
            raise status.bad_request(f"invalid resource version: {given!r}")
        if int(given) > self._store.revision:
            # Seen in another life of this server, whose state was not this one's.
            return [], -1
        try:
            return [], collection.position(int(given))
        except GoneError:
            return [], -1

    async def run(self, response: web.StreamResponse, initial: list[Entry], position: int) -> None:
        revision = self._store.revision
        for first in range(0, len(initial), EVENTS_A_WRITE):
            await response.write(b"".join(self._added(initial[first : first + EVENTS_A_WRITE])))
        if self._query.get("sendInitialEvents") == "true" and self._bookmarks:
            await response.write(self._bookmark(revision, INITIAL_EVENTS_END))
        due = time.monotonic() + BOOKMARK_PERIOD_S
        while True:
            events = self._collection.since(position)[:EVENTS_A_WRITE]
            if events:
                position += len(events)
                if lines := b"".join(self._lines(events)):
                    await response.write(lines)
                continue
            now = time.monotonic()
            if now >= self._deadline or self._collection.closed:
                return
            if self._bookmarks and now >= due:
                await response.write(self._bookmark(self._store.revision, {}))
                due = now + BOOKMARK_PERIOD_S
            wait_s = min(self._deadline, due if self._bookmarks else self._deadline) - now
            try:
                async with asyncio.timeout(max(wait_s, 0.001)):
                    await self._collection.changed(position)
            except TimeoutError:
                continue

    def _added(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        for entry in entries:
            yield encode_event("ADDED", self._show(entry.data))

    def _lines(self, events: Iterable[Event]) -> Iterator[bytes]:
        if self._plain:
            yield from (event.line for event in events)
            return
        for event in events:
            seen = self._relate(event)
            if seen is None:
                continue
            kind, data = seen
            plain = (
                kind == event.type
                and self._form.name == "object"
                and self._form.resource.view(data) is event.entry.data
            )
            yield event.line if plain else encode_event(kind, self._show(data))

    def _relate(self, event: Event) -> tuple[str, bytes] | None:
        """The event as this selection sees it: an object that no longer matches is deleted from its view."""
        before = event.previous is not None and self._selection.matches(event.previous)
        if event.type == "DELETED":
            return ("DELETED", event.entry.data) if before else None
        if self._selection.matches(event.entry):
            return "MODIFIED" if before else "ADDED", event.entry.data
        if not before or event.previous is None:
            return None
        document = event.previous.decode()
        document["metadata"]["resourceVersion"] = str(event.entry.revision)
        return "DELETED", msgspec.json.encode(document)

    def _show(self, data: bytes) -> bytes:
        shown = self._form.one(data, headings=self._headings)
        self._headings = False
        return shown

    def _bookmark(self, revision: int, annotations: dict[str, str]) -> bytes:
        metadata = {"resourceVersion": str(revision), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations  # type: ignore[assignment]  # JSON
        resource = self._form.resource
        document = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        return encode_event("BOOKMARK", msgspec.json.encode(document))


def _timeout(call: Call) -> float:
    """Seconds until the server ends the watch; without one asked for, spread so that not all return at once."""
    given = call.query.get("timeoutSeconds", "")
    if given.isdecimal() and int(given) > 0:
        return float(given)
    return LEAST_TIMEOUT_S * (1 + random.random())  # noqa: S311  - a spread, not a secret
