"""Pods whose node is no more (Kubernetes documentation, "Pod Lifecycle", garbage collection of pods).

Pods whose owner is no more are the API server's to collect.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import Cluster, Controller
from poplin.lab.controllers.object import NODES, PODS, Key, Object
from poplin.lab.controllers.write import Outcome, Write, delete


def collect(node: str, pods: Iterable[Object]) -> list[Write]:
    """Delete the pods of a node that does not exist, unless the server knows better."""
    return [
        delete(PODS, pod, grace_period_s=0, unless=(NODES, ("", node)))
        for pod in sorted(pods, key=lambda one: one.key)
    ]


def _decide(cluster: Cluster, key: Key, now: datetime) -> Outcome:
    del now
    if cluster[NODES].get(key) is not None:
        return Outcome()
    return Outcome(tuple(collect(key[1], cluster[PODS].find("node", key[1]))))


def _affected(_: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    """The node, by its key: that of a pod without a node is no key."""
    name = one.name if resource is NODES else one.spec.get("nodeName")
    return (("", name),) if name else ()


POD_GARBAGE: Final = Controller("pod-garbage-collector", (PODS, NODES), _affected, _decide)
