"""The rules of `inet poplin-services`: the same few for any number of Services.

A connection's first packet looks its destination up in `services`, whose value is the frontend's shape; a
verdict map for each kind of sender (from-pods, from-node, from-outside) leads from there to a chain for each
way of drawing an endpoint, which returns where it finds none. Refusals are in the same chains: they are of type nat, and see no other packet.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from poplin.compile.destination_nat import DSTNAT, MASQUERADE_BIT, mark_hairpin, translate
from poplin.compile.nft_rule import (
    CT_MARK,
    DADDR_TYPE,
    DPORT,
    IIFGROUP,
    IPV4,
    IPV6,
    L4PROTO,
    OIFGROUP,
    RTN_LOCAL,
    SADDR_TYPE,
    Expressions,
    Field,
    Network,
    equals,
    has_any,
    in_set,
    loads,
    random_below,
    rule,
    set_bits,
)
from poplin.compile.node_table import SRCNAT
from poplin.compile.services.frontend import Shape
from poplin.model.kernel import POD_LINK_GROUP
from poplin.model.nftables import (
    DROP,
    RETURN,
    BaseChain,
    Chain,
    ChainType,
    Counter,
    Dynset,
    DynsetOp,
    Element,
    Hook,
    Immediate,
    KeyType,
    Lookup,
    Masquerade,
    NatFlag,
    Reject,
    RejectKind,
    Rule,
    Set,
    Verdict,
    goto,
    jump,
)

FAMILIES: Final = {4: IPV4, 6: IPV6}
FROM_PODS: Final = "from-pods"
FROM_NODE: Final = "from-node"
FROM_OUTSIDE: Final = "from-outside"

AFFINITY_ENTRIES: Final = 262_144
"""Clients remembered in each family; one more is served as if it had never come before."""

SHAPE: Final = (KeyType.MARK, KeyType.MARK)
"""Shape.number."""

_PODS: Final = "pods"
_UNSERVED: Final = "unserved"
_REFUSE: Final = "refuse"
_DISCARD: Final = "discard"


@dataclass(frozen=True, slots=True)
class Draw:
    """What one chain does: draw one of `count` endpoints from place `offset` on, and remember it for a while.

    What is remembered counts only as long as it stands in the set `serving`.
    """

    count: int
    offset: int = 0
    affinity_timeout_s: int | None = None
    serving: str = "serving"

    @property
    def name(self) -> str:
        """The draw, as its chain's name says it after a first word."""
        start = f"-from-{self.offset}" if self.offset else ""
        if self.affinity_timeout_s is None:
            return f"{self.count}{start}"
        return f"{self.count}{start}-{self.serving}-{self.affinity_timeout_s}s"


def inside(shape: Shape) -> Draw | None:
    """Give what pods of this node and the node itself draw."""
    if not shape.count:
        return None
    return Draw(shape.count, shape.offset, shape.affinity_timeout_s)


def outside(shape: Shape) -> Draw | None:
    """Give what others draw."""
    if shape.local is None:
        return inside(shape)
    if not shape.local:
        return None
    if shape.affinity_timeout_s is None:
        return Draw(shape.local)
    return Draw(shape.local, 0, shape.affinity_timeout_s, "serving-here")


def compile_chains(shapes: Iterable[Shape]) -> tuple[Chain, ...]:
    """Give all chains that these shapes need."""
    shapes = list(shapes)
    draws = {draw for shape in shapes for draw in (inside(shape), outside(shape)) if draw}
    masqueraded = {draw for shape in shapes if (draw := inside(shape))}
    return (
        _base("prerouting", ChainType.NAT, Hook.PREROUTING, DSTNAT, *_prerouting()),
        _base("output", ChainType.NAT, Hook.OUTPUT, DSTNAT, *_guards(), *_serve(FROM_NODE)),
        _base("hairpin", ChainType.FILTER, Hook.FORWARD, 0, mark_hairpin()),
        _base("postrouting", ChainType.NAT, Hook.POSTROUTING, SRCNAT, *_postrouting()),
        Chain(_PODS, tuple(_serve(FROM_PODS))),
        Chain(_UNSERVED, tuple(_unserved())),
        Chain(_REFUSE, tuple(_refuse())),
        Chain(_DISCARD, (rule(Counter(), DROP),)),
        *(Chain(f"dispatch-{draw.name}", tuple(_draw(draw))) for draw in draws),
        *(Chain(f"masquerade-{draw.name}", tuple(_masquerade(draw))) for draw in masqueraded),
    )


def compile_ways(shapes: Iterable[Shape]) -> tuple[Set, ...]:
    """Give the three maps from a shape's number to where its packets go."""
    shapes = list(shapes)
    return tuple(
        Set(
            name,
            SHAPE,
            (KeyType.VERDICT,),
            elements=frozenset(Element(shape.number, way(shape)) for shape in shapes),
        )
        for name, way in (
            (FROM_PODS, _way_of_pods),
            (FROM_NODE, _way_of_node),
            (FROM_OUTSIDE, _way_of_others),
        )
    )


def _way_of_pods(shape: Shape) -> Verdict:
    """A pod's address is kept: whoever answers it answers by this node."""
    draw = inside(shape)
    return jump(f"dispatch-{draw.name}") if draw else _refusal(shape)


def _way_of_node(shape: Shape) -> Verdict:
    draw = inside(shape)
    return jump(f"masquerade-{draw.name}") if draw else _refusal(shape)


def _way_of_others(shape: Shape) -> Verdict:
    if shape.local is None:
        return _way_of_node(shape)
    draw = outside(shape)
    return jump(f"dispatch-{draw.name}") if draw else goto(_DISCARD)


def _refusal(shape: Shape) -> Verdict:
    return goto(_REFUSE) if shape.local is None else goto(_DISCARD)


def _base(name: str, kind: ChainType, hook: Hook, priority: int, *rules: Rule) -> Chain:
    return Chain(name, rules, BaseChain(kind, hook, priority))


def _prerouting() -> Iterator[Rule]:
    yield from _guards()
    yield rule(equals(IIFGROUP, POD_LINK_GROUP), goto(_PODS))
    yield from _serve(FROM_OUTSIDE)


def _serve(ways: str) -> Iterator[Rule]:
    """Send a packet where its Service leads: twice, for it may meet the maps while they change.

    A shape of before leads nowhere any more, or draws an endpoint that is none of after: then it comes back,
    and what it looks up now is of after.
    """
    for _ in range(2):
        for version, net in FAMILIES.items():
            yield rule(net.only, _by_shape(net, version, ways))
    yield rule(goto(_UNSERVED))


def _guards() -> Iterator[Rule]:
    for version, net in FAMILIES.items():
        yield rule(
            net.only,
            in_set(_frontend(net), f"guarded-{version}"),
            in_set([*_frontend(net), net.saddr], f"sources-{version}", negate=True),
            Counter(),
            DROP,
            comment="not in loadBalancerSourceRanges",
        )


def _by_shape(net: Network, version: int, ways: str) -> Expressions:
    """Go where the frontend's shape leads.

    The value of `services` is a word of no meaning and the shape's two, put one register early: as in
    `look_up_number`, nft can list a key that a look-up gave only where it takes it for something else.
    """
    return (
        *loads(_frontend(net), 1),
        Lookup(1, f"services-{version}", 0),
        Lookup(1, ways, verdict=True),
    )


def _frontend(net: Network) -> list[Field]:
    return [net.daddr, L4PROTO, DPORT]


def _unserved() -> Iterator[Rule]:
    """What is sent to a Service's address but to none of its ports, or to an address that no Service has.

    And what is a Service's, but met two changes: it never goes on untranslated; its sender tries again.
    """
    for version, net in FAMILIES.items():
        yield rule(
            net.only,
            in_set(_frontend(net), f"services-{version}"),
            Counter(),
            DROP,
            comment="its Service changed",
        )
        yield rule(
            net.only, in_set([net.daddr], f"cluster-ips-{version}"), goto(_REFUSE), comment="no such port"
        )
        yield rule(
            net.only,
            in_set([net.daddr], f"service-cidrs-{version}"),
            Counter(),
            DROP,
            comment="no such Service",
        )


def _refuse() -> Iterator[Rule]:
    """TCP over IPv6 takes an ICMP error for a passing one and goes on trying: it gets a reset."""
    yield rule(equals(L4PROTO, 6), Counter(), Reject(RejectKind.TCP_RESET, 0))
    yield rule(Counter(), Reject())


def _masquerade(draw: Draw) -> Iterator[Rule]:
    yield rule(set_bits(CT_MARK, MASQUERADE_BIT))
    yield rule(goto(f"dispatch-{draw.name}"))


def _postrouting() -> Iterator[Rule]:
    """The node keeps its address where the answer comes back to it anyway: on its own links."""
    marked = has_any(CT_MARK, MASQUERADE_BIT)
    own = equals(SADDR_TYPE, RTN_LOCAL)
    yield rule(marked, own, equals(OIFGROUP, POD_LINK_GROUP), RETURN, comment="from the node to its own pod")
    yield rule(marked, own, equals(DADDR_TYPE, RTN_LOCAL), RETURN, comment="from the node to itself")
    yield rule(marked, Masquerade(NatFlag.FULLY_RANDOM))


def _draw(draw: Draw) -> Iterator[Rule]:
    """Draw and translate, or return."""
    for version, net in FAMILIES.items():
        if draw.affinity_timeout_s is not None:
            yield from _remember(net, version, draw, draw.affinity_timeout_s)
            continue
        key = [*_frontend(net), random_below(draw.count, draw.offset)]
        yield rule(net.only, loads(key), Lookup(0, f"endpoints-{version}", 0), translate(net))


def _remember(net: Network, version: int, draw: Draw, timeout_s: int) -> Iterator[Rule]:
    """Send a client where it went before, if that still serves; else draw, and remember that.

    Register 0 has a word of no meaning, and from 1 on come the endpoint's address and port: so `affinity` and
    `sticky` have them as values, and nft, which takes the endpoint for what was in its registers before,
    finds something there. The fields of a client are in such an order that, with the endpoint over the
    first two, the rest is what `serving` has beside it.
    """
    words = net.address.size_bytes // 4
    client = [net.saddr, DPORT, net.daddr, L4PROTO]
    behind = words + 2
    affinity = f"affinity-{version}"

    def note(op: DynsetOp) -> Dynset:
        return Dynset(op, affinity, behind, 0, 1000 * timeout_s)

    key = [*_frontend(net), random_below(draw.count, draw.offset)]
    drawn = (*loads(key, 1), Lookup(1, f"sticky-{version}", 0), Immediate(0, bytes(4)))

    yield rule(
        net.only,
        *loads(client, 1),
        Lookup(1, affinity, 0),
        Immediate(0, bytes(4)),
        DPORT.load(behind + words + 1),
        Lookup(1, f"{draw.serving}-{version}"),
        *loads(client, behind),
        note(DynsetOp.UPDATE),
        translate(net, 1),
    )
    yield rule(
        net.only,
        drawn,
        *loads(client, behind),
        note(DynsetOp.DELETE),  # an update leaves the value of an entry that stands
        note(DynsetOp.UPDATE),
        translate(net, 1),
    )
    yield rule(
        net.only, drawn, translate(net, 1)
    )  # a map that is full takes no more, and ends the rule before


def compile_affinity(version: int) -> Set:
    """Give the map that packets fill: who came to which frontend -> the endpoint it went to."""
    net = FAMILIES[version]
    return Set(
        f"affinity-{version}",
        (net.address, KeyType.INET_SERVICE, net.address, KeyType.INET_PROTO),
        (KeyType.MARK, net.address, KeyType.INET_SERVICE),
        dynamic=True,
        timeout_ms=0,
        size=AFFINITY_ENTRIES,
    )
