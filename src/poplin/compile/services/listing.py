"""The table as the kernel has it -> what it serves: frontends, their endpoints, how often each was used."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from poplin.compile.services.frontend import Shape
from poplin.compile.services.table import Claim
from poplin.model.kernel import IPAddress
from poplin.model.nftables import Table

KINDS = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalIP")
COUNTED = ("services-4", "services-6", "endpoints-4", "endpoints-6", "sticky-4", "sticky-6")
"""The sets whose elements count the packets that found them."""

Counts = Mapping[str, Mapping[bytes, int]]
"""By set and key."""


@dataclass(frozen=True, slots=True)
class ServedEndpoint:
    """`inside` draws it for pods of the node and the node itself, `outside` for others. `hits` since it came."""

    address: IPAddress
    port: int
    inside: bool
    outside: bool
    hits: int


@dataclass(frozen=True, slots=True)
class ServedFrontend:
    """One address and port in the kernel.

    `namespace` and `name` are its Service's, "" where the kernel has what no Service wants. `kind` is one of
    `KINDS`. `verdict` is "serve", "reject" or "drop", or "missing" where the kernel lacks it. `hits` counts
    connections since its number of endpoints last changed.
    """

    namespace: str
    name: str
    kind: str
    address: IPAddress
    protocol: str
    port: int
    verdict: str
    hits: int
    affinity_timeout_s: int | None
    endpoints: tuple[ServedEndpoint, ...]


_PROTOCOLS = {6: "TCP", 17: "UDP", 132: "SCTP"}


def list_frontends(table: Table | None, counts: Counts, claims: Iterable[Claim]) -> list[ServedFrontend]:
    """Give all that the kernel's table has, and what it lacks of the claims; ordered by Service."""
    sets = {one.name: one.elements for one in table.sets} if table else {}
    rows: dict[bytes, dict[int, tuple[bytes, int]]] = defaultdict(dict)
    for name, skipped in (("endpoints-4", 0), ("endpoints-6", 0), ("sticky-4", 4), ("sticky-6", 4)):
        hits = counts.get(name, {})
        for element in sets.get(name, ()):
            if element.key is not None and isinstance(element.data, bytes):
                place = int.from_bytes(element.key[-4:], sys.byteorder)
                rows[element.key[:-4]][place] = element.data[skipped:], hits.get(element.key, 0)
    wanted = {claim.frontend.key: claim for claim in claims}
    found = []
    for name in ("services-4", "services-6"):
        hits = counts.get(name, {})
        for element in sets.get(name, ()):
            if element.key is not None and isinstance(element.data, bytes):
                shape = Shape.of(element.data[4:])
                claim = wanted.pop(element.key, None)
                found.append(_served(element.key, shape, rows[element.key], claim, hits.get(element.key, 0)))
    found += [_served(key, None, {}, claim, 0) for key, claim in wanted.items()]
    return sorted(found, key=_order)


def _order(one: ServedFrontend) -> tuple[str, str, int, int, bytes, str, int]:
    kind = KINDS.index(one.kind) if one.kind in KINDS else -1
    return one.namespace, one.name, kind, one.address.version, one.address.packed, one.protocol, one.port


def _served(
    key: bytes, shape: Shape | None, row: Mapping[int, tuple[bytes, int]], claim: Claim | None, hits: int
) -> ServedFrontend:
    namespace, name = claim.owner if claim else ("", "")
    protocol = key[-8]
    return ServedFrontend(
        namespace,
        name,
        KINDS[claim.kind] if claim else "",
        ip_address(key[:-8]),
        _PROTOCOLS.get(protocol, str(protocol)),
        int.from_bytes(key[-4:-2]),
        _verdict(shape),
        hits,
        shape.affinity_timeout_s if shape else None,
        tuple(_endpoint(place, *row[place], shape) for place in sorted(row)) if shape else (),
    )


def _verdict(shape: Shape | None) -> str:
    if shape is None:
        return "missing"
    if shape.count:
        return "serve"
    return "reject" if shape.local is None else "drop"


def _endpoint(place: int, target: bytes, hits: int, shape: Shape) -> ServedEndpoint:
    inside = shape.offset <= place < shape.offset + shape.count
    outside = inside if shape.local is None else place < shape.local
    port = int.from_bytes(target[-4:-2])
    return ServedEndpoint(ip_address(target[:-4]), port, inside, outside, hits)
