"""The table as the kernel has it -> what it serves: frontends, their endpoints, how often each was used."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from poplin.compile.services.frontend import Shape
from poplin.compile.services.table import Claim
from poplin.model.kernel import IPAddress
from poplin.model.nftables import Element, Table

KINDS = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalIP")
COUNTED = tuple(
    f"{name}-{version}" for name in ("endpoints", "sticky", "serving", "serving-here") for version in (4, 6)
)
"""The sets whose elements count the packets that found them."""

_KEPT = ("serving", "serving-here")
"""Where clients are counted that came again to a Service with session affinity."""

Row = dict[int, tuple[bytes, int]]
"""A frontend's endpoints by place, each with its hits."""

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
    `KINDS`. `verdict` is "serve", "reject" or "drop", or "missing" where the kernel lacks it. `hits` are
    its endpoints' together.
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
    rows: dict[bytes, Row] = defaultdict(dict)
    for version in (4, 6):
        for name, skipped in (("endpoints", 0), ("sticky", 4)):
            hits = counts.get(f"{name}-{version}", {})
            for key, data in _pairs(sets.get(f"{name}-{version}", ())):
                target = data[skipped:]
                again = (counts.get(f"{kept}-{version}", {}).get(target + key[:-4], 0) for kept in _KEPT)
                place = int.from_bytes(key[-4:], sys.byteorder)
                rows[key[:-4]][place] = target, hits.get(key, 0) + sum(again)
    wanted = {claim.frontend.key: claim for claim in claims}
    found = []
    for version in (4, 6):
        for key, data in _pairs(sets.get(f"services-{version}", ())):
            found.append(_served(key, Shape.of(data[4:]), rows[key], wanted.pop(key, None)))
    found += [_served(key, None, {}, claim) for key, claim in wanted.items()]
    return sorted(found, key=_order)


def _pairs(elements: Iterable[Element]) -> Iterator[tuple[bytes, bytes]]:
    for element in elements:
        if element.key is not None and isinstance(element.data, bytes):
            yield element.key, element.data


def _order(one: ServedFrontend) -> tuple[str, str, int, int, bytes, str, int]:
    kind = KINDS.index(one.kind) if one.kind in KINDS else -1
    return one.namespace, one.name, kind, one.address.version, one.address.packed, one.protocol, one.port


def _served(key: bytes, shape: Shape | None, row: Row, claim: Claim | None) -> ServedFrontend:
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
        sum(hits for _, hits in row.values()),
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
