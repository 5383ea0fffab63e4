"""Which objects a workload owns: adopted and released by its selector.

Source: Kubernetes documentation, "Garbage collection" and "ReplicaSet" (non-template pod acquisitions).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import Cluster
from poplin.lab.controllers.object import Key, Object, controller_of, owner_reference
from poplin.lab.controllers.write import Write, patch


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector selects `labels`; None selects nothing, an empty one everything."""
    if selector is None:
        return False
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(_holds(term, labels) for term in selector.get("matchExpressions") or ())


def _holds(term: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(term["key"])
    match term["operator"]:
        case "In":
            return value is not None and value in term["values"]
        case "NotIn":
            return value is None or value not in term["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    return False


def claim(
    owner: Object,
    resource: Resource[Object],
    candidates: Iterable[Object],
    *,
    fits: Callable[[Object], bool] = lambda _: True,
) -> tuple[list[Object], list[Write]]:
    """Those of `candidates` that are the owner's, by name in order, and the writes that make it so.

    One that matches the selector and has no controller is adopted; one that is owned and does not match is
    released. `fits` restricts what may be adopted. An owner on its way out adopts and releases nothing.
    """
    mine: list[Object] = []
    writes: list[Write] = []
    selector = owner.spec.get("selector")
    for one in sorted(candidates, key=lambda one: one.key):
        reference = controller_of(one)
        selected = matches(selector, one.labels)
        if reference is not None:
            if reference["uid"] != owner.uid:
                continue
            if selected or owner.deleting:
                mine.append(one)
            else:
                release = {"$patch": "delete", "uid": owner.uid}
                writes.append(patch(resource, one, {"metadata": {"ownerReferences": [release]}}))
        elif selected and not owner.deleting and not one.deleting and fits(one):
            adopt = owner_reference(owner)
            writes.append(patch(resource, one, {"metadata": {"ownerReferences": [adopt]}}))
            mine.append(one)
    return mine, writes


def candidates(cluster: Cluster, resource: Resource[Object], owner: Object) -> list[Object]:
    """What `owner` owns, and what in its namespace has no controller."""
    store = cluster[resource]
    return store.find("owner", owner.uid) + store.find("orphan", owner.namespace)


def owners(cluster: Cluster, kinds: Resource[Object], owned: Object) -> list[Key]:
    """The objects of `kinds` that must hear of a change of `owned`: its owner, or those that may adopt it."""
    reference = controller_of(owned)
    if reference is not None:
        return [(owned.namespace, reference["name"])] if reference["kind"] == kinds.kind else []
    return [
        one.key
        for one in cluster[kinds].find("namespace", owned.namespace)
        if matches(one.spec.get("selector"), owned.labels)
    ]
