"""Which interface carries a family's traffic between nodes: the node's addresses -> an underlay each."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from poplin.model.kernel import Address, IPAddress, Link, Scope


@dataclass(frozen=True, slots=True)
class Underlay:
    """The interface that carries a family's traffic between nodes, and the node's addresses on it.

    `accepts_ra` says that the node gets its IPv6 default route from router advertisements.
    """

    link: str
    mtu_bytes: int
    address: IPAddress
    on_link: Sequence[Address] = ()
    accepts_ra: bool = False

    def reaches_directly(self, address: IPAddress) -> bool:
        """Tell whether the address lies in one of the interface's own networks."""
        return any(address in a.interface.network for a in self.on_link)


def find_underlays(
    links: Mapping[str, Link],
    addresses: Iterable[Address],
    wanted: Sequence[IPAddress],
    *,
    interface: str = "",
    accepting_ra: Collection[str] = (),
) -> tuple[Underlay, ...]:
    """Give at most one underlay for each family, IPv4 first.

    For each family it is the interface that holds the first of `wanted` (the node's own addresses as
    Kubernetes or the operator gives them) that any interface holds. With `interface` only that one counts,
    and its first global address of the family serves where none of `wanted` is on it. `accepting_ra` are
    the links whose accept_ra is on.
    """
    held: dict[IPAddress, Address] = {}
    for address in addresses:
        if address.scope == Scope.UNIVERSE and interface in ("", address.link):
            held.setdefault(address.interface.ip, address)
    underlays = []
    for version in (4, 6):
        candidates = [held[a] for a in wanted if a.version == version and a in held]
        if interface and not candidates:
            candidates = [a for ip, a in held.items() if ip.version == version]
        if not candidates or candidates[0].link not in links:
            continue
        chosen = candidates[0]
        underlays.append(
            Underlay(
                chosen.link,
                links[chosen.link].mtu_bytes,
                chosen.interface.ip,
                tuple(a for a in held.values() if a.link == chosen.link and a.interface.version == version),
                accepts_ra=version == 6 and chosen.link in accepting_ra,
            )
        )
    return tuple(underlays)
