"""Backends: the node's own lease and its peers' -> links, addresses, neighbours, FDB entries and routes.

Device names, addresses and entries are flannel's, so that a node running flanneld can be a peer.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from ipaddress import ip_interface
from typing import Final

from poplin.compile.lease import Endpoint, Lease
from poplin.compile.underlay import Underlay
from poplin.model.kernel import (
    Address,
    FdbEntry,
    Link,
    Neighbour,
    Route,
    RouteKind,
    Vxlan,
)
from poplin.model.netconf import Backend, BackendType
from poplin.model.state import NetworkState, unite

VXLAN_OVERHEAD_BYTES: Final = {4: 50, 6: 70}
"""Outer Ethernet, IP, UDP and VXLAN headers (RFC 7348, section 5)."""

DEVICE_ALIAS: Final = "poplin: overlay"
"""IFLA_IFALIAS of our overlay devices: how an agent without memory knows them."""

UNREACHABLE_METRIC: Final = 0x7FFFFFFF
"""Metric of the unreachable route of a node's own podCIDR: behind any other route of the same prefix."""


def vtep_mac(node: str, version: int) -> str:
    """Give the MAC of a node's VTEP: locally administered, and the same whenever the device is made anew."""
    octets = blake2b(f"vtep/{version}/{node}".encode(), digest_size=6).digest()
    return bytes([octets[0] & 0xFC | 0x02, *octets[1:]]).hex(":")


def device_name(backend: Backend, version: int) -> str:
    """Give flannel's name of the VXLAN device: flannel.<VNI>, or flannel-v6.<VNI>."""
    return f"flannel{'-v6' if version == 6 else ''}.{backend.vni}"


def pod_mtu_bytes(backend: Backend, underlays: Sequence[Underlay]) -> int:
    """Give the MTU of pods' interfaces: the least of what the families in use can carry."""
    return min(_device_mtu_bytes(backend, underlay) for underlay in underlays)


def compile_backend(backend: Backend, own: Lease, underlays: Sequence[Underlay]) -> NetworkState:
    """Give what a node needs that has no peer yet, in each family that it serves.

    `underlays` has one entry for each endpoint of `own`, of the same IP version.
    """
    states = []
    for endpoint in own.endpoints:
        version = endpoint.public_ip.version
        underlay = next(u for u in underlays if u.address.version == version)
        if backend.type is BackendType.VXLAN:
            states.append(_device(backend, endpoint, underlay))
        # An address of the node's own podCIDR that no pod has must not go round in circles.
        own_cidr = Route(endpoint.pod_cidr, kind=RouteKind.UNREACHABLE, metric=UNREACHABLE_METRIC)
        states.append(NetworkState(routes=frozenset({own_cidr})))
    return unite(states)


def compile_peers(backend: Backend, peers: Iterable[Endpoint], underlay: Underlay) -> NetworkState:
    """Give what makes the pods of peers reachable, which run the same backend, all in the underlay's family.

    With VXLAN it is for each a neighbour, an FDB entry and an onlink route: the network address of a podCIDR
    is the address of its node's VTEP. A peer that is reached directly has a route by its own address.
    """
    device = device_name(backend, underlay.address.version)
    direct: list[Endpoint] = []
    tunnelled: list[Endpoint] = []
    for peer in peers:
        if backend.type is BackendType.HOST_GW or (
            backend.direct_routing and underlay.reaches_directly(peer.public_ip)
        ):
            direct.append(peer)
        else:
            tunnelled.append(peer)
    return NetworkState(
        neighbours=frozenset(Neighbour(device, p.pod_cidr.network_address, p.vtep_mac) for p in tunnelled),
        fdb=frozenset(FdbEntry(device, p.vtep_mac, p.public_ip) for p in tunnelled),
        routes=frozenset(
            [
                *(
                    Route(p.pod_cidr, gateway=p.pod_cidr.network_address, link=device, onlink=True)
                    for p in tunnelled
                ),
                *(Route(p.pod_cidr, gateway=p.public_ip, link=underlay.link) for p in direct),
            ]
        ),
    )


def _device_mtu_bytes(backend: Backend, underlay: Underlay) -> int:
    # The kernel refuses a device more than its underlay carries.
    mtu_bytes = min(backend.mtu_bytes or underlay.mtu_bytes, underlay.mtu_bytes)
    if backend.type is BackendType.VXLAN:
        mtu_bytes -= VXLAN_OVERHEAD_BYTES[underlay.address.version]
    return mtu_bytes


def _device(backend: Backend, own: Endpoint, underlay: Underlay) -> NetworkState:
    """Give the VXLAN device with the VTEP's address on it, a /32 or /128."""
    device = device_name(backend, underlay.address.version)
    link = Link(
        device,
        kind="vxlan",
        mac=own.vtep_mac,
        mtu_bytes=_device_mtu_bytes(backend, underlay),
        alias=DEVICE_ALIAS,
        vxlan=Vxlan(
            backend.vni,
            backend.port,
            underlay.link,
            underlay.address,
            learning=backend.learning,
            gbp=backend.gbp,
        ),
    )
    return NetworkState(
        links={device: link},
        addresses=frozenset({Address(device, ip_interface(own.pod_cidr.network_address))}),
        sysctls={f"net/ipv4/conf/{device}/rp_filter": "2"} if underlay.address.version == 4 else {},
    )
