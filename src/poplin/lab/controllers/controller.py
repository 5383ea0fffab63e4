"""A controller as a value: what it reads, whom a change concerns, and what it decides."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.object import PODS, SERVICES, Key, Object
from poplin.lab.controllers.store import Index, Store, owner_uid
from poplin.lab.controllers.write import Outcome

Cluster = Mapping[Resource[Object], Store]
"""Everything that is known, by resource."""

THE_CLUSTER: Final[Key] = ("", "")
"""The key of controllers that decide about the whole cluster at once."""

INDEXES: Final[Mapping[str, Index]] = {
    "owner": owner_uid,
    "orphan": lambda one: None if owner_uid(one) else one.namespace,
    "namespace": lambda one: one.namespace,
}


@dataclass(frozen=True, slots=True)
class Controller:
    """One row of the table of controllers.

    `affected` names the keys to decide about when an object has come, changed or gone; `decide` is a pure
    function of the cluster, a key and the time. It is not called before all of `reads` are in sync.
    """

    name: str
    reads: tuple[Resource[Object], ...]
    affected: Callable[[Cluster, Resource[Object], Object], Iterable[Key]]
    decide: Callable[[Cluster, Key, datetime], Outcome]


def make_store(resource: Resource[Object]) -> Store:
    """An empty store with the indexes that controllers use on `resource`."""
    indexes = dict(INDEXES)
    if resource is PODS:
        indexes["node"] = lambda pod: pod.spec.get("nodeName", "")
    if resource is SERVICES:
        indexes["selector"] = _selector_part
    return Store(indexes)


def _selector_part(service: Object) -> tuple[str, str, str] | None:
    """The namespace and one label that all pods of a Service have, None where it selects none."""
    selector = service.spec.get("selector")
    return (service.namespace, *min(selector.items())) if selector else None
