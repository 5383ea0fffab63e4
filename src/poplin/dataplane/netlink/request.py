"""Operations on addresses, routes, neighbours and forwarding entries -> one request each; and in words. Pure.

Links take more than one message each and are made by RouteSocket, message by message.
"""

import errno
from dataclasses import dataclass

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.address import encode_address
from poplin.dataplane.netlink.frame import IndexOf
from poplin.dataplane.netlink.neighbour import encode_fdb_entry, encode_neighbour
from poplin.dataplane.netlink.route import encode_route
from poplin.model.kernel import MAIN_TABLE, Address, FdbEntry, Link, Neighbour, Route, RouteKind, Veth
from poplin.plan.operation import Change, KernelObject, Operation, Put, Remove

GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})
"""What the kernel answers to the removal of a link, neighbour, route or address that is not there."""

_Content = Address | Route | Neighbour | FdbEntry

# RTM_DEL* is RTM_NEW* + 1 for every kind of object (linux/rtnetlink.h).
_NEW = 0
_DELETE = 1


@dataclass(frozen=True, slots=True)
class Request:
    """A message still without sequence number."""

    kind: int
    flags: int
    body: bytes


def encode_operation(operation: Operation, index_of: IndexOf) -> Request | None:
    """The request of an operation, None where it is one on a link.

    Without `replace` the kernel answers EEXIST to a taken key; a route is removed only where its protocol is
    the same. Raises what `index_of` raises.
    """
    match operation:
        case Put(Address() | Route() | Neighbour() | FdbEntry() as what, replace):
            flags = uapi.NLM_F_CREATE | (uapi.NLM_F_REPLACE if replace else uapi.NLM_F_EXCL)
            return _encode(what, index_of, flags, _NEW)
        case Remove(Address() | Route() | Neighbour() | FdbEntry() as what):
            return _encode(what, index_of, 0, _DELETE)
        case _:
            return None


def _encode(what: _Content, index_of: IndexOf, flags: int, step: int) -> Request:
    match what:
        case Route():
            return Request(uapi.RTM_NEWROUTE + step, flags, encode_route(what, index_of))
        case Address():
            return Request(uapi.RTM_NEWADDR + step, flags, encode_address(what, index_of))
        case Neighbour():
            return Request(uapi.RTM_NEWNEIGH + step, flags, encode_neighbour(what, index_of))
        case FdbEntry():
            return Request(uapi.RTM_NEWNEIGH + step, flags, encode_fdb_entry(what, index_of))


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
