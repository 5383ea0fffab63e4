"""The nftables socket: whole transactions in, whole tables out."""

import errno as codes
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import MalformedMessageError, parse
from poplin.dataplane.netlink.frame import Message, pack_text, unpack_text
from poplin.dataplane.nfnetlink import (
    NfnetlinkSocket,
    decode_body,
    encode_number,
    encode_request,
    kernel_error,
)
from poplin.dataplane.nftables.element import decode_counts, decode_lists
from poplin.dataplane.nftables.message import (
    SUBSYSTEM,
    Kind,
    decode_chain,
    decode_count,
    decode_rule,
    decode_set,
    encode_operation,
    name_of,
)
from poplin.model.errors import KernelError
from poplin.model.nftables import Element, Rule, Set, Table, TableKey
from poplin.plan.nftables import Operation

NFNL_MSG_BATCH_BEGIN: Final = 16
NFNL_MSG_BATCH_END: Final = 17
READ_ATTEMPTS: Final = 5


class NftSocket(NfnetlinkSocket):
    """Reads and writes nftables of the network namespace it was made in. Calls block for the kernel's work."""

    def apply(self, operations: Sequence[Operation], *, generation: int | None = None) -> None:
        """One transaction: all of the operations, or none. Nothing is sent where there are none.

        With `generation` (as `read_generation` gave it) the kernel refuses, with ERESTART, where anybody
        changed any table since. Raises KernelError of the first operation that was refused, named.
        """
        if not operations:
            return
        guard = b"" if generation is None else encode_number(1, generation)
        first = self.next_sequence()
        requests = [encode_request(NFNL_MSG_BATCH_BEGIN, 0, first, 0, guard, resource=SUBSYSTEM)]
        named = {}
        for operation in operations:
            sequence = self.next_sequence()
            named[sequence] = operation
            requests.extend(encode_operation(operation, sequence))
        requests.append(encode_request(NFNL_MSG_BATCH_END, 0, self.next_sequence(), 0, resource=SUBSYSTEM))
        self.send(b"".join(requests))
        refusals = [(sequence, answer) for sequence, answer in self.pending_answers() if answer.errno]
        if refusals:
            sequence, answer = refusals[0]
            operation = named.get(sequence, operations[0])
            where = name_of(operation) if sequence in named else "nftables transaction"
            raise kernel_error(answer, where=where)

    def read_generation(self) -> int:
        """A number that every transaction of anybody in the namespace changes."""
        for message in self.query(0xA10, 0, 0, where="nftables generation"):
            _, attributes = decode_body(message)
            return int.from_bytes(parse(attributes).get(1, b""), "big")
        raise MalformedMessageError("no generation in the answer", where="nftables generation")

    def read_table(self, key: TableKey) -> Table | None:
        """The table, whole; None where it does not stand. Elements of dynamic sets are left out.

        Raises KernelError with EINTR where others keep changing tables while it reads.
        """
        for _ in range(READ_ATTEMPTS):
            before = self.read_generation()
            try:
                table = self._read_table(key) if self._stands(key) else None
            except KernelError as error:
                # ENOENT: what was listed a moment ago is gone.
                if error.errno not in {codes.EINTR, codes.ENOENT}:
                    raise
                continue
            if self.read_generation() == before:
                return table
        raise KernelError(
            "the tables change faster than they can be read",
            errno=codes.EINTR,
            where=f"nftables table {key.name}",
        )

    def read_counts(self, key: TableKey, one: Set) -> dict[bytes, int]:
        """How many packets have found each element of a counted set, by its key; {} where it does not stand."""
        name = pack_text(1, key.name) + pack_text(2, one.name)
        try:
            found = self._query(Kind.GETSETELEM, uapi.NLM_F_DUMP, key, name)
        except KernelError as error:
            if error.errno == codes.ENOENT:
                return {}
            raise
        return decode_counts([parse(attributes).get(3, b"") for attributes in found])

    def _stands(self, key: TableKey) -> bool:
        try:
            self._query(Kind.GETTABLE, 0, key, pack_text(1, key.name))
        except KernelError as error:
            if error.errno == codes.ENOENT:
                return False
            raise
        return True

    def _read_table(self, key: TableKey) -> Table:
        name = pack_text(1, key.name)
        chains = [
            chain
            for attributes in self._query(Kind.GETCHAIN, uapi.NLM_F_DUMP, key, name)
            # The kernel gives the chains of every table of the family.
            if unpack_text(parse(attributes).get(1, b"")) == key.name and (chain := decode_chain(attributes))
        ]
        rules: dict[str, list[Rule]] = {}
        for attributes in self._query(Kind.GETRULE, uapi.NLM_F_DUMP, key, name):
            chain_name, rule = decode_rule(attributes)
            rules.setdefault(chain_name, []).append(rule)
        sets = [
            one
            if one.dynamic
            else replace(one, elements=self._read_elements(key, one, decode_count(attributes)))
            for attributes in self._query(Kind.GETSET, uapi.NLM_F_DUMP, key, name)
            if (one := decode_set(attributes))
        ]
        filled = (replace(chain, rules=tuple(rules.get(chain.name, ()))) for chain in chains)
        return Table(key.name, tuple(filled), tuple(sets), key.family)

    def _read_elements(self, key: TableKey, one: Set, count: int | None) -> frozenset[Element]:
        """Raises KernelError with EINTR where the set's inside moved while it was read.

        Each datagram of a dump starts over and leaves out as many elements as were passed. Meanwhile the
        hash table grows, or deleted elements are freed, in the background: then some elements are told
        twice or not at all, and no generation tells of it. So what was told must be `count` different ones.
        """
        name = pack_text(1, key.name) + pack_text(2, one.name)
        found = self._query(Kind.GETSETELEM, uapi.NLM_F_DUMP, key, name)
        elements = decode_lists(one, [parse(attributes).get(3, b"") for attributes in found])
        unique = frozenset(elements)
        told = sum(element.key is not None for element in unique)
        single_intervals = one.intervals and len(one.key) == 1  # whose count is of bounds
        if len(unique) != len(elements) or (count not in {None, told} and not single_intervals):
            raise KernelError("the set moved under its reader", errno=codes.EINTR, where=f"set {one.name}")
        return unique

    def _query(self, kind: Kind, flags: int, key: TableKey, attributes: bytes) -> list[bytes]:
        where = f"nftables table {key.family.name.lower()} {key.name}"
        messages: list[Message] = list(self.query(kind, flags, key.family, attributes, where=where))
        return [decode_body(message)[1] for message in messages]
