"""The attachments' store, opened: where it is damaged or lost, it is made anew from what the kernel shows.

What a pod's links, routes and neighbours, its limits and host ports do not say is its container's id: the name of
the host link is derived from it, so the runtime's DEL, CHECK and GC find the attachment all the same.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from poplin.agent.host_ports import KEY as HOST_PORTS
from poplin.agent.wiring import read_state
from poplin.compile.host_ports import decode_entries
from poplin.compile.pod import FIRST_INTERFACE
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import NAMED, in_namespace, open_netns
from poplin.dataplane.nftables.socket import NftSocket
from poplin.datastore.attachments import AttachmentStore, DamagedError
from poplin.model.attachment import Attachment, Limit, ifb_name, pod_mac
from poplin.model.errors import KernelError, PoplinError
from poplin.model.kernel import POD_LINK_GROUP, Address, IPAddress, Link, TokenBucket
from poplin.model.state import NetworkState
from poplin.plan.network import ALIAS_PREFIX

log = logging.getLogger(__name__)

ASIDE: Final = ".damaged"
"""What the name of a damaged store's file ends with."""

_LOGS: Final = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class _Inside:
    """A namespace that has a name, and what is in it."""

    path: Path
    cookie: int
    links: Mapping[str, Link]
    addresses: Sequence[Address]


def open_store(path: Path) -> AttachmentStore:
    """Open the store. A damaged one is set aside first, and one that is not there is made from the kernel's state.

    Whenever this ends, the store at `path` is whole or not there: the next attempt starts where this one did.
    Raises PoplinError.
    """
    if path.exists():
        try:
            return _open_whole(path)
        except DamagedError as error:
            log.warning("attachment database set aside", extra={"error": str(error), "to": f"{path}{ASIDE}"})
        for suffix in ("", *_LOGS):
            _move(f"{path}{suffix}", f"{path}{ASIDE}{suffix}")
    draft = Path(f"{path}.new")
    for suffix in ("", *_LOGS):
        Path(f"{draft}{suffix}").unlink(missing_ok=True)
        if suffix:  # a log without its database would be taken for the new one's
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    with closing(AttachmentStore.open(draft)) as store:
        for attachment in read_attachments():
            store.add(attachment)
            log.info("attachment taken over from the kernel", extra={"link": attachment.host_link})
    draft.replace(path)
    return AttachmentStore.open(path)


def _open_whole(path: Path) -> AttachmentStore:
    # To SQLite a file of no bytes is a new database; here none is put in place before it is filled.
    if path.stat().st_size == 0:
        raise DamagedError("the attachment database is empty", where=str(path))
    store = AttachmentStore.open(path)
    try:
        store.all()
    except BaseException:
        store.close()
        raise
    return store


def damage(path: Path) -> PoplinError | None:
    """Say that a damaged store was set aside, until somebody has taken its file away."""
    aside = Path(f"{path}{ASIDE}")
    if not aside.exists():
        return None
    return PoplinError(
        "the attachment database was damaged and is set aside; the pods were taken over from the kernel",
        where=str(aside),
        remedy="see the kernel log for disk errors, then remove the file",
    )


def read_attachments() -> list[Attachment]:
    """Give the attachments whose host links stand in the thread's namespace. Raises KernelError."""
    with RouteSocket() as host, NftSocket() as tables:
        state = read_state(host, redirected=())
        table = tables.read_table(HOST_PORTS)
    mappings = list(decode_entries(table)) if table else []
    insides = list(_read_insides())
    found = []
    taken: set[IPAddress] = set()
    for link in state.links.values():
        if link.kind == "veth" and link.group == POD_LINK_GROUP:
            attachment = _locate(_read_attachment(link, state), link, insides)
            addresses = tuple(a for a in attachment.addresses if a not in taken)
            taken.update(addresses)
            mapped = tuple(mapping for address, mapping in mappings if address in addresses)
            found.append(replace(attachment, addresses=addresses, port_mappings=mapped))
    return found


def _read_attachment(link: Link, state: NetworkState) -> Attachment:
    """Give what the node's side shows; `netns` is "" and `mac` the neighbours', "" where there are none."""
    owner, _, ifname = link.alias.removeprefix(ALIAS_PREFIX).strip().partition(" ")
    namespace, slash, name = owner.partition("/")
    neighbours = [n for n in state.neighbours if n.link == link.name]
    routed = {ip_address(r.destination.network_address) for r in state.routes if r.link == link.name}
    buckets = {one.link: one for one in state.shaping if isinstance(one, TokenBucket)}
    return Attachment(
        container_id=link.name if slash or not owner else owner,
        ifname=ifname or FIRST_INTERFACE,
        netns="",
        addresses=_one_of_each_family(routed.union(n.address for n in neighbours)),
        mac=next((n.mac for n in neighbours), ""),
        mtu_bytes=link.mtu_bytes,
        host_link=link.name,
        pod_namespace=namespace if slash else "",
        pod_name=name,
        ingress=_limit(buckets.get(link.name)),
        egress=_limit(buckets.get(ifb_name(link.name))),
    )


def _locate(attachment: Attachment, host: Link, insides: Iterable[_Inside]) -> Attachment:
    """Add the pod's namespace, where it has a name and its interface is the veth's other end.

    A pod in another place works, and is looked after on the node's side alone. The kernel's numbers of links repeat
    in other namespaces: the MAC, which is derived from the container's id, does not.
    """
    for inside in insides:
        link = inside.links.get(attachment.ifname)
        if link is None or (link.index, link.parent) != (host.parent, host.index):
            continue
        if attachment.mac in {"", link.mac}:
            own = (a.interface.ip for a in inside.addresses if a.link == link.name)
            return replace(
                attachment,
                netns=str(inside.path),
                netns_cookie=inside.cookie,
                mac=link.mac,
                addresses=attachment.addresses or _one_of_each_family(a for a in own if not a.is_link_local),
            )
    return replace(attachment, mac=attachment.mac or pod_mac(*attachment.key))


def _read_insides() -> Iterator[_Inside]:
    """Read the namespaces that have names."""
    for path in sorted(NAMED.iterdir()) if NAMED.exists() else ():
        with suppress(KernelError):  # one that goes just now, or a file that is none
            netns_fd = open_netns(path)
            try:
                with in_namespace(netns_fd, RouteSocket) as inside:
                    links = {link.name: link for link in inside.links()}
                    yield _Inside(path, inside.netns_cookie, links, inside.addresses())
            finally:
                os.close(netns_fd)


def _one_of_each_family(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    found = {address.version: address for address in addresses}
    return tuple(found[version] for version in sorted(found))


def _limit(bucket: TokenBucket | None) -> Limit | None:
    if bucket is None:
        return None
    return Limit(bucket.rate_bytes_s * 8, bucket.rate_bytes_s * bucket.burst_ns * 8 // 10**9)


def _move(source: str, target: str) -> None:
    with suppress(FileNotFoundError):
        Path(source).replace(target)
