"""API objects as controllers see them: metadata typed, spec and status as the JSON has them.

Controllers pass whole templates on, so nothing of a spec may be lost; objects are never changed in place.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import msgspec

from poplin.datastore.resource import Metadata, Resource, WireObject

Json = dict[str, Any]
Key = tuple[str, str]
"""Namespace ("" for cluster-wide objects) and name."""


class ObjectMetadata(Metadata, rename="camel", gc=False):
    """ObjectMeta, as far as controllers read it (Kubernetes API reference, "ObjectMeta")."""

    generation: int = 0
    creation_timestamp: str = ""
    owner_references: list[Json] | None = None
    finalizers: list[str] | None = None


class Object(WireObject, rename="camel", gc=False):
    """Any object. `kind` and `api_version` are set by its resource, since items of a list lack them.

    `data` and `revision` are those of a ControllerRevision; `address_type`, `endpoints` and `ports` those of an
    EndpointSlice.
    """

    metadata: ObjectMetadata
    kind: str = ""
    api_version: str = ""
    spec: Json = msgspec.field(default_factory=dict)
    status: Json = msgspec.field(default_factory=dict)
    data: Any = None
    revision: int = 0
    address_type: str = ""
    endpoints: list[Json] | None = None
    ports: list[Json] | None = None

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def uid(self) -> str:
        return self.metadata.uid

    @property
    def key(self) -> Key:
        return self.metadata.namespace, self.metadata.name

    @property
    def labels(self) -> Mapping[str, str]:
        return self.metadata.labels or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.metadata.annotations or {}

    @property
    def deleting(self) -> bool:
        return self.metadata.deletion_timestamp is not None

    @property
    def version(self) -> int:
        """The resourceVersion as a number: of two versions of an object the newer has the greater (KEP-5504)."""
        text = self.metadata.resource_version
        return int(text) if text.isdecimal() else 0

    @property
    def created(self) -> datetime:
        return parse_time(self.metadata.creation_timestamp) or EPOCH


EPOCH: Final = datetime.fromtimestamp(0, UTC)


@lru_cache(maxsize=8192)
def parse_time(text: str | None) -> datetime | None:
    """An instant as metav1.Time or MicroTime writes it; None for an empty one."""
    return datetime.fromisoformat(text) if text else None


def format_time(instant: datetime) -> str:
    """As metav1.Time writes it: whole seconds, UTC."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def controller_of(owned: Object) -> Json | None:
    """The owner reference that has `controller: true`; None where there is none."""
    for reference in owned.metadata.owner_references or ():
        if reference.get("controller"):
            return reference
    return None


def owner_reference(owner: Object) -> Json:
    """What makes `owner` the controller of another object."""
    return {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def find_condition(status: Mapping[str, Any], kind: str) -> Json | None:
    """The condition of that type."""
    return next((one for one in status.get("conditions") or () if one.get("type") == kind), None)


def put_condition(conditions: Iterable[Json], new: Json) -> list[Json]:
    """`conditions` with `new` in the place of the one of its type, or at the end.

    Where the status stays the same, so does lastTransitionTime.
    """
    result, placed = [], False
    for one in conditions:
        if one.get("type") != new["type"]:
            result.append(one)
            continue
        if one.get("status") == new["status"] and "lastTransitionTime" in one:
            new = {**new, "lastTransitionTime": one["lastTransitionTime"]}
        result.append(new)
        placed = True
    return result if placed else [*result, new]


def make_resource(
    group: str, version: str, plural: str, kind: str, *, namespaced: bool = True
) -> Resource[Object]:
    """A resource whose objects are read whole."""
    api_version = f"{group}/{version}" if group else version

    def complete(wire: Object) -> Object:
        wire.kind, wire.api_version = kind, api_version
        return wire

    return Resource(group, version, plural, kind, namespaced, Object, complete)


PODS: Final = make_resource("", "v1", "pods", "Pod")
SERVICES: Final = make_resource("", "v1", "services", "Service")
ENDPOINT_SLICES: Final = make_resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
NODES: Final = make_resource("", "v1", "nodes", "Node", namespaced=False)
CLAIMS: Final = make_resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
LEASES: Final = make_resource("coordination.k8s.io", "v1", "leases", "Lease")
REPLICA_SETS: Final = make_resource("apps", "v1", "replicasets", "ReplicaSet")
DEPLOYMENTS: Final = make_resource("apps", "v1", "deployments", "Deployment")
DAEMON_SETS: Final = make_resource("apps", "v1", "daemonsets", "DaemonSet")
STATEFUL_SETS: Final = make_resource("apps", "v1", "statefulsets", "StatefulSet")
REVISIONS: Final = make_resource("apps", "v1", "controllerrevisions", "ControllerRevision")
JOBS: Final = make_resource("batch", "v1", "jobs", "Job")
CRON_JOBS: Final = make_resource("batch", "v1", "cronjobs", "CronJob")
