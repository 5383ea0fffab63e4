"""Table `inet poplin-services`, kept one Service's change at a time.

What is kept depends on the Services put in, never on the order in which they came: `table()` after any
changes equals that of a fresh one given the same. A change costs what its Service has, however many others
there are.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from poplin.compile.node_table import merge_blocks
from poplin.compile.services.dispatch import FAMILIES, SHAPE, compile_affinity, compile_chains, compile_ways
from poplin.compile.services.endpoints import Place
from poplin.compile.services.frontend import Frontend, Kind, Shape, compile_service
from poplin.compile.services.health import HealthCheck, compile_health_check
from poplin.model.kernel import IPNetwork
from poplin.model.nftables import Element, KeyType, Set, Table, host32
from poplin.model.service import EndpointSlice, Service

TABLE: Final = "poplin-services"

GROWS_TO: Final = 8192

Name = tuple[str, str]
"""A Service's namespace and name."""


class Claim(NamedTuple):
    """A Service's wish for a frontend. Of several the least is granted: by kind, then by age, then by name."""

    kind: Kind
    created: str
    owner: Name
    frontend: Frontend


@dataclass(frozen=True, slots=True)
class Elements:
    """What a set has lost and won. A key whose value has changed is in both."""

    set: Set
    gone: frozenset[Element]
    new: frozenset[Element]


@dataclass(slots=True)
class _Set:
    """One set's elements by key, and what those that were touched since the last `take` were before."""

    kind: Set
    elements: dict[bytes, Element] = field(default_factory=dict)
    before: dict[bytes, Element | None] = field(default_factory=dict)

    @property
    def empty(self) -> Set:
        size = 0 if self.kind.intervals else capacity(len(self.elements))
        return self.kind if size == self.kind.size else replace(self.kind, size=size)

    def write(self, key: bytes, element: Element | None) -> None:
        self.before.setdefault(key, self.elements.get(key))
        if element is None:
            self.elements.pop(key, None)
        else:
            self.elements[key] = element

    def take(self) -> Elements | None:
        before, self.before = self.before, {}
        gone, new = [], []
        for key, old in before.items():
            now = self.elements.get(key)
            if now != old:
                gone += [old] if old is not None else []
                new += [now] if now is not None else []
        return Elements(self.kind, frozenset(gone), frozenset(new)) if gone or new else None


class ServiceTable:
    """All Services of a node. `service_cidrs`: where Services' addresses come from, () where unknown."""

    def __init__(self, place: Place, service_cidrs: Iterable[IPNetwork] = ()) -> None:
        self.place = place
        self._cidrs = tuple(_service_cidrs(tuple(service_cidrs)))
        self._sets = {one.name: _Set(one) for one in _empty_sets()}
        self._services: dict[Name, tuple[Service, tuple[EndpointSlice, ...]]] = {}
        self._frontends: dict[Name, tuple[Frontend, ...]] = {}
        self._claims: dict[bytes, list[Claim]] = {}
        self._shapes: Counter[Shape] = Counter()
        self._cluster_ips: Counter[bytes] = Counter()
        self._contested: set[bytes] = set()
        self._checks: dict[Name, HealthCheck] = {}

    def put(self, service: Service, slices: Iterable[EndpointSlice]) -> None:
        """Take in a Service as it is now, with all its slices."""
        slices = tuple(slices)
        frontends = compile_service(service, slices, self.place)
        name = (service.namespace, service.name)
        known = self._services.get(name)
        self._services[name] = service, slices
        self._checks.pop(name, None)
        if check := compile_health_check(service, slices, self.place):
            self._checks[name] = check
        if known is not None and known[0] == service and self._frontends[name] == frontends:
            return
        self._withdraw_all(name)
        self._frontends[name] = frontends
        for frontend in frontends:
            claim = Claim(frontend.kind, service.created, name, frontend)
            self._settle(frontend.key, sorted([*self._claims.get(frontend.key, ()), claim], key=_rank))
            if frontend.kind is Kind.CLUSTER_IP:
                self._count_cluster_ip(frontend, 1)

    def remove(self, name: Name) -> None:
        """Forget a Service; one that is not there is forgotten."""
        self._withdraw_all(name)
        self._services.pop(name, None)
        self._checks.pop(name, None)

    def move(self, place: Place) -> None:
        """Serve from another place: the node has got a label or an address."""
        if place != self.place:
            self.place = place
            for service, slices in list(self._services.values()):
                self.put(service, slices)

    def names(self) -> frozenset[Name]:
        """Give the Services that were put in."""
        return frozenset(self._services)

    def frontends_of(self, name: Name) -> tuple[Frontend, ...]:
        """Give a Service's frontends, with those that another one has."""
        return self._frontends.get(name, ())

    def health_checks(self) -> tuple[HealthCheck, ...]:
        """Give what is to be answered on healthCheckNodePorts."""
        return tuple(self._checks.values())

    def frontends(self) -> Iterator[Claim]:
        """Give the claims that are granted."""
        return (claims[0] for claims in self._claims.values())

    def frontend_at(self, key: bytes) -> Frontend | None:
        """Give who is reached at an address, protocol and port (`Frontend.key`)."""
        claims = self._claims.get(key)
        return claims[0].frontend if claims else None

    def problems(self) -> dict[Name, str]:
        """Give, for each Service that another one keeps from an address and port, which and whose that is."""
        found: dict[Name, list[str]] = defaultdict(list)
        for key in self._contested:
            winner, *others = self._claims[key]
            what = f"{winner.frontend.address} {winner.frontend.port.protocol} {winner.frontend.number}"
            for claim in others:
                found[claim.owner].append(f"{what} is Service {'/'.join(winner.owner)}'s")
        return {name: "; ".join(sorted(texts)) for name, texts in found.items()}

    def table(self) -> Table:
        """Give the table, whole."""
        sets = [replace(one.empty, elements=frozenset(one.elements.values())) for one in self._sets.values()]
        return self._table(sets)

    def structure(self) -> Table:
        """Give the table without the elements that each Service has; they refer to no chain."""
        return self._table([one.empty for one in self._sets.values()])

    def take_changes(self) -> list[Elements]:
        """Give what has changed in those elements since the last call."""
        return [changed for one in self._sets.values() if (changed := one.take())]

    def _table(self, sets: list[Set]) -> Table:
        shapes = tuple(self._shapes)
        fixed = (*compile_ways(shapes), *(compile_affinity(version) for version in FAMILIES), *self._cidrs)
        return Table(TABLE, compile_chains(shapes), (*sets, *fixed))

    def _withdraw_all(self, name: Name) -> None:
        for frontend in self._frontends.pop(name, ()):
            claims = self._claims[frontend.key]
            self._settle(frontend.key, [claim for claim in claims if claim.owner != name])
            if frontend.kind is Kind.CLUSTER_IP:
                self._count_cluster_ip(frontend, -1)

    def _settle(self, key: bytes, now: list[Claim]) -> None:
        """Have a frontend claimed by these, the first of whom gets it."""
        before, after = self.frontend_at(key), now[0].frontend if now else None
        if before != after:
            if before is not None:
                self._withdraw(before)
            if after is not None:
                self._publish(after)
        if now:
            self._claims[key] = now
        else:
            self._claims.pop(key, None)
        (self._contested.add if len(now) > 1 else self._contested.discard)(key)

    def _publish(self, frontend: Frontend) -> None:
        self._shapes[frontend.shape] += 1
        for name, element in elements_of(frontend):
            assert element.key is not None  # noqa: S101  - none of ours is a catch-all
            self._sets[name].write(element.key, element)

    def _withdraw(self, frontend: Frontend) -> None:
        self._shapes[frontend.shape] -= 1
        if not self._shapes[frontend.shape]:
            del self._shapes[frontend.shape]
        for name, element in elements_of(frontend):
            assert element.key is not None  # noqa: S101  - none of ours is a catch-all
            self._sets[name].write(element.key, None)

    def _count_cluster_ip(self, frontend: Frontend, by: int) -> None:
        """Two Services may have one address with different ports."""
        packed = frontend.address.packed
        self._cluster_ips[packed] += by
        left = self._cluster_ips[packed]
        if not left:
            del self._cluster_ips[packed]
        one = self._sets[f"cluster-ips-{frontend.address.version}"]
        one.write(packed, Element(packed) if left else None)


def capacity(count: int) -> int:
    """Give the size to declare for a set of so many elements, 0 for none.

    A set that grows by itself is slow to take many elements at once: it grows when they are in (0.2 s more
    for 90,000). One of a declared size has its buckets from the start. Twice the room is for a transaction
    that replaces every element.
    """
    room = GROWS_TO
    if count <= room:
        return 0
    while count > room:
        room *= 4
    return 2 * room


def _rank(claim: Claim) -> tuple[Kind, str, Name]:
    return claim.kind, claim.created, claim.owner


def elements_of(frontend: Frontend) -> Iterator[tuple[str, Element]]:
    """Give a frontend's elements, each with its set's name."""
    version, key, shape = frontend.address.version, frontend.key, frontend.shape
    yield f"services-{version}", Element(key, bytes(4) + shape.number)
    if shape.affinity_timeout_s is None:
        for place, target in enumerate(frontend.targets):
            yield f"endpoints-{version}", Element(key + host32(place), target)
    else:
        for place, target in enumerate(frontend.targets):
            yield f"sticky-{version}", Element(key + host32(place), bytes(4) + target)
        for target in frontend.targets[shape.offset :]:
            yield f"serving-{version}", Element(target + key)
        for target in frontend.targets[: shape.local or 0]:
            yield f"serving-here-{version}", Element(target + key)
    if frontend.sources is not None:
        yield f"guarded-{version}", Element(key)
        for block in frontend.sources:
            first, last = block.network_address.packed, block.broadcast_address.packed
            yield f"sources-{version}", Element(key + first, last=key + last)


def _empty_sets() -> Iterator[Set]:
    for version, net in FAMILIES.items():
        frontend = (net.address, KeyType.INET_PROTO, KeyType.INET_SERVICE)
        target = (net.address, KeyType.INET_SERVICE)
        yield Set(f"services-{version}", frontend, (KeyType.MARK, *SHAPE))
        yield Set(f"endpoints-{version}", (*frontend, KeyType.MARK), target, counted=True)
        yield Set(f"sticky-{version}", (*frontend, KeyType.MARK), (KeyType.MARK, *target), counted=True)
        yield Set(f"serving-{version}", (*target, *frontend), counted=True)
        yield Set(f"serving-here-{version}", (*target, *frontend), counted=True)
        yield Set(f"guarded-{version}", frontend)
        yield Set(f"sources-{version}", (*frontend, net.address), intervals=True)
        yield Set(f"cluster-ips-{version}", (net.address,))


def _service_cidrs(cidrs: tuple[IPNetwork, ...]) -> Iterator[Set]:
    for version, net in FAMILIES.items():
        blocks = [cidr for cidr in cidrs if cidr.version == version]
        yield Set(
            f"service-cidrs-{version}",
            (net.address,),
            intervals=True,
            elements=frozenset(merge_blocks(blocks)),
        )
