"""The objects of one resource: what the watch tells, and what our own writes were answered, whichever is newer.

A controller that looked only at the watch would create a pod twice while the watch lags. Here each answer is
taken in at once; what the watch tells later of the same or an older version is no news.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from poplin.datastore.source import Deleted, Put, Rejected, Replaced, WatchEvent
from poplin.lab.controllers.object import Key, Object, controller_of

REMEMBERED_GONE: Final = 4096
Index = Callable[[Object], Hashable]


class Change(NamedTuple):
    """One object before and after; None where there was or is none."""

    before: Object | None
    after: Object | None


def owner_uid(one: Object) -> str:
    """The uid of an object's controller, "" without one."""
    reference = controller_of(one)
    return str(reference["uid"]) if reference else ""


class Store:
    """Objects by key and by index. Every method that takes something in returns what changed by it."""

    def __init__(self, indexes: Mapping[str, Index]) -> None:
        self._objects: dict[Key, Object] = {}
        self._indexes = indexes
        self._buckets: dict[tuple[str, Hashable], dict[Key, Object]] = {}
        self._changes: dict[tuple[str, Hashable], int] = {}
        self._unseen: dict[Key, str] = {}
        self._awaited: dict[Key, str] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()

    def get(self, key: Key) -> Object | None:
        return self._objects.get(key)

    def __iter__(self) -> Iterator[Object]:
        return iter(self._objects.values())

    def find(self, index: str, value: Hashable) -> list[Object]:
        """The objects for which `index` gives `value`."""
        return list(self._buckets.get((index, value), {}).values())

    def changes(self, index: str, value: Hashable) -> int:
        """A number that grows with each change among what `find` returns: for caches."""
        return self._changes.get((index, value), 0)

    def observe(self, event: WatchEvent[Object]) -> list[Change]:
        """Take in what the watch tells."""
        match event:
            case Put(seen):
                return self._see(seen)
            case Deleted(namespace, name):
                return self._lose((namespace, name))
            case Rejected(error):
                return self._set((error.namespace, error.name), None)
            case Replaced(objects):
                return self._replace(objects)
        return []

    def created(self, answer: Object) -> list[Change]:
        """Take in the answer to a creation."""
        known = self._objects.get(answer.key)
        if answer.uid in self._gone or (known is not None and known.version >= answer.version):
            return []
        self._unseen[answer.key] = answer.uid
        return self._set(answer.key, answer)

    def updated(self, answer: Object) -> list[Change]:
        """Take in the answer to a change of an object that is known."""
        known = self._objects.get(answer.key)
        if known is None or known.uid != answer.uid or known.version >= answer.version:
            return []
        return self._set(answer.key, answer)

    def bound(self, key: Key, uid: str, node: str) -> list[Change]:
        """Take in that a pod has a node, which was answered without the pod: its version stays what it was."""
        known = self._objects.get(key)
        if known is None or known.uid != uid or known.spec.get("nodeName"):
            return []
        return self._set(key, msgspec.structs.replace(known, spec={**known.spec, "nodeName": node}))

    def deleted(self, key: Key, uid: str) -> list[Change]:
        """Take in that an object is gone: the watch's word for it is still to come."""
        known = self._objects.get(key)
        if known is None or known.uid != uid:
            return []
        self._awaited[key] = uid
        return self._set(key, None)

    def unconfirmed(self) -> list[Object]:
        """What our own writes made and the watch has not told yet."""
        return [
            one for key, uid in self._unseen.items() if (one := self._objects.get(key)) and one.uid == uid
        ]

    def _see(self, seen: Object) -> list[Change]:
        if self._awaited.get(seen.key) == seen.uid:
            return []
        if self._unseen.get(seen.key) == seen.uid:
            del self._unseen[seen.key]
        known = self._objects.get(seen.key)
        if known is not None and known.version >= seen.version > 0:
            return []
        return self._set(seen.key, seen)

    def _lose(self, key: Key) -> list[Change]:
        # Of an object that we know to be gone, perhaps with another in its place already.
        if self._awaited.pop(key, None) is not None:
            return []
        self._unseen.pop(key, None)
        return self._set(key, None)

    def _replace(self, objects: Iterable[Object]) -> list[Change]:
        told = {one.key: one for one in objects}
        self._awaited = {
            key: uid for key, uid in self._awaited.items() if key in told and told[key].uid == uid
        }
        changes = [change for one in told.values() for change in self._see(one)]
        for key in self._objects.keys() - told.keys() - self._unseen.keys():
            changes += self._set(key, None)
        return changes

    def _set(self, key: Key, after: Object | None) -> list[Change]:
        before = self._objects.pop(key, None)
        if before is None and after is None:
            return []
        if after is not None:
            self._objects[key] = after
        if before is not None and (after is None or after.uid != before.uid):
            self._gone[before.uid] = None
            if len(self._gone) > REMEMBERED_GONE:
                self._gone.popitem(last=False)
        for name, index in self._indexes.items():
            for place in {(name, index(one)) for one in (before, after) if one is not None}:
                self._changes[place] = self._changes.get(place, 0) + 1
            if before is not None:
                place = (name, index(before))
                bucket = self._buckets[place]
                del bucket[key]
                if not bucket:
                    del self._buckets[place]
            if after is not None:
                self._buckets.setdefault((name, index(after)), {})[key] = after
        return [Change(before, after)]
