"""nftables objects as values, at the level the kernel keeps them (linux/netfilter/nf_tables.h).

A `Table` with its chains, rules, sets and elements is one value: what is wanted and what the kernel holds
compare with `==`. Nothing here has a handle, a counter's reading or an expiry: those belong to an instance.

A register is the number of a 32-bit register, 0 to 15 (NFT_REG32_00 is 0). A value that takes more bytes
than four lies in consecutive registers; the parts of a concatenation each start a register of their own and
are padded with zeros to its end. Bytes are as the packet or the kernel has them: addresses and ports in
network order, marks, indexes, states and kernel enumerations in the machine's (`host32`).
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag, StrEnum
from typing import Final, NamedTuple, Self


def host32(number: int) -> bytes:
    """A mark, state, index or other number that the kernel compares as its own u32."""
    return number.to_bytes(4, sys.byteorder)


class Family(IntEnum):
    """NFPROTO_*: of tables, and of the addresses that NAT writes."""

    INET = 1
    IPV4 = 2
    IPV6 = 10


class Hook(IntEnum):
    """NF_INET_*: where in the packet's way a base chain sits."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4
    INGRESS = 5


class ChainType(StrEnum):
    FILTER = "filter"
    NAT = "nat"
    ROUTE = "route"


class VerdictCode(IntEnum):
    DROP = 0
    ACCEPT = 1
    QUEUE = 3
    CONTINUE = -1
    BREAK = -2
    JUMP = -3
    GOTO = -4
    RETURN = -5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to the packet next; also the value of a verdict map's element. `chain` for jump and goto."""

    code: VerdictCode
    chain: str = ""


ACCEPT: Final = Verdict(VerdictCode.ACCEPT)
DROP: Final = Verdict(VerdictCode.DROP)
RETURN: Final = Verdict(VerdictCode.RETURN)


def jump(chain: str) -> Verdict:
    return Verdict(VerdictCode.JUMP, chain)


def goto(chain: str) -> Verdict:
    return Verdict(VerdictCode.GOTO, chain)


class PayloadBase(IntEnum):
    LINK = 0
    NETWORK = 1
    TRANSPORT = 2


class MetaKey(IntEnum):
    """NFT_META_*, as far as we use or meet them."""

    LENGTH = 0
    PROTOCOL = 1
    MARK = 3
    IIF = 4
    OIF = 5
    IIFNAME = 6
    OIFNAME = 7
    NFTRACE = 12
    NFPROTO = 15
    L4PROTO = 16
    PKTTYPE = 19
    IIFGROUP = 21
    OIFGROUP = 22


class CtKey(IntEnum):
    """NFT_CT_*, as far as we use or meet them."""

    STATE = 0
    DIRECTION = 1
    STATUS = 2
    MARK = 3
    L3PROTOCOL = 7
    PROTOCOL = 10
    PROTO_SRC = 11
    PROTO_DST = 12
    ZONE = 17
    SRC_IP = 19
    DST_IP = 20
    SRC_IP6 = 21
    DST_IP6 = 22


class CtDirection(IntEnum):
    ORIGINAL = 0
    REPLY = 1


class CtState(IntFlag):
    """Bits of the CtKey.STATE register."""

    INVALID = 1
    ESTABLISHED = 2
    RELATED = 4
    NEW = 8
    UNTRACKED = 64


class CtStatus(IntFlag):
    """Bits of the CtKey.STATUS register (IPS_*)."""

    SNAT = 16
    DNAT = 32


class CompareOp(IntEnum):
    EQ = 0
    NE = 1
    LT = 2
    LE = 3
    GT = 4
    GE = 5


class NumgenKind(IntEnum):
    INCREMENTAL = 0
    RANDOM = 1


class FibFlag(IntFlag):
    """NFTA_FIB_F_*: which address is looked up, and what narrows the look-up."""

    SADDR = 1
    DADDR = 2
    MARK = 4
    IIF = 8
    OIF = 16
    PRESENT = 32


class FibResult(IntEnum):
    """The interface's index (a u32, or 0 and 1 with FibFlag.PRESENT), its name, or the address's RTN_* type."""

    OIF = 1
    OIFNAME = 2
    ADDRTYPE = 3


class NatKind(IntEnum):
    SNAT = 0
    DNAT = 1


class NatFlag(IntFlag):
    """NF_NAT_RANGE_*: how the port is chosen, and whether a client keeps its address."""

    NONE = 0
    RANDOM = 4
    PERSISTENT = 8
    FULLY_RANDOM = 16


class RejectKind(IntEnum):
    ICMP_UNREACHABLE = 0
    TCP_RESET = 1
    ICMPX_UNREACHABLE = 2


class IcmpxCode(IntEnum):
    """Code of an ICMPX_UNREACHABLE reject, which the kernel turns into the family's own."""

    NO_ROUTE = 0
    PORT_UNREACHABLE = 1
    HOST_UNREACHABLE = 2
    ADMIN_PROHIBITED = 3


class DynsetOp(IntEnum):
    ADD = 0
    UPDATE = 1
    DELETE = 2


@dataclass(frozen=True, slots=True)
class Payload:
    """Load `length` bytes of the packet at `offset` of a header."""

    register: int
    base: PayloadBase
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Meta:
    """Load a property of the packet that is not in it."""

    register: int
    key: MetaKey


@dataclass(frozen=True, slots=True)
class MetaSet:
    register: int
    key: MetaKey


@dataclass(frozen=True, slots=True)
class Ct:
    """Load a property of the packet's connection. `direction` belongs to tuple fields only."""

    register: int
    key: CtKey
    direction: CtDirection | None = None


@dataclass(frozen=True, slots=True)
class CtSet:
    register: int
    key: CtKey


@dataclass(frozen=True, slots=True)
class Compare:
    """End the rule unless the register stands so to `data`; ordering is that of memcmp."""

    register: int
    op: CompareOp
    data: bytes


@dataclass(frozen=True, slots=True)
class Range:
    """End the rule unless the register lies within both bounds (outside, where `negate`)."""

    register: int
    first: bytes
    last: bytes
    negate: bool = False


@dataclass(frozen=True, slots=True)
class Bitwise:
    """destination = (source & mask) ^ xor."""

    source: int
    destination: int
    mask: bytes
    xor: bytes


@dataclass(frozen=True, slots=True)
class Lookup:
    """Find the key that starts at `register` in a set; the rule ends where it is missing.

    With `destination` a map's value goes into that register. `verdict` makes it a verdict map's look-up.
    `negate` (sets only) ends the rule where the key is there.
    """

    register: int
    set: str
    destination: int | None = None
    verdict: bool = False
    negate: bool = False


@dataclass(frozen=True, slots=True)
class Immediate:
    """Put `data` into the register."""

    register: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Numgen:
    """Load a number from `offset` to `offset + modulus - 1`, in the machine's byte order."""

    register: int
    modulus: int
    kind: NumgenKind = NumgenKind.RANDOM
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Fib:
    """Load what the routing tables say of one of the packet's addresses."""

    register: int
    flags: FibFlag
    result: FibResult


@dataclass(frozen=True, slots=True)
class Nat:
    """Rewrite the destination or the source to the address, and port if any, in registers."""

    kind: NatKind
    family: Family
    address: int
    port: int | None = None
    flags: NatFlag = NatFlag.NONE


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Rewrite the source to the address of the interface the packet leaves by."""

    flags: NatFlag = NatFlag.NONE


@dataclass(frozen=True, slots=True)
class Log:
    """Copy the packet's first bytes (`snaplen_bytes`, 0 for all) to the listeners of an nflog group."""

    group: int
    prefix: str = ""
    snaplen_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Limit:
    """End the rule for packets beyond `rate_per_s` a second, after `burst` at once."""

    rate_per_s: int
    burst: int


@dataclass(frozen=True, slots=True)
class Reject:
    """Drop with an answer; `code` is an IcmpxCode, the family's own ICMP code, or 0 for a TCP reset."""

    kind: RejectKind = RejectKind.ICMPX_UNREACHABLE
    code: int = IcmpxCode.PORT_UNREACHABLE


@dataclass(frozen=True, slots=True)
class Counter:
    """Count packets and bytes; the numbers are not part of the value."""


@dataclass(frozen=True, slots=True)
class Dynset:
    """Add, refresh or delete the element whose key (and data) lie in registers. `timeout_ms` 0: the set's."""

    op: DynsetOp
    set: str
    key: int
    data: int | None = None
    timeout_ms: int = 0


@dataclass(frozen=True, slots=True)
class Notrack:
    """Leave the packet without a connection."""


@dataclass(frozen=True, slots=True)
class UnknownExpression:
    """Read from the kernel and none of ours: whoever wrote it, the rule differs from what we want."""

    name: str
    attributes: bytes


Expression = (
    Payload
    | Meta
    | MetaSet
    | Ct
    | CtSet
    | Compare
    | Range
    | Bitwise
    | Lookup
    | Immediate
    | Numgen
    | Fib
    | Nat
    | Masquerade
    | Log
    | Limit
    | Reject
    | Counter
    | Dynset
    | Notrack
    | Verdict
    | UnknownExpression
)


@dataclass(frozen=True, slots=True)
class Rule:
    expressions: tuple[Expression, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class BaseChain:
    """What makes a chain see packets. Of one hook the lower priority goes first; only a drop is final."""

    type: ChainType
    hook: Hook
    priority: int
    policy: Verdict = ACCEPT


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in their order. `base` None: reached by jump and goto only."""

    name: str
    rules: tuple[Rule, ...] = ()
    base: BaseChain | None = None


class KeyType(IntEnum):
    """nft's numbers of data types, by which it prints what a set holds (the kernel only keeps them)."""

    VERDICT = 1
    NFPROTO = 2
    IPV4_ADDR = 7
    IPV6_ADDR = 8
    INET_PROTO = 12
    INET_SERVICE = 13
    MARK = 19
    IFINDEX = 20
    CT_STATE = 26
    CT_STATUS = 28
    DEVGROUP = 35
    FIB_ADDRTYPE = 38
    IFNAME = 41

    @property
    def size_bytes(self) -> int:
        return _SIZES.get(self, 4)


_SIZES: Final = {
    KeyType.NFPROTO: 1,
    KeyType.IPV6_ADDR: 16,
    KeyType.INET_PROTO: 1,
    KeyType.INET_SERVICE: 2,
    KeyType.IFNAME: 16,
}


def size_bytes(types: tuple[KeyType, ...]) -> int:
    """Length of a key or of a map's value: a lone type's own, and of a concatenation with every part padded."""
    if len(types) == 1:
        return types[0].size_bytes
    return sum(kind.size_bytes + 3 & ~3 for kind in types)


class Element(NamedTuple):
    """A set's element; a tuple, because there are tens of thousands, compared and hashed at every plan.

    `key` None is the catch-all `*`. `last` is the inclusive upper end in a set of intervals (each field's
    own, in a concatenation), and None in all other sets. `data` is bytes in a map, a Verdict in a verdict map.
    """

    key: bytes | None
    data: bytes | Verdict | None = None
    last: bytes | None = None


class Successor(frozenset[Element]):
    """Elements that know what they differ in from those before them, so that a plan need not compare them all."""

    __slots__ = ("before", "gone", "mark", "new")
    mark: object
    before: object
    gone: frozenset[Element]
    new: frozenset[Element]

    def __new__(
        cls,
        elements: Iterable[Element],
        before: "Successor | None" = None,
        gone: frozenset[Element] = frozenset(),
        new: frozenset[Element] = frozenset(),
    ) -> Self:
        self = super().__new__(cls, elements)
        # A mark in place of what went before: that would hold on to all before it.
        self.mark = object()
        self.before = before.mark if before is not None else None
        self.gone, self.new = gone, new
        return self

    def follows(self, elements: frozenset[Element]) -> bool:
        """Whether these are the ones before, which `gone` and `new` are about."""
        return isinstance(elements, Successor) and elements.mark is self.before


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or a map where `data` says what its elements carry: (KeyType.VERDICT,) or types like the key's.

    A `dynamic` set is filled by packets (Dynset): its elements are neither compared nor read, and
    `elements` stays empty. `timeout_ms` 0: elements stay; None: no element may have a timeout.
    `size` 0: no limit. `elements` of an interval set are disjoint and do not touch. In a `counted` set each
    element counts the packets that found it; a count begins with its element, and is no part of the value.
    """

    name: str
    key: tuple[KeyType, ...]
    data: tuple[KeyType, ...] = ()
    intervals: bool = False
    dynamic: bool = False
    timeout_ms: int | None = None
    size: int = 0
    counted: bool = False
    comment: str = ""
    elements: frozenset[Element] = field(default=frozenset(), repr=False)


class TableKey(NamedTuple):
    family: Family
    name: str


@dataclass(frozen=True, slots=True)
class Table:
    """An nftables table, whole. Chains and sets are kept by name: their order says nothing."""

    name: str
    chains: tuple[Chain, ...] = ()
    sets: tuple[Set, ...] = ()
    family: Family = Family.INET

    def __post_init__(self) -> None:
        object.__setattr__(self, "chains", tuple(sorted(self.chains, key=lambda chain: chain.name)))
        object.__setattr__(self, "sets", tuple(sorted(self.sets, key=lambda one: one.name)))

    @property
    def key(self) -> TableKey:
        return TableKey(self.family, self.name)
