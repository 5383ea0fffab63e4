"""Objects for tests, as the API server would give them."""

from datetime import UTC, datetime, timedelta
from itertools import count

import msgspec

from poplin.datastore.parse import convert_object
from poplin.lab.controllers.object import (
    DEPLOYMENTS,
    NODES,
    PODS,
    REPLICA_SETS,
    format_time,
    owner_reference,
)
from poplin.lab.controllers.write import Create, Delete, Patch

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
TEMPLATE = {
    "metadata": {"labels": {"app": "web"}},
    "spec": {"containers": [{"name": "web", "image": "example.org/web:1"}]},
}
SELECTOR = {"matchLabels": {"app": "web"}}
_numbers = count(1)


def ago(**span):
    return format_time(NOW - timedelta(**span))


def make(
    resource, name, *, spec=None, status=None, labels=None, annotations=None, owner=None, created=None, **more
):
    metadata = {
        "name": name,
        "uid": more.pop("uid", f"uid-{next(_numbers)}"),
        "resourceVersion": str(more.pop("version", next(_numbers))),
        "creationTimestamp": created or ago(hours=1),
        "generation": more.pop("generation", 1),
        "labels": labels or {},
        "annotations": annotations or {},
    }
    if resource.namespaced:
        metadata["namespace"] = more.pop("namespace", "default")
    if owner is not None:
        metadata["ownerReferences"] = [owner_reference(owner)]
    if more.pop("deleting", False):
        metadata["deletionTimestamp"] = ago(seconds=1)
    document = {"metadata": metadata, "spec": spec or {}, "status": status or {}, **more}
    value = convert_object(resource, document).value
    assert not isinstance(value, Exception), value
    return value


def make_pod(name, *, node="", phase="Pending", ready=None, since=None, labels=None, spec=None, **more):
    """`ready` None leaves the condition out; `since` is when it became what it is."""
    status = {"phase": phase}
    if ready is not None:
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": since or ago(minutes=30)}
        status["conditions"] = [condition]
    body = {"containers": [{"name": "web", "image": "example.org/web:1"}], **(spec or {})}
    if node:
        body["nodeName"] = node
    labels = {"app": "web"} if labels is None else labels
    return make(PODS, name, spec=body, status=status | more.pop("status", {}), labels=labels, **more)


def running(name, *, node="node-1", **more):
    return make_pod(name, node=node, phase="Running", ready=True, **more)


def make_node(name, *, ready="True", spec=None, labels=None, heartbeat=None, allocatable=None, **more):
    condition = {
        "type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat or ago(seconds=5),
        "lastTransitionTime": ago(hours=1),
    }  # fmt: skip
    status = {
        "conditions": [condition] if ready else [],
        "allocatable": allocatable or {"cpu": "4", "memory": "8Gi", "pods": "110"},
    }
    labels = {"kubernetes.io/hostname": name, **(labels or {})}
    return make(NODES, name, spec=spec, status=status, labels=labels, **more)


def make_replica_set(name="web-1", *, replicas=3, template=None, **more):
    spec = {
        "replicas": replicas, "selector": SELECTOR, "template": template or TEMPLATE, **more.pop("spec", {})
    }  # fmt: skip
    return make(REPLICA_SETS, name, spec=spec, **more)


def make_deployment(*, replicas=3, template=None, strategy=None, **more):
    spec = {
        "replicas": replicas,
        "selector": SELECTOR,
        "template": template or TEMPLATE,
        "strategy": strategy
        or {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
        "revisionHistoryLimit": 10,
        "progressDeadlineSeconds": 600,
        **more.pop("spec", {}),
    }
    return make(DEPLOYMENTS, "web", spec=spec, **more)


def creates(outcome, resource=PODS):
    return [one for one in writes_of(outcome) if isinstance(one, Create) and one.resource is resource]


def deletes(outcome, resource=PODS):
    """The names, in order."""
    return [one.key[1] for one in writes_of(outcome) if isinstance(one, Delete) and one.resource is resource]


def patches(outcome, resource, subresource=""):
    return [
        one
        for one in writes_of(outcome)
        if isinstance(one, Patch) and one.resource is resource and one.subresource == subresource
    ]


def status_of(outcome, resource):
    """The change to the status, {} where there is none."""
    found = patches(outcome, resource, "status")
    assert len(found) <= 1
    return found[0].body["status"] if found else {}


def writes_of(outcome):
    return getattr(outcome, "writes", outcome)


def altered(one, **changes):
    """The same object with other spec or status fields, and a newer version."""
    spec, status = changes.pop("spec", {}), changes.pop("status", {})
    metadata = msgspec.structs.replace(
        one.metadata, resource_version=str(next(_numbers)), **changes.pop("metadata", {})
    )
    status = {key: value for key, value in {**one.status, **status}.items() if value is not None}
    return msgspec.structs.replace(
        one, metadata=metadata, spec={**one.spec, **spec}, status=status, **changes
    )
