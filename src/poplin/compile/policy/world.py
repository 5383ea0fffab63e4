"""The cluster as policy sees it, to be asked about packets: what `poplin explain` and flow records ask."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from poplin.compile.policy.evaluation import DEFAULT_TIERS, Case, arrange, decide, undecided
from poplin.compile.policy.index import SelectorIndex
from poplin.compile.policy.network_policy import translate
from poplin.model.cluster import ContainerPort, Namespace, NetworkPolicy, Node, Pod
from poplin.model.kernel import IPAddress
from poplin.model.policy import (
    AppliedTier,
    Direction,
    Endpoint,
    Packet,
    Policy,
    Reason,
    Tier,
    Verdict,
)
from poplin.model.selector import Labels, account_labels, namespace_labels


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What policy depends on. Pods that have finished, or have no address yet, are known and reach nothing."""

    namespaces: tuple[Namespace, ...] = ()
    pods: tuple[Pod, ...] = ()
    nodes: tuple[Node, ...] = ()
    network_policies: tuple[NetworkPolicy, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """A packet, the pods at its ends (None for no pod), and the verdict of each direction."""

    packet: Packet
    source: Endpoint | None
    destination: Endpoint | None
    egress: Verdict
    ingress: Verdict

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed


def is_endpoint(pod: Pod) -> bool:
    """Whether policy is for the pod: a hostNetwork pod is its node, a finished one has lost its address."""
    return not pod.host_network and not pod.finished


def named_ports(pod: Pod) -> tuple[ContainerPort, ...]:
    return tuple(port for port in pod.ports if port.name) if pod.ports else ()


def claim(pod: Pod) -> tuple[bool, bool, str, str]:
    """Of pods that say they have the same address, the least has it.

    One that is not being deleted; then one whose status says so, which its own author cannot write.
    """
    return pod.deleting, pod.announced, pod.namespace, pod.name


@dataclass(slots=True)
class World:
    """Endpoints by name and address, and the policies that apply to each."""

    endpoints: dict[tuple[str, str], Endpoint] = field(default_factory=dict)
    by_address: dict[IPAddress, Endpoint] = field(default_factory=dict)
    node_of: dict[IPAddress, str] = field(default_factory=dict)
    tiers: Mapping[str, Tier] = field(default_factory=lambda: DEFAULT_TIERS)
    _selectors: SelectorIndex = field(default_factory=SelectorIndex)
    _policies: dict[str, list[Policy]] = field(default_factory=dict)

    def add_policy(self, policy: Policy) -> None:
        self._selectors.add(policy.selector)
        self._policies.setdefault(policy.selector.text, []).append(policy)

    def applied(self, endpoint: Endpoint, direction: Direction) -> tuple[AppliedTier, ...]:
        """The policies that select the endpoint, as they are asked."""
        found = self._selectors.matching(endpoint.labels)
        return arrange((one for text in found for one in self._policies[text]), direction, self.tiers)

    def evaluate(self, packet: Packet) -> Explanation:
        """The verdicts of a connection's first packet: egress at its source's node, ingress at its destination's.

        Addresses are those that policy sees: a Service's is an endpoint's by then.
        """
        source, destination = self.by_address.get(packet.source), self.by_address.get(packet.destination)
        case = Case(packet, source, destination)
        always = undecided(case)
        if always is not None:
            egress, ingress = (Verdict(direction, True, always) for direction in _BOTH)
        else:
            egress = self._verdict(source, Direction.EGRESS, case)
            ingress = self._verdict(destination, Direction.INGRESS, case)
        return Explanation(packet, source, destination, egress, ingress)

    def _verdict(self, endpoint: Endpoint | None, direction: Direction, case: Case) -> Verdict:
        if endpoint is None:
            return Verdict(direction, True, Reason.NO_POD)
        node = self.node_of.get(case.packet.source)
        if direction is Direction.INGRESS and node and node == endpoint.node:
            return Verdict(direction, True, Reason.OWN_NODE)
        return decide(self.applied(endpoint, direction), direction, case)


_BOTH = (Direction.EGRESS, Direction.INGRESS)


def build_world(state: PolicyState) -> World:
    """The world of a cluster's objects. A namespace that no object describes has its name for a label."""
    world = World()
    for policy in state.network_policies:
        world.add_policy(translate(policy))
    for node in state.nodes:
        for address in (*node.internal_addresses, *node.external_addresses):
            world.node_of[address] = node.name
    shown = {one.name: namespace_labels(one.name, one.labels) for one in state.namespaces}
    claims: dict[IPAddress, tuple[bool, bool, str, str]] = {}
    for pod in state.pods:
        if pod.host_network and not pod.finished:
            world.node_of.update(dict.fromkeys(pod.addresses, pod.node_name))
        if not is_endpoint(pod):
            continue
        endpoint = to_endpoint(pod, shown.get(pod.namespace) or namespace_labels(pod.namespace, {}))
        world.endpoints[pod.namespace, pod.name] = endpoint
        for address in pod.addresses:
            if address not in claims or claim(pod) < claims[address]:
                claims[address] = claim(pod)
                world.by_address[address] = endpoint
    return world


def to_endpoint(pod: Pod, namespace: Mapping[str, str]) -> Endpoint:
    """The pod as policy sees it, in a namespace that shows these labels."""
    return Endpoint(
        pod.namespace,
        pod.name,
        Labels(pod.labels, namespace, account_labels(pod.service_account, {})),
        pod.node_name,
        pod.addresses,
        named_ports(pod),
    )
