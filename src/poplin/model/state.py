"""The kernel objects of one network namespace, desired or as they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from poplin.model.kernel import Address, FdbEntry, Link, Neighbour, Route


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

    def __or__(self, other: "NetworkState") -> "NetworkState":
        """Unite two states that name different objects."""
        return NetworkState(
            {**self.links, **other.links},
            self.addresses | other.addresses,
            self.routes | other.routes,
            self.neighbours | other.neighbours,
            self.fdb | other.fdb,
            {**self.sysctls, **other.sysctls},
        )
