"""Policy as Poplin decides by it, whatever API it was written in.

Tiers are asked in their order, the policies of a tier in theirs, the rules of a policy as they stand; the
first that speaks decides (Calico, "Tiered policy"). Kubernetes' NetworkPolicies are policies of one tier
that only allow: what one of them selects, and none allows, is denied by the tier.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Final, NamedTuple

from poplin.model.cluster import ContainerPort, TransportProtocol
from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.selector import EVERYTHING, Labels, Selector


class Direction(StrEnum):
    """Seen from the pod that a policy selects."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Action(StrEnum):
    """What a rule does. LOG goes on to the next rule, PASS to the next tier."""

    ALLOW = "Allow"
    DENY = "Deny"
    LOG = "Log"
    PASS = "Pass"  # noqa: S105  - the API's word, and no password


ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
SCTP: Final = 132
PROTOCOLS: Final = {"ICMP": ICMP, "TCP": TCP, "UDP": UDP, "ICMPv6": ICMPV6, "UDPLite": 136, "SCTP": SCTP}
"""IANA's numbers by the names that policies and people use."""

NUMBERS: Final = {kind: PROTOCOLS[kind] for kind in TransportProtocol}
PORTED: Final = frozenset({TCP, UDP, SCTP, 136})
"""The protocols that have ports."""


LINK_ICMPV6: Final = ((130, 137), (143, 143))
"""ICMPv6 types (first, last) that a link needs, and that policy never denies: multicast listeners, routers,
neighbours, redirects (RFC 2710, 3810, 4861)."""


def protocol_name(number: int) -> str:
    return next((name for name, known in PROTOCOLS.items() if known == number), str(number))


class PortSpan(NamedTuple):
    """Ports from `first` to `last`, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports by number, and by the names that the pod at that end gives them. Both empty: no port at all."""

    spans: tuple[PortSpan, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """What a rule asks of a packet's source or destination. All of it must hold; what is None or empty asks nothing.

    A selector means pods that are known: no address outside matches it, and every such matches `not_selector`.
    """

    nets: tuple[IPNetwork, ...] = ()
    not_nets: tuple[IPNetwork, ...] = ()
    selector: Selector | None = None
    not_selector: Selector | None = None
    ports: Ports | None = None
    not_ports: Ports | None = None


ANYONE: Final = Side()


@dataclass(frozen=True, slots=True)
class IcmpKind:
    """`code` None is every code of the type. A rule that has one names ICMP or ICMPv6 as its protocol."""

    type: int
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """`index` is the rule's place in the object it comes from: several may come from one.

    `version` is 4 or 6, 0 for both; `protocol` None is every protocol, those without ports included. A rule
    that asks for ports names a protocol that has them; ValueError where not.
    """

    action: Action
    index: int = 0
    version: int = 0
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: IcmpKind | None = None
    not_icmp: IcmpKind | None = None
    source: Side = ANYONE
    destination: Side = ANYONE

    def __post_init__(self) -> None:
        sides = (self.source, self.destination)
        ported = any(side.ports is not None or side.not_ports is not None for side in sides)
        if ported and self.protocol not in PORTED:
            raise ValueError(f"a rule of ports for protocol {self.protocol}, which has none")


class PolicyKey(NamedTuple):
    """An object by kind, namespace ("" for none) and name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


NETWORK_POLICY: Final = "NetworkPolicy"
DEFAULT_TIER: Final = "default"


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules for the pods that `selector` means, in the directions of `types`.

    `problem` says why its rules cannot be told: then the pods it selects are closed in these directions.
    """

    key: PolicyKey
    selector: Selector = EVERYTHING
    types: frozenset[Direction] = frozenset({Direction.INGRESS})
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    tier: str = DEFAULT_TIER
    order: float = inf
    problem: str = ""

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        return self.ingress if direction is Direction.INGRESS else self.egress

    @property
    def rank(self) -> tuple[float, str, str, str]:
        """Within a tier, the lower goes first."""
        return self.order, self.key.name, self.key.namespace, self.key.kind


@dataclass(frozen=True, slots=True)
class Tier:
    """`default` is what happens to what its policies select and none of their rules decides: DENY or PASS."""

    name: str
    order: float = inf
    default: Action = Action.DENY


DEFAULT: Final = Tier(DEFAULT_TIER, 1_000_000)


class AppliedTier(NamedTuple):
    """A tier, and those of its policies that apply to an endpoint in one direction, in their order."""

    tier: Tier
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod as policy sees it. `ports` are those of its ports that have names."""

    namespace: str
    name: str
    labels: Labels
    node: str = ""
    addresses: tuple[IPAddress, ...] = ()
    ports: tuple[ContainerPort, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


ECHO: Final = {ICMP: IcmpKind(8, 0), ICMPV6: IcmpKind(128, 0)}


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, after the Service's address has become the endpoint's.

    Ports are 0 for protocols that have none; `icmp` is for ICMP and ICMPv6, None for an echo request.
    """

    source: IPAddress
    destination: IPAddress
    protocol: int = TCP
    port: int = 0
    source_port: int = 0
    icmp: IcmpKind | None = None

    @property
    def kind(self) -> IcmpKind:
        """Type and code, of a packet of ICMP or ICMPv6."""
        return self.icmp or ECHO[self.protocol]


class Reason(StrEnum):
    """Why a verdict is what it is."""

    RULE = "a rule decides"
    NOT_ISOLATED = "no policy selects the pod"
    NO_RULE = "policies select the pod, and none of their rules allows this"
    UNREADABLE = "the policy cannot be read, so what it selects is closed"
    PASSED = "the policies that select the pod leave it open"
    OWN_NODE = "traffic from the pod's own node is always allowed"
    ITSELF = "a pod always reaches itself"
    LINK = "neighbour discovery is always allowed"
    NOT_KNOWN = "the pod's labels are not known to its node yet"
    NO_POD = "not a pod of the cluster: no policy is for it"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What policy says of a packet in one direction, and which policy says so.

    `policies` has the one whose rule decides; without a rule, all that select the pod in the tier.
    `logged` are the Log rules that the packet passed.
    """

    direction: Direction
    allowed: bool
    reason: Reason
    tier: str = ""
    policies: tuple[PolicyKey, ...] = ()
    rule: int | None = None
    logged: tuple[tuple[PolicyKey, int], ...] = field(default=())
