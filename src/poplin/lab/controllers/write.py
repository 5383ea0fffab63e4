"""What controllers want written, as values; the runtime carries them out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from poplin.datastore.client import JSON_MERGE, STRATEGIC_MERGE
from poplin.datastore.resource import Resource
from poplin.lab.controllers.object import Json, Key, Object


@dataclass(frozen=True, slots=True)
class Event:
    """What to tell people about `about`, once the write it belongs to is done.

    `message` may hold "{name}": the name of the object that was written.
    """

    about: Object
    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Create:
    """Make an object. Its metadata has a name, or a generateName that the server completes."""

    resource: Resource[Object]
    namespace: str
    body: Json
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Patch:
    """Change an object, or with `subresource` that part of it, as long as it is the one with this `uid`.

    `strategic` chooses Kubernetes' strategic merge, which merges lists by key, over a JSON merge patch.
    With `version` ("" for any) the write fails where the object has changed since.
    """

    resource: Resource[Object]
    key: Key
    uid: str
    body: Json
    subresource: str = ""
    strategic: bool = True
    version: str = ""
    event: Event | None = None

    @property
    def content_type(self) -> str:
        return STRATEGIC_MERGE if self.strategic else JSON_MERGE

    @property
    def document(self) -> Json:
        """The patch as sent. The server refuses one whose uid or resourceVersion is not the object's."""
        metadata = {**self.body.get("metadata", {}), "uid": self.uid}
        if self.version:
            metadata["resourceVersion"] = self.version
        return {**self.body, "metadata": metadata}


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the object with this `uid`; `grace_period_s` None is what the object itself asks for.

    With `unless`, ask the server first, and leave the object alone if that other one exists: for decisions
    that rest on an absence, which a watch that lags can feign.
    """

    resource: Resource[Object]
    key: Key
    uid: str
    grace_period_s: int | None = None
    unless: tuple[Resource[Object], Key] | None = None
    event: Event | None = None

    @property
    def options(self) -> Json:
        """DeleteOptions (API reference, "DeleteOptions")."""
        options: Json = {"preconditions": {"uid": self.uid}, "propagationPolicy": "Background"}
        if self.grace_period_s is not None:
            options["gracePeriodSeconds"] = self.grace_period_s
        return options


@dataclass(frozen=True, slots=True)
class Bind:
    """Give a pod its node (pods/binding)."""

    pod: Object
    node: str
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Tell:
    """Only an event."""

    event: Event


Write = Create | Patch | Delete | Bind | Tell


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a controller found to do about one object.

    `again` is when to look once more although nothing changes, None where time does not matter.
    """

    writes: Sequence[Write] = ()
    again: datetime | None = None


def patch(resource: Resource[Object], target: Object, body: Json, **more: Any) -> Patch:
    """A patch of `target`."""
    return Patch(resource, target.key, target.uid, body, **more)


def delete(resource: Resource[Object], target: Object, **more: Any) -> Delete:
    """The deletion of `target`."""
    return Delete(resource, target.key, target.uid, **more)


def patch_status(resource: Resource[Object], target: Object, wanted: Mapping[str, Any]) -> list[Write]:
    """The patch that makes the keys in `wanted` of the status so, if any is not; None removes one."""
    change = {key: value for key, value in wanted.items() if target.status.get(key) != value}
    if not change:
        return []
    return [patch(resource, target, {"status": change}, subresource="status", strategic=False)]


@dataclass(slots=True)
class Agenda:
    """Writes and a time, as they are gathered."""

    writes: list[Write] = field(default_factory=list)
    again: datetime | None = None

    def wake(self, when: datetime | None) -> None:
        """Look again at `when`, if nothing earlier is planned."""
        if when is not None and (self.again is None or when < self.again):
            self.again = when

    def outcome(self) -> Outcome:
        return Outcome(tuple(self.writes), self.again)
