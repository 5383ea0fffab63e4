"""A pod's wiring: an attachment -> the kernel objects at both ends of its veth.

The pod has its address as a /32 (/128) and a default route through a link-local gateway, with permanent
neighbour entries at both ends, in both families: no bridge, no proxy ARP, nothing to resolve.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, ip_interface, ip_network
from typing import Final
from zlib import crc32

from poplin.compile.bandwidth import compile_bandwidth
from poplin.model.attachment import HOST_MAC, Attachment
from poplin.model.kernel import (
    POD_LINK_GROUP,
    Address,
    IPAddress,
    IPNetwork,
    Link,
    Neighbour,
    Route,
    Scope,
)
from poplin.model.state import NetworkState

GATEWAY: Final[dict[int, IPAddress]] = {4: IPv4Address("169.254.1.1"), 6: IPv6Address("fe80::1")}
DEFAULT_ROUTE: Final[dict[int, IPNetwork]] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}

FIRST_INTERFACE: Final = "eth0"
"""What Kubernetes' runtimes call a pod's interface."""

OTHERS_METRIC: Final = 10_000
"""Above the 1024 that the kernel gives an IPv6 route without a metric."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """The objects of one attachment in its node's namespace and in its pod's."""

    host: NetworkState
    pod: NetworkState


def compile_pod(attachment: Attachment) -> Wiring:
    """Give both ends of an attachment's veth and all that is on them."""
    a = attachment
    owner = f"{a.pod_namespace}/{a.pod_name}" if a.pod_name else a.container_id
    host = Link(
        a.host_link,
        kind="veth",
        mac=HOST_MAC,
        mtu_bytes=a.mtu_bytes,
        group=POD_LINK_GROUP,
        alias=f"poplin: {owner} {a.ifname}"[:255],
    )
    pod = Link(a.ifname, kind="veth", mac=a.mac, mtu_bytes=a.mtu_bytes)
    limits = compile_bandwidth(a, host)
    has_ipv6 = any(address.version == 6 for address in a.addresses)
    return Wiring(
        host=NetworkState(
            links={link.name: link for link in (host, *limits.links)},
            addresses=frozenset({_gateway_address(host.name)} if has_ipv6 else ()),
            routes=frozenset(
                Route(ip_network(address), link=host.name, scope=_connected_scope(address))
                for address in a.addresses
            ),
            neighbours=frozenset(Neighbour(host.name, address, a.mac) for address in a.addresses),
            sysctls=_loopback_clients(a),
            shaping=limits.shaping,
        ),
        pod=NetworkState(
            links={pod.name: pod},
            addresses=frozenset(Address(pod.name, ip_interface(address)) for address in a.addresses),
            routes=frozenset(
                Route(
                    DEFAULT_ROUTE[address.version],
                    gateway=GATEWAY[address.version],
                    link=pod.name,
                    onlink=True,
                    metric=default_route_metric(pod.name),
                )
                for address in a.addresses
            ),
            neighbours=frozenset(
                Neighbour(pod.name, GATEWAY[address.version], HOST_MAC) for address in a.addresses
            ),
            sysctls={
                f"net/ipv6/conf/{pod.name}/{key}": "0"
                for key in ("disable_ipv6", "accept_ra", "accept_dad")
                if has_ipv6
            },
        ),
    )


def default_route_metric(ifname: str) -> int:
    """Give the metric of the default route by an interface: the best for eth0, and one for each other.

    So a pod may have several interfaces of ours, and what leaves by one that it names (SO_BINDTODEVICE) has a way.
    """
    if ifname == FIRST_INTERFACE:
        return 0
    number = ifname.lstrip("abcdefghijklmnopqrstuvwxyz")
    return OTHERS_METRIC + (int(number) if number.isdecimal() else crc32(ifname.encode())) % OTHERS_METRIC


def _connected_scope(address: IPAddress) -> Scope:
    """Give the scope of a route without a gateway; IPv6 routes have none but UNIVERSE."""
    return Scope.LINK if address.version == 4 else Scope.UNIVERSE


def _loopback_clients(attachment: Attachment) -> dict[str, str]:
    """Let 127.0.0.1 on the node be a client of the pod's host ports, on this one link.

    Without it the kernel refuses to send such a source out. What else it would allow, the table of host ports
    drops.
    """
    if not attachment.port_mappings or all(address.version == 6 for address in attachment.addresses):
        return {}
    return {f"net/ipv4/conf/{attachment.host_link}/route_localnet": "1"}


def _gateway_address(link: str) -> Address:
    """Give the link-local address that makes the node a router in the pod's eyes (RFC 4861, 6.1.2)."""
    return Address(link, IPv6Interface(f"{GATEWAY[6]}/64"), scope=Scope.LINK)
