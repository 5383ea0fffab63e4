"""The socket through which one network namespace is read and changed."""

import errno
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, TypeVar

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.address import decode_address, encode_address_filter
from poplin.dataplane.netlink.channel import BATCH_MESSAGES, Channel, kernel_error, open_socket
from poplin.dataplane.netlink.frame import Answer, NameOf
from poplin.dataplane.netlink.link import (
    ALL_LINKS,
    decode_link,
    encode_link,
    encode_link_group,
    encode_link_name,
    encode_link_query,
    encode_new_link,
    encode_new_link_rest,
    encode_new_veth,
    encode_no_link_local,
    encode_rename,
)
from poplin.dataplane.netlink.link_names import LinkNames
from poplin.dataplane.netlink.neighbour import (
    decode_neighbour,
    encode_neighbour_filter,
    encode_neighbour_key,
    is_permanent,
)
from poplin.dataplane.netlink.request import GONE, Request, describe, encode_operation, object_of
from poplin.dataplane.netlink.route import decode_route, encode_route_filter, encode_route_query
from poplin.dataplane.netlink.shaping import (
    ALL_QDISCS,
    decode_redirect,
    decode_token_bucket,
    encode_filter_key,
    encode_filter_query,
    encode_ingress,
    encode_redirect,
)
from poplin.model.errors import KernelError
from poplin.model.kernel import (
    Address,
    FdbEntry,
    IPAddress,
    Link,
    Neighbour,
    Redirect,
    Route,
    TokenBucket,
    Veth,
)
from poplin.plan.operation import Change, Operation, Put, Remove

T = TypeVar("T")

_SO_NETNS_COOKIE: Final = 71
"""asm-generic/socket.h."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An operation that the kernel refused; the operations after it went on."""

    operation: Operation
    error: KernelError


class RouteSocket(AbstractContextManager["RouteSocket"]):
    """Reads and changes the network namespace in which the thread was when it was made.

    Blocking, for one thread at a time: microseconds for each object, but deleting a link takes the kernel
    about 20 ms, so an event loop calls `apply` in a thread. `names` is asked anew in every call.
    """

    def __init__(self) -> None:
        self._channel = Channel(open_socket())
        self.names = LinkNames(self._channel.socket)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()

    @property
    def port(self) -> int:
        """The number by which notifications name this socket as the cause of a change."""
        port: int = self._channel.socket.getsockname()[0]
        return port

    @property
    def netns_cookie(self) -> int:
        """The number of the socket's namespace, which no other one gets until the next boot (Linux 5.14); else 0."""
        try:
            cookie = self._channel.socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError as error:
            if error.errno == errno.ENOPROTOOPT:
                return 0
            raise
        return int.from_bytes(cookie, sys.byteorder)

    def links(self) -> list[Link]:
        """All links."""
        return self._dump(uapi.RTM_GETLINK, ALL_LINKS, decode_link, "links")

    def link(self, name: str) -> Link | None:
        """One link, None where there is none of this name."""
        self.names.forget()
        answer = self._channel.ask(uapi.RTM_GETLINK, encode_link_query(name))
        if not isinstance(answer, Answer):
            return decode_link(answer.body, self.names.name_of)
        if answer.errno == errno.ENODEV:
            return None
        raise kernel_error(answer, where=f"link {name}")

    def addresses(self, *, link: str = "") -> list[Address]:
        """Addresses of both families, of one link or of all. Raises KernelError (ENODEV) for an unknown link."""
        self.names.forget()
        body = encode_address_filter(self.names.index_of(link) if link else 0)
        return self._dump(uapi.RTM_GETADDR, body, decode_address, "addresses")

    def routes(self, *, protocol: int = 0, table: int = 0, link: str = "") -> list[Route]:
        """Routes of both families, of one protocol, table and link, or of any; the kernel does the choosing."""
        bodies = self.route_bodies(protocol=protocol, table=table, link=link)
        routes = (decode_route(body, self.names.name_of) for body in bodies)
        return [route for route in routes if route is not None]

    def route_bodies(self, *, protocol: int = 0, table: int = 0, link: str = "") -> list[bytes]:
        """The same, not decoded (`RouteReader`)."""
        self.names.forget()
        index = self.names.index_of(link) if link else 0
        bodies = []
        for version in (4, 6):
            filter_ = encode_route_filter(version, protocol=protocol, table=table, index=index)
            try:
                bodies += self._channel.dump(uapi.RTM_GETROUTE, filter_, where=f"IPv{version} routes")
            except KernelError as error:
                # A table exists from its first route on.
                if not (table and error.errno == errno.ENOENT):
                    raise
        return bodies

    def route_to(
        self, destination: IPAddress, *, source: IPAddress | None = None, incoming: str = ""
    ) -> Route:
        """The route that a packet takes which is sent here or, given `incoming`, comes in from that link.

        As `ip route get fibmatch`. Raises KernelError: ENETUNREACH without a route, EHOSTUNREACH for an
        unreachable one, EXDEV or EINVAL where the packet would not be let in.
        """
        self.names.forget()
        index = self.names.index_of(incoming) if incoming else 0
        answer = self._channel.ask(uapi.RTM_GETROUTE, encode_route_query(destination, source, index))
        where = f"route to {destination}"
        if isinstance(answer, Answer):
            raise kernel_error(answer, where=where)
        route = decode_route(answer.body, self.names.name_of)
        if route is None:
            raise KernelError("a route of an unknown kind", errno=errno.EOPNOTSUPP, where=where)
        return route

    def neighbours(self, *, link: str = "") -> list[Neighbour]:
        """Permanent neighbours of both families, of one link or of all."""
        return [entry for entry in self._neighbours(uapi.AF_UNSPEC, link) if isinstance(entry, Neighbour)]

    def fdb(self, link: str) -> list[FdbEntry]:
        """Permanent forwarding entries of a vxlan device."""
        return [entry for entry in self._neighbours(uapi.AF_BRIDGE, link) if isinstance(entry, FdbEntry)]

    def _neighbours(self, family_: int, link: str) -> list[Neighbour | FdbEntry]:
        self.names.forget()
        body = encode_neighbour_filter(family_, self.names.index_of(link) if link else 0)
        bodies = self._channel.dump(uapi.RTM_GETNEIGH, body, where="neighbours")
        entries = (decode_neighbour(body, self.names.name_of) for body in bodies if is_permanent(body))
        return [entry for entry in entries if entry is not None]

    def token_buckets(self) -> list[TokenBucket]:
        """Our root queueing disciplines, of all links."""
        return self._dump(uapi.RTM_GETQDISC, ALL_QDISCS, decode_token_bucket, "queueing disciplines")

    def redirects(self, link: str) -> list[Redirect]:
        """Our filters of one link's incoming packets; none where there is no such link."""
        self.names.forget()
        try:
            query = encode_filter_query(self.names.index_of(link))
        except KernelError as error:
            if error.errno == errno.ENODEV:
                return []
            raise
        return self._dump(uapi.RTM_GETTFILTER, query, decode_redirect, f"filters of {link}")

    def _dump(
        self, kind: int, body: bytes, decode: Callable[[bytes, NameOf], T | None], where: str
    ) -> list[T]:
        self.names.forget()
        values = (decode(found, self.names.name_of) for found in self._channel.dump(kind, body, where=where))
        return [value for value in values if value is not None]

    def apply(self, operations: Iterable[Operation]) -> list[Failure]:
        """Do the operations in order and return those that failed, in order.

        A link made earlier in the list can be named later. `Put` of a link with `replace` deletes the one
        that stands; a link that cannot be made as a whole is not left behind. `Put` of a neighbour takes
        the place of one that the kernel learned, for that one is nobody's.
        """
        failures: list[Failure] = []
        pending: list[tuple[Operation, Request]] = []
        self.names.forget()
        for operation in operations:
            try:
                request = encode_operation(operation, self.names.index_of)
            except KernelError as error:
                failures += self._flush(pending)
                failures += _failed(operation, _about(operation, error))
                continue
            if request is None:
                failures += self._flush(pending)
                failures += self._apply_alone(operation)
                continue
            pending.append((operation, request))
            if len(pending) == BATCH_MESSAGES:
                failures += self._flush(pending)
        return failures + self._flush(pending)

    def rename(self, name: str, new_name: str) -> None:
        """Give a link another name. Raises KernelError."""
        self.names.forget()
        body = encode_rename(self.names.index_of(name), new_name)
        self._do(uapi.RTM_SETLINK, body, where=f"link {name} -> {new_name}")

    def delete_group(self, group: int) -> None:
        """Delete all links of a group (IFLA_GROUP) at the price of one. Group 0 is refused with EPERM."""
        where = f"links of group {group}"
        try:
            self._do(uapi.RTM_DELLINK, encode_link_group(group), where=where)
        except KernelError as error:
            if error.errno not in GONE:
                raise

    def _flush(self, pending: list[tuple[Operation, Request]]) -> list[Failure]:
        failures = []
        for position, first in self._channel.transact([request for _, request in pending]).items():
            operation, request = pending[position]
            answer = self._retry(operation, request, first)
            if answer is not None:
                failures += _failed(operation, kernel_error(answer, where=describe(object_of(operation))))
        pending.clear()
        return failures

    def _retry(self, operation: Operation, request: Request, answer: Answer) -> Answer | None:
        """The second try of a neighbour that met one which the kernel learned; else the failure as it is."""
        match operation:
            case Put(Neighbour() as neighbour, False) if answer.errno == errno.EEXIST:
                key = encode_neighbour_key(neighbour.address, self.names.index_of(neighbour.link))
                standing = self._channel.ask(uapi.RTM_GETNEIGH, key)
                if not isinstance(standing, Answer) and is_permanent(standing.body):
                    return answer
                flags = uapi.NLM_F_CREATE | uapi.NLM_F_REPLACE
                return self._channel.transact([Request(request.kind, flags, request.body)]).get(0)
        return answer

    def _apply_alone(self, operation: Operation) -> list[Failure]:
        where = describe(object_of(operation))
        try:
            match operation:
                case Put(Link() as link, replace):
                    body = encode_new_link(link, self.names.index_of)
                    self._make(link, body, replace=replace, where=where)
                case Put(Veth() as veth, replace):
                    self._make(veth.host, encode_new_veth(veth), replace=replace, where=where)
                case Change(link):
                    self._do(uapi.RTM_SETLINK, encode_link(link, self.names.index_of), where=where)
                case Remove(Link() as link) | Remove(Veth(host=link)):
                    self._do(uapi.RTM_DELLINK, encode_link_name(link.name), where=where)
                case Put(Redirect() as redirect):
                    self._lead(redirect, where=where)
                case Remove(Redirect() as redirect):
                    body = encode_filter_key(redirect.link, self.names.index_of)
                    self._do(uapi.RTM_DELTFILTER, body, where=where)
        except KernelError as error:
            return _failed(operation, _about(operation, error))
        finally:
            self.names.forget()
        return []

    def _make(self, link: Link, body: bytes, *, replace: bool, where: str) -> None:
        """Make the link, then say what a new link is refused; what is half made goes again."""
        delete = Request(uapi.RTM_DELLINK, 0, encode_link_name(link.name))
        rest = (
            Request(uapi.RTM_SETLINK, 0, encode_no_link_local(link.name)),
            Request(uapi.RTM_SETLINK, 0, encode_new_link_rest(link, self.names.index_of)),
        )
        flags = uapi.NLM_F_CREATE | uapi.NLM_F_EXCL
        try:
            self._do(uapi.RTM_NEWLINK, body, where=where, flags=flags)
        except KernelError as error:
            if not (replace and error.errno == errno.EEXIST):
                raise
            self._channel.transact([delete])
            self._do(uapi.RTM_NEWLINK, body, where=where, flags=flags)
        failed = self._channel.transact(rest)
        # EAFNOSUPPORT to the first: the kernel has no IPv6, or not on a link of so small an MTU.
        for position, answer in failed.items():
            if position > 0 or answer.errno != errno.EAFNOSUPPORT:
                self._channel.transact([delete])
                raise kernel_error(answer, where=where)

    def _lead(self, redirect: Redirect, *, where: str) -> None:
        """Make the filter in place of any of ours: the kernel would only add another to what stands."""
        index_of = self.names.index_of
        key = encode_filter_key(redirect.link, index_of)
        requests = (
            Request(uapi.RTM_NEWQDISC, uapi.NLM_F_CREATE, encode_ingress(redirect.link, index_of)),
            Request(uapi.RTM_DELTFILTER, 0, key),
            Request(
                uapi.RTM_NEWTFILTER, uapi.NLM_F_CREATE | uapi.NLM_F_EXCL, encode_redirect(redirect, index_of)
            ),
        )
        for position, answer in self._channel.transact(requests).items():
            if position != 1 or answer.errno not in GONE:
                raise kernel_error(answer, where=where)

    def _do(self, kind: int, body: bytes, *, where: str, flags: int = 0) -> None:
        for answer in self._channel.transact([Request(kind, flags, body)]).values():
            raise kernel_error(answer, where=where)


def _about(operation: Operation, error: KernelError) -> KernelError:
    """The error with the operation's object as its place: a link's name was asked for on its behalf."""
    where = describe(object_of(operation))
    return KernelError(error.what, errno=error.errno, where=where, remedy=error.remedy)


def _failed(operation: Operation, error: KernelError) -> list[Failure]:
    match operation:
        case Remove() if error.errno in GONE:
            return []
        case Remove(TokenBucket()) if error.errno == errno.EINVAL:
            # Every link has a root queueing discipline: ours is gone, and this one has another handle.
            return []
    return [Failure(operation, error)]
