"""All that stands in a node's and its pods' network namespaces and does not come and go by itself.

Others' things are in it as well as ours, so that two equal snapshots say both that ours is back and that theirs was
left alone.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from poplin.agent.pods import ATTACHMENTS
from poplin.agent.wiring import read_state
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import NAMED, in_namespace, open_netns
from poplin.dataplane.nftables.socket import NftSocket
from poplin.dataplane.sysctl import read_sysctl
from poplin.datastore.attachments import AttachmentStore
from poplin.lab.directory import Directory
from poplin.model.attachment import Attachment
from poplin.model.kernel import Address, Link, Route
from poplin.model.nftables import Family, Table, TableKey
from poplin.model.state import NetworkState

TABLES: Final = ("poplin", "poplin-hostport", "poplin-services", "poplin-policy")
SYSCTLS: Final = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")

_KERNELS_ROUTE: Final = 2
"""RTPROT_KERNEL: routes that come and go with an address."""

_KERNELS_ADDRESS: Final = 3
"""IFAPROT_KERNEL_LL: link-local addresses, which come and go with a carrier."""

_LOCAL_TABLE: Final = 255

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The node's namespace, its tables and parameters, and each pod's namespace by its host link."""

    node: NetworkState
    tables: Mapping[str, Table | None]
    sysctls: Mapping[str, str]
    pods: Mapping[str, NetworkState]


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """A node of a lab as its kernel sees it. Everything here blocks."""

    directory: Directory
    node: str

    @property
    def path(self) -> Path:
        """The node's namespace."""
        return NAMED / self.directory.node_namespace(self.node)

    def attachments(self) -> list[Attachment]:
        """The pods that the node's agent keeps. Raises PoplinError."""
        store = AttachmentStore.open(self.directory.node(self.node).state / ATTACHMENTS)
        try:
            return store.all()
        finally:
            store.close()

    def read(self, attachments: Iterable[Attachment]) -> Snapshot:
        """What stands now on the node and in these pods. Raises KernelError."""
        pods = {a.host_link: _inside(a.netns, _read_network) for a in attachments}
        return replace(_inside(self.path, _read_node), pods=pods)


def _inside(path: str | Path, function: Callable[[], T]) -> T:
    netns_fd = open_netns(path)
    try:
        return in_namespace(netns_fd, function)
    finally:
        os.close(netns_fd)


def _read_node() -> Snapshot:
    with NftSocket() as nft:
        tables = {name: nft.read_table(TableKey(Family.INET, name)) for name in TABLES}
    return Snapshot(_read_network(), tables, {key: read_sysctl(key) for key in SYSCTLS}, {})


def _read_network() -> NetworkState:
    with RouteSocket() as socket:
        state = read_state(socket)
        routes = socket.routes()
    return replace(
        state,
        links={name: _as_made(link) for name, link in state.links.items()},
        addresses=frozenset(a for a in state.addresses if not _is_passing(a)),
        routes=frozenset(r for r in routes if not _is_passing(r)),
    )


def _as_made(link: Link) -> Link:
    return replace(link, index=0, parent=0, parent_nsid=-1, carrier=False)


def _is_passing(thing: Address | Route) -> bool:
    if isinstance(thing, Address):
        return thing.protocol == _KERNELS_ADDRESS
    return thing.protocol == _KERNELS_ROUTE or thing.table == _LOCAL_TABLE
