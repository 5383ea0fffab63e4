"""Which nodes other pods leave open: pod affinity and anti-affinity, and topology spread.

Source: Kubernetes documentation, "Assigning Pods to Nodes" (inter-pod affinity) and "Pod Topology Spread
Constraints". A term that selects namespaces by label is taken to mean the pod's own namespace and those named.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from poplin.lab.controllers.object import Json, Object
from poplin.lab.controllers.ownership import matches
from poplin.lab.controllers.placement import wants_node

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
Placed = Iterable[tuple[Object, Object]]
"""Pods with their nodes."""


class Neighbourhood:
    """For one pod to be placed: what every other pod means for each node. `nodes` are those it may count."""

    def __init__(self, pod: Object, nodes: Iterable[Object], placed: Placed) -> None:
        self._pod = pod
        affinity = pod.spec.get("affinity") or {}
        together, apart = affinity.get("podAffinity") or {}, affinity.get("podAntiAffinity") or {}
        nodes, placed = list(nodes), list(placed)
        self._together = [(one, _count(pod, one, placed)) for one in together.get(REQUIRED) or ()]
        self._apart = [(one, _count(pod, one, placed)) for one in apart.get(REQUIRED) or ()]
        self._wishes = [
            (sign * one["weight"], one["podAffinityTerm"], _count(pod, one["podAffinityTerm"], placed))
            for sign, terms in ((1, together), (-1, apart))
            for one in terms.get(PREFERRED) or ()
        ]
        self._shunned = _find_shunned(pod, placed)
        self._spreads = [
            (one, *_spread(pod, one, nodes, placed))
            for one in pod.spec.get("topologySpreadConstraints") or ()
        ]

    def find_obstacle(self, node: Object) -> str:
        """Why the pod cannot be on `node`, in the scheduler's words; "" where it can."""
        for term, counts in self._together:
            domain = node.labels.get(term["topologyKey"])
            # The first of a group that wants to be together has nobody to join.
            first = not counts and _is_meant(self._pod, term, self._pod)
            if domain is None or not (counts[domain] or first):
                return "node(s) didn't match pod affinity rules"
        for term, counts in self._apart:
            if counts[node.labels.get(term["topologyKey"], "")]:
                return "node(s) didn't match pod anti-affinity rules"
        if any(node.labels.get(key) == value for key, value in self._shunned):
            return "node(s) didn't satisfy existing pods anti-affinity rules"
        for constraint, counts, least in self._spreads:
            if constraint.get("whenUnsatisfiable", "DoNotSchedule") != "DoNotSchedule":
                continue
            domain = node.labels.get(constraint["topologyKey"])
            if domain is None:
                return "node(s) didn't match pod topology spread constraints (missing required label)"
            own = matches(constraint.get("labelSelector"), self._pod.labels)
            if counts[domain] + own - least > constraint["maxSkew"]:
                return "node(s) didn't match pod topology spread constraints"
        return ""

    def score(self, node: Object) -> int:
        """How much the pod would like to be on `node` for its neighbours."""
        score: int = sum(
            weight * (counts[node.labels.get(term["topologyKey"], "")] > 0)
            for weight, term, counts in self._wishes
        )
        return score - sum(
            counts[node.labels.get(constraint["topologyKey"], "")] for constraint, counts, _ in self._spreads
        )


def has_anti_affinity(pod: Object) -> bool:
    """Whether a pod keeps others away."""
    apart = (pod.spec.get("affinity") or {}).get("podAntiAffinity") or {}
    return bool(apart.get(REQUIRED))


def minds_others(pod: Object) -> bool:
    """Whether where a pod may be depends on other pods, by its own wish."""
    affinity = pod.spec.get("affinity") or {}
    return bool(
        affinity.get("podAffinity")
        or affinity.get("podAntiAffinity")
        or pod.spec.get("topologySpreadConstraints")
    )


def _is_meant(owner: Object, term: Mapping[str, Any], pod: Object) -> bool:
    """Whether a term of `owner`'s selects `pod`."""
    namespaces = term.get("namespaces") or ([] if term.get("namespaceSelector") == {} else [owner.namespace])
    if namespaces and pod.namespace not in namespaces:
        return False
    return matches(term.get("labelSelector"), pod.labels)


def _count(pod: Object, term: Mapping[str, Any], placed: Placed) -> Counter[str]:
    """How many pods that the term selects there are in each domain."""
    key = term["topologyKey"]
    return Counter(
        node.labels[key] for other, node in placed if key in node.labels and _is_meant(pod, term, other)
    )


def _find_shunned(pod: Object, placed: Placed) -> set[tuple[str, str]]:
    """The domains, as label and value, where a pod lives that will not have `pod` beside it."""
    shunned: set[tuple[str, str]] = set()
    for other, node in placed:
        if has_anti_affinity(other):
            for term in other.spec["affinity"]["podAntiAffinity"][REQUIRED]:
                key = term["topologyKey"]
                if key in node.labels and _is_meant(other, term, pod):
                    shunned.add((key, node.labels[key]))
    return shunned


def _spread(
    pod: Object, constraint: Json, nodes: Iterable[Object], placed: Placed
) -> tuple[Counter[str], int]:
    """How many of the constraint's pods each domain has, and the least among the domains open to the pod."""
    key = constraint["topologyKey"]
    open_domains = {node.labels[key] for node in nodes if key in node.labels and wants_node(pod.spec, node)}
    counts: Counter[str] = Counter()
    for other, node in placed:
        if (
            other.namespace == pod.namespace
            and not other.deleting
            and node.labels.get(key) in open_domains
            and matches(constraint.get("labelSelector"), other.labels)
        ):
            counts[node.labels[key]] += 1
    least = min((counts[domain] for domain in open_domains), default=0)
    if len(open_domains) < constraint.get("minDomains", 1):
        least = 0
    return counts, least
