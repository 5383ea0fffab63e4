"""An attachment: one interface of one pod, as CNI calls it, with all that must outlive a restart."""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

from poplin.model.cluster import TransportProtocol
from poplin.model.kernel import IPAddress

HOST_MAC = "ee:ee:ee:ee:ee:ee"
"""MAC of the host side of every pod's veth: fixed, so that the pod's entry for its gateway never changes."""

HOST_LINK_PREFIX = "pop"
"""What the name of the host side of every pod's veth begins with."""

IFB_PREFIX = "ifb"
"""What the name of every pod's ifb device begins with."""


class AttachmentState(StrEnum):
    """`ADDING` until the kernel objects stand; an agent that starts undoes what it finds there."""

    ADDING = "adding"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the node that leads to one of the pod's (hostPort).

    `host_address` None is every address of the node, an unspecified one (0.0.0.0, ::) every one of its family.
    """

    protocol: TransportProtocol
    host_port: int
    container_port: int
    host_address: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """What may pass one way: bits per second, and bits that may pass at once (0: as many as suits the rate)."""

    rate_bits_s: int
    burst_bits: int = 0


@dataclass(frozen=True, slots=True)
class Attachment:
    """One (container, interface) pair. `addresses` has at most one of each family, IPv4 first.

    `netns` is the path that the runtime gave, and `netns_cookie` the number that the kernel gives to no other
    namespace until it boots again (SO_NETNS_COOKIE), 0 where it is not known: a path may lead to another pod's later. `pod_namespace` and `pod_name` are "" where the caller
    is not Kubernetes. `host_link` is the host side's interface name. `ingress` limits what comes to the pod
    and `egress` what it sends; None is no limit.
    """

    container_id: str
    ifname: str
    netns: str
    addresses: tuple[IPAddress, ...]
    mac: str
    mtu_bytes: int
    host_link: str
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    state: AttachmentState = AttachmentState.READY
    port_mappings: tuple[PortMapping, ...] = ()
    ingress: Limit | None = None
    egress: Limit | None = None
    netns_cookie: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others: (container id, interface name)."""
        return self.container_id, self.ifname


def host_link_name(container_id: str, ifname: str) -> str:
    """Name of the host side of an attachment's veth: "pop" and 12 hex digits, the 15 characters allowed."""
    return HOST_LINK_PREFIX + blake2b(f"{container_id}/{ifname}".encode(), digest_size=6).hexdigest()


def ifb_name(host_link: str) -> str:
    """Name of the device through whose queue a pod's packets go where they are limited, from its host link's."""
    return IFB_PREFIX + host_link.removeprefix(HOST_LINK_PREFIX)


def host_link_of(link: str) -> str:
    """Name of the host link that a link of a pod belongs to: its own, or the one that `ifb_name` was given."""
    return HOST_LINK_PREFIX + link.removeprefix(IFB_PREFIX) if link.startswith(IFB_PREFIX) else link


def pod_mac(container_id: str, ifname: str) -> str:
    """The pod side's MAC: locally administered, the same each time the attachment is made."""
    octets = blake2b(f"mac/{container_id}/{ifname}".encode(), digest_size=6).digest()
    return bytes([octets[0] & 0xFC | 0x02, *octets[1:]]).hex(":")
