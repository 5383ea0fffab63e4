"""Where cluster objects come from: the interface that the API server's client and the file share."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from poplin.datastore.parse import InvalidObjectError
from poplin.datastore.resource import ClusterObject, Resource
from poplin.model.cluster import NodeCondition, ObjectReference
from poplin.model.errors import PoplinError

T = TypeVar("T", bound=ClusterObject)


@dataclass(frozen=True, slots=True)
class Replaced(Generic[T]):
    """The full set at once: whatever was known before and is not here is gone. The watch is in sync.

    `rejected` are the objects that exist and cannot be read.
    """

    objects: tuple[T, ...]
    rejected: tuple[InvalidObjectError, ...] = ()


@dataclass(frozen=True, slots=True)
class Put(Generic[T]):
    """An object that is new or has changed."""

    object: T


@dataclass(frozen=True, slots=True)
class Rejected:
    """An object that is new or has changed, and cannot be read: what was known of it is no longer so."""

    error: InvalidObjectError


@dataclass(frozen=True, slots=True)
class Deleted:
    """An object that is gone; `namespace` is "" where it had none."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Out of sync, and why: what was told before may be stale. Attempts go on by themselves."""

    error: PoplinError


@dataclass(frozen=True, slots=True)
class Resumed:
    """In sync again after `Unavailable` with nothing missed: what was told before still holds."""


WatchEvent: TypeAlias = Replaced[T] | Put[T] | Rejected | Deleted | Unavailable | Resumed


class Source(Protocol):
    """The cluster, as the agent sees it."""

    def watch(
        self, resource: Resource[T], *, namespace: str | None = None, field_selector: str | None = None
    ) -> AsyncGenerator[WatchEvent[T], None]:
        """The resource's objects and their changes, without end.

        The first event is `Replaced` or `Unavailable`. Nothing but cancellation is raised. Close the
        iterator (contextlib.aclosing) to end the watch. `namespace` None spans all of them;
        `field_selector` is as Kubernetes spells it ("spec.nodeName=worker-1").
        """
        ...

    async def get(self, resource: Resource[T], name: str, *, namespace: str = "") -> T | None:
        """One object as it is now, None where there is none. Raises PoplinError."""
        ...

    def end_stranded(self) -> None:
        """Wait for nothing that was asked from an address which the host has no more."""
        ...

    async def patch_node(
        self,
        name: str,
        annotations: Mapping[str, str | None],
        conditions: Sequence[NodeCondition] = (),
    ) -> None:
        """Set annotations (None removes one) and conditions of a Node. Raises PoplinError."""
        ...

    async def annotate_pod(
        self, namespace: str, name: str, annotations: Mapping[str, str], *, uid: str = ""
    ) -> None:
        """Set annotations of a Pod, with `uid` only of the one that has it. Raises PoplinError.

        That there is no such pod is success: what was to be said of it is of no use any more.
        """
        ...

    async def create_event(
        self, about: ObjectReference, *, reason: str, message: str, warning: bool = False
    ) -> None:
        """Tell people something about an object, as `kubectl describe` shows it. Raises PoplinError.

        `reason` is one CamelCase word.
        """
        ...
