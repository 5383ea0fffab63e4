"""The node's own network: its lease, the peers it accepts, and the kernel state that reaches their pods."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from poplin.compile.backend import (
    compile_backend,
    pod_mtu_bytes,
    vtep_mac,
)
from poplin.compile.lease import (
    BACKEND_DATA,
    BACKEND_TYPE,
    PUBLIC_IP,
    Endpoint,
    Lease,
    overwritten_public_ip,
    read_lease,
)
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
    conf: NetConf, own: Node, others: Sequence[Node], underlays: Sequence[Underlay]
) -> Network:
    """Give the node's network.

    `underlays` has at most one entry for each family. Raises InvalidInputError or TemporaryError where the
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
    peers = _accepted(conf, lease, others, used, problems)
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
        state=unite([compile_backend(conf.backend, lease, peers, used), _forwarding(used)]),
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
    if not _contains(network, pod_cidr):
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


def _accepted(
    conf: NetConf,
    own: Lease,
    others: Sequence[Node],
    underlays: Sequence[Underlay],
    problems: list[PoplinError],
) -> list[Lease]:
    """Give the peers' leases, less the endpoints that clash with another node's or cannot be reached.

    Of two nodes that clash the first by name is served, on every node alike.
    """
    peers = []
    taken: dict[IPNetwork, str] = {e.pod_cidr: own.node for e in own.endpoints}
    macs: dict[tuple[int, str], str] = {(e.pod_cidr.version, e.vtep_mac): own.node for e in own.endpoints}
    overlapping = _overlaps([*taken, *(c for node in others for c in node.pod_cidrs)])
    underlay_of = {u.address.version: u for u in underlays}
    for node in sorted(others, key=lambda n: n.name):
        endpoints = []
        for endpoint in _published(conf, node, problems):
            pod_cidr = endpoint.pod_cidr
            underlay = underlay_of.get(pod_cidr.version)
            if underlay is None:
                continue
            problem = (
                _mismatch(conf, node, endpoint)
                or _clash(conf, node.name, pod_cidr, taken, overlapping)
                or _unreachable(conf, node.name, endpoint, underlay, macs)
            )
            if problem is None:
                taken[pod_cidr] = node.name
                macs[pod_cidr.version, endpoint.vtep_mac] = node.name
                endpoints.append(endpoint)
            else:
                problems.append(problem)
        if endpoints:
            peers.append(Lease(node.name, conf.backend.type, tuple(endpoints)))
    return peers


def _published(conf: NetConf, node: Node, problems: list[PoplinError]) -> Iterator[Endpoint]:
    """Give the endpoints that a node has published; a family that cannot be read leaves the other alone."""
    for pod_cidr in node.pod_cidrs:
        if conf.network(pod_cidr) is None:
            continue
        try:
            lease = read_lease(node.name, node.annotations, (pod_cidr,))
        except InvalidInputError as error:
            problems.append(error)
        else:
            yield from lease.endpoints if lease is not None else ()


def _mismatch(conf: NetConf, node: Node, endpoint: Endpoint) -> PoplinError | None:
    where, backend_type = f"node {node.name}", node.annotations.get(BACKEND_TYPE, "")
    if backend_type != conf.backend.type:
        return TemporaryError(
            f"runs backend {backend_type!r} and this node {conf.backend.type!r}: "
            f"its pods in {endpoint.pod_cidr} are not reachable",
            where=where,
            remedy="give both nodes the same net-conf.json",
        )
    if conf.backend.type is BackendType.VXLAN and endpoint.vni != conf.backend.vni:
        return TemporaryError(
            f"uses VNI {endpoint.vni} and this node {conf.backend.vni}: "
            f"its pods in {endpoint.pod_cidr} are not reachable",
            where=where,
            remedy="give both nodes the same net-conf.json",
        )
    return None


def _clash(
    conf: NetConf,
    node: str,
    pod_cidr: IPNetwork,
    taken: Mapping[IPNetwork, str],
    overlapping: set[IPNetwork],
) -> PoplinError | None:
    network = conf.network(pod_cidr)
    if network is not None and not _contains(network, pod_cidr):
        return InvalidInputError(
            f"podCIDR {pod_cidr} lies outside the pod network {network}: its pods are not reachable",
            where=f"node {node}",
            remedy="give the node a podCIDR inside Network of net-conf.json",
        )
    if pod_cidr not in overlapping:
        return None
    for other, owner in taken.items():
        if other.version == pod_cidr.version and other.overlaps(pod_cidr):
            return InvalidInputError(
                f"podCIDR {pod_cidr} overlaps {other} of node {owner}: its pods are not reachable",
                where=f"node {node}",
                remedy="give each node a podCIDR of its own (delete and join one of the two again)",
            )
    return None


def _unreachable(
    conf: NetConf, node: str, endpoint: Endpoint, underlay: Underlay, macs: Mapping[tuple[int, str], str]
) -> PoplinError | None:
    """Give the reason why the kernel would refuse what leads to the endpoint, or send it elsewhere."""
    version = endpoint.public_ip.version
    if endpoint.public_ip == underlay.address:
        return InvalidInputError(
            f"publishes {endpoint.public_ip}, this node's own address: "
            f"its pods in {endpoint.pod_cidr} are not reachable",
            where=f"node {node}: annotation {PUBLIC_IP[version]}",
            remedy="delete the Node if it is gone, or remove the annotation",
        )
    if conf.backend.type is BackendType.VXLAN:
        owner = macs.get((version, endpoint.vtep_mac))
        if owner is None:
            return None
        return InvalidInputError(
            f"VtepMAC {endpoint.vtep_mac} is also that of node {owner}: "
            f"its pods in {endpoint.pod_cidr} are not reachable",
            where=f"node {node}: annotation {BACKEND_DATA[version]}",
            remedy="remove the annotation, so that the node's agent chooses a MAC of its own",
        )
    if not underlay.reaches_directly(endpoint.public_ip):
        return InvalidInputError(
            f"{endpoint.public_ip} lies in no network of {underlay.link}, so host-gw has no way to it: "
            f"its pods in {endpoint.pod_cidr} are not reachable",
            where=f"node {node}",
            remedy="use backend vxlan (with DirectRouting), or put the nodes on one link",
        )
    return None


def _contains(network: IPNetwork, inner: IPNetwork) -> bool:
    return (
        network.version == inner.version
        and network.prefixlen <= inner.prefixlen
        and inner.network_address in network
    )


def _overlaps(networks: Iterable[IPNetwork]) -> set[IPNetwork]:
    """Give the networks that overlap another of the list, or stand in it twice."""
    found: set[IPNetwork] = set()
    widest: IPNetwork | None = None
    for network in sorted(networks, key=lambda n: (n.version, int(n.network_address), n.prefixlen)):
        if widest is not None and _contains(widest, network):
            found |= {widest, network}
        else:
            widest = network
    return found


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
