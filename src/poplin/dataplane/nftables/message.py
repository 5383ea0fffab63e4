"""nftables messages <-> values: the attributes of tables, chains, rules and sets (NFTA_*)."""

from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from poplin.dataplane.netlink.attribute import MalformedMessageError, pack, parse, walk
from poplin.dataplane.netlink.frame import pack_text, unpack_text
from poplin.dataplane.netlink.uapi import NLM_F_CREATE
from poplin.dataplane.nfnetlink import decode_number, encode_number, encode_request
from poplin.dataplane.nftables.element import encode_lists
from poplin.dataplane.nftables.expression import decode_expression, encode_expression
from poplin.model.nftables import (
    BaseChain,
    Chain,
    ChainType,
    Counter,
    Hook,
    KeyType,
    Rule,
    Set,
    Verdict,
    VerdictCode,
    host32,
    size_bytes,
)
from poplin.plan.nftables import (
    AddChain,
    AddElements,
    AddRule,
    AddSet,
    AddTable,
    DeleteChain,
    DeleteElements,
    DeleteSet,
    DeleteTable,
    FlushChain,
    Operation,
)

SUBSYSTEM: Final = 10
"""NFNL_SUBSYS_NFTABLES."""

NLM_F_APPEND: Final = 0x800


class Kind(IntEnum):
    """NFT_MSG_*, with the subsystem: message types as they stand in the header."""

    NEWTABLE = 0xA00
    GETTABLE = 0xA01
    DELTABLE = 0xA02
    NEWCHAIN = 0xA03
    GETCHAIN = 0xA04
    DELCHAIN = 0xA05
    NEWRULE = 0xA06
    GETRULE = 0xA07
    DELRULE = 0xA08
    NEWSET = 0xA09
    GETSET = 0xA0A
    DELSET = 0xA0B
    NEWSETELEM = 0xA0C
    GETSETELEM = 0xA0D
    DELSETELEM = 0xA0E
    NEWGEN = 0xA0F


class _SetFlag(IntEnum):
    ANONYMOUS = 0x1
    INTERVAL = 0x4
    MAP = 0x8
    TIMEOUT = 0x10
    EVAL = 0x20
    CONCAT = 0x80


_NAMED: Final = 1
"""Type of the attribute that names the table, in every message."""

_DATA_VERDICT: Final = 0xFFFFFF00
_TYPE_BITS: Final = 6
_CHAIN_BINDING: Final = 4
_RULE_COMMENT: Final = 0
_SET_COMMENT: Final = 7
_SET_KEY_ORDER: Final = 0
_SET_DATA_ORDER: Final = 1
_ORDER_HOST: Final = 1
_ORDER_BIG: Final = 2
_HOST_ORDER: Final = {
    KeyType.MARK,
    KeyType.IFINDEX,
    KeyType.DEVGROUP,
    KeyType.FIB_ADDRTYPE,
    KeyType.CT_STATE,
    KeyType.CT_STATUS,
    KeyType.IFNAME,
}


def encode_operation(operation: Operation, sequence: int) -> Iterator[bytes]:
    """The messages of one operation, all with its sequence number, by which errors name it."""
    family, table = operation.table
    named = pack_text(_NAMED, table)

    def request(kind: Kind, attributes: bytes = b"", flags: int = NLM_F_CREATE) -> bytes:
        return encode_request(kind, flags, sequence, family, named + attributes)

    match operation:
        case AddTable():
            yield request(Kind.NEWTABLE)
        case DeleteTable():
            yield request(Kind.DELTABLE)
        case AddChain(_, chain):
            yield request(Kind.NEWCHAIN, encode_chain(chain))
        case FlushChain(_, name):
            yield request(Kind.DELRULE, pack_text(2, name))
        case DeleteChain(_, name):
            yield request(Kind.DELCHAIN, pack_text(3, name))
        case AddRule(_, name, rule):
            yield request(Kind.NEWRULE, pack_text(2, name) + encode_rule(rule), NLM_F_CREATE | NLM_F_APPEND)
        case AddSet(_, one):
            yield request(Kind.NEWSET, encode_set(one, sequence))
        case DeleteSet(_, name):
            yield request(Kind.DELSET, pack_text(2, name))
        case AddElements(_, one, elements) | DeleteElements(_, one, elements):
            kind = Kind.NEWSETELEM if isinstance(operation, AddElements) else Kind.DELSETELEM
            for content in encode_lists(one, elements):
                yield request(kind, pack_text(2, one.name) + pack(3, content))


def encode_chain(chain: Chain) -> bytes:
    """NFTA_CHAIN_* after the table's name, without the rules."""
    name = pack_text(3, chain.name)
    if chain.base is None:
        return name
    hook = encode_number(1, chain.base.hook) + encode_number(2, chain.base.priority)
    policy = encode_number(5, chain.base.policy.code)
    return name + pack(4, hook) + policy + pack_text(7, chain.base.type)


def decode_chain(attributes: bytes) -> Chain | None:
    """A chain without its rules; None for one that belongs to a rule (`jump { ... }`), and goes with it."""
    fields = parse(attributes)
    if decode_number(fields.get(10, b"")) & _CHAIN_BINDING:
        return None
    name = unpack_text(fields.get(3, b""))
    if 4 not in fields:
        return Chain(name)
    hook = parse(fields[4])
    priority = int.from_bytes(hook.get(2, b""), "big", signed=True)
    try:
        place, kind = Hook(decode_number(hook[1])), ChainType(unpack_text(fields[7]))
        policy = Verdict(VerdictCode(decode_number(fields[5])))
    except (KeyError, ValueError) as unknown:
        raise MalformedMessageError(f"base chain {name} of an unknown form") from unknown
    return Chain(name, base=BaseChain(kind, place, priority, policy))


def encode_rule(rule: Rule) -> bytes:
    """NFTA_RULE_* after the table's and the chain's names."""
    entries = [pack(1, encode_expression(expression)) for expression in rule.expressions]
    userdata = pack(7, _comment(_RULE_COMMENT, rule.comment)) if rule.comment else b""
    return pack(4, b"".join(entries)) + userdata


def decode_rule(attributes: bytes) -> tuple[str, Rule]:
    """A rule, with the name of its chain."""
    fields = parse(attributes)
    expressions = tuple(decode_expression(content) for _, content in walk(fields.get(4, b"")))
    comment = _decode_comment(fields.get(7, b""), _RULE_COMMENT)
    return unpack_text(fields.get(2, b"")), Rule(expressions, comment)


def encode_set(one: Set, number: int) -> bytes:
    """NFTA_SET_* after the table's name. `number` is the set's own within its transaction."""
    attributes = [pack_text(2, one.name), encode_number(3, _set_flags(one))]
    attributes += [encode_number(4, _join_types(one.key)), encode_number(5, size_bytes(one.key))]
    if one.data == (KeyType.VERDICT,):
        attributes.append(encode_number(6, _DATA_VERDICT))
    elif one.data:
        attributes += [encode_number(6, _join_types(one.data)), encode_number(7, size_bytes(one.data))]
    attributes.append(encode_number(10, number))
    description = encode_number(1, one.size) if one.size else b""
    if one.intervals and len(one.key) > 1:
        lengths = [pack(1, encode_number(1, kind.size_bytes)) for kind in one.key]
        description += pack(2, b"".join(lengths))
    if description:
        attributes.append(pack(9, description))
    if one.timeout_ms:
        attributes.append(pack(11, one.timeout_ms.to_bytes(8, "big")))
    attributes.append(pack(13, _set_userdata(one)))
    if one.counted:
        attributes.append(pack(17, encode_expression(Counter())))
    return b"".join(attributes)


def decode_set(attributes: bytes) -> Set | None:
    """A set without its elements; None for one that belongs to a rule (`{ 80, 443 }`), and goes with it."""
    fields = parse(attributes)
    flags = decode_number(fields.get(3, b""))
    if flags & _SetFlag.ANONYMOUS:
        return None
    data_type = decode_number(fields.get(6, b""))
    is_map = flags & _SetFlag.MAP
    timeout_ms = decode_number(fields.get(11, b"")) if flags & _SetFlag.TIMEOUT else None
    description = parse(fields.get(9, b""))
    return Set(
        unpack_text(fields.get(2, b"")),
        key=_split_types(decode_number(fields.get(4, b""))),
        data=() if not is_map else _split_types(1 if data_type == _DATA_VERDICT else data_type),
        intervals=bool(flags & _SetFlag.INTERVAL),
        dynamic=bool(flags & _SetFlag.EVAL),
        timeout_ms=timeout_ms,
        size=decode_number(description.get(1, b"")),
        counted=17 in fields and decode_expression(fields[17]) == Counter(),
        comment=_decode_comment(fields.get(13, b""), _SET_COMMENT),
    )


def decode_count(attributes: bytes) -> int | None:
    """How many elements a set has, the catch-all not counted; None where an older kernel does not say."""
    fields = parse(attributes)
    return decode_number(fields[20]) if 20 in fields else None


def _set_flags(one: Set) -> int:
    flags = _SetFlag.INTERVAL if one.intervals else 0
    flags |= _SetFlag.CONCAT if one.intervals and len(one.key) > 1 else 0
    flags |= _SetFlag.MAP if one.data else 0
    flags |= _SetFlag.EVAL if one.dynamic else 0
    return flags | (_SetFlag.TIMEOUT if one.timeout_ms is not None else 0)


def _set_userdata(one: Set) -> bytes:
    """Without the byte orders nft prints a mark's bytes the wrong way round; in concatenations it knows them."""
    userdata = _userdata(_SET_KEY_ORDER, host32(_ORDER_HOST if one.key[0] in _HOST_ORDER else _ORDER_BIG))
    if one.data and one.data != (KeyType.VERDICT,):
        order = _ORDER_HOST if one.data[0] in _HOST_ORDER else _ORDER_BIG
        userdata += _userdata(_SET_DATA_ORDER, host32(order))
    return userdata + _comment(_SET_COMMENT, one.comment)


def _join_types(types: tuple[KeyType, ...]) -> int:
    """The first type in the highest six bits, as nft numbers concatenations (five types at most)."""
    joined = 0
    for kind in types:
        joined = joined << _TYPE_BITS | kind
    return joined


def _split_types(joined: int) -> tuple[KeyType, ...]:
    """The inverse; () where one of them is none of ours, which equals no set we want."""
    types = []
    while joined:
        types.append(joined & (1 << _TYPE_BITS) - 1)
        joined >>= _TYPE_BITS
    try:
        return tuple(KeyType(kind) for kind in reversed(types))
    except ValueError:
        return ()


def _userdata(entry: int, value: bytes) -> bytes:
    """User data as nft keeps it: entries of type, length (8 bits each) and value."""
    return bytes([entry, len(value)]) + value


def _comment(entry: int, comment: str) -> bytes:
    return _userdata(entry, comment.encode() + b"\0") if comment else b""


def _decode_comment(userdata: bytes, entry: int) -> str:
    while len(userdata) >= 2:
        kind, length = userdata[:2]
        if kind == entry:
            return unpack_text(userdata[2 : 2 + length])
        userdata = userdata[2 + length :]
    return ""


def name_of(operation: Operation) -> str:
    """What an error about the operation is about, for a person."""
    family, table = operation.table
    where = f"{family.name.lower()} {table}"
    match operation:
        case AddChain(_, chain):
            return f"chain {chain.name} of nftables table {where}"
        case FlushChain(_, name) | DeleteChain(_, name):
            return f"chain {name} of nftables table {where}"
        case AddRule(_, name, rule):
            what = rule.comment or ", ".join(map(str, rule.expressions))
            return f"rule [{what}] in chain {name} of nftables table {where}"
        case AddSet(_, one) | AddElements(_, one) | DeleteElements(_, one):
            return f"set {one.name} of nftables table {where}"
        case DeleteSet(_, name):
            return f"set {name} of nftables table {where}"
        case AddTable() | DeleteTable():
            return f"nftables table {where}"
