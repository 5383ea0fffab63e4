"""Kubernetes' NetworkPolicies as policies of the default tier.

A rule that names several peers or protocols becomes several of ours: each of ours asks one thing of each
side. They keep the index of the rule they come from.
"""

from collections.abc import Iterable
from typing import Final

from poplin.model.cluster import NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule
from poplin.model.policy import (
    ANYONE,
    NETWORK_POLICY,
    NUMBERS,
    Action,
    Direction,
    Policy,
    PolicyKey,
    Ports,
    PortSpan,
    Rule,
    Side,
)
from poplin.model.selector import NAMESPACE, In, all_of, select

ORDER: Final = 1000
"""Among other policies of the default tier (Calico: a NetworkPolicy of Kubernetes has this order)."""


def translate(policy: NetworkPolicy) -> Policy:
    """Give the policy that means the same. Source: Kubernetes API reference, NetworkPolicySpec."""
    own_namespace = select(In(NAMESPACE, frozenset({policy.namespace})))
    types = {Direction.INGRESS: policy.ingress, Direction.EGRESS: policy.egress}
    return Policy(
        key=PolicyKey(NETWORK_POLICY, policy.namespace, policy.name),
        selector=all_of(own_namespace, policy.pod_selector),
        types=frozenset(direction for direction, rules in types.items() if rules is not None),
        ingress=tuple(_rules(policy.ingress or (), Direction.INGRESS)),
        egress=tuple(_rules(policy.egress or (), Direction.EGRESS)),
        order=ORDER,
    )


def _rules(rules: Iterable[NetworkPolicyRule], direction: Direction) -> Iterable[Rule]:
    for rule in rules:
        for protocol, ports in _by_protocol(rule.ports):
            for peer in map(_side, rule.peers) if rule.peers else (ANYONE,):
                if direction is Direction.INGRESS:
                    source, destination = peer, Side(ports=ports)
                else:
                    source, destination = ANYONE, Side(peer.nets, peer.not_nets, peer.selector, ports=ports)
                yield Rule(
                    Action.ALLOW, rule.index, protocol=protocol, source=source, destination=destination
                )


def _side(peer: NetworkPolicyPeer) -> Side:
    if peer.block is not None:
        return Side(nets=(peer.block,), not_nets=peer.excepts)
    return Side(selector=peer.selector)


def _by_protocol(ports: tuple[NetworkPolicyPort, ...]) -> list[tuple[int | None, Ports | None]]:
    """The protocols that a rule's ports name, each with its ports; None for all."""
    if not ports:
        return [(None, None)]
    found: list[tuple[int | None, Ports | None]] = []
    for protocol in dict.fromkeys(port.protocol for port in ports):
        of_it = [port for port in ports if port.protocol == protocol]
        whole = any(port.port is None for port in of_it)
        found.append((NUMBERS[protocol], None if whole else _ports(of_it)))
    return found


def _ports(ports: Iterable[NetworkPolicyPort]) -> Ports:
    spans = [PortSpan(one.port, one.end_port or one.port) for one in ports if isinstance(one.port, int)]
    names = {one.port for one in ports if isinstance(one.port, str)}
    return Ports(merge_spans(spans), tuple(sorted(names)))


def merge_spans(spans: Iterable[PortSpan]) -> tuple[PortSpan, ...]:
    """The same ports in spans that neither overlap nor touch."""
    merged: list[PortSpan] = []
    for span in sorted(spans):
        if merged and span.first <= merged[-1].last + 1:
            merged[-1] = PortSpan(merged[-1].first, max(merged[-1].last, span.last))
        else:
            merged.append(span)
    return tuple(merged)


def close_namespace(namespace: str, name: str, problem: str) -> Policy:
    """The policy that a NetworkPolicy comes to which cannot be read at all: nobody knows whom it means."""
    return Policy(
        key=PolicyKey(NETWORK_POLICY, namespace, name),
        selector=select(In(NAMESPACE, frozenset({namespace}))),
        types=frozenset(Direction),
        order=ORDER,
        problem=problem,
    )
