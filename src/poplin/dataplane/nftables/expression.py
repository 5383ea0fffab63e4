"""Rule expressions <-> netlink attributes (NFTA_EXPR_* and each expression's own; all numbers big-endian).

An expression that is not of a form we write decodes as UnknownExpression: nothing that stands in a table
of ours makes reading it fail.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from poplin.dataplane.netlink.attribute import MalformedMessageError, pack, parse
from poplin.dataplane.netlink.frame import pack_text, unpack_text
from poplin.dataplane.nfnetlink import decode_number, encode_number
from poplin.model.nftables import (
    Bitwise,
    Compare,
    CompareOp,
    Counter,
    Ct,
    CtDirection,
    CtKey,
    CtSet,
    Dynset,
    DynsetOp,
    Expression,
    Family,
    Fib,
    FibFlag,
    FibResult,
    Immediate,
    Limit,
    Log,
    Lookup,
    Masquerade,
    Meta,
    MetaKey,
    MetaSet,
    Nat,
    NatFlag,
    NatKind,
    Notrack,
    Numgen,
    NumgenKind,
    Payload,
    PayloadBase,
    Range,
    Reject,
    RejectKind,
    UnknownExpression,
    Verdict,
    VerdictCode,
)

_NAT_FLAGS: Final = NatFlag.RANDOM | NatFlag.PERSISTENT | NatFlag.FULLY_RANDOM


def _register(kind: int, register: int) -> bytes:
    """NFT_REG_1 to 4 for the registers that start 16 bytes, as the kernel itself writes them."""
    return encode_number(kind, register // 4 + 1 if register % 4 == 0 else register + 8)


def _register_number(value: bytes) -> int:
    """Raises ValueError for the verdict register and for numbers that are none."""
    found = decode_number(value)
    if 1 <= found <= 4:
        return (found - 1) * 4
    if 8 <= found <= 23:
        return found - 8
    raise ValueError(f"register {found}")


def encode_data(kind: int, data: bytes | Verdict) -> bytes:
    """A value, or a verdict with its chain, nested in an attribute of this type (NFTA_DATA_*)."""
    if isinstance(data, bytes):
        return pack(kind, pack(1, data))
    chain = pack_text(2, data.chain) if data.chain else b""
    return pack(kind, pack(2, encode_number(1, data.code) + chain))


def decode_data(value: bytes) -> bytes | Verdict:
    """Raises MalformedMessageError where it is neither a value nor a verdict we know."""
    fields = parse(value)
    if 1 in fields:
        return fields[1]
    try:
        verdict = parse(fields[2])
        code = VerdictCode(int.from_bytes(verdict[1], "big", signed=True))
    except (KeyError, ValueError) as unknown:
        raise MalformedMessageError(f"nftables data of an unknown form: {value.hex()}") from unknown
    return Verdict(code, unpack_text(verdict.get(2, b"")))


def _value(fields: dict[int, bytes], kind: int) -> bytes:
    data = decode_data(fields[kind])
    if isinstance(data, Verdict):
        raise ValueError("a verdict where a value belongs")  # noqa: TRY004  - every refusal is one kind
    return data


@lru_cache(maxsize=4096)  # a policy's thousands of rules repeat a few hundred expressions
def encode_expression(expression: Expression) -> bytes:
    """The content of one NFTA_LIST_ELEM."""
    name, fields = _encode(expression)
    return pack_text(1, name) + (pack(2, fields) if fields else b"")


def _encode(expression: Expression) -> tuple[str, bytes]:
    match expression:
        case Payload(register, base, offset, length):
            return "payload", _register(1, register) + encode_number(2, base) + encode_number(
                3, offset
            ) + encode_number(4, length)
        case Meta(register, key):
            return "meta", encode_number(2, key) + _register(1, register)
        case MetaSet(register, key):
            return "meta", encode_number(2, key) + _register(3, register)
        case Ct(register, key, direction):
            way = b"" if direction is None else pack(3, bytes([direction]))
            return "ct", _register(1, register) + encode_number(2, key) + way
        case CtSet(register, key):
            return "ct", encode_number(2, key) + _register(4, register)
        case Compare(register, op, data):
            return "cmp", _register(1, register) + encode_number(2, op) + encode_data(3, data)
        case Range(register, first, last, negate):
            bounds = encode_data(3, first) + encode_data(4, last)
            return "range", _register(1, register) + encode_number(2, int(negate)) + bounds
        case Bitwise(source, destination, mask, xor):
            registers = _register(1, source) + _register(2, destination)
            operands = encode_data(4, mask) + encode_data(5, xor)
            return "bitwise", registers + encode_number(3, len(mask)) + operands + encode_number(6, 0)
        case Lookup(register, name, destination, verdict, negate):
            into = (
                encode_number(3, 0) if verdict else b"" if destination is None else _register(3, destination)
            )
            return "lookup", pack_text(1, name) + _register(2, register) + into + encode_number(
                5, int(negate)
            )
        case Verdict():
            return "immediate", encode_number(1, 0) + encode_data(2, expression)
        case Immediate(register, data):
            return "immediate", _register(1, register) + encode_data(2, data)
        case Numgen(register, modulus, kind, offset):
            return "numgen", _register(1, register) + encode_number(2, modulus) + encode_number(
                3, kind
            ) + encode_number(4, offset)
        case Fib(register, flags, result):
            return "fib", _register(1, register) + encode_number(2, result) + encode_number(3, flags)
        case Nat(kind, family, address, port, flags):
            ports = b"" if port is None else _register(5, port)
            fields = encode_number(1, kind) + encode_number(2, family) + _register(3, address) + ports
            return "nat", fields + (encode_number(7, flags) if flags else b"")
        case Masquerade(flags):
            return "masq", encode_number(1, flags) if flags else b""
        case Log(group, prefix, snaplen):
            label = pack_text(2, prefix) if prefix else b""
            cut = encode_number(3, snaplen) if snaplen else b""
            return "log", pack(1, group.to_bytes(2, "big")) + label + cut
        case Limit(rate_per_s, burst):
            rate = pack(1, rate_per_s.to_bytes(8, "big")) + pack(2, (1).to_bytes(8, "big"))
            return "limit", rate + encode_number(3, burst) + encode_number(4, 0) + encode_number(5, 0)
        case Reject(kind, code):
            return "reject", encode_number(1, kind) + pack(2, bytes([code]))
        case Counter():
            return "counter", pack(1, bytes(8)) + pack(2, bytes(8))
        case Dynset(op, name, key, data, timeout_ms):
            value = b"" if data is None else _register(5, data)
            timeout = pack(6, timeout_ms.to_bytes(8, "big")) if timeout_ms else b""
            return "dynset", pack_text(1, name) + encode_number(3, op) + _register(4, key) + value + timeout
        case Notrack():
            return "notrack", b""
        case UnknownExpression(name, attributes):
            return name, attributes


@lru_cache(maxsize=4096)
def decode_expression(content: bytes) -> Expression:
    """The inverse. Raises MalformedMessageError only where the attributes' lengths cannot be."""
    outer = parse(content)
    name, attributes = unpack_text(outer.get(1, b"")), outer.get(2, b"")
    decoder = _DECODERS.get(name)
    if decoder:
        fields = parse(attributes)
        try:
            return decoder(fields)
        except (KeyError, ValueError, MalformedMessageError):
            pass
    return UnknownExpression(name, attributes)


def _only(fields: dict[int, bytes], *known: int) -> None:
    """Refuses what has an attribute that our value could not hold."""
    if not fields.keys() <= set(known):
        raise ValueError(f"attributes {sorted(fields.keys() - set(known))}")


def _payload(fields: dict[int, bytes]) -> Expression:
    _only(fields, 1, 2, 3, 4)
    base = PayloadBase(decode_number(fields[2]))
    return Payload(_register_number(fields[1]), base, decode_number(fields[3]), decode_number(fields[4]))


def _meta(fields: dict[int, bytes]) -> Expression:
    key = MetaKey(decode_number(fields[2]))
    return (
        MetaSet(_register_number(fields[3]), key) if 3 in fields else Meta(_register_number(fields[1]), key)
    )


def _ct(fields: dict[int, bytes]) -> Expression:
    key = CtKey(decode_number(fields[2]))
    if 4 in fields:
        _only(fields, 2, 4)
        return CtSet(_register_number(fields[4]), key)
    direction = CtDirection(decode_number(fields[3])) if 3 in fields else None
    return Ct(_register_number(fields[1]), key, direction)


def _compare(fields: dict[int, bytes]) -> Expression:
    return Compare(_register_number(fields[1]), CompareOp(decode_number(fields[2])), _value(fields, 3))


def _range(fields: dict[int, bytes]) -> Expression:
    negate = bool(decode_number(fields[2]))
    return Range(_register_number(fields[1]), _value(fields, 3), _value(fields, 4), negate)


def _bitwise(fields: dict[int, bytes]) -> Expression:
    if decode_number(fields.get(6, b"")) != 0:
        raise ValueError("a shift, or an operation between registers")
    registers = _register_number(fields[1]), _register_number(fields[2])
    return Bitwise(*registers, _value(fields, 4), _value(fields, 5))


def _lookup(fields: dict[int, bytes]) -> Expression:
    register, name = _register_number(fields[2]), unpack_text(fields[1])
    if 3 in fields and decode_number(fields[3]) == 0:
        return Lookup(register, name, verdict=True)
    destination = _register_number(fields[3]) if 3 in fields else None
    return Lookup(register, name, destination, negate=bool(decode_number(fields.get(5, b"")) & 1))


def _immediate(fields: dict[int, bytes]) -> Expression:
    if decode_number(fields[1]) == 0:
        verdict = decode_data(fields[2])
        if not isinstance(verdict, Verdict):
            raise ValueError("a value for the verdict register")
        return verdict
    return Immediate(_register_number(fields[1]), _value(fields, 2))


def _numgen(fields: dict[int, bytes]) -> Expression:
    kind = NumgenKind(decode_number(fields[3]))
    return Numgen(
        _register_number(fields[1]), decode_number(fields[2]), kind, decode_number(fields.get(4, b""))
    )


def _fib(fields: dict[int, bytes]) -> Expression:
    flags, result = FibFlag(decode_number(fields[3])), FibResult(decode_number(fields[2]))
    return Fib(_register_number(fields[1]), flags, result)


def _nat(fields: dict[int, bytes]) -> Expression:
    """The kernel repeats each register as the upper bound of a range."""
    if fields.get(4, fields[3]) != fields[3] or fields.get(6, fields.get(5)) != fields.get(5):
        raise ValueError("a range")
    port = _register_number(fields[5]) if 5 in fields else None
    flags = NatFlag(decode_number(fields.get(7, b"")) & _NAT_FLAGS)
    family = Family(decode_number(fields[2]))
    return Nat(NatKind(decode_number(fields[1])), family, _register_number(fields[3]), port, flags)


def _masquerade(fields: dict[int, bytes]) -> Expression:
    _only(fields, 1)
    return Masquerade(NatFlag(decode_number(fields.get(1, b"")) & _NAT_FLAGS))


def _log(fields: dict[int, bytes]) -> Expression:
    if decode_number(fields.get(4, b"")) or 5 in fields or 6 in fields:
        raise ValueError("a threshold, a level or flags")
    return Log(decode_number(fields[1]), unpack_text(fields.get(2, b"")), decode_number(fields.get(3, b"")))


def _limit(fields: dict[int, bytes]) -> Expression:
    """Of the rates, those of packets a second, not inverted."""
    if (
        decode_number(fields[2]) != 1
        or decode_number(fields.get(4, b""))
        or decode_number(fields.get(5, b""))
    ):
        raise ValueError("another unit, a rate of bytes, or an inverted one")
    return Limit(decode_number(fields[1]), decode_number(fields[3]))


def _reject(fields: dict[int, bytes]) -> Expression:
    return Reject(RejectKind(decode_number(fields[1])), decode_number(fields.get(2, b"")))


def _dynset(fields: dict[int, bytes]) -> Expression:
    _only(fields, 1, 2, 3, 4, 5, 6, 8, 9)
    if decode_number(fields.get(9, b"")):
        raise ValueError("an inverted update, or one with expressions")
    data = _register_number(fields[5]) if 5 in fields else None
    key, timeout_ms = _register_number(fields[4]), decode_number(fields.get(6, b""))
    return Dynset(DynsetOp(decode_number(fields[3])), unpack_text(fields[1]), key, data, timeout_ms)


_DECODERS: Final[dict[str, Callable[[dict[int, bytes]], Expression]]] = {
    "payload": _payload,
    "meta": _meta,
    "ct": _ct,
    "cmp": _compare,
    "range": _range,
    "bitwise": _bitwise,
    "lookup": _lookup,
    "immediate": _immediate,
    "numgen": _numgen,
    "fib": _fib,
    "nat": _nat,
    "masq": _masquerade,
    "log": _log,
    "limit": _limit,
    "reject": _reject,
    "counter": lambda _: Counter(),
    "dynset": _dynset,
    "notrack": lambda _: Notrack(),
}
