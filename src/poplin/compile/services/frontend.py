"""A Service -> its frontends: each address and port that it is reached by, with who serves there.

A frontend has its endpoints in one row. Who is inside (this node and its pods) draws from one stretch of
it, who comes from outside from another where the external traffic policy is Local: that stretch is the row's
beginning. So both share the elements of the endpoints that serve both.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import collapse_addresses, ip_network
from typing import Self

from poplin.compile.destination_nat import encode_key
from poplin.compile.services.endpoints import Choice, Place, Target, choose_endpoints, contains_any
from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.nftables import host32
from poplin.model.service import PROTOCOL_NUMBERS, EndpointSlice, Service, ServicePort

MAX_COUNT = 0xFFFF
MAX_LOCAL = 0x3FFE
"""What a shape's number has room for; what a Service has beyond that is not drawn."""

_OFFSET_SHIFT = 16
_LOCAL_SHIFT = 17


class Kind(IntEnum):
    """What makes an address a Service's.

    Where two claim one, the lower goes first: an external address must not take another's cluster address
    from it (CVE-2020-8554).
    """

    CLUSTER_IP = 0
    NODE_PORT = 1
    LOAD_BALANCER = 2
    EXTERNAL_IP = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """How a frontend draws: the same for many, and all that its chain depends on.

    Inside draws `count` endpoints from place `offset` on; outside the same, or the first `local` where that
    is not None. `count` 0 rejects all, and drops all where `local` is 0; `local` 0 alone drops the outside.
    `affinity_timeout_s` None: every connection draws anew.
    """

    count: int
    offset: int = 0
    local: int | None = None
    affinity_timeout_s: int | None = None

    @property
    def number(self) -> bytes:
        """Two words that say all of it: equal for equal shapes whoever computes them. A plain one is its count."""
        outside = 0 if self.local is None else self.local + 1
        return host32(self.offset << _OFFSET_SHIFT | self.count) + host32(
            outside << _LOCAL_SHIFT | (self.affinity_timeout_s or 0)
        )

    @classmethod
    def of(cls, number: bytes) -> Self:
        """The inverse of `number`."""
        drawn, rest = (int.from_bytes(number[start : start + 4], sys.byteorder) for start in (0, 4))
        outside, timeout_s = rest >> _LOCAL_SHIFT, rest & (1 << _LOCAL_SHIFT) - 1
        return cls(
            drawn & MAX_COUNT, drawn >> _OFFSET_SHIFT, outside - 1 if outside else None, timeout_s or None
        )


REJECT = Shape(0)
DROP = Shape(0, local=0)


@dataclass(frozen=True, slots=True)
class Frontend:
    """One address and port. `sources` None: anyone may use it; empty: nobody.

    `serving` are those that a flow may stay with, beside `targets`: they terminate, or others are nearer.
    `key` is address, protocol and port as the maps have them.
    """

    kind: Kind
    address: IPAddress
    port: ServicePort
    number: int
    shape: Shape
    targets: tuple[Target, ...] = ()
    serving: frozenset[Target] = frozenset()
    sources: tuple[IPNetwork, ...] | None = None
    key: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        key = encode_key(self.address, PROTOCOL_NUMBERS[self.port.protocol], self.number)
        object.__setattr__(self, "key", key)


def compile_service(service: Service, slices: Iterable[EndpointSlice], place: Place) -> tuple[Frontend, ...]:
    """Give all frontends of a Service, none twice; none of a headless one or one that is served elsewhere."""
    if service.served_elsewhere or not service.cluster_ips:
        return ()
    slices = tuple(slices)
    found: dict[bytes, Frontend] = {}
    for version in sorted({address.version for address in service.cluster_ips}):
        for port in service.ports:
            choice = choose_endpoints(slices, port, version, place)
            for frontend in _frontends(service, port, version, choice, place):
                found.setdefault(frontend.key, frontend)
    return tuple(found.values())


def _frontends(
    service: Service, port: ServicePort, version: int, choice: Choice, place: Place
) -> Iterator[Frontend]:
    shape, targets = _internal(service, choice)
    for address in _of_family(service.cluster_ips, version):
        kept = choice.serving.difference(targets)
        yield Frontend(Kind.CLUSTER_IP, address, port, port.port, shape, targets, kept)
    shape, targets = _external(service, choice)
    for kind, address, number in _external_addresses(service, port, version, place):
        kept = choice.serving.difference(targets)
        sources = _sources(service, address, place) if kind is Kind.LOAD_BALANCER else None
        yield Frontend(kind, address, port, number, shape, targets, kept, sources)


def _external_addresses(
    service: Service, port: ServicePort, version: int, place: Place
) -> Iterator[tuple[Kind, IPAddress, int]]:
    if port.node_port:
        for address in _of_family(place.node_port_addresses, version):
            yield Kind.NODE_PORT, address, port.node_port
    for address in _of_family(service.load_balancer_ips, version):
        yield Kind.LOAD_BALANCER, address, port.port
    for address in _of_family(service.external_ips, version):
        yield Kind.EXTERNAL_IP, address, port.port


def _internal(service: Service, choice: Choice) -> tuple[Shape, tuple[Target, ...]]:
    targets = (choice.local if service.internal_local else choice.cluster)[:MAX_COUNT]
    if targets:
        return Shape(len(targets), affinity_timeout_s=service.affinity_timeout_s), targets
    return (DROP if choice.anywhere else REJECT), ()


def _external(service: Service, choice: Choice) -> tuple[Shape, tuple[Target, ...]]:
    """Local alone, then who is both, then Cluster alone: each policy's endpoints stand side by side."""
    if not choice.cluster:
        return REJECT, ()
    if not service.external_local:
        targets = choice.cluster[:MAX_COUNT]
        return Shape(len(targets), affinity_timeout_s=service.affinity_timeout_s), targets
    cluster, local = set(choice.cluster), set(choice.local[:MAX_LOCAL])
    alone = [target for target in choice.local[:MAX_LOCAL] if target not in cluster]
    both = [target for target in choice.cluster if target in local]
    rest = [target for target in choice.cluster if target not in local]
    targets = (*alone, *both, *rest)[:MAX_COUNT]
    shape = Shape(len(targets) - len(alone), len(alone), len(local), service.affinity_timeout_s)
    return shape, targets


def _of_family(addresses: Iterable[IPAddress], version: int) -> Iterator[IPAddress]:
    return (address for address in addresses if address.version == version)


def _sources(service: Service, address: IPAddress, place: Place) -> tuple[IPNetwork, ...] | None:
    """Give who may use a load balancer's address.

    Where the address is on an interface of the node, what the node sends there has it as its source: so a
    range that holds the node stands for that one too.
    """
    if not service.source_ranges:
        return None
    ranges = [one for one in service.source_ranges if one.version == address.version]
    if contains_any(ranges, _of_family(place.addresses, address.version)):
        ranges.append(ip_network(address))
    return tuple(collapse_addresses(ranges))  # type: ignore[type-var]  # all are of one family
