"""What the kernel tells objects of a namespace apart by: two of one key cannot both stand."""

from ipaddress import IPv4Interface

from poplin.model.kernel import (
    Address,
    FdbEntry,
    IPAddress,
    IPInterface,
    IPNetwork,
    Neighbour,
    Route,
    Shaping,
)


def address_key(address: Address) -> tuple[str, IPInterface | IPAddress]:
    """A link holds an IPv6 address once, whatever its prefix; an IPv4 address once for each prefix."""
    interface = address.interface
    return address.link, interface if isinstance(interface, IPv4Interface) else interface.ip


def route_key(route: Route) -> tuple[IPNetwork, int, int]:
    """A table holds a destination once for each metric."""
    return route.destination, route.table, route.metric


def neighbour_key(neighbour: Neighbour) -> tuple[str, IPAddress]:
    """A link has one entry for each address."""
    return neighbour.link, neighbour.address


def fdb_key(entry: FdbEntry) -> tuple[str, str]:
    """A unicast MAC has one place on a link."""
    return entry.link, entry.mac


def shaping_key(shaping: Shaping) -> tuple[str, type[Shaping]]:
    """A link has one root queueing discipline, and its packets go one way when they come in."""
    return shaping.link, type(shaping)
