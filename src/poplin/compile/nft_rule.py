"""Rules written as what they match and do: short names for the expressions that nftables keeps.

Each function gives a tuple of expressions, and `rule` joins them:

    rule(IPV6.only, in_set([IPV6.daddr, L4PROTO, DPORT], "allowed6"), ACCEPT, comment="allowed")

Matches use registers from 0 up and leave nothing there for the next, save where `into` or `register` says.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.nftables import (
    Bitwise,
    Compare,
    CompareOp,
    Ct,
    CtDirection,
    CtKey,
    CtSet,
    Expression,
    Family,
    Fib,
    FibFlag,
    FibResult,
    KeyType,
    Lookup,
    Meta,
    MetaKey,
    MetaSet,
    Numgen,
    Payload,
    PayloadBase,
    Rule,
    host32,
)

Expressions = tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """Something of a packet that a register can hold: its type, and the expression that loads it."""

    type: KeyType
    load: Callable[[int], Expression]

    def encode(self, value: int | IPAddress) -> bytes:
        """The value as the register has it. Raises OverflowError where it does not fit."""
        if isinstance(value, IPv4Address | IPv6Address):
            return value.packed
        order = "big" if self.type == KeyType.INET_SERVICE else sys.byteorder
        return value.to_bytes(self.type.size_bytes, order)


def _meta(key: MetaKey, kind: KeyType) -> Field:
    return Field(kind, lambda register: Meta(register, key))


def _ct(key: CtKey, kind: KeyType, direction: CtDirection | None = None) -> Field:
    return Field(kind, lambda register: Ct(register, key, direction))


def _header(base: PayloadBase, offset: int, kind: KeyType) -> Field:
    return Field(kind, lambda register: Payload(register, base, offset, kind.size_bytes))


def _fib(flags: FibFlag, result: FibResult, kind: KeyType) -> Field:
    return Field(kind, lambda register: Fib(register, flags, result))


MARK: Final = _meta(MetaKey.MARK, KeyType.MARK)
IIF: Final = _meta(MetaKey.IIF, KeyType.IFINDEX)
IIFGROUP: Final = _meta(MetaKey.IIFGROUP, KeyType.DEVGROUP)
IIFNAME: Final = _meta(MetaKey.IIFNAME, KeyType.IFNAME)
OIFGROUP: Final = _meta(MetaKey.OIFGROUP, KeyType.DEVGROUP)
NFPROTO: Final = _meta(MetaKey.NFPROTO, KeyType.NFPROTO)
L4PROTO: Final = _meta(MetaKey.L4PROTO, KeyType.INET_PROTO)
SPORT: Final = _header(PayloadBase.TRANSPORT, 0, KeyType.INET_SERVICE)
DPORT: Final = _header(PayloadBase.TRANSPORT, 2, KeyType.INET_SERVICE)
CT_STATE: Final = _ct(CtKey.STATE, KeyType.CT_STATE)
CT_STATUS: Final = _ct(CtKey.STATUS, KeyType.CT_STATUS)
CT_MARK: Final = _ct(CtKey.MARK, KeyType.MARK)
DADDR_TYPE: Final = _fib(FibFlag.DADDR, FibResult.ADDRTYPE, KeyType.FIB_ADDRTYPE)
SADDR_TYPE: Final = _fib(FibFlag.SADDR, FibResult.ADDRTYPE, KeyType.FIB_ADDRTYPE)
REVERSE_PATH: Final = _fib(FibFlag.SADDR | FibFlag.IIF | FibFlag.PRESENT, FibResult.OIF, KeyType.IFINDEX)
"""1 where the route back to the packet's source leaves by the interface it came from, else 0."""

WAY_BACK: Final = _fib(FibFlag.DADDR | FibFlag.IIF | FibFlag.PRESENT, FibResult.OIF, KeyType.IFINDEX)
"""1 where the packet will leave by the interface it came from, else 0. Prerouting, input and forward only."""

RTN_LOCAL: Final = 2
"""DADDR_TYPE or SADDR_TYPE of an address of this node."""


def random_below(modulus: int, offset: int = 0) -> Field:
    """A number from `offset` to `offset + modulus - 1`, another for each packet."""
    return Field(KeyType.MARK, lambda register: Numgen(register, modulus, offset=offset))


@dataclass(frozen=True, slots=True)
class Network:
    """What one family's rules need: the match of its packets, its addresses' fields and their original ones."""

    family: Family
    address: KeyType
    only: Expressions
    saddr: Field
    daddr: Field
    original_daddr: Field


def _network(family: Family, address: KeyType, offsets: tuple[int, int], original: CtKey) -> Network:
    only = (Meta(0, MetaKey.NFPROTO), Compare(0, CompareOp.EQ, bytes([family])))
    source, destination = (_header(PayloadBase.NETWORK, offset, address) for offset in offsets)
    return Network(family, address, only, source, destination, _ct(original, address, CtDirection.ORIGINAL))


IPV4: Final = _network(Family.IPV4, KeyType.IPV4_ADDR, (12, 16), CtKey.DST_IP)
IPV6: Final = _network(Family.IPV6, KeyType.IPV6_ADDR, (8, 24), CtKey.DST_IP6)


def network(version: int) -> Network:
    """Of 4 or 6, as `ipaddress` objects have it."""
    return IPV4 if version == 4 else IPV6


def rule(*parts: Expression | Expressions, comment: str = "") -> Rule:
    """One rule of these parts in their order."""
    expressions: list[Expression] = []
    for part in parts:
        if isinstance(part, tuple):
            expressions.extend(part)
        else:
            expressions.append(part)
    return Rule(tuple(expressions), comment)


def loads(fields: Iterable[Field], register: int = 0) -> Expressions:
    """The fields side by side from `register` on, as a concatenation has them."""
    expressions = []
    for field in fields:
        expressions.append(field.load(register))
        register += (field.type.size_bytes + 3) // 4
    return tuple(expressions)


def equals(field: Field, value: int | IPAddress, *, negate: bool = False) -> Expressions:
    op = CompareOp.NE if negate else CompareOp.EQ
    return (field.load(0), Compare(0, op, field.encode(value)))


def within(field: Field, block: IPNetwork, *, negate: bool = False) -> Expressions:
    """The address lies in the block."""
    op = CompareOp.NE if negate else CompareOp.EQ
    if block.prefixlen == block.max_prefixlen:
        return equals(field, block.network_address, negate=negate)
    mask = Bitwise(0, 0, block.netmask.packed, bytes(len(block.netmask.packed)))
    return (field.load(0), mask, Compare(0, op, block.network_address.packed))


def has_any(field: Field, bits: int) -> Expressions:
    """One of the bits is set; as nft writes `ct state established,related`."""
    return (field.load(0), Bitwise(0, 0, host32(bits), bytes(4)), Compare(0, CompareOp.NE, bytes(4)))


def has_none(field: Field, bits: int) -> Expressions:
    return (field.load(0), Bitwise(0, 0, host32(bits), bytes(4)), Compare(0, CompareOp.EQ, bytes(4)))


def in_set(fields: Sequence[Field], name: str, *, negate: bool = False) -> Expressions:
    return (*loads(fields), Lookup(0, name, negate=negate))


def look_up(fields: Sequence[Field], name: str) -> Expressions:
    """Put the map's value for the fields' concatenation into registers from 0; the rule ends where it has none."""
    return (*loads(fields), Lookup(0, name, 0))


NUMBER: Final = (KeyType.MARK, KeyType.MARK)
"""The value of a map that `look_up_number` reads: a word of no meaning, then the number."""


def encode_number(number: int) -> bytes:
    """The number as a value of such a map."""
    return bytes(4) + host32(number)


def decode_number(value: bytes) -> int:
    """The number of such a value."""
    return int.from_bytes(value[4:8], sys.byteorder)


def look_up_number(fields: Sequence[Field], name: str, register: int) -> Expressions:
    """Put the map's number for the fields' concatenation into `register`, 1 or above, to be a key in turn.

    Also overwrites the register before and those that the fields take from `register` on.

    A rule that looks up what a look-up gave makes nft 1.0.6 abort: to it such a value has no length. It then
    can list neither this table nor `nft list tables` nor another family's ruleset. But it knows of a register
    only what was put at its start. So the value is a pair put one register earlier: the number lies where nft
    still sees the first of the fields, and it lists `ip saddr . ...` for the identity of that address.
    """
    return (*loads(fields, register), Lookup(register, name, register - 1))


def dispatch(fields: Sequence[Field], name: str) -> Expressions:
    """Go where the verdict map says; on, where it says nothing."""
    return (*loads(fields), Lookup(0, name, verdict=True))


def set_bits(field: Field, bits: int) -> Expressions:
    """Set bits of MARK or CT_MARK and keep the others."""
    return _write(field, host32(bits ^ 0xFFFFFFFF), host32(bits))


def clear_bits(field: Field, bits: int) -> Expressions:
    """Clear bits of MARK or CT_MARK and keep the others."""
    return _write(field, host32(bits ^ 0xFFFFFFFF), bytes(4))


def _write(field: Field, mask: bytes, xor: bytes) -> Expressions:
    loaded = field.load(0)
    write = MetaSet(0, loaded.key) if isinstance(loaded, Meta) else CtSet(0, CtKey.MARK)
    return (loaded, Bitwise(0, 0, mask, xor), write)
