"""The cluster as the agent's watches tell it: objects by key, and for each watch whether it is in sync."""

import logging
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from poplin.datastore.parse import InvalidObjectError
from poplin.datastore.resource import ClusterObject
from poplin.datastore.source import Deleted, Put, Rejected, Replaced, Resumed, Unavailable, WatchEvent
from poplin.model.errors import PoplinError, TemporaryError

log = logging.getLogger(__name__)

T = TypeVar("T", bound=ClusterObject)


@dataclass(slots=True)
class View(Generic[T]):
    """One watch's objects by (namespace, name), "" for no namespace.

    `not_in_sync` says why what is here may be stale or missing, None when it is current. `rejected` are
    the objects that could not be read.
    """

    what: str
    objects: dict[tuple[str, str], T] = field(default_factory=dict)
    rejected: dict[tuple[str, str], InvalidObjectError] = field(default_factory=dict)
    filled: bool = False
    not_in_sync: PoplinError | None = field(
        default_factory=lambda: TemporaryError("the first list has not come yet")
    )

    def apply(self, event: WatchEvent[T]) -> bool:
        """Take an event in. Tell whether anything that matters has changed."""
        match event:
            case Replaced(objects, rejected):
                return self._replace(objects, rejected)
            case Put(thing):
                key = (thing.namespace, thing.name)
                self.rejected.pop(key, None)
                if self.objects.get(key) == thing:
                    return False
                self.objects[key] = thing
                return True
            case Rejected(error):
                log.error("object cannot be read", extra={"error": str(error)})
                key = (error.namespace, error.name)
                self.rejected[key] = error
                self.objects.pop(key, None)
                return True
            case Deleted(namespace, name):
                was_rejected = self.rejected.pop((namespace, name), None) is not None
                return self.objects.pop((namespace, name), None) is not None or was_rejected
            case Unavailable(error):
                if self.not_in_sync is None or str(self.not_in_sync) != str(error):
                    log.warning("watch out of sync", extra={"watch": self.what, "error": str(error)})
                self.not_in_sync = error
                return False
            case Resumed():
                log.info("watch in sync", extra={"watch": self.what})
                self.not_in_sync = None
                return True

    def _replace(self, objects: tuple[T, ...], rejected: tuple[InvalidObjectError, ...]) -> bool:
        fresh = {(thing.namespace, thing.name): thing for thing in objects}
        refused = {(error.namespace, error.name): error for error in rejected}
        changed = (
            fresh != self.objects
            or refused.keys() != self.rejected.keys()
            or not self.filled
            or self.not_in_sync is not None
        )
        self.objects = fresh
        self.rejected = refused
        for error in rejected:
            log.error("object cannot be read", extra={"error": str(error)})
        if self.not_in_sync is not None:
            log.info("watch in sync", extra={"watch": self.what, "objects": len(fresh)})
        self.filled, self.not_in_sync = True, None
        return changed
