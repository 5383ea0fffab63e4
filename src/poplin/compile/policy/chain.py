"""The policies that apply to a pod in one direction, as the chains that its packets go through.

A tier is a chain. What allows returns to the base chain, so that the other direction is asked as well; what
denies drops; what passes goes to the next tier's chain. Rules that allow, with none of another kind between
them, may be asked in any order: those that ask for the same ports are one rule, with their peers in one set.

Names say what is in a set or a chain, by a digest: the same content has the same name at every node and after
every restart, so that nothing is made anew but what is new.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2s
from itertools import groupby
from typing import Final, NamedTuple

from poplin.compile.nft_rule import (
    DPORT,
    IPV4,
    IPV6,
    L4PROTO,
    SPORT,
    WAY_BACK,
    Expressions,
    Network,
    equals,
    in_set,
    look_up_number,
    rule,
)
from poplin.compile.policy.blocks import elements, intervals, merge
from poplin.compile.policy.denial import DENY, LOG, Notice, tell
from poplin.model.nftables import (
    DROP,
    RETURN,
    Chain,
    Compare,
    CompareOp,
    Counter,
    Element,
    Expression,
    KeyType,
    Lookup,
    Payload,
    PayloadBase,
    Range,
    Set,
    goto,
)
from poplin.model.nftables import Rule as NftRule
from poplin.model.policy import (
    ANYONE,
    Action,
    AppliedTier,
    Direction,
    IcmpKind,
    Policy,
    Ports,
    PortSpan,
    Rule,
    Side,
)
from poplin.model.selector import Selector

NAMED_PREFIX: Final = "named-"
MAX_COMMENT: Final = 120


class NamedPort(NamedTuple):
    """A port's name as rules have it; each pod gives its own number to it, or none."""

    protocol: int
    name: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """The chains, the first of them `name`, and what they look into.

    `peers` are sets of identities by name: those that one of the selectors matches. `named` are port names in
    use; `sets` need nothing but themselves.
    """

    name: str
    chains: tuple[Chain, ...]
    peers: dict[str, tuple[Selector, ...]]
    named: frozenset[NamedPort]
    sets: dict[str, Set]


def digest(*parts: object) -> str:
    return blake2s(repr(parts).encode(), digest_size=8).hexdigest()


def named_set(port: NamedPort) -> str:
    """The name of the set of (identity . port) for a port's name."""
    return f"{NAMED_PREFIX}{port.protocol}-{port.name}"


def chain_name(applied: tuple[AppliedTier, ...], direction: Direction) -> str:
    """The chain of these policies, whatever they say: another version of one is the same chain."""
    keys = [(one.tier.name, [tuple(policy.key) for policy in one.policies]) for one in applied]
    return f"{direction}-{digest(keys)}"


def render(applied: tuple[AppliedTier, ...], direction: Direction) -> Rendered:
    """Give the chains of what applies; `applied` is not empty."""
    name = chain_name(applied, direction)
    writer = _Writer(direction)
    names = [name if place == 0 else f"{name}-{place}" for place in range(len(applied))]
    chains = []
    for place, one in enumerate(applied):
        following = goto(names[place + 1]) if place + 1 < len(applied) else RETURN
        chains.append(Chain(names[place], tuple(writer.tier(one, following))))
    return Rendered(name, tuple(chains), writer.peers, frozenset(writer.named), writer.sets)


Part = Callable[[Network], Expressions | None]
"""What a rule asks of addresses, in one family; None where nothing of that family can be so."""


@dataclass(slots=True)
class _Writer:
    direction: Direction
    peers: dict[str, tuple[Selector, ...]] = field(default_factory=dict)
    named: set[NamedPort] = field(default_factory=set)
    sets: dict[str, Set] = field(default_factory=dict)

    def tier(self, applied: AppliedTier, following: Expression) -> Iterator[NftRule]:
        """The rules of one tier; `following` is where a packet goes that the tier passes."""
        broken = [policy for policy in applied.policies if policy.problem]
        policies = broken or list(applied.policies)
        spared = False  # a pod's way to itself, before the first rule that denies
        if not broken:
            rules = [(policy, one) for policy in policies for one in policy.rules(self.direction)]
            for allows, some in groupby(rules, key=lambda pair: pair[1].action is Action.ALLOW):
                if allows:
                    yield from self._allow(list(some))
                    continue
                for policy, one in some:
                    if one.action is Action.DENY and not spared:
                        spared = True
                        yield _TO_ITSELF
                    for ending in self._endings(policy, one, following):
                        yield from self._write(one, ending, _comment([policy]))
        if broken or applied.tier.default is Action.DENY:
            if not spared:
                yield _TO_ITSELF
            yield rule(tell(Notice(DENY, self.direction, None, policies[0].key)))
            yield rule(Counter(), DROP, comment=_comment(policies))
        else:
            yield rule(following)

    def _endings(self, policy: Policy, one: Rule, following: Expression) -> list[Expressions]:
        """What happens to a packet that the rule matches, each of which is a rule of the kernel's."""
        if one.action is Action.PASS:
            return [(following,)]
        denies = one.action is Action.DENY
        told = tell(Notice(DENY if denies else LOG, self.direction, one.index, policy.key))
        return [told, (Counter(), DROP)] if denies else [told]

    def _allow(self, rules: Sequence[tuple[Policy, Rule]]) -> Iterator[NftRule]:
        """Rules that allow, in no order: those that differ in their peers alone are one."""
        groups: dict[Rule, list[tuple[Policy, Side]]] = {}
        for policy, one in rules:
            peer = one.source if self.direction is Direction.INGRESS else one.destination
            common, moved = self._split(replace(one, index=0), peer)
            groups.setdefault(common, []).append((policy, moved))
        for common, members in groups.items():
            comment = _comment(policy for policy, _ in members)
            peers = [peer for _, peer in members]
            selectors = {peer.selector for peer in peers if peer.selector is not None}
            blocks = [peer for peer in peers if peer.nets]
            if ANYONE in peers:
                yield from self._write(common, (RETURN,), comment)
                continue
            if selectors:
                yield from self._write(
                    common, (RETURN,), comment, [self._is_one_of(selectors, self.direction)]
                )
            if blocks:
                yield from self._write(common, (RETURN,), comment, [self._is_within(blocks, self.direction)])

    def _split(self, one: Rule, peer: Side) -> tuple[Rule, Side]:
        """The rule without its peer, and the peer, where this is no more than a selector or blocks."""
        plain = Side(peer.nets, peer.not_nets) if peer.nets else Side(selector=peer.selector)
        rest = Side(ports=peer.ports, not_ports=peer.not_ports)
        if replace(plain, ports=peer.ports, not_ports=peer.not_ports) != peer:
            return one, ANYONE
        if self.direction is Direction.INGRESS:
            return replace(one, source=rest), plain
        return replace(one, destination=rest), plain

    def _write(
        self, one: Rule, ending: Expressions, comment: str, peers: Sequence[Part] = ()
    ) -> Iterator[NftRule]:
        """The rule in as many of the kernel's as it takes: one for each family where it asks for addresses."""
        asked = [
            *peers,
            *self._side(one.source, Direction.INGRESS, one.protocol),
            *self._side(one.destination, Direction.EGRESS, one.protocol),
        ]
        for source_inline, source_part in self._ports(one.source.ports, Direction.INGRESS, one.protocol):
            for inline, part in self._ports(one.destination.ports, Direction.EGRESS, one.protocol):
                head = (*_protocol(one), *_icmp(one), *source_inline, *inline)
                parts = [*source_part, *part, *asked]
                if not parts and not one.version:
                    yield rule(head, ending, comment=comment)
                    continue
                for net in (IPV4, IPV6):
                    found = [] if one.version not in {0, version_of(net)} else [part(net) for part in parts]
                    matches = [match for match in found if match is not None]
                    if len(matches) == len(parts) and one.version in {0, version_of(net)}:
                        yield rule(head, net.only, *matches, ending, comment=comment)

    # A side's parts. The side is named by the direction in which it is the peer: source by INGRESS.

    def _side(self, side: Side, end: Direction, protocol: int | None) -> Iterator[Part]:
        if side.nets:
            yield self._is_within([side], end)
        elif side.not_nets:
            yield self._is_within([Side(side.not_nets)], end, negate=True)
        if side.selector is not None:
            yield self._is_one_of([side.selector], end)
        if side.not_selector is not None:
            yield self._is_one_of([side.not_selector], end, negate=True)
        if side.not_ports is not None and protocol is not None:
            spans, names = side.not_ports.spans, side.not_ports.names
            if spans:
                yield lambda _: self._in_spans(spans, end, negate=True)
            for name in names:
                yield self._is_named(NamedPort(protocol, name), end, negate=True)

    def _ports(
        self, ports: Ports | None, end: Direction, protocol: int | None
    ) -> list[tuple[Expressions, list[Part]]]:
        """The ways for a port to be among these: by its number, or by a name of the pod at that end."""
        if ports is None:
            return [((), [])]
        if protocol is None:
            return []
        ways: list[tuple[Expressions, list[Part]]] = []
        if ports.spans:
            ways.append((self._in_spans(ports.spans, end), []))
        ways += [((), [self._is_named(NamedPort(protocol, name), end)]) for name in ports.names]
        return ways

    def _in_spans(self, spans: tuple[PortSpan, ...], end: Direction, *, negate: bool = False) -> Expressions:
        port = SPORT if end is Direction.INGRESS else DPORT
        if len(spans) == 1:
            first, last = map(port.encode, spans[0])
            if first == last:
                return equals(port, spans[0].first, negate=negate)
            return (port.load(0), Range(0, first, last, negate))
        name = f"ports-{digest(spans)}"
        held = frozenset(Element(port.encode(first), last=port.encode(last)) for first, last in spans)
        self.sets[name] = Set(name, (KeyType.INET_SERVICE,), intervals=True, elements=held)
        return in_set([port], name, negate=negate)

    def _is_one_of(self, selectors: Iterable[Selector], end: Direction, *, negate: bool = False) -> Part:
        ordered = tuple(sorted(selectors, key=lambda one: one.text))
        name = f"peers-{digest([one.text for one in ordered])}"
        self.peers[name] = ordered
        return lambda net: (*_identity(net, end), Lookup(1, name, negate=negate))

    def _is_named(self, port: NamedPort, end: Direction, *, negate: bool = False) -> Part:
        self.named.add(port)
        field = SPORT if end is Direction.INGRESS else DPORT
        return lambda net: (*_identity(net, end), field.load(2), Lookup(1, named_set(port), negate=negate))

    def _is_within(self, sides: Sequence[Side], end: Direction, *, negate: bool = False) -> Part:
        def part(net: Network) -> Expressions | None:
            version = version_of(net)
            united = merge(one for side in sides for one in intervals(side.nets, side.not_nets, version))
            if not united:
                return () if negate else None
            name = f"blocks-{version}-{digest(united)}"
            self.sets[name] = Set(name, (net.address,), intervals=True, elements=elements(united, version))
            return in_set([net.saddr if end is Direction.INGRESS else net.daddr], name, negate=negate)

        return part


_TO_ITSELF: Final = rule(equals(WAY_BACK, 1), RETURN, comment="a pod to itself, by way of a Service")
"""Its packet leaves by the interface it came from."""


def version_of(net: Network) -> int:
    return 4 if net is IPV4 else 6


def _identity(net: Network, end: Direction) -> Expressions:
    """The number of the source's identity (of an end that is the peer of ingress) or the destination's."""
    address = net.saddr if end is Direction.INGRESS else net.daddr
    return look_up_number([address], identity_map(version_of(net)), 1)


def identity_map(version: int) -> str:
    return f"identity-{version}"


def _protocol(one: Rule) -> Expressions:
    matches: Expressions = ()
    if one.protocol is not None:
        matches += equals(L4PROTO, one.protocol)
    if one.not_protocol is not None:
        matches += equals(L4PROTO, one.not_protocol, negate=True)
    return matches


def _icmp(one: Rule) -> Expressions:
    """Type and code are the first two bytes of the header, of both versions of ICMP."""
    return (
        *(_icmp_kind(one.icmp, CompareOp.EQ) if one.icmp is not None else ()),
        *(_icmp_kind(one.not_icmp, CompareOp.NE) if one.not_icmp is not None else ()),
    )


def _icmp_kind(kind: IcmpKind, op: CompareOp) -> Expressions:
    data = bytes([kind.type]) if kind.code is None else bytes([kind.type, kind.code])
    return (Payload(0, PayloadBase.TRANSPORT, 0, len(data)), Compare(0, op, data))


def _comment(policies: Iterable[Policy]) -> str:
    names = dict.fromkeys(str(policy.key).removeprefix("NetworkPolicy ") for policy in policies)
    text = ", ".join(names)
    return text if len(text) <= MAX_COMMENT else text[: MAX_COMMENT - 1] + "~"
