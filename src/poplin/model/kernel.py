"""Kernel network objects as values, with the kernel's own names (linux/if_link.h, rtnetlink.h, neighbour.h).

Objects name their interface by its name, never by its index: a desired state may speak of a link that
does not exist yet. MAC addresses are strings in lower case ("0a:58:0a:f4:00:05").
"""

from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

PROTOCOL: Final = 112
"""rtm_protocol, nda_protocol and ifa_proto of every route, neighbour and address that is ours ("p")."""

POD_LINK_GROUP: Final = 0x706F
"""IFLA_GROUP of the host side of every pod's veth ("po"): one match for all pods in nftables."""

MAIN_TABLE: Final = 254
"""RT_TABLE_MAIN."""


class Scope(IntEnum):
    """rtm_scope and ifa_scope (rtnetlink.h)."""

    UNIVERSE = 0
    LINK = 253
    HOST = 254


class RouteKind(IntEnum):
    """rtm_type (rtnetlink.h), as far as we write or meet it."""

    UNICAST = 1
    LOCAL = 2
    BROADCAST = 3
    ANYCAST = 4
    MULTICAST = 5
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8
    THROW = 9
    NAT = 10


@dataclass(frozen=True, slots=True)
class Vxlan:
    """IFLA_VXLAN_*: what cannot be changed without making the device anew.

    `underlay` is the link carrying the tunnel, "" for any; `local` the outer source, None for the
    kernel's choice. `port` is the UDP destination port.
    """

    vni: int
    port: int
    underlay: str = ""
    local: IPAddress | None = None
    learning: bool = False
    gbp: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. In a desired state `index` is 0, and `mac` "", `mtu_bytes` 0 or `master` "" mean "as it is".

    `kind` is IFLA_INFO_KIND, "" for a physical device. `master` is the bridge whose port the link is. `carrier` is IFF_LOWER_UP, known only of what
    was read. `parent` is the index of IFLA_LINK (a veth's peer, a vxlan's underlay), 0 for none; `parent_nsid` is
    the id of the namespace where that index counts, as this one numbers others (IFLA_LINK_NETNSID), -1 for its own.
    """

    name: str
    kind: str = ""
    mac: str = ""
    mtu_bytes: int = 0
    up: bool = True
    group: int = 0
    alias: str = ""
    vxlan: Vxlan | None = None
    master: str = ""
    index: int = 0
    parent: int = 0
    parent_nsid: int = -1
    carrier: bool = False


@dataclass(frozen=True, slots=True)
class Veth:
    """A veth pair to be made by one RTM_NEWLINK, both ends in their final namespaces.

    The request is sent in the namespace of `host`'s link; the peer is made in `netns_fd`.
    """

    host: Link
    peer: Link
    netns_fd: int


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link; duplicate address detection is never wanted (IFA_F_NODAD).

    Who made it makes no difference between two addresses: kernels before 5.18 have no IFA_PROTO.
    """

    link: str
    interface: IPInterface
    scope: Scope = Scope.UNIVERSE
    protocol: int = field(default=PROTOCOL, compare=False)


@dataclass(frozen=True, slots=True)
class Route:
    """A route. `gateway` None and `link` "" are what an unreachable route has; metric 0 is the default.

    The kernel gives an IPv6 route of metric 0 the metric 1024: what is read from the kernel says 0 there.
    """

    destination: IPNetwork
    gateway: IPAddress | None = None
    link: str = ""
    kind: RouteKind = RouteKind.UNICAST
    scope: Scope = Scope.UNIVERSE
    onlink: bool = False
    source: IPAddress | None = None
    mtu_bytes: int = 0
    metric: int = 0
    table: int = MAIN_TABLE
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour entry: `address` is reached at `mac` on `link`."""

    link: str
    address: IPAddress
    mac: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A permanent vxlan forwarding entry (NTF_SELF): frames to `mac` go to the VTEP at `destination`."""

    link: str
    mac: str
    destination: IPAddress


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A link's root queueing discipline, tbf: what leaves by the link does so at `rate_bytes_s` at most.

    A burst may be as long as what the rate gives in `burst_ns`, a multiple of 64 up to BURST_NS_MAX. What has
    to wait does so in a queue of `limit_bytes`, and is dropped beyond.
    """

    link: str
    rate_bytes_s: int
    burst_ns: int
    limit_bytes: int


BURST_NS_MAX: Final = 2**32 - 64
"""The kernel keeps the length of a burst as nanoseconds in 32 bits where it is told so."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """All that comes in by `link` goes through the queue of `to`, an ifb device, before the node sees it."""

    link: str
    to: str


Shaping = TokenBucket | Redirect
