"""What changes in a network namespace, and in those beside it, as typed events on an event loop."""

import asyncio
import errno
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.address import decode_address
from poplin.dataplane.netlink.attribute import MalformedMessageError, pack
from poplin.dataplane.netlink.channel import DATAGRAM_BYTES, open_socket
from poplin.dataplane.netlink.frame import Message, NameOf, decode_messages
from poplin.dataplane.netlink.link import decode_link
from poplin.dataplane.netlink.link_names import LinkNames
from poplin.dataplane.netlink.neighbour import decode_neighbour, is_permanent
from poplin.dataplane.netlink.netconf import decode_configured_link
from poplin.dataplane.netlink.route import decode_protocol, decode_route
from poplin.dataplane.netlink.shaping import decode_shaped_link
from poplin.model.kernel import PROTOCOL, Address, FdbEntry, Link, Neighbour, Route

_GROUPS: Final = (
    uapi.RTNLGRP_LINK,
    uapi.RTNLGRP_NEIGH,
    uapi.RTNLGRP_IPV4_IFADDR,
    uapi.RTNLGRP_IPV4_ROUTE,
    uapi.RTNLGRP_IPV6_IFADDR,
    uapi.RTNLGRP_IPV6_ROUTE,
    uapi.RTNLGRP_TC,
    uapi.RTNLGRP_IPV4_NETCONF,
    uapi.RTNLGRP_IPV6_NETCONF,
)

_DATAGRAMS_AT_ONCE: Final = 256
"""About a millisecond of the event loop; what is left over is read in the loop's next turn."""

_CONTROL_BYTES: Final = socket.CMSG_SPACE(4)

_EVENTS_HELD: Final = 4096
"""A reader so far behind does better to read everything."""


@dataclass(frozen=True, slots=True)
class Seen:
    """`what` was made or changed, and is now as it says."""

    what: Link | Address | Route | Neighbour | FdbEntry


@dataclass(frozen=True, slots=True)
class Gone:
    """`what` was removed."""

    what: Link | Address | Route | Neighbour | FdbEntry


@dataclass(frozen=True, slots=True)
class Reshaped:
    """Somebody changed a queueing discipline or a filter of `link`."""

    link: str


@dataclass(frozen=True, slots=True)
class Configured:
    """Somebody set a parameter of `link`, of "all" or "default": forwarding, rp_filter and the like."""

    link: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """`event` happened in another namespace, which the monitor's own knows as `nsid` (Link.parent_nsid).

    What is on a link there names it by its index, in decimal.
    """

    nsid: int
    event: Seen | Gone


@dataclass(frozen=True, slots=True)
class Overrun:
    """Changes were lost: only reading everything tells what is there now."""


Event = Seen | Gone | Reshaped | Configured | Elsewhere | Overrun
_Decoded = Link | Address | Route | Neighbour | FdbEntry | None

_DECODERS: Final[dict[int, Callable[[bytes, NameOf], _Decoded]]] = {
    uapi.RTM_NEWLINK: decode_link,
    uapi.RTM_DELLINK: decode_link,
    uapi.RTM_NEWADDR: decode_address,
    uapi.RTM_DELADDR: decode_address,
    uapi.RTM_NEWROUTE: decode_route,
    uapi.RTM_DELROUTE: decode_route,
    uapi.RTM_NEWNEIGH: decode_neighbour,
    uapi.RTM_DELNEIGH: decode_neighbour,
}
_SHAPING: Final = {
    uapi.RTM_NEWQDISC,
    uapi.RTM_DELQDISC,
    uapi.RTM_NEWTFILTER,
    uapi.RTM_DELTFILTER,
}
_DELETIONS: Final = {uapi.RTM_DELLINK, uapi.RTM_DELADDR, uapi.RTM_DELROUTE, uapi.RTM_DELNEIGH}


class Monitor(AbstractContextManager["Monitor"]):
    """Bound to the namespace in which the thread is at its making; needs a running event loop.

    Tells of links and addresses, of routes of `protocol` and what takes their place, of permanent
    neighbours and forwarding entries, and of links whose queueing disciplines and filters change. What
    `ignored_ports` (each a RouteSocket's `port`) did is no news. Links, addresses, routes and neighbours of other
    namespaces that have an id in this one, pods among them, are told as well where `hears_others`: for that the
    process needs CAP_NET_BROADCAST (man 7 netlink, NETLINK_LISTEN_ALL_NSID).

    The kernel does not tell all: IPv4 routes go without a word when their link goes down.
    """

    def __init__(self, *, protocol: int = PROTOCOL, ignored_ports: Iterable[int] = ()) -> None:
        self._ignored = frozenset(ignored_ports)
        self._neighbour_mark = pack(uapi.NDA_PROTOCOL, bytes((protocol,)))
        self._protocol = protocol
        self._socket = open_socket()
        self._names = LinkNames(self._socket)
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._draining = False
        self.hears_others = _listen_to_others(self._socket)
        for group in _GROUPS:
            self._socket.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_ADD_MEMBERSHIP, group)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._receive)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the loop and close the socket; a reader waits for ever, so cancel it first."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def take(self) -> list[Event]:
        """Events that have arrived by now, in the kernel's order."""
        self._receive()
        events = list(self._events)
        self._events.clear()
        return events

    async def events(self) -> AsyncIterator[Event]:
        """Events in the kernel's order, without end. For one reader."""
        while True:
            while self._events:
                yield self._events.popleft()
            self._arrived.clear()
            await self._arrived.wait()

    def _receive(self) -> None:
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(DATAGRAM_BYTES, _CONTROL_BYTES)
            except BlockingIOError:
                if self._draining:
                    self._draining = False
                    self._overrun()
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # From the first loss on the kernel drops everything until the socket is empty, and says so
                # but once: who reads everything before that would miss what changes meanwhile.
                self._draining = True
                continue
            if not self._draining:
                self._read_datagram(data, _nsid_in(ancillary))
        if self._events:
            self._arrived.set()

    def _read_datagram(self, data: bytes, nsid: int | None) -> None:
        try:
            for message in decode_messages(data):
                if nsid is None:
                    self._read(message)
                else:
                    self._read_elsewhere(message, nsid)
        except MalformedMessageError:
            self._overrun()

    def _overrun(self) -> None:
        self._events.clear()
        self._events.append(Overrun())
        self._names.forget()

    def _read(self, message: Message) -> None:
        # The kernel's own changes come from port 0.
        if message.port in self._ignored or not self._is_wanted(message):
            return
        if message.kind in _SHAPING:
            self._hold(Reshaped(decode_shaped_link(message.body, self._names.name_of)))
            return
        if message.kind == uapi.RTM_NEWNETCONF:
            self._hold(Configured(decode_configured_link(message.body, self._names.name_of)))
            return
        event = _decode_event(message, self._names.name_of)
        if event is None:
            return
        if isinstance(event.what, Link):
            self._names.learn(event.what.index, "" if isinstance(event, Gone) else event.what.name)
        self._hold(event)

    def _read_elsewhere(self, message: Message, nsid: int) -> None:
        # Ports are of one namespace: that of a socket of ours may be another's there.
        if message.kind not in _DECODERS or not self._is_wanted(message):
            return
        event = _decode_event(message, str)
        if event is not None:
            self._hold(Elsewhere(nsid, event))

    def _hold(self, event: Event) -> None:
        if len(self._events) >= _EVENTS_HELD:
            self._overrun()
        else:
            self._events.append(event)

    def _is_wanted(self, message: Message) -> bool:
        match message.kind:
            case uapi.RTM_NEWROUTE | uapi.RTM_DELROUTE:
                # Another owner's route that replaces ours is told as a replacement, ours not as a deletion.
                return decode_protocol(message.body) == self._protocol or bool(
                    message.flags & uapi.NLM_F_REPLACE
                )
            case uapi.RTM_NEWNEIGH | uapi.RTM_DELNEIGH:
                # One of ours that stopped being permanent still carries our protocol.
                return is_permanent(message.body) or self._neighbour_mark in message.body
            case kind:
                return kind in _DECODERS or kind in _SHAPING or kind == uapi.RTM_NEWNETCONF


def _decode_event(message: Message, name_of: NameOf) -> Seen | Gone | None:
    what = _DECODERS[message.kind](message.body, name_of)
    if what is None:
        return None
    lost = message.kind == uapi.RTM_NEWNEIGH and not is_permanent(message.body)
    return Gone(what) if lost or message.kind in _DELETIONS else Seen(what)


def _listen_to_others(netlink: socket.socket) -> bool:
    try:
        netlink.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_LISTEN_ALL_NSID, 1)
    except PermissionError:
        return False
    return True


def _nsid_in(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """Give the namespace that a datagram comes from, None for the socket's own."""
    for level, kind, data in ancillary:
        if (level, kind) == (uapi.SOL_NETLINK, uapi.NETLINK_LISTEN_ALL_NSID):
            return int.from_bytes(data, sys.byteorder, signed=True)
    return None
