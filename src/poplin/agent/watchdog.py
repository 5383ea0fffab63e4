"""Kernel notifications -> what the reconcile loop should look at again.

Whatever may concern us is suspect; what surely does not is passed over, so that the kernel's echo of the CNI
server's work, and a busy neighbour's changes, cost nothing. What a pod does in its own namespace with what is its
own costs nothing either: only what it loses of ours, or sets otherwise, is looked at.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from poplin.agent.loop import Loop
from poplin.compile.pod import compile_pod
from poplin.dataplane.netlink.monitor import (
    Configured,
    Elsewhere,
    Event,
    Gone,
    Monitor,
    Overrun,
    Reshaped,
    Seen,
)
from poplin.model.attachment import HOST_LINK_PREFIX, IFB_PREFIX, Attachment, host_link_of
from poplin.model.kernel import POD_LINK_GROUP, PROTOCOL, Address, FdbEntry, Link, Neighbour, Route
from poplin.model.state import NetworkState

RELEARN_S: Final = 1.0
"""How long an unknown interface of another namespace stays so. There are many that are no pod's."""


class Watchdog:
    """Judges events.

    `attachment_of` gives the attachment that stands on a host link, None for none; `links` reads all links of the
    node. `desired` is the state that the last pass has wanted of the node's namespace. `left` is called
    when the node may have lost an address. `clock` gives seconds from any point on.
    """

    def __init__(
        self,
        loop: Loop[Any, Any],
        attachment_of: Callable[[str], Attachment | None],
        links: Callable[[], Iterable[Link]],
        desired: Callable[[], NetworkState],
        left: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._attachment_of = attachment_of
        self._links = links
        self._desired = desired
        self._left = left
        self._clock = clock
        self._carrier: dict[str, bool] = {}
        # Host links by where their peers are: (namespace's id, index there).
        self._host_links: dict[tuple[int, int], str] = {}
        self._learned_at_s = float("-inf")

    def catch_up(self, monitor: Monitor) -> None:
        """Take in all that has been told by now."""
        for event in monitor.take():
            self.judge(event)

    async def run(self, monitor: Monitor) -> None:
        """Follow the node's namespace for ever."""
        async for event in monitor.events():
            self.judge(event)

    def judge(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case Overrun():
                self._left()
                self._loop.audit()
            case Elsewhere(nsid, inside):
                self._judge_inside(nsid, inside)
            case Configured(link):
                # A pass looks at the parameters it needs, and reads nothing else for that.
                if not _is_on_pod(link):
                    self._loop.wake()
            case Seen(Link() as link) if _is_of_pod(link):
                self._judge_pod_link(link)
            case Gone(Link() as link) if _is_of_pod(link):
                self._carrier.pop(link.name, None)
                self._judge_thing_of_pod(link.name)
            case Seen(Address() as address) if _is_on_pod(address.link):
                pass  # the kernel's echo of ours, or another's addition: ours still stands
            case Reshaped(link):
                if _is_on_pod(link):
                    self._judge_thing_of_pod(link)
            case Seen(Link() | Address()) | Gone(Link()):
                self._loop.suspect()
            case Gone(Address() as address) if not _is_on_pod(address.link):
                self._left()
                self._loop.suspect()
            case Gone(Address() as address) if address.protocol != PROTOCOL:
                pass
            case Seen(FdbEntry() as entry) | Gone(FdbEntry() as entry):
                # The kernel names no port for these (vxlan_fdb_notify in drivers/net/vxlan): ours come, too.
                desired = self._desired()
                if entry.link in desired.links and (entry in desired.fdb) != isinstance(event, Seen):
                    self._loop.suspect()
            case Seen(Address() | Route() | Neighbour() as thing) | Gone(
                Address() | Route() | Neighbour() as thing
            ):
                if _is_on_pod(thing.link):
                    self._judge_thing_of_pod(thing.link)
                else:
                    self._loop.suspect()

    def _judge_inside(self, nsid: int, event: Seen | Gone) -> None:
        place = nsid, _index_in(event.what)
        if place not in self._host_links and self._clock() - self._learned_at_s >= RELEARN_S:
            self._learned_at_s = self._clock()
            self._host_links = {(link.parent_nsid, link.parent): link.name for link in self._links()}
        attachment = self._attachment_of(self._host_links.get(place, ""))
        if attachment is not None and _is_amiss(event, attachment):
            self._loop.look_at([attachment.host_link])

    def _judge_pod_link(self, link: Link) -> None:
        self._host_links[link.parent_nsid, link.parent] = link.name
        attachment = self._attachment_of(host_link_of(link.name))
        wanted = compile_pod(attachment).host.links.get(link.name) if attachment is not None else None
        if wanted is None:
            return
        as_made = _settable(link, wanted) == _settable(wanted, wanted)
        # A carrier that goes says that the pod's side went down, and lost its routes and neighbours.
        had_carrier = self._carrier.get(link.name, True)
        self._carrier[link.name] = link.carrier
        if not as_made or not (had_carrier and link.carrier):
            self._loop.suspect([host_link_of(link.name)])

    def _judge_thing_of_pod(self, link: str) -> None:
        # Of a pod that is being made or unmade nothing is amiss.
        host_link = host_link_of(link)
        if self._attachment_of(host_link) is not None:
            self._loop.suspect([host_link])


def _index_in(what: Link | Address | Route | Neighbour | FdbEntry) -> int:
    if isinstance(what, Link):
        return what.index
    return int(what.link) if what.link.isdecimal() else 0


def _is_amiss(event: Seen | Gone, attachment: Attachment) -> bool:
    """Tell whether a pod's side has lost something of ours, or has it otherwise than it was made."""
    wanted = compile_pod(attachment).pod
    match event:
        case Seen(Link() as link):
            made = wanted.links[attachment.ifname]
            standing = (link.name, link.mac, link.mtu_bytes, link.up)
            return standing != (made.name, made.mac, made.mtu_bytes, made.up)
        case Gone(Address() as address):
            return address.interface in {a.interface for a in wanted.addresses}
        case Seen(Route() as route):
            ours = {r.destination for r in wanted.routes}
            return route.destination in ours and replace(route, link=attachment.ifname) not in wanted.routes
        case Gone(Route() as route):
            return route.destination in {r.destination for r in wanted.routes}
        case Seen(Neighbour() as neighbour):
            ours_by_address = {n.address: n.mac for n in wanted.neighbours}
            return ours_by_address.get(neighbour.address, neighbour.mac) != neighbour.mac
        case Gone(Neighbour() as neighbour):
            return neighbour.address in {n.address for n in wanted.neighbours}
    return False


def _settable(link: Link, wanted: Link) -> tuple[object, ...]:
    """Give what a pass sets on a link that stands."""
    mac, mtu_bytes = wanted.mac and link.mac, wanted.mtu_bytes and link.mtu_bytes
    return mac, mtu_bytes, link.up, link.group, link.alias


def _is_of_pod(link: Link) -> bool:
    return link.group == POD_LINK_GROUP or _is_on_pod(link.name)


def _is_on_pod(link: str) -> bool:
    return link.startswith((HOST_LINK_PREFIX, IFB_PREFIX))
