"""One type's objects in memory: the newest of each as encoded bytes, and the recent past for watches.

A watcher is a position in the collection's history, nothing more. So an event is encoded once however
many watch, a slow watcher costs no memory of its own, and one that falls behind the history is told so.
"""

import asyncio
import sys
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

Object = dict[str, Any]
"""An API object as decoded JSON."""

Key = tuple[str, str]
"""Namespace ("" for cluster-scoped objects) and name."""

HISTORY_BYTES: Final = 16 << 20
"""How much of the past a collection keeps, at least; twice that at most."""

NO_LABELS: Final[Mapping[str, str]] = {}


class GoneError(Exception):
    """The history asked for is no longer kept."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of an object. `fields` are the values of its collection's fields, in their order."""

    key: Key
    revision: int
    data: bytes
    uid: str
    labels: Mapping[str, str]
    fields: tuple[str, ...]
    owners: tuple[str, ...] = ()
    deleting: bool = False

    def decode(self) -> Object:
        decoded: Object = msgspec.json.decode(self.data)
        return decoded


def make_entry(key: Key, revision: int, data: bytes, document: Object, fields: Sequence[str]) -> Entry:
    """The entry of `document`, whose encoding is `data`; `fields` are dotted paths."""
    metadata = document["metadata"]
    return Entry(
        key=key,
        revision=revision,
        data=data,
        uid=metadata.get("uid", ""),
        labels=metadata.get("labels") or NO_LABELS,
        fields=tuple([_lookup(document, path) for path in fields]),
        owners=tuple(owner["uid"] for owner in metadata.get("ownerReferences", ())),
        deleting="deletionTimestamp" in metadata,
    )


def _lookup(document: Any, path: str) -> str:
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    if isinstance(document, bool):
        return "true" if document else "false"
    # Few values, many objects: a node's name, a phase.
    return "" if document is None else sys.intern(str(document))


@dataclass(slots=True)
class Event:
    """One change. `entry` is the object after it, for DELETED the object as it went."""

    type: str
    entry: Entry
    previous: Entry | None
    _line: bytes = b""

    @property
    def line(self) -> bytes:
        """The event as every unfiltered watcher of the stored version reads it."""
        if not self._line:
            self._line = encode_event(self.type, self.entry.data)
        return self._line


def encode_event(kind: str, data: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), data)


@dataclass(slots=True)
class Collection:
    """All objects of one stored type. `fields` are the paths its field selectors know.

    `entries` holds what is durable; `pending` the newest change of a key that is on its way to disk.
    """

    name: str
    fields: tuple[str, ...] = ()
    entries: dict[Key, Entry] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    pending: dict[Key, Event] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    base: int = 0
    floor: int = 0
    size: int = 0
    waiters: set["asyncio.Future[None]"] = field(default_factory=set)
    closed: bool = False

    def head(self, key: Key) -> Entry | None:
        """The newest version, also where it is still on its way to disk: what a write must build on."""
        event = self.pending.get(key)
        if event is None:
            return self.entries.get(key)
        return None if event.type == "DELETED" else event.entry

    def slice(self, namespace: str | None) -> list[Entry]:
        """The entries of `namespace`, None for all, in the order of their keys."""
        if namespace is None:
            return [self.entries[key] for key in self.keys]
        first = bisect_left(self.keys, (namespace, ""))
        last = bisect_left(self.keys, (namespace + "\0", ""))
        return [self.entries[key] for key in self.keys[first:last]]

    def values(self, entry: Entry) -> dict[str, str]:
        """What field selectors see of `entry`."""
        namespace, name = entry.key
        return {
            "metadata.name": name,
            "metadata.namespace": namespace,
            **dict(zip(self.fields, entry.fields, strict=True)),
        }

    def load(self, entries: Iterator[Entry], revision: int) -> None:
        """Fill the empty collection; its history starts at `revision`."""
        self.entries = {entry.key: entry for entry in entries}
        self.keys = sorted(self.entries)
        self.floor = revision

    def publish(self, event: Event) -> None:
        """Make a durable change visible to readers and watchers."""
        entry = event.entry
        if event.type == "DELETED":
            del self.entries[entry.key]
            del self.keys[bisect_left(self.keys, entry.key)]
        else:
            if event.previous is None:
                insort(self.keys, entry.key)
            self.entries[entry.key] = entry
        if self.pending.get(entry.key) is event:
            del self.pending[entry.key]
        self.events.append(event)
        self.size += len(entry.data)
        if self.size > 2 * HISTORY_BYTES:
            self._trim()
        self.wake()

    def wake(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    def close(self) -> None:
        """End every watch: the type is gone."""
        self.closed = True
        self.wake()

    def _trim(self) -> None:
        drop = 0
        while self.size > HISTORY_BYTES:
            self.size -= len(self.events[drop].entry.data)
            drop += 1
        self.compact(drop)

    def compact(self, count: int) -> None:
        """Forget the `count` oldest events."""
        if count:
            self.floor = self.events[count - 1].entry.revision
            del self.events[:count]
            self.base += count

    def position(self, revision: int) -> int:
        """Where a watch that has seen `revision` goes on. Raises GoneError."""
        if revision < self.floor:
            raise GoneError
        return self.base + bisect_right(self.events, revision, key=lambda event: event.entry.revision)

    def since(self, position: int) -> list[Event]:
        """The events from `position` on. Raises GoneError where the history no longer reaches back."""
        if position < self.base:
            raise GoneError
        return self.events[position - self.base :]

    async def changed(self, position: int) -> None:
        """Return when there is something at `position`, or the collection closes."""
        while not self.closed and position >= self.base + len(self.events):
            waiter = asyncio.get_running_loop().create_future()
            self.waiters.add(waiter)
            try:
                await waiter
            finally:
                self.waiters.discard(waiter)
