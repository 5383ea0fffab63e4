"""The node's own network: its lease, the peers it accepts, and the kernel state that reaches their pods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from poplin.compile.backend import compile_backend, pod_mtu_bytes, vtep_mac
from poplin.compile.lease import Endpoint, Lease, overwritten_public_ip, read_lease
from poplin.compile.peers import Frame, Peers, contains
from poplin.compile.underlay import Underlay
from poplin.model.cluster import Node
from poplin.model.errors import InvalidInputError, PoplinError, TemporaryError
from poplin.model.kernel import IPNetwork
from poplin.model.netconf import BackendType, NetConf
from poplin.model.state import NetworkState, unite

MIN_POD_CIDR_ADDRESSES: Final = 4
"""A podCIDR's first and last address are no pod's, and one alone serves nobody."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a node is to its peers and to its pods.

    `pod_cidrs` has one entry for each family served, IPv4 first. `problems` are peers, or families of this
    node, that are left out, each with its reason; all others are served.
    """

    lease: Lease
    pod_cidrs: tuple[IPNetwork, ...]
    pod_mtu_bytes: int
    state: NetworkState
    problems: tuple[PoplinError, ...] = ()


def compile_network(
    conf: NetConf,
    own: Node,
    others: Sequence[Node],
    underlays: Sequence[Underlay],
    peers: Peers | None = None,
) -> Network:
    """Give the node's network.

    `peers` may be those of an earlier call, whatever it was about: nodes that are the same objects as then are
    not read again. `underlays` has at most one entry for each family. Raises InvalidInputError or TemporaryError where the
    node itself can serve no family, with the reason: no podCIDR yet, one outside the configured network,
    no interface with the node's address.
    """
    problems: list[PoplinError] = []
    endpoints = []
    for network in conf.networks:
        try:
            endpoints.append(_own_endpoint(conf, own, network, underlays))
        except PoplinError as error:
            problems.append(error)
    if not endpoints:
        raise problems[0]
    lease = Lease(own.name, conf.backend.type.value, tuple(endpoints))
    used = [u for u in underlays if any(e.public_ip.version == u.address.version for e in endpoints)]
    reach, left_out = (peers or Peers()).update(Frame(conf, lease, tuple(used)), others)
    problems += left_out
    problems += [
        InvalidInputError(
            f"MTU {conf.backend.mtu_bytes} is more than {underlay.link} carries: {underlay.mtu_bytes} is used",
            where="net-conf.json: Backend: MTU",
            remedy="leave MTU out, or raise the interface's",
        )
        for underlay in used
        if conf.backend.mtu_bytes > underlay.mtu_bytes
    ]
    return Network(
        lease=lease,
        pod_cidrs=tuple(e.pod_cidr for e in endpoints),
        pod_mtu_bytes=pod_mtu_bytes(conf.backend, used),
        state=unite([compile_backend(conf.backend, lease, used), reach, _forwarding(used)]),
        problems=tuple(problems),
    )


def _own_endpoint(conf: NetConf, own: Node, network: IPNetwork, underlays: Sequence[Underlay]) -> Endpoint:
    where, version = f"node {own.name}", network.version
    pod_cidr = next((c for c in own.pod_cidrs if c.version == version), None)
    if pod_cidr is None:
        raise TemporaryError(
            f"has no IPv{version} podCIDR",
            where=where,
            remedy="give the cluster a podSubnet (kubeadm: networking.podSubnet), so that "
            "kube-controller-manager assigns one",
        )
    if not contains(network, pod_cidr):
        raise InvalidInputError(
            f"podCIDR {pod_cidr} lies outside the pod network {network}",
            where=where,
            remedy="make Network in net-conf.json the cluster's podSubnet",
        )
    if pod_cidr.num_addresses < MIN_POD_CIDR_ADDRESSES:
        raise InvalidInputError(
            f"podCIDR {pod_cidr} has no address for a pod: its first and last are not used",
            where=where,
            remedy="give the node a larger podCIDR (kube-controller-manager: --node-cidr-mask-size)",
        )
    underlay = next((u for u in underlays if u.address.version == version), None)
    if underlay is None:
        raise TemporaryError(
            f"no interface carries an IPv{version} address of the node",
            where=where,
            remedy="check the node's InternalIP against `ip address`, or set --public-ip",
        )
    public_ip = overwritten_public_ip(own.name, own.annotations, version) or underlay.address
    if conf.backend.type is not BackendType.VXLAN:
        return Endpoint(public_ip, pod_cidr)
    return Endpoint(public_ip, pod_cidr, _own_mac(conf, own, pod_cidr), conf.backend.vni)


def _own_mac(conf: NetConf, own: Node, pod_cidr: IPNetwork) -> str:
    """Keep the MAC that the node has published for this VNI: peers know it, whoever made the device."""
    try:
        published = read_lease(own.name, own.annotations, (pod_cidr,))
    except InvalidInputError:
        published = None
    for endpoint in published.endpoints if published else ():
        if endpoint.vni == conf.backend.vni:
            return endpoint.vtep_mac
    return vtep_mac(own.name, pod_cidr.version)


def _forwarding(underlays: Sequence[Underlay]) -> NetworkState:
    """Give the sysctls that make the node a router for the families in use.

    IPv6 forwarding stops an interface from taking router advertisements unless its accept_ra is 2
    (kernel Documentation/networking/ip-sysctl): a node that lives on them would lose its default route.
    """
    sysctls: dict[str, str] = {}
    for underlay in underlays:
        if underlay.address.version == 4:
            sysctls["net/ipv4/ip_forward"] = "1"
        else:
            if underlay.accepts_ra:
                sysctls[f"net/ipv6/conf/{underlay.link}/accept_ra"] = "2"
            sysctls["net/ipv6/conf/all/forwarding"] = "1"
    return NetworkState(sysctls=sysctls)
