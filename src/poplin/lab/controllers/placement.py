"""Which nodes a pod's own wishes allow: node selector, node affinity, taints, resources and host ports.

Source: Kubernetes documentation, "Assigning Pods to Nodes" and "Managing Resources for Pods and Containers".
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from poplin.lab.controllers.object import Json, Object
from poplin.lab.controllers.quantity import parse_milli
from poplin.lab.controllers.taint import find_untolerated, taints_of

Port = tuple[str, str, int]
"""Protocol, host address ("0.0.0.0" for all) and number of a host port."""

HARD_EFFECTS: Final = frozenset({"NoSchedule", "NoExecute"})
ANY_ADDRESSES: Final = frozenset({"", "0.0.0.0", "::"})


def sum_requests(spec: Mapping[str, Any]) -> Counter[str]:
    """What a pod asks for: its containers and sidecars together, or more where an init container needs more."""
    total: Counter[str] = Counter()
    for container in spec.get("containers") or ():
        total.update(_requests(container))
    sidecars: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            sidecars.update(_requests(container))
            peak |= sidecars
        else:
            peak |= _requests(container) + sidecars
    total.update(sidecars)
    total |= peak
    total.update({key: parse_milli(value) for key, value in (spec.get("overhead") or {}).items()})
    total["pods"] = 1000
    return total


def _requests(container: Mapping[str, Any]) -> Counter[str]:
    requests = (container.get("resources") or {}).get("requests") or {}
    return Counter({key: parse_milli(value) for key, value in requests.items()})


def host_ports(spec: Mapping[str, Any]) -> Iterator[Port]:
    """The ports of the node that a pod wants."""
    for container in spec.get("containers") or ():
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                address = port.get("hostIP", "")
                address = "0.0.0.0" if address in ANY_ADDRESSES else address
                yield port.get("protocol", "TCP"), address, port["hostPort"]


def find_obstacle(pod: Object, node: Object, requests: Mapping[str, int], ports: AbstractSet[Port]) -> str:
    """Why the pod cannot be on the node, in the scheduler's words; "" where it can.

    `requests`, in thousandths, and `ports` are what is taken of the node.
    """
    if pod.spec.get("nodeName") not in {None, "", node.name}:
        return "node(s) didn't match the requested node name"
    taint = find_untolerated(pod.spec.get("tolerations") or (), taints_of(node), HARD_EFFECTS)
    if taint is not None:
        if taint["key"] == "node.kubernetes.io/unschedulable":
            return "node(s) were unschedulable"
        return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    if not wants_node(pod.spec, node):
        return "node(s) didn't match Pod's node affinity/selector"
    if any(_clashes(port, taken) for port in host_ports(pod.spec) for taken in ports):
        return "node(s) didn't have free ports for the requested pod ports"
    allocatable = node.status.get("allocatable") or node.status.get("capacity") or {}
    for key, amount in sum_requests(pod.spec).items():
        # A node that does not say what it has of the usual things is not held to it.
        bound = allocatable.get(key, None if key in {"cpu", "memory", "pods", "ephemeral-storage"} else 0)
        if amount and bound is not None and requests.get(key, 0) + amount > parse_milli(bound):
            return "Too many pods" if key == "pods" else f"Insufficient {key}"
    return ""


def _clashes(one: Port, other: Port) -> bool:
    same_address = one[1] == other[1] or "0.0.0.0" in {one[1], other[1]}
    return same_address and (one[0], one[2]) == (other[0], other[2])


def wants_node(spec: Mapping[str, Any], node: Object) -> bool:
    """Whether nodeSelector and the required node affinity match the node."""
    if not (spec.get("nodeSelector") or {}).items() <= node.labels.items():
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(matches_term(term, node) for term in required.get("nodeSelectorTerms") or ())


def matches_term(term: Mapping[str, Any], node: Object) -> bool:
    """Whether a NodeSelectorTerm matches; an empty one matches nothing."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    named = {"metadata.name": node.name}
    return all(_holds(one, node.labels) for one in expressions) and all(_holds(one, named) for one in fields)


def _holds(requirement: Json, values: Mapping[str, str]) -> bool:
    value, choices = values.get(requirement["key"]), requirement.get("values") or []
    match requirement["operator"]:
        case "In":
            return value in choices
        case "NotIn":
            return value not in choices
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    try:
        number, bound = int(value or ""), int(choices[0])
    except (ValueError, IndexError):
        return False
    return number > bound if requirement["operator"] == "Gt" else number < bound


def score_node(pod: Object, node: Object) -> int:
    """How much the pod would like the node: the weights of its preferred node affinity, less soft taints."""
    affinity = (pod.spec.get("affinity") or {}).get("nodeAffinity") or {}
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    weight: int = sum(one["weight"] for one in preferred if matches_term(one["preference"], node))
    soft = find_untolerated(pod.spec.get("tolerations") or (), taints_of(node), {"PreferNoSchedule"})
    return weight - (100 if soft else 0)
