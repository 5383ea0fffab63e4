"""Kernel notifications -> what the reconcile loop should look at again.

Whatever may concern us is suspect; what surely does not is passed over, so that the kernel's echo of the CNI
server's work, and a busy neighbour's changes, cost nothing.
"""

from collections.abc import Callable

from poplin.agent.loop import Loop
from poplin.compile.pod import compile_pod
from poplin.dataplane.netlink.monitor import Event, Gone, Monitor, Overrun, Reshaped, Seen
from poplin.model.attachment import HOST_LINK_PREFIX, IFB_PREFIX, Attachment, host_link_of
from poplin.model.kernel import POD_LINK_GROUP, PROTOCOL, Address, FdbEntry, Link, Neighbour, Route
from poplin.model.state import NetworkState


class Watchdog:
    """Judges events. `attachment_of` gives the attachment that stands on a host link, None for none.

    `desired` is the state that the last pass has wanted of the node's namespace.
    """

    def __init__(
        self,
        loop: Loop,
        attachment_of: Callable[[str], Attachment | None],
        desired: Callable[[], NetworkState],
    ) -> None:
        self._loop = loop
        self._attachment_of = attachment_of
        self._desired = desired
        self._carrier: dict[str, bool] = {}

    async def run(self, monitor: Monitor) -> None:
        """Follow the node's namespace for ever."""
        async for event in monitor.events():
            self.judge(event)

    def judge(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case Overrun():
                self._loop.audit()
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
            case Gone(Address() as address) if address.protocol != PROTOCOL and _is_on_pod(address.link):
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

    def _judge_pod_link(self, link: Link) -> None:
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


def _settable(link: Link, wanted: Link) -> tuple[object, ...]:
    """Give what a pass sets on a link that stands."""
    mac, mtu_bytes = wanted.mac and link.mac, wanted.mtu_bytes and link.mtu_bytes
    return mac, mtu_bytes, link.up, link.group, link.alias


def _is_of_pod(link: Link) -> bool:
    return link.group == POD_LINK_GROUP or _is_on_pod(link.name)


def _is_on_pod(link: str) -> bool:
    return link.startswith((HOST_LINK_PREFIX, IFB_PREFIX))
