"""Table `inet poplin-policy`: what stands in it whatever the policies are, and the forms of its elements.

    forward   cut? drop.  established? accept.  neighbour discovery? accept.
              from a pod: the chain of its identity for egress.  To a pod: for ingress.
    input     the same, as far as it is from a pod: its way to its own node
    output    cut? drop.  The node's own way to its pods is open.

Which packets are a pod's tells the group of the interface, so that a node asks only after its own pods, and
after both ends of a connection between two of them.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from poplin.compile.nft_rule import (
    CT_MARK,
    CT_STATE,
    IIFGROUP,
    IPV4,
    IPV6,
    L4PROTO,
    NUMBER,
    OIFGROUP,
    Field,
    Network,
    encode_number,
    equals,
    has_any,
    look_up_number,
    rule,
)
from poplin.compile.policy.chain import NAMED_PREFIX, identity_map, version_of
from poplin.compile.policy.denial import DENY, UNKNOWN_POD, Notice, tell
from poplin.compile.policy.identity import UNKNOWN
from poplin.model.kernel import POD_LINK_GROUP, IPAddress
from poplin.model.nftables import (
    ACCEPT,
    DROP,
    BaseChain,
    Chain,
    ChainType,
    Counter,
    CtState,
    Element,
    Hook,
    KeyType,
    Lookup,
    Payload,
    PayloadBase,
    Range,
    Rule,
    Set,
    Successor,
    Table,
    host32,
    jump,
)
from poplin.model.policy import ICMPV6, LINK_ICMPV6, Direction

TABLE: Final = "poplin-policy"
PRIORITY: Final = 10
"""After the filters of others, whose drop is final, and after a Service's address has become an endpoint's."""

CUT: Final = 0x1000_0000
"""Bit of the connection mark: policy no longer allows this connection."""

CHAIN_MAPS: Final = {Direction.INGRESS: "ingress-chains", Direction.EGRESS: "egress-chains"}
"""The verdict maps that lead from an identity of this node to its chain."""

UNKNOWN_CHAINS: Final = {direction: f"unknown-{direction}" for direction in Direction}
UNKNOWN_COMMENT: Final = "a pod of this node whose labels are not known yet"


class Growing:
    """A set whose elements come and go. What it gives stays the same object while they do not."""

    def __init__(self, empty: Set, elements: Iterable[Element] = ()) -> None:
        self._elements = set(elements)
        self._given = Successor(elements)
        self._set = replace(empty, elements=self._given)
        self._gone: set[Element] = set()
        self._new: set[Element] = set()

    def add(self, element: Element) -> None:
        if element not in self._elements:
            self._elements.add(element)
            _undo_or_note(element, self._gone, self._new)

    def discard(self, element: Element) -> None:
        if element in self._elements:
            self._elements.discard(element)
            _undo_or_note(element, self._new, self._gone)

    def whole(self) -> Set:
        if self._gone or self._new:
            gone, new = frozenset(self._gone), frozenset(self._new)
            self._given = Successor(self._elements, self._given, gone, new)
            self._set = replace(self._set, elements=self._given)
            self._gone.clear()
            self._new.clear()
        return self._set


def _undo_or_note(element: Element, opposite: set[Element], noted: set[Element]) -> None:
    if element in opposite:
        opposite.discard(element)
    else:
        noted.add(element)


def identity_element(address: IPAddress, value: bytes) -> Element:
    """`value` is `encode_number` of the identity: one object for all of its addresses."""
    return Element(address.packed, value)


def peer_element(number: int) -> Element:
    return Element(host32(number))


def named_element(number: int, port: int) -> Element:
    return Element(host32(number) + port.to_bytes(2, "big") + bytes(2))


def chain_element(number: int, chain: str) -> Element:
    return Element(host32(number), jump(chain))


UNKNOWN_ADDRESS: Final = Element(None, encode_number(UNKNOWN))
IDENTITY_MAPS: Final = frozenset({identity_map(4), identity_map(6)})


def identity_set(version: int) -> Growing:
    """Every address but those that it is told of is UNKNOWN's."""
    net = IPV4 if version == 4 else IPV6
    return Growing(Set(identity_map(version), (net.address,), NUMBER), [UNKNOWN_ADDRESS])


def member_set(name: str) -> Growing:
    """A set of identities, or of identities and ports where its name is a named port's."""
    named = name.startswith(NAMED_PREFIX)
    return Growing(Set(name, (KeyType.MARK, KeyType.INET_SERVICE) if named else (KeyType.MARK,)))


def chain_map(direction: Direction) -> Growing:
    """Pods of this node that nobody has told us of have a chain that closes them."""
    empty = Set(CHAIN_MAPS[direction], (KeyType.MARK,), (KeyType.VERDICT,))
    return Growing(empty, [chain_element(UNKNOWN, UNKNOWN_CHAINS[direction])])


def compile_table(chains: Iterable[Chain], sets: Iterable[Set]) -> Table:
    """The whole table around the chains of policies and all sets."""
    return Table(TABLE, (*_BASE, *chains), tuple(sets))


def _dispatch(net: Network, group: Field, direction: Direction) -> Rule:
    end = net.saddr if direction is Direction.EGRESS else net.daddr
    return rule(
        equals(group, POD_LINK_GROUP),
        net.only,
        look_up_number([end], identity_map(version_of(net)), 1),
        Lookup(1, CHAIN_MAPS[direction], verdict=True),
    )


def _base(hook: Hook, *rules: Rule) -> Chain:
    return Chain(hook.name.lower(), rules, BaseChain(ChainType.FILTER, hook, PRIORITY))


_CUT = rule(has_any(CT_MARK, CUT), Counter(), DROP, comment="policy has cut this connection")
_HEAD = (
    _CUT,
    rule(has_any(CT_STATE, CtState.ESTABLISHED | CtState.RELATED), ACCEPT),
    *(
        rule(
            equals(L4PROTO, ICMPV6),
            Payload(0, PayloadBase.TRANSPORT, 0, 1),
            Range(0, bytes([first]), bytes([last])),
            ACCEPT,
            comment="neighbour and multicast listener discovery",
        )
        for first, last in LINK_ICMPV6
    ),
)
_FROM_POD = tuple(_dispatch(net, IIFGROUP, Direction.EGRESS) for net in (IPV4, IPV6))
_TO_POD = tuple(_dispatch(net, OIFGROUP, Direction.INGRESS) for net in (IPV4, IPV6))
_BASE: Final = (
    _base(Hook.FORWARD, *_HEAD, *_FROM_POD, *_TO_POD),
    _base(Hook.INPUT, *_HEAD, *_FROM_POD),
    _base(Hook.OUTPUT, _CUT),
    *(
        Chain(
            chain,
            (
                rule(tell(Notice(DENY, direction, None, UNKNOWN_POD))),
                rule(Counter(), DROP, comment=UNKNOWN_COMMENT),
            ),
        )
        for direction, chain in UNKNOWN_CHAINS.items()
    ),
)
