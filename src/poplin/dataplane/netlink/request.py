"""Operations on addresses, routes, neighbours and forwarding entries -> one request each; and in words. Pure.

Links and redirects take more than one message each and are made by RouteSocket, message by message.
"""

import errno
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.address import encode_address
from poplin.dataplane.netlink.frame import IndexOf
from poplin.dataplane.netlink.neighbour import encode_fdb_entry, encode_neighbour
from poplin.dataplane.netlink.route import encode_route
from poplin.dataplane.netlink.shaping import encode_token_bucket
from poplin.model.kernel import (
    MAIN_TABLE,
    Address,
    FdbEntry,
    Link,
    Neighbour,
    Redirect,
    Route,
    RouteKind,
    TokenBucket,
    Veth,
)
from poplin.plan.operation import Change, KernelObject, Operation, Put

GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})
"""What the kernel answers to the removal of a link, neighbour, route or address that is not there."""

_ENCODERS: Final[dict[type, tuple[int, Callable[[Any, IndexOf], bytes]]]] = {
    Route: (uapi.RTM_NEWROUTE, encode_route),
    Address: (uapi.RTM_NEWADDR, encode_address),
    Neighbour: (uapi.RTM_NEWNEIGH, encode_neighbour),
    FdbEntry: (uapi.RTM_NEWNEIGH, encode_fdb_entry),
    TokenBucket: (uapi.RTM_NEWQDISC, encode_token_bucket),
}


class Request(NamedTuple):
    """A message still without sequence number. A tuple, since 64k routes make 64k of them at once."""

    kind: int
    flags: int
    body: bytes


def encode_operation(operation: Operation, index_of: IndexOf) -> Request | None:
    """The request of an operation, None where it takes more than one.

    Without `replace` the kernel answers EEXIST to a taken key; a route is removed only where its protocol is
    the same. Raises what `index_of` raises.
    """
    what = object_of(operation)
    encoder = _ENCODERS.get(type(what))
    if encoder is None:
        return None
    kind, encode = encoder
    if isinstance(operation, Put):
        flags = uapi.NLM_F_CREATE | (uapi.NLM_F_REPLACE if operation.replace else uapi.NLM_F_EXCL)
        return Request(kind, flags, encode(what, index_of))
    # RTM_DEL* is RTM_NEW* + 1 for every kind of object (linux/rtnetlink.h).
    return Request(kind + 1, 0, encode(what, index_of))


def object_of(operation: Operation) -> KernelObject:
    """What the operation is about."""
    return operation.link if isinstance(operation, Change) else operation.what


def describe(what: KernelObject) -> str:
    """The object in words, near to what `ip` and `bridge` print."""
    match what:
        case Link():
            return f"link {what.name}" + (f" type {what.kind}" if what.kind else "")
        case Veth():
            return f"veth {what.host.name} peer {what.peer.name}"
        case Address():
            return f"address {what.interface} dev {what.link}"
        case Route():
            return _describe_route(what)
        case Neighbour():
            return f"neighbour {what.address} lladdr {what.mac} dev {what.link}"
        case FdbEntry():
            return f"forwarding entry {what.mac} dst {what.destination} dev {what.link}"
        case TokenBucket():
            return f"qdisc tbf rate {8 * what.rate_bytes_s}bit dev {what.link}"
        case Redirect():
            return f"redirect of dev {what.link} to {what.to}"


def _describe_route(route: Route) -> str:
    kind = "" if route.kind is RouteKind.UNICAST else f"{route.kind.name.lower()} "
    return "".join(
        (
            f"{kind}route {route.destination}",
            f" via {route.gateway}" if route.gateway is not None else "",
            f" dev {route.link}" if route.link else "",
            f" metric {route.metric}" if route.metric else "",
            f" table {route.table}" if route.table != MAIN_TABLE else "",
        )
    )
