"""Fold operations that the kernel has accepted into the state they were planned from.

So an agent keeps what it knows of a namespace current without reading it again after each change. What the
kernel does beyond the operations (connected routes, link-local addresses, the index of a new link) is not
in the result: its notifications tell.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar, cast

from poplin.model.kernel import Address, FdbEntry, Link, Neighbour, Redirect, Route, TokenBucket, Veth
from poplin.model.state import NetworkState
from poplin.plan.key import address_key, fdb_key, neighbour_key, route_key, shaping_key
from poplin.plan.operation import Change, Operation, Put, Remove

T = TypeVar("T", Address, Route, Neighbour, FdbEntry, TokenBucket | Redirect)


def fold(state: NetworkState, operations: Iterable[Operation]) -> NetworkState:
    """Give the state after the operations, all of which succeeded.

    A replacing Put takes the place of everything that stands under its key; removing a link, or making it
    anew, takes what is on it along. Costs what the operations and a copy of the sets do, and one pass over
    the objects of a kind where a link was removed, or one was replaced by a Put that does not say `over` what.
    """
    links = dict(state.links)
    addresses = _Objects(state.addresses, address_key)
    routes = _Objects(state.routes, route_key)
    neighbours = _Objects(state.neighbours, neighbour_key)
    fdb = _Objects(state.fdb, fdb_key)
    shaping = _Objects(state.shaping, shaping_key)
    removed_links: dict[str, int] = {}

    for position, operation in enumerate(operations):
        match operation:
            case Change(link):
                _change(links, link)
            case Put(Veth(host=link)) | Put(Link() as link):
                links[link.name] = link
            case Remove(Veth(host=link)) | Remove(Link() as link):
                links.pop(link.name, None)
                removed_links[link.name] = position
            case Put(Address() as address):
                addresses.put(address, position, operation)
            case Put(Route() as route):
                routes.put(route, position, operation)
            case Put(Neighbour() as neighbour):
                neighbours.put(neighbour, position, operation)
            case Put(FdbEntry() as entry):
                fdb.put(entry, position, operation)
            case Put(TokenBucket() | Redirect() as shaper):
                shaping.put(shaper, position, operation)
            case Remove(Address() as address):
                addresses.remove(address)
            case Remove(Route() as route):
                routes.remove(route)
            case Remove(Neighbour() as neighbour):
                neighbours.remove(neighbour)
            case Remove(FdbEntry() as entry):
                fdb.remove(entry)
            case Remove(TokenBucket() | Redirect() as shaper):
                shaping.remove(shaper)

    return NetworkState(
        links,
        addresses.after(removed_links),
        routes.after(removed_links),
        neighbours.after(removed_links),
        fdb.after(removed_links),
        state.sysctls,
        shaping.after(removed_links),
    )


def _change(links: dict[str, Link], wanted: Link) -> None:
    """Give the standing link the attributes wanted, and leave what the kernel alone decides."""
    standing = links.get(wanted.name)
    if standing is None:
        return
    links[wanted.name] = Link(
        wanted.name,
        kind=standing.kind,
        mac=wanted.mac or standing.mac,
        mtu_bytes=wanted.mtu_bytes or standing.mtu_bytes,
        up=wanted.up,
        group=wanted.group,
        alias=wanted.alias or standing.alias,
        vxlan=standing.vxlan,
        index=standing.index,
        parent=standing.parent,
        carrier=standing.carrier,
    )


class _Objects(Generic[T]):
    """The objects of one kind. A position is an operation's place in the list: the later one decides."""

    __slots__ = ("_base", "_key", "_put", "_removed", "_replaced", "_searched")

    def __init__(self, base: frozenset[T], key: Callable[[T], Hashable]) -> None:
        self._base: frozenset[T] = base
        self._key: Callable[[T], Hashable] = key
        self._put: dict[T, int] = {}
        self._removed: set[T] = set()
        self._replaced: dict[Hashable, int] = {}
        self._searched = False

    def put(self, what: T, position: int, how: Put) -> None:
        self._put[what] = position
        if not how.replace:
            return
        self._replaced[self._key(what)] = position
        if how.over is None:
            self._searched = True
        else:
            self._removed.update(cast("tuple[T, ...]", how.over))

    def remove(self, what: T) -> None:
        self._put.pop(what, None)
        self._removed.add(what)

    def after(self, removed_links: dict[str, int]) -> frozenset[T]:
        """Give what stands at the end; `removed_links` has the position of each link's last removal."""
        key, replaced = self._key, self._replaced
        stays: frozenset[T] = self._base - self._removed if self._removed else self._base
        # What goes is gathered and taken off: a set made anew would hash every object that stays.
        if self._searched:
            stays -= {o for o in stays if key(o) in replaced}
        if removed_links:
            stays -= {o for o in stays if o.link in removed_links}
        put = (
            o
            for o, position in self._put.items()
            if position > removed_links.get(o.link, -1) and position >= replaced.get(key(o), -1)
        )
        return stays.union(put) if self._put else stays
