"""What the kernel would do with the first packet of a connection in a table of ours.

Only the expressions that the policy table has. Registers hold bytes at four times their number.
"""

import sys
from dataclasses import dataclass

from poplin.model.nftables import (
    Bitwise,
    Compare,
    CompareOp,
    Counter,
    Ct,
    Fib,
    Limit,
    Log,
    Lookup,
    Meta,
    MetaKey,
    Payload,
    PayloadBase,
    Range,
    Verdict,
    VerdictCode,
)


@dataclass(frozen=True)
class Case:
    """Groups are those of the interfaces; `hairpin` that it leaves where it came from."""

    source: object
    destination: object
    protocol: int
    source_port: int
    port: int
    iifgroup: int = 0
    oifgroup: int = 0
    hairpin: bool = False


class Machine:
    def __init__(self, table):
        self.chains = {chain.name: chain for chain in table.chains}
        self.sets = {one.name: one for one in table.sets}
        self.plain = {}
        for one in table.sets:
            if not one.intervals:
                self.plain[one.name] = {element.key: element for element in one.elements}

    def passes(self, hook, case):
        """Whether the packet survives the base chain of a hook."""
        return self._run(hook, case, bytearray(64)) is not VerdictCode.DROP

    def _run(self, name, case, registers):
        for rule in self.chains[name].rules:
            verdict = self._rule(rule, case, registers)
            if verdict is None:
                continue
            if verdict.code is VerdictCode.JUMP:
                outcome = self._run(verdict.chain, case, registers)
                if outcome is not VerdictCode.RETURN:
                    return outcome
            elif verdict.code is VerdictCode.GOTO:
                return self._run(verdict.chain, case, registers)
            else:
                return verdict.code
        return VerdictCode.RETURN

    def _rule(self, rule, case, registers):
        for expression in rule.expressions:
            match expression:
                case Verdict():
                    return expression
                case Counter() | Limit() | Log():
                    pass
                case Lookup(register, name, destination, verdict, negate):
                    one = self.sets[name]
                    found = self._find(one, bytes(registers[4 * register :]))
                    if (found is None) != negate:
                        return None
                    if verdict:
                        return found.data
                    if destination is not None:
                        self._put(registers, destination, found.data)
                case Compare(register, op, data):
                    held = bytes(registers[4 * register : 4 * register + len(data)])
                    assert op in {CompareOp.EQ, CompareOp.NE}
                    if (held == data) != (op is CompareOp.EQ):
                        return None
                case Range(register, first, last, negate):
                    held = bytes(registers[4 * register : 4 * register + len(first)])
                    if (first <= held <= last) == negate:
                        return None
                case Bitwise(source, destination, mask, xor):
                    held = registers[4 * source : 4 * source + len(mask)]
                    result = bytes((h & m) ^ x for h, m, x in zip(held, mask, xor, strict=True))
                    self._put(registers, destination, result)
                case _:
                    self._put(registers, expression.register, self._load(expression, case))
        return None

    @staticmethod
    def _put(registers, register, data):
        padded = data + bytes(-len(data) % 4)
        registers[4 * register : 4 * register + len(padded)] = padded

    @staticmethod
    def _load(expression, case):
        version = case.source.version
        match expression:
            case Payload(_, PayloadBase.NETWORK, offset, length):
                header = {
                    4: {(12, 4): case.source, (16, 4): case.destination},
                    6: {(8, 16): case.source, (24, 16): case.destination},
                }
                return header[version][offset, length].packed
            case Payload(_, PayloadBase.TRANSPORT, offset, length):
                header = case.source_port.to_bytes(2, "big") + case.port.to_bytes(2, "big")
                return header[offset : offset + length]
            case Meta(_, MetaKey.NFPROTO):
                return bytes([2 if version == 4 else 10])
            case Meta(_, MetaKey.L4PROTO):
                return bytes([case.protocol])
            case Meta(_, MetaKey.IIFGROUP):
                return case.iifgroup.to_bytes(4, sys.byteorder)
            case Meta(_, MetaKey.OIFGROUP):
                return case.oifgroup.to_bytes(4, sys.byteorder)
            case Ct():
                return bytes(4)  # a new connection without a mark
            case Fib():
                return int(case.hairpin).to_bytes(4, sys.byteorder)
        raise AssertionError(expression)

    def _find(self, one, key):
        size = (
            sum(kind.size_bytes + 3 & ~3 for kind in one.key) if len(one.key) > 1 else one.key[0].size_bytes
        )
        key = key[:size]
        if not one.intervals:
            held = self.plain[one.name]
            return held.get(key) or held.get(None)
        for element in one.elements:
            if element.key <= key <= (element.last or element.key):
                return element
        return None
