"""Plan the kernel objects of one network namespace: make before break, and touch only what is ours.

Order: links, addresses, neighbours and forwarding entries, shaping, routes; then what is no longer wanted, in the
opposite order.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Final, TypeVar

from poplin.model.kernel import (
    POD_LINK_GROUP,
    PROTOCOL,
    Address,
    FdbEntry,
    Link,
    Neighbour,
    Redirect,
    Route,
    TokenBucket,
)
from poplin.model.state import NetworkState
from poplin.plan.key import address_key, fdb_key, neighbour_key, route_key, shaping_key
from poplin.plan.operation import Change, Operation, Put, Remove

ALIAS_PREFIX: Final = "poplin: "
"""What the alias of every link of ours begins with."""

KERNEL_ADDRESS_PROTOCOLS: Final = frozenset({1, 2, 3})
"""IFAPROT_KERNEL_LO, _RA and _LL (linux/if_addr.h): addresses that the kernel made by itself."""

KERNEL_ROUTE_PROTOCOLS: Final = frozenset({1, 2, 9})
"""RTPROT_REDIRECT, _KERNEL and _RA (linux/rtnetlink.h): routes that the kernel made by itself."""

T = TypeVar("T", Address, Route, Neighbour, FdbEntry, TokenBucket | Redirect)


def plan_network(
    desired: NetworkState, actual: NetworkState, *, claimed: Collection[str] = ()
) -> list[Operation]:
    """Give the operations that bring one namespace from `actual` to `desired`, none where they agree.

    Ours is what carries our protocol number, and all that stands on an overlay device of ours; other
    objects are never removed or replaced. `claimed` are links that another part of ours is making or
    unmaking just now: they and what is on them stay as they are. Sysctls are not planned: writing one
    twice does no harm.
    """
    surplus_links = {
        name: link
        for name, link in actual.links.items()
        if is_ours(link) and name not in desired.links and name not in claimed
    }
    renewed = {
        name
        for name, link in desired.links.items()
        if name in actual.links and name not in claimed and _differs_for_good(link, actual.links[name])
    }
    exclusive = {name for name, link in desired.links.items() if link.kind == "vxlan"}
    puts: list[Operation] = []
    removes: list[Operation] = []

    def add(
        wanted: frozenset[T],
        standing: frozenset[T],
        key: Callable[[T], Hashable],
        is_ours: Callable[[T], bool],
        *,
        replace: bool = False,
    ) -> None:
        missing, extra = wanted - standing, standing - wanted
        if renewed:
            missing |= frozenset(o for o in wanted if o.link in renewed)
            extra = frozenset(o for o in extra if o.link not in renewed)
        held = {key(o) for o in extra if o.link in claimed}
        surplus = {key(o): o for o in extra if o.link not in claimed and is_ours(o)}
        under: defaultdict[Hashable, tuple[T, ...]] = defaultdict(tuple)
        for o in extra if missing else ():
            under[key(o)] += (o,)
        for one in missing:
            if one.link in claimed or key(one) in held:
                continue
            old = surplus.pop(key(one), None)
            if old is not None and _goes_first(old, one):
                puts.append(Remove(old))
                old = None
            puts.append(Put(one, replace=old is not None or replace, over=under[key(one)]))
        removes[:0] = [Remove(o) for o in surplus.values() if o.link not in surplus_links]

    def on_exclusive(o: Address | Route, kernel_protocols: frozenset[int]) -> bool:
        return o.link in exclusive and o.protocol not in kernel_protocols

    add(
        desired.addresses,
        actual.addresses,
        address_key,
        lambda a: a.protocol == PROTOCOL or on_exclusive(a, KERNEL_ADDRESS_PROTOCOLS),
    )
    # A link of ours may hold an entry that the kernel learned: ours takes its place.
    add(
        desired.neighbours,
        actual.neighbours,
        neighbour_key,
        lambda n: n.protocol == PROTOCOL or n.link in exclusive,
        replace=True,
    )
    add(
        desired.fdb,
        actual.fdb,
        fdb_key,
        lambda f: f.link in exclusive,
        replace=True,
    )
    # Whatever else shapes a link of ours gives way, and only what is ours is ever read.
    add(
        desired.shaping,
        actual.shaping,
        shaping_key,
        lambda _: True,
        replace=True,
    )
    add(
        desired.routes,
        actual.routes,
        route_key,
        lambda r: r.protocol == PROTOCOL or on_exclusive(r, KERNEL_ROUTE_PROTOCOLS),
    )
    return [
        *_plan_links(desired, actual, renewed, claimed),
        *puts,
        *removes,
        *(Remove(link) for link in surplus_links.values()),
    ]


def is_ours(link: Link) -> bool:
    """Tell whether an agent without memory may take this link for its own."""
    return link.alias.startswith(ALIAS_PREFIX) or (link.kind == "veth" and link.group == POD_LINK_GROUP)


def find_strangers(desired: NetworkState, actual: NetworkState) -> list[Link]:
    """Give the links of others that stand under a name of ours.

    A link of another kind is nobody's leftover of ours. One of the same kind, such as flanneld's device, is
    taken over.
    """
    return [
        actual.links[name]
        for name, link in desired.links.items()
        if name in actual.links and link.kind != actual.links[name].kind and not is_ours(actual.links[name])
    ]


def _plan_links(
    desired: NetworkState, actual: NetworkState, renewed: set[str], claimed: Collection[str]
) -> Iterator[Operation]:
    for name, link in desired.links.items():
        if name in claimed:
            continue
        standing = actual.links.get(name)
        if standing is None or name in renewed:
            if standing is not None:
                yield Remove(standing)
            yield Put(link)
        elif (
            (link.mac and link.mac != standing.mac)
            or (link.mtu_bytes and link.mtu_bytes != standing.mtu_bytes)
            or (link.alias and link.alias != standing.alias)
            or link.group != standing.group
            or link.up != standing.up
        ):
            yield Change(link)


def _goes_first(old: T, new: T) -> bool:
    """Tell whether the kernel does not put `new` in the place of `old` as it should.

    An address keeps its scope, and an IPv6 one its prefix. Of an IPv6 route the gateway is looked up first,
    and `old` may not be what leads there, by another link (net/ipv6/route.c, ip6_route_check_nh_onlink).
    """
    if isinstance(old, Route) and isinstance(new, Route) and new.gateway is not None:
        return old.destination.version == 6 and old.link != new.link and new.gateway in old.destination
    return isinstance(old, Address)


def _differs_for_good(desired: Link, standing: Link) -> bool:
    """Tell whether the standing link cannot be changed into the desired one."""
    return desired.kind != standing.kind or desired.vxlan != standing.vxlan
