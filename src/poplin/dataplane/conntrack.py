"""Connection tracking over nfnetlink (ctnetlink): read the entries, change bits of their marks, delete them.

Entries of zone 0 only, which is where everything is that nobody moved elsewhere.
Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

import errno as codes
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import pack, parse
from poplin.dataplane.netlink.frame import decoder, unpack_ip
from poplin.dataplane.nfnetlink import (
    NfnetlinkSocket,
    decode_body,
    decode_number,
    encode_number,
    encode_request,
    kernel_error,
)
from poplin.model.connection import Connection, ConnectionStatus, FlowTuple

CT_NEW: Final = 0x100
CT_GET: Final = 0x101
CT_DELETE: Final = 0x102

_TUPLE_ORIGINAL: Final = 1
_TUPLE_REPLY: Final = 2
_STATUS: Final = 3
_MARK: Final = 8
_ZONE: Final = 18
_MARK_MASK: Final = 21

BATCH_REQUESTS: Final = 1000


class ConntrackSocket(NfnetlinkSocket):
    """Bound to the network namespace it was made in. Calls block for the kernel's work."""

    def read(self, *, mark: int = 0, mask: int = 0) -> list[Connection]:
        """All connections whose mark has, under `mask`, the value `mark`; all there are for the mask 0."""
        return list(self.each(mark=mark, mask=mask))

    def each(self, *, mark: int = 0, mask: int = 0) -> Iterator[Connection]:
        """As `read`, one by one as the kernel tells of them. The socket is good for nothing else until the end."""
        wanted = encode_number(_MARK, mark) + encode_number(_MARK_MASK, mask) if mask else b""
        answers = self.query(CT_GET, uapi.NLM_F_DUMP, uapi.AF_UNSPEC, wanted, where="conntrack")
        found = (decode_connection(decode_body(message)[1]) for message in answers)
        return (connection for connection in found if connection)

    def set_mark(self, connections: Iterable[Connection], mark: int, mask: int) -> None:
        """Give the bits in `mask` of every connection's mark those of `mark`. One that is gone is none to change.

        Raises KernelError of the first that was refused; those after it are done all the same.
        """
        self._each(CT_NEW, connections, encode_number(_MARK, mark) + encode_number(_MARK_MASK, mask))

    def delete(self, connections: Iterable[Connection]) -> None:
        """Forget the connections: the next packet of each is a new one's. That one is gone already is success."""
        self._each(CT_DELETE, connections, b"")

    def _each(self, kind: int, connections: Iterable[Connection], attributes: bytes) -> None:
        todo = iter(connections)
        while batch := list(islice(todo, BATCH_REQUESTS)):
            sent = {self.next_sequence(): connection for connection in batch}
            self.send(b"".join(_request(kind, sequence, one, attributes) for sequence, one in sent.items()))
            refused = [
                (sent[sequence], answer)
                for sequence, answer in self.pending_answers()
                if answer.errno not in {0, codes.ENOENT} and sequence in sent
            ]
            if refused:
                connection, answer = refused[0]
                raise kernel_error(answer, where=f"conntrack entry {connection.original}")


def _request(kind: int, sequence: int, connection: Connection, attributes: bytes) -> bytes:
    family = uapi.AF_INET if connection.original.source.version == 4 else uapi.AF_INET6
    return encode_request(kind, 0, sequence, family, pack(_TUPLE_ORIGINAL, connection.key) + attributes)


@decoder
def decode_connection(attributes: bytes) -> Connection | None:
    """A dumped entry; None for one of another zone, or of a family that is not IP."""
    fields = parse(attributes)
    if _ZONE in fields:
        return None
    original, reply = (
        _decode_tuple(fields.get(_TUPLE_ORIGINAL, b"")),
        _decode_tuple(fields.get(_TUPLE_REPLY, b"")),
    )
    if not original or not reply:
        return None
    status = ConnectionStatus(decode_number(fields.get(_STATUS, b"")))
    return Connection(original, reply, status, decode_number(fields.get(_MARK, b"")), fields[_TUPLE_ORIGINAL])


def _decode_tuple(content: bytes) -> FlowTuple | None:
    """CTA_TUPLE_IP and CTA_TUPLE_PROTO."""
    parts = parse(content)
    addresses, protocol = parse(parts.get(1, b"")), parse(parts.get(2, b""))
    source, destination = addresses.get(1) or addresses.get(3), addresses.get(2) or addresses.get(4)
    if not source or not destination:
        return None
    ports = (decode_number(protocol.get(2, b"")), decode_number(protocol.get(3, b"")))
    return FlowTuple(unpack_ip(source), unpack_ip(destination), decode_number(protocol.get(1, b"")), *ports)
