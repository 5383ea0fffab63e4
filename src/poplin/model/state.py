"""The kernel objects of one network namespace, desired or as they are."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from poplin.model.kernel import Address, FdbEntry, Link, Neighbour, Route, Shaping

T = TypeVar("T", Route, Neighbour, FdbEntry)


@dataclass(frozen=True, slots=True)
class NetworkState:
    """Links by name and the objects on them, and sysctls by their path under /proc/sys.

    In a desired state a link stands for all it should have; in one read from the kernel `links` has every
    link of the namespace, ours or not, and the other sets what is on them. No order is meant.
    """

    links: Mapping[str, Link] = field(default_factory=dict)
    addresses: frozenset[Address] = frozenset()
    routes: frozenset[Route] = frozenset()
    neighbours: frozenset[Neighbour] = frozenset()
    fdb: frozenset[FdbEntry] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    shaping: frozenset[Shaping] = frozenset()

    def of_links(self, names: Collection[str]) -> "NetworkState":
        """Give these links and what is on them; sysctls are of the whole namespace and stay behind."""
        return NetworkState(
            {name: link for name, link in self.links.items() if name in names},
            frozenset(a for a in self.addresses if a.link in names),
            frozenset(r for r in self.routes if r.link in names),
            frozenset(n for n in self.neighbours if n.link in names),
            frozenset(f for f in self.fdb if f.link in names),
            shaping=frozenset(s for s in self.shaping if s.link in names),
        )


def unite(states: Sequence[NetworkState]) -> NetworkState:
    """Give all objects of states that name different ones."""
    return NetworkState(
        {name: link for state in states for name, link in state.links.items()},
        frozenset[Address]().union(*(state.addresses for state in states)),
        frozenset[Route]().union(*(state.routes for state in states)),
        frozenset[Neighbour]().union(*(state.neighbours for state in states)),
        frozenset[FdbEntry]().union(*(state.fdb for state in states)),
        {key: value for state in states for key, value in state.sysctls.items()},
        frozenset[Shaping]().union(*(state.shaping for state in states)),
    )


def share(state: NetworkState, other: NetworkState) -> NetworkState:
    """Give `state` with the very routes, neighbours and FDB entries of `other` in place of those that equal them.

    To compare the two is from then on a comparison of pointers, and memory holds such objects once. Addresses
    stay: equal ones may differ in who made them.
    """
    return replace(
        state,
        routes=_shared(state.routes, other.routes),
        neighbours=_shared(state.neighbours, other.neighbours),
        fdb=_shared(state.fdb, other.fdb),
    )


def _shared(objects: frozenset[T], others: frozenset[T]) -> frozenset[T]:
    # The elements of a difference are those of its left side.
    common = others - (others - objects)
    return common | (objects - common)
