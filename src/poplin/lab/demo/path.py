"""Which way a packet goes, as the kernel of the pod's own node answers it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.lab.demo.member import Member
from poplin.lab.directory import Directory
from poplin.lab.fabric import inside
from poplin.model.errors import KernelError
from poplin.model.kernel import POD_LINK_GROUP, IPAddress, Link, Route


class Way(StrEnum):
    """How a packet leaves its node. SAME_NODE: it does not. NONE: the kernel has no route."""

    SAME_NODE = "same node"
    VXLAN = "vxlan"
    DIRECT = "direct"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Path:
    """The way from a pod to an address: `route` is the one the kernel takes, None without any (`reason`)."""

    way: Way
    route: Route | None = None
    reason: str = ""


Key = tuple[str, IPAddress]
"""A source pod's uid and a destination address."""


def find_paths(directory: Directory, members: Iterable[Member]) -> dict[Key, Path]:
    """The path from each pod to each address of every other, each asked for on the source's node."""
    everyone = list(members)
    paths: dict[Key, Path] = {}
    for node in sorted({member.node for member in everyone}):
        with inside(directory.node_namespace(node)) as (_, routes):
            links = {link.name: link for link in routes.links()}
            for source in everyone:
                if source.node == node:
                    paths.update(_find_paths_from(routes, links, source, everyone))
    return paths


def _find_paths_from(
    routes: RouteSocket, links: dict[str, Link], source: Member, everyone: Iterable[Member]
) -> Iterable[tuple[Key, Path]]:
    for own in source.addresses:
        # The route back to the pod names its own link.
        incoming = routes.route_to(own).link
        for other in everyone:
            for address in other.addresses:
                if other is not source and address.version == own.version:
                    yield (source.uid, address), _find_path(routes, links, own, incoming, address)


def _find_path(
    routes: RouteSocket, links: dict[str, Link], source: IPAddress, incoming: str, destination: IPAddress
) -> Path:
    try:
        route = routes.route_to(destination, source=source, incoming=incoming)
    except KernelError as error:
        return Path(Way.NONE, reason=error.what)
    link = links.get(route.link)
    if link is not None and link.group == POD_LINK_GROUP:
        return Path(Way.SAME_NODE, route)
    if link is not None and link.kind == "vxlan":
        return Path(Way.VXLAN, route)
    return Path(Way.DIRECT, route)
