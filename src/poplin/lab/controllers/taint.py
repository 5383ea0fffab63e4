"""Taints and tolerations (Kubernetes documentation, "Taints and Tolerations")."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from poplin.lab.controllers.object import Json, Object

NOT_READY: Final = "node.kubernetes.io/not-ready"
UNREACHABLE: Final = "node.kubernetes.io/unreachable"
UNSCHEDULABLE: Final = "node.kubernetes.io/unschedulable"
NETWORK_UNAVAILABLE: Final = "node.kubernetes.io/network-unavailable"
MEMORY_PRESSURE: Final = "node.kubernetes.io/memory-pressure"
DISK_PRESSURE: Final = "node.kubernetes.io/disk-pressure"
PID_PRESSURE: Final = "node.kubernetes.io/pid-pressure"


def tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """Whether one toleration covers one taint, leaving aside for how long."""
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    key = toleration.get("key", "")
    if key and key != taint["key"]:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(key) and toleration.get("value", "") == taint.get("value", "")


def find_untolerated(
    tolerations: Iterable[Mapping[str, Any]], taints: Iterable[Json], effects: Iterable[str]
) -> Json | None:
    """The first taint of these effects that none of the tolerations covers."""
    tolerations, effects = list(tolerations), frozenset(effects)
    for taint in taints:
        if taint["effect"] in effects and not any(tolerates(one, taint) for one in tolerations):
            return taint
    return None


def taints_of(node: Object) -> list[Json]:
    """The taints of a node; that of a cordoned one even before anyone has written it."""
    taints: list[Json] = list(node.spec.get("taints") or ())
    if node.spec.get("unschedulable") and not any(one["key"] == UNSCHEDULABLE for one in taints):
        taints.append({"key": UNSCHEDULABLE, "effect": "NoSchedule"})
    return taints
