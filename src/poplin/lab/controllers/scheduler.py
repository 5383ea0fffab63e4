"""The scheduler: a node for each pod that has none.

Source: Kubernetes documentation, "Scheduling, Preemption and Eviction". No preemption.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import THE_CLUSTER, Cluster, Controller
from poplin.lab.controllers.neighbourhood import Neighbourhood, has_anti_affinity, minds_others
from poplin.lab.controllers.object import NODES, PODS, Key, Object, find_condition, format_time
from poplin.lab.controllers.occupancy import Occupancy, measure
from poplin.lab.controllers.placement import find_obstacle, score_node
from poplin.lab.controllers.pod import is_active, is_finished
from poplin.lab.controllers.store import owner_uid
from poplin.lab.controllers.write import Bind, Event, Outcome, Write, patch

NAME: Final = "default-scheduler"


def schedule(
    pending: Iterable[Object], nodes: Iterable[Object], occupancies: Mapping[str, Occupancy], now: datetime
) -> list[Write]:
    """Bind what fits, the highest priority and the longest wait first; say of the rest why it does not.

    `occupancies`, by node, are what is there before; pods placed here count for those after them.
    """
    ordered = sorted(nodes, key=lambda node: node.name)
    room = {node.name: occupancies.get(node.name, Occupancy()).copy() for node in ordered}
    writes: list[Write] = []
    for pod in sorted(pending, key=lambda pod: (-(pod.spec.get("priority") or 0), pod.created, pod.key)):
        node, obstacles = _choose(pod, ordered, room)
        if node is None:
            writes += _report(pod, len(ordered), obstacles, now)
            continue
        room[node.name].add(msgspec.structs.replace(pod, spec={**pod.spec, "nodeName": node.name}))
        text = f"Successfully assigned {pod.namespace}/{pod.name} to {node.name}"
        writes.append(Bind(pod, node.name, Event(pod, "Scheduled", text)))
    return writes


def _choose(
    pod: Object, nodes: Sequence[Object], room: Mapping[str, Occupancy]
) -> tuple[Object | None, Counter[str]]:
    """The best node that the pod fits on; or None, and how many nodes have which obstacle."""
    obstacles: Counter[str] = Counter()
    fitting = []
    for node in nodes:
        taken = room[node.name]
        if obstacle := find_obstacle(pod, node, taken.requests, taken.ports):
            obstacles[obstacle] += 1
        else:
            fitting.append(node)
    neighbourhood = _look_around(pod, nodes, room)
    if neighbourhood is not None:
        open_nodes = []
        for node in fitting:
            if obstacle := neighbourhood.find_obstacle(node):
                obstacles[obstacle] += 1
            else:
                open_nodes.append(node)
        fitting = open_nodes
    owner = owner_uid(pod)

    def rank(node: Object) -> tuple[int, int, int, str]:
        there = room[node.name]
        wish = score_node(pod, node) + (neighbourhood.score(node) if neighbourhood else 0)
        return -wish, there.owners[owner] if owner else 0, len(there.pods), node.name

    return min(fitting, key=rank, default=None), obstacles


def _look_around(pod: Object, nodes: Sequence[Object], room: Mapping[str, Occupancy]) -> Neighbourhood | None:
    """What other pods mean for this one; None where none of them matters."""
    everyone = minds_others(pod)
    placed = [
        (other, node)
        for node in nodes
        for other in (room[node.name].pods if everyone else room[node.name].hermits)
    ]
    return Neighbourhood(pod, nodes, placed) if everyone or placed else None


def _report(pod: Object, total: int, obstacles: Counter[str], now: datetime) -> list[Write]:
    """PodScheduled=False with the reasons, if that is news."""
    if total:
        listed = ", ".join(sorted(f"{count} {why}" for why, count in obstacles.items()))
        message = f"0/{total} nodes are available: {listed}."
    else:
        message = "no nodes available to schedule pods"
    present = find_condition(pod.status, "PodScheduled")
    if present is not None and (present.get("status"), present.get("message")) == ("False", message):
        return []
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": format_time(now),
    }
    event = Event(pod, "FailedScheduling", message, warning=True)
    return [patch(PODS, pod, {"status": {"conditions": [condition]}}, subresource="status", event=event)]


def _is_pending(pod: Object) -> bool:
    return (
        not pod.spec.get("nodeName")
        and is_active(pod)
        and pod.spec.get("schedulerName", NAME) == NAME
        and not pod.spec.get("schedulingGates")
    )


def make_scheduler() -> Controller:
    """The scheduler's row. Its cache holds the occupancy of nodes, by what the pods there were when it was made."""
    cache: dict[str, tuple[int, Occupancy]] = {}

    def decide(cluster: Cluster, _: Key, now: datetime) -> Outcome:
        pods = cluster[PODS]
        pending = [pod for pod in pods.find("node", "") if _is_pending(pod)]
        if not pending:
            return Outcome()
        occupancies = {}
        for node in cluster[NODES]:
            changes = pods.changes("node", node.name)
            if cache.get(node.name, (-1,))[0] != changes:
                cache[node.name] = (changes, measure(pods.find("node", node.name)))
            occupancies[node.name] = cache[node.name][1]
        for gone in cache.keys() - occupancies.keys():
            del cache[gone]
        return Outcome(tuple(schedule(pending, cluster[NODES], occupancies, now)))

    return Controller(NAME, (PODS, NODES), _affected, decide)


def _affected(_: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    """Any change of nodes, pods that wait, and pods that make room."""
    if resource is NODES or _is_pending(one) or one.deleting or is_finished(one) or has_anti_affinity(one):
        return (THE_CLUSTER,)
    return ()
