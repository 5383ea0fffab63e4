"""What policy says of a packet, and why: the rules of `arrange`, asked one after the other.

`compile.policy.chain` turns the same rules into what the kernel asks; the two are held against each other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.policy import (
    DEFAULT,
    ICMP,
    ICMPV6,
    LINK_ICMPV6,
    NUMBERS,
    PORTED,
    Action,
    AppliedTier,
    Direction,
    Endpoint,
    IcmpKind,
    Packet,
    Policy,
    PolicyKey,
    Ports,
    Reason,
    Rule,
    Side,
    Tier,
    Verdict,
)

DEFAULT_TIERS: Mapping[str, Tier] = {DEFAULT.name: DEFAULT}


def arrange(
    policies: Iterable[Policy], direction: Direction, tiers: Mapping[str, Tier] = DEFAULT_TIERS
) -> tuple[AppliedTier, ...]:
    """The policies that are for the direction by tier, all in the order in which they are asked.

    A tier that nobody has described is the last and denies.
    """
    by_tier: dict[str, list[Policy]] = {}
    for policy in policies:
        if direction in policy.types:
            by_tier.setdefault(policy.tier, []).append(policy)
    applied = (
        AppliedTier(tiers.get(name, Tier(name)), tuple(sorted(some, key=lambda policy: policy.rank)))
        for name, some in by_tier.items()
    )
    return tuple(sorted(applied, key=lambda one: (one.tier.order, one.tier.name)))


@dataclass(frozen=True, slots=True)
class Case:
    """A packet with the pods that its addresses are, None for what is no pod."""

    packet: Packet
    source: Endpoint | None
    destination: Endpoint | None


def undecided(case: Case) -> Reason | None:
    """Why the packet is nothing that any policy decides on, None where it is."""
    packet, source, destination = case.packet, case.source, case.destination
    if source is not None and destination is not None and source.key == destination.key:
        return Reason.ITSELF
    if packet.protocol == ICMPV6 and any(first <= packet.kind.type <= last for first, last in LINK_ICMPV6):
        return Reason.LINK
    return None


def decide(applied: tuple[AppliedTier, ...], direction: Direction, case: Case) -> Verdict:
    """The verdict of the tiers that apply to one pod in one direction."""
    logged: list[tuple[PolicyKey, int]] = []
    for tier, policies in applied:
        keys = tuple(policy.key for policy in policies)
        unreadable = tuple(policy.key for policy in policies if policy.problem)
        if unreadable:
            return Verdict(direction, False, Reason.UNREADABLE, tier.name, unreadable)
        action, decided_by = _decide_tier(policies, direction, case, logged)
        if action in {Action.ALLOW, Action.DENY} and decided_by is not None:
            key, index = decided_by
            allowed = action is Action.ALLOW
            return Verdict(direction, allowed, Reason.RULE, tier.name, (key,), index, tuple(logged))
        if action is None and tier.default is Action.DENY:
            return Verdict(direction, False, Reason.NO_RULE, tier.name, keys, None, tuple(logged))
    reason = Reason.PASSED if applied else Reason.NOT_ISOLATED
    return Verdict(direction, True, reason, logged=tuple(logged))


def _decide_tier(
    policies: tuple[Policy, ...], direction: Direction, case: Case, logged: list[tuple[PolicyKey, int]]
) -> tuple[Action | None, tuple[PolicyKey, int] | None]:
    for policy in policies:
        for rule in policy.rules(direction):
            if not rule_matches(rule, case):
                continue
            if rule.action is not Action.LOG:
                return rule.action, (policy.key, rule.index)
            logged.append((policy.key, rule.index))
    return None, None


def rule_matches(rule: Rule, case: Case) -> bool:
    """Whether all that the rule asks holds."""
    packet = case.packet
    return (
        rule.version in {0, packet.source.version}
        and rule.protocol in {None, packet.protocol}
        and (rule.not_protocol is None or rule.not_protocol != packet.protocol)
        and (rule.icmp is None or _is_icmp(rule.icmp, packet))
        and (rule.not_icmp is None or not _is_icmp(rule.not_icmp, packet))
        and _side_matches(rule.source, packet.source, case.source, packet.protocol, packet.source_port)
        and _side_matches(
            rule.destination, packet.destination, case.destination, packet.protocol, packet.port
        )
    )


def _is_icmp(kind: IcmpKind, packet: Packet) -> bool:
    return (
        packet.protocol in {ICMP, ICMPV6}
        and kind.type == packet.kind.type
        and kind.code in {None, packet.kind.code}
    )


def _side_matches(
    side: Side, address: IPAddress, endpoint: Endpoint | None, protocol: int, port: int
) -> bool:
    return (
        (not side.nets or _in_nets(side.nets, address))
        and not _in_nets(side.not_nets, address)
        and (side.selector is None or (endpoint is not None and side.selector.matches(endpoint.labels)))
        and not (
            side.not_selector is not None
            and endpoint is not None
            and side.not_selector.matches(endpoint.labels)
        )
        and (side.ports is None or _in_ports(side.ports, endpoint, protocol, port))
        and (side.not_ports is None or not _in_ports(side.not_ports, endpoint, protocol, port))
    )


def _in_nets(nets: Iterable[IPNetwork], address: IPAddress) -> bool:
    return any(net.version == address.version and address in net for net in nets)


def _in_ports(ports: Ports, endpoint: Endpoint | None, protocol: int, port: int) -> bool:
    if protocol not in PORTED:
        return False
    if any(span.first <= port <= span.last for span in ports.spans):
        return True
    named = endpoint.ports if endpoint is not None else ()
    return any(
        one.name in ports.names and one.port == port and NUMBERS[one.protocol] == protocol for one in named
    )
