"""A connection as the kernel tracks it (conntrack)."""

from dataclasses import dataclass, field
from enum import IntFlag

from poplin.model.kernel import IPAddress


class ConnectionStatus(IntFlag):
    """IPS_* of linux/netfilter/nf_conntrack_common.h, as far as we ask."""

    NONE = 0
    SEEN_REPLY = 2
    ASSURED = 4
    CONFIRMED = 8
    SOURCE_NAT = 16
    DESTINATION_NAT = 32


@dataclass(frozen=True, slots=True)
class FlowTuple:
    """One direction's addresses. Ports are 0 for protocols that have none (ICMP)."""

    source: IPAddress
    destination: IPAddress
    protocol: int
    source_port: int = 0
    destination_port: int = 0


@dataclass(frozen=True, slots=True)
class Connection:
    """`original` is what the client sent, before any NAT; `reply` what the server answers, before it is undone.

    So with a Service in between `original.destination` is the Service and `reply.source` the endpoint.
    `key` is the kernel's own coding of `original`, by which it is asked for the entry.
    """

    original: FlowTuple
    reply: FlowTuple
    status: ConnectionStatus = ConnectionStatus.NONE
    mark: int = 0
    key: bytes = field(default=b"", repr=False)
