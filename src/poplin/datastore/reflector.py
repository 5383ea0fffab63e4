"""The reflector: a resource's objects and changes as one endless stream, whatever the server does.

Source: Kubernetes API Concepts, "Efficient detection of changes", "Watch bookmarks", "Streaming lists",
"Retrieving large results sets in chunks" and "410 Gone responses".
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from random import Random
from typing import Final, Generic, TypeVar

import msgspec

from poplin.datastore.backoff import Backoff, Pace
from poplin.datastore.client import ApiClient, NonsenseError, RefusedError, parse_status
from poplin.datastore.parse import InvalidObjectError, parse_metadata, parse_object
from poplin.datastore.resource import ClusterObject, Metadata, Resource
from poplin.datastore.source import Deleted, Put, Rejected, Replaced, Resumed, Unavailable, WatchEvent
from poplin.model.errors import PoplinError, TemporaryError

log = logging.getLogger(__name__)

T = TypeVar("T", bound=ClusterObject)

INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"
MAX_LINE_BYTES: Final = 16 << 20
"""Far above what a server stores as one object (etcd: 1.5 MiB); below it, an endless line is rubbish."""


class ListMetadata(msgspec.Struct, rename="camel", gc=False):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class Page(msgspec.Struct, gc=False):
    """A List; its items stay bytes, so that one that cannot be read does not spoil the others."""

    metadata: ListMetadata
    items: list[msgspec.Raw] | None


class Change(msgspec.Struct, gc=False):
    """A line of a watch (API reference, "WatchEvent")."""

    type: str
    object: msgspec.Raw


PAGE: Final = msgspec.json.Decoder(Page)
CHANGE: Final = msgspec.json.Decoder(Change)


class IncompleteError(TemporaryError):
    """A stream that was to begin with all objects ended, or went on, without saying that it had."""


class Reflector(Generic[T]):
    """One resource of one server, listed and watched. Its only state is how far it has read."""

    def __init__(
        self,
        client: ApiClient,
        resource: Resource[T],
        *,
        namespace: str | None = None,
        field_selector: str | None = None,
        label_selector: str | None = None,
        pace: Pace | None = None,
        random: Random | None = None,
    ) -> None:
        self._client = client
        self._resource = resource
        self._path = resource.path(namespace)
        selectors = {"fieldSelector": field_selector, "labelSelector": label_selector}
        self._selectors = {key: value for key, value in selectors.items() if value}
        self._pace = pace or Pace()
        self._random = random or Random()  # noqa: S311  - jitter is no secret
        self._version = ""  # "" where a list is due: nothing read yet, or what was read has expired
        self._in_sync = False

    async def events(self) -> AsyncGenerator[WatchEvent[T], None]:
        """What `Source.watch` promises: raises nothing, ends only by being closed."""
        backoff = Backoff(self._pace, self._random)
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                async with aclosing(self._attempt()) as events:
                    async for event in events:
                        yield event
                wait_s = backoff.after_success_s(clock() - began)
            except PoplinError as error:
                wait_s = backoff.after_failure_s(clock() - began, at_least_s=self._least_wait_s(error))
                if self._must_tell(error):
                    self._in_sync = False
                    yield Unavailable(self._explain(error))
            await asyncio.sleep(wait_s)

    def _must_tell(self, error: PoplinError) -> bool:
        """Forget what cannot be resumed; False where a fresh list will mend it before anyone need know."""
        expired = isinstance(error, RefusedError) and error.status == 410 and self._version != ""
        if expired or isinstance(error, NonsenseError):
            self._version = ""
        return not expired

    def _least_wait_s(self, error: PoplinError) -> float:
        if not isinstance(error, RefusedError):
            return 0
        if error.retry_after_s is not None:
            return error.retry_after_s
        # A missing permission or type comes when someone brings it: ask seldom.
        return self._pace.refused_retry_s if error.status in {403, 404, 405} else 0

    def _explain(self, error: PoplinError) -> PoplinError:
        told = TemporaryError(
            f"cannot watch {self._resource}: {error.what}", where=error.where, remedy=error.remedy
        )
        told.__cause__ = error
        return told

    async def _attempt(self) -> AsyncGenerator[WatchEvent[T], None]:
        """From wherever we stand to the end of one watch."""
        if not self._version:
            try:
                async with aclosing(self._follow(initial=True)) as events:
                    async for event in events:
                        yield event
            except (RefusedError, IncompleteError) as error:
                # Servers say in many ways (400, 422, 500, silence) that they know no streaming lists, so
                # only what a plain list would meet as well is taken at its word.
                if self._version or (isinstance(error, RefusedError) and error.status in {401, 429}):
                    raise
                log.debug("%s: no streaming list, listing: %s", self._resource, error)
            else:
                return
            yield await self._list()
        async with aclosing(self._follow(initial=False)) as events:
            async for event in events:
                yield event

    async def _list(self) -> Replaced[T]:
        """All objects, page by page, as of one moment."""
        query = self._selectors | {"limit": str(self._pace.page_size)}
        objects: list[T] = []
        rejected: list[InvalidObjectError] = []
        while True:
            body = await self._client.request("GET", self._path, query=query)
            try:
                page = PAGE.decode(body)
                for item in page.items or ():
                    value = parse_object(self._resource, item).value
                    if isinstance(value, InvalidObjectError):
                        rejected.append(value)
                    else:
                        objects.append(value)
            except msgspec.DecodeError as error:
                raise self._nonsense(error) from None
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        if not page.metadata.resource_version:
            raise self._nonsense("a list without resourceVersion")
        self._version = page.metadata.resource_version
        self._in_sync = True
        return Replaced(tuple(objects), tuple(rejected))

    async def _follow(self, *, initial: bool) -> AsyncGenerator[WatchEvent[T], None]:
        """One watch, to its end. With `initial` it begins with all objects as they are.

        Raises IncompleteError where the initial objects do not come to their end.
        """
        gathered: dict[tuple[str, str], T | InvalidObjectError] | None = {} if initial else None
        tail = b""
        async with self._client.stream(self._path, self._watch_query(initial=initial)) as stream:
            while True:
                chunk = await stream.read(self._patience_s(initial=gathered is not None))
                if chunk is None and gathered is None and not self._in_sync:
                    self._in_sync = True
                    yield Resumed()
                    continue
                if not chunk:
                    break
                *lines, tail = (tail + chunk).split(b"\n")
                if len(tail) > MAX_LINE_BYTES:
                    raise self._nonsense("a line without end")
                for line in lines:
                    if not line:
                        continue
                    kind, metadata, value = self._read(line)
                    if gathered is None:
                        self._version = metadata.resource_version
                        if not self._in_sync:
                            self._in_sync = True
                            yield Resumed()
                        if value is not None:
                            yield Rejected(value) if isinstance(value, InvalidObjectError) else Put(value)
                        elif kind == "DELETED":
                            yield Deleted(metadata.namespace, metadata.name)
                    elif kind == "BOOKMARK":
                        if not (metadata.annotations or {}).get(INITIAL_EVENTS_END):
                            raise IncompleteError("a bookmark before the end of the initial objects")
                        self._version = metadata.resource_version
                        self._in_sync = True
                        yield _replaced(gathered)
                        gathered = None
                    elif value is not None:
                        gathered[metadata.namespace, metadata.name] = value
                    else:
                        gathered.pop((metadata.namespace, metadata.name), None)
        if gathered is not None:
            raise IncompleteError("the initial objects did not come to their end")

    def _patience_s(self, *, initial: bool) -> float:
        if initial:
            return self._pace.initial_idle_s
        return self._pace.idle_s if self._in_sync else self._pace.settle_s

    def _watch_query(self, *, initial: bool) -> dict[str, str]:
        watch_s = self._pace.watch_s * self._random.uniform(1, 2)
        query = self._selectors | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(watch_s))),
        }
        if initial:
            return query | {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        return query | {"resourceVersion": self._version}

    def _read(self, line: bytes) -> tuple[str, Metadata, T | InvalidObjectError | None]:
        """A line's type, its object's metadata, and for what was put the value. Raises what an ERROR says."""
        try:
            change = CHANGE.decode(line)
            kind = change.type
            if kind in {"ADDED", "MODIFIED"}:
                parsed = parse_object(self._resource, change.object)
                return kind, parsed.metadata, parsed.value
            if kind == "DELETED":
                return kind, parse_metadata(change.object), None
            if kind == "BOOKMARK":
                return kind, BOOKMARK.decode(change.object).metadata, None
        except msgspec.DecodeError as error:
            raise self._nonsense(error) from None
        status = parse_status(change.object) if kind == "ERROR" else None
        if status is None:
            raise self._nonsense(f"an event of type {kind!r}")
        raise RefusedError(
            status.message, where=self._where(), status=status.code or 500, reason=status.reason
        )

    def _nonsense(self, what: object) -> NonsenseError:
        return NonsenseError(
            f"this is no answer of a Kubernetes API: {what}",
            where=self._where(),
            remedy="see what listens at that address",
        )

    def _where(self) -> str:
        return f"GET {self._client.access.server}{self._path}"


class Bookmark(msgspec.Struct, gc=False):
    """An object with nothing but its metadata, and no name there."""

    metadata: Metadata


BOOKMARK: Final = msgspec.json.Decoder(Bookmark)


def _replaced(gathered: dict[tuple[str, str], T | InvalidObjectError]) -> Replaced[T]:
    return Replaced(
        tuple(value for value in gathered.values() if not isinstance(value, InvalidObjectError)),
        tuple(value for value in gathered.values() if isinstance(value, InvalidObjectError)),
    )
