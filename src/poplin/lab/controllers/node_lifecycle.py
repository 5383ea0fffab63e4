"""Nodes that went silent: their condition, their taints, and the pods that must leave.

Source: Kubernetes documentation, "Nodes" (heartbeats, node controller) and "Taints and Tolerations" (taint
based evictions). Heartbeats are judged by their own time stamps: nodes' clocks are taken to agree with ours.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import Cluster, Controller
from poplin.lab.controllers.object import (
    LEASES,
    NODES,
    PODS,
    Json,
    Key,
    Object,
    find_condition,
    format_time,
    parse_time,
)
from poplin.lab.controllers.pod import is_finished, is_ready
from poplin.lab.controllers.taint import (
    DISK_PRESSURE,
    MEMORY_PRESSURE,
    NETWORK_UNAVAILABLE,
    NOT_READY,
    PID_PRESSURE,
    UNREACHABLE,
    UNSCHEDULABLE,
    tolerates,
)
from poplin.lab.controllers.write import Agenda, Event, Outcome, delete, patch

GRACE: Final = timedelta(seconds=40)
LEASE_NAMESPACE: Final = "kube-node-lease"
REPORTED: Final = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")
PRESSURES: Final = {
    "MemoryPressure": MEMORY_PRESSURE,
    "DiskPressure": DISK_PRESSURE,
    "PIDPressure": PID_PRESSURE,
    "NetworkUnavailable": NETWORK_UNAVAILABLE,
}
OURS: Final = frozenset({NOT_READY, UNREACHABLE, UNSCHEDULABLE, *PRESSURES.values()})


def watch_over(node: Object, lease: Object | None, pods: Iterable[Object], now: datetime) -> Outcome:
    """Judge one node by its last heartbeat, and see to its taints and to its `pods`. `lease` None: it has none."""
    agenda = Agenda()
    stale = last_heartbeat(node, lease) + GRACE
    if stale > now:
        agenda.wake(stale)
        conditions = node.status.get("conditions") or []
    else:
        conditions = _doubt(agenda, node, now)
    taints = find_taints(node, conditions, now)
    if taints != (node.spec.get("taints") or []):
        agenda.writes.append(
            patch(NODES, node, {"spec": {"taints": taints}}, version=node.metadata.resource_version)
        )
    ready = find_condition({"conditions": conditions}, "Ready")
    for pod in sorted(pods, key=lambda one: one.key):
        if is_finished(pod):
            continue
        _evict(agenda, pod, taints, now)
        if (ready is None or ready["status"] != "True") and is_ready(pod):
            lost = {
                "type": "Ready",
                "status": "False",
                "reason": "NodeNotReady",
                "lastTransitionTime": format_time(now),
            }
            event = Event(pod, "NodeNotReady", "Node is not ready", warning=True)
            body = {"status": {"conditions": [lost]}}
            agenda.writes.append(patch(PODS, pod, body, subresource="status", event=event))
    return agenda.outcome()


def last_heartbeat(node: Object, lease: Object | None) -> datetime:
    """The newest sign of life: the lease's renewal, the status, or the node's creation."""
    condition = find_condition(node.status, "Ready") or {}
    signs = [node.created, parse_time(condition.get("lastHeartbeatTime"))]
    if lease is not None:
        signs.append(parse_time(lease.spec.get("renewTime")))
    return max(sign for sign in signs if sign is not None)


def _doubt(agenda: Agenda, node: Object, now: datetime) -> list[Json]:
    """Say that nothing is known of a silent node; the conditions as they are then."""
    conditions: list[Json] = list(node.status.get("conditions") or ())
    news = []
    for kind in REPORTED:
        present = find_condition({"conditions": conditions}, kind)
        if present is not None and present["status"] == "Unknown":
            continue
        news.append(
            {
                "type": kind,
                "status": "Unknown",
                "reason": "NodeStatusUnknown" if present else "NodeStatusNeverUpdated",
                "message": "Kubelet stopped posting node status."
                if present
                else "Kubelet never posted node status.",
                "lastTransitionTime": format_time(now),
                "lastHeartbeatTime": (present or {}).get("lastHeartbeatTime") or format_time(node.created),
            }
        )
    if news:
        text = f"Node {node.name} status is now: NodeNotReady"
        event = Event(node, "NodeNotReady", text) if news[0]["type"] == "Ready" else None
        body = {"status": {"conditions": news}}
        agenda.writes.append(patch(NODES, node, body, subresource="status", event=event))
    kinds = {one["type"] for one in news}
    return [one for one in conditions if one["type"] not in kinds] + news


def find_taints(node: Object, conditions: Iterable[Json], now: datetime) -> list[Json]:
    """The node's taints: those of others as they are, and what its conditions and its cordon come to."""
    states = {one["type"]: one["status"] for one in conditions}
    wanted: list[tuple[str, str]] = []
    if states.get("Ready") != "True":
        # A node that has said nothing yet takes no pods, and has none to lose.
        key = UNREACHABLE if states.get("Ready") == "Unknown" else NOT_READY
        wanted += [(key, "NoSchedule"), (key, "NoExecute")]
    wanted += [(key, "NoSchedule") for kind, key in PRESSURES.items() if states.get(kind) == "True"]
    if node.spec.get("unschedulable"):
        wanted.append((UNSCHEDULABLE, "NoSchedule"))
    present: list[Json] = list(node.spec.get("taints") or ())
    kept = [one for one in present if one["key"] not in OURS or (one["key"], one["effect"]) in wanted]
    held = {(one["key"], one["effect"]) for one in kept}
    instant = format_time(now)
    return kept + [
        {"key": key, "effect": effect, "timeAdded": instant}
        for key, effect in wanted
        if (key, effect) not in held
    ]


def _evict(agenda: Agenda, pod: Object, taints: Iterable[Json], now: datetime) -> None:
    """Delete a pod at the end of its patience with its node's NoExecute taints."""
    due = eviction_time(pod, taints, now)
    if due is None or pod.deleting:
        return
    if due > now:
        agenda.wake(due)
        return
    text = f"Marking for deletion Pod {pod.namespace}/{pod.name}"
    agenda.writes.append(delete(PODS, pod, event=Event(pod, "TaintManagerEviction", text)))


def eviction_time(pod: Object, taints: Iterable[Json], now: datetime) -> datetime | None:
    """When the pod must go; None where it may stay for ever.

    Of the tolerations that cover a taint the least patient counts.
    """
    times = []
    for taint in taints:
        if taint["effect"] != "NoExecute":
            continue
        covering = [one for one in pod.spec.get("tolerations") or () if tolerates(one, taint)]
        if not covering:
            return now
        limits = [one["tolerationSeconds"] for one in covering if one.get("tolerationSeconds") is not None]
        if limits:
            added = parse_time(taint.get("timeAdded")) or now
            times.append(added + timedelta(seconds=max(0, min(limits))))
    return min(times, default=None)


def _decide(cluster: Cluster, key: Key, now: datetime) -> Outcome:
    node = cluster[NODES].get(key)
    if node is None or node.deleting:
        return Outcome()
    lease = cluster[LEASES].get((LEASE_NAMESPACE, node.name))
    return watch_over(node, lease, cluster[PODS].find("node", node.name), now)


def _affected(_: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    if resource is LEASES:
        return (("", one.name),) if one.namespace == LEASE_NAMESPACE else ()
    name = one.name if resource is NODES else one.spec.get("nodeName")
    return (("", name),) if name else ()


NODE_LIFECYCLE: Final = Controller("node-controller", (NODES, LEASES, PODS), _affected, _decide)
