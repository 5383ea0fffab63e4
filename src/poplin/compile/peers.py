"""The other nodes: which of their endpoints are served, and the kernel objects that lead to each.

A node is read and judged by itself; only what several nodes claim at once is decided between those that claim
it. So an update costs what the nodes that changed do, beside comparisons of pointers and copies of sets, and its
result is that of nodes read for the first time (`tests/property/test_peers.py`).
"""

from bisect import bisect
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from poplin.compile.backend import compile_peers
from poplin.compile.lease import BACKEND_DATA, BACKEND_TYPE, PUBLIC_IP, Endpoint, Lease, read_lease
from poplin.compile.underlay import Underlay
from poplin.model.cluster import Node
from poplin.model.errors import InvalidInputError, PoplinError, TemporaryError
from poplin.model.kernel import IPNetwork
from poplin.model.netconf import BackendType, NetConf
from poplin.model.state import NetworkState, unite

Span = tuple[int, int, int]
"""A network as (version, first address, -last address): it sorts before what lies in it."""

Mac = tuple[int, str]
"""A VTEP's MAC with the IP version of the device that it is on."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What peers are judged by: the configuration, this node's lease, and an underlay for each of its families."""

    conf: NetConf
    own: Lease
    underlays: tuple[Underlay, ...]

    def underlay(self, version: int) -> Underlay | None:
        """Give a family's underlay, None where this node does not serve it."""
        return next((u for u in self.underlays if u.address.version == version), None)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A node by itself: the endpoints that only another node can forbid, and what is wrong with the others."""

    node: Node
    endpoints: tuple[Endpoint, ...]
    problems: tuple[PoplinError, ...]


class Peers:
    """Peers as of the last update, from nothing. For one thread at a time."""

    def __init__(self) -> None:
        self._frame: Frame | None = None

    def _reset(self, own: Lease) -> None:
        self._state = NetworkState()
        self._readings: dict[str, _Reading] = {}
        self._problematic: set[str] = set()
        self._served: dict[str, tuple[Endpoint, ...]] = {}
        self._contests: dict[str, tuple[PoplinError, ...]] = {}
        # Who claims each MAC and each podCIDR, and what of that is claimed by several.
        self._macs: defaultdict[Mac, set[str]] = defaultdict(set)
        self._spans: defaultdict[Span, set[str]] = defaultdict(set)
        self._shared: set[Mac] = set()
        self._overlapping: set[Span] = set()
        self._claim(own.node, own.endpoints)

    def update(self, frame: Frame, others: Sequence[Node]) -> tuple[NetworkState, list[PoplinError]]:
        """Give the routes, neighbours and FDB entries that lead to peers, and why some are left out, by name.

        Of nodes that clash the first by name is served, on every node alike; this one goes before all. A node
        that is the same object as in the last update is taken to be unchanged.
        """
        if frame != self._frame:
            self._reset(frame.own)
        self._frame = None  # what an exception leaves behind is nothing to build on
        changed = self._read(frame, others)
        if changed:
            contested = self._contested()
            settled = (changed | self._contests.keys()) - contested
            self._contests = {}
            endpoints = {name: self._readings[name].endpoints for name in settled & self._readings.keys()}
            endpoints |= dict(self._decide(frame.own, sorted(contested)))
            self._serve(frame, dict.fromkeys(settled, ()) | endpoints)
        self._frame = frame
        wrong = sorted(self._problematic | self._contests.keys())
        return self._state, [
            p for name in wrong for p in (*self._readings[name].problems, *self._contests.get(name, ()))
        ]

    def _read(self, frame: Frame, others: Sequence[Node]) -> set[str]:
        """Read the nodes that are other objects than before. Give the names of what came, changed or went."""
        known = self._readings
        stale = {n.name: n for n in others if n.name not in known or known[n.name].node is not n}
        came = stale.keys() - known.keys()
        gone = set[str]()
        if len(known) + len(came) > len(others):
            gone = known.keys() - {node.name for node in others}
        before, after = list[Span](), list[Span]()
        for name in gone | stale.keys() - came:
            before += self._disclaim(name, known.pop(name).endpoints)
        for name, node in stale.items():
            known[name] = _read_node(frame, node)
            after += self._claim(name, known[name].endpoints)
        self._problematic -= gone | stale.keys()
        self._problematic |= {name for name in stale if known[name].problems}
        if sorted(before) != sorted(after):
            self._overlapping = _overlaps(self._spans)
        return gone | stale.keys()

    def _claim(self, name: str, endpoints: Sequence[Endpoint]) -> list[Span]:
        """Enter the claims of a node, and give the podCIDRs among them."""
        for endpoint in endpoints:
            self._spans[_span(endpoint.pod_cidr)].add(name)
            if endpoint.vtep_mac:
                owners = self._macs[_mac(endpoint)]
                owners.add(name)
                if len(owners) > 1:
                    self._shared.add(_mac(endpoint))
        return [_span(endpoint.pod_cidr) for endpoint in endpoints]

    def _disclaim(self, name: str, endpoints: Sequence[Endpoint]) -> list[Span]:
        """Strike the claims of a node out, and give the podCIDRs among them."""
        for endpoint in endpoints:
            span, mac = _span(endpoint.pod_cidr), _mac(endpoint)
            self._spans[span].discard(name)
            if not self._spans[span]:
                del self._spans[span]
            if endpoint.vtep_mac:
                self._macs[mac].discard(name)
                if len(self._macs[mac]) < 2:
                    self._shared.discard(mac)
                if not self._macs[mac]:
                    del self._macs[mac]
        return [_span(endpoint.pod_cidr) for endpoint in endpoints]

    def _contested(self) -> set[str]:
        """Name the peers that claim what another node claims as well."""
        claimants = [self._macs[mac] for mac in self._shared]
        claimants += [self._spans[span] for span in self._overlapping]
        return set[str]().union(*claimants) & self._readings.keys()

    def _decide(self, own: Lease, contested: Iterable[str]) -> Iterator[tuple[str, tuple[Endpoint, ...]]]:
        """Give the endpoints of each that are served: first come, first served. Notes why others are not."""
        taken = _Taken()
        for endpoint in own.endpoints:
            taken.take(own.node, endpoint)
        for name in contested:
            served, problems = [], []
            for endpoint in self._readings[name].endpoints:
                problem = taken.clash(name, endpoint)
                if problem is None:
                    taken.take(name, endpoint)
                    served.append(endpoint)
                else:
                    problems.append(problem)
            if problems:
                self._contests[name] = tuple(problems)
            yield name, tuple(served)

    def _serve(self, frame: Frame, endpoints: Mapping[str, tuple[Endpoint, ...]]) -> None:
        """Exchange the objects that lead to these nodes."""
        old, new = list[Endpoint](), list[Endpoint]()
        for name, wanted in endpoints.items():
            standing = self._served.pop(name, ())
            if wanted:
                self._served[name] = wanted
            if wanted != standing:
                old += standing
                new += wanted
        gone, made = _reach(frame, old), _reach(frame, new)
        state = self._state
        self._state = NetworkState(
            routes=state.routes - gone.routes | made.routes,
            neighbours=state.neighbours - gone.neighbours | made.neighbours,
            fdb=state.fdb - gone.fdb | made.fdb,
        )


class _Taken:
    """What contested nodes have got so far. The podCIDRs are disjoint, so that only neighbours can clash."""

    def __init__(self) -> None:
        self._cidrs: list[tuple[Span, IPNetwork, str]] = []
        self._macs: dict[Mac, str] = {}

    def take(self, name: str, endpoint: Endpoint) -> None:
        """Give a node what its endpoint claims."""
        span = _span(endpoint.pod_cidr)
        self._cidrs.insert(bisect(self._cidrs, span, key=_first), (span, endpoint.pod_cidr, name))
        if endpoint.vtep_mac:
            self._macs[_mac(endpoint)] = name

    def clash(self, name: str, endpoint: Endpoint) -> PoplinError | None:
        """Give the reason why the endpoint cannot be served beside those that are, None where it can."""
        pod_cidr = endpoint.pod_cidr
        place = bisect(self._cidrs, _span(pod_cidr), key=_first)
        for _, other, owner in self._cidrs[max(0, place - 1) : place + 1]:
            if other.version == pod_cidr.version and other.overlaps(pod_cidr):
                return InvalidInputError(
                    f"podCIDR {pod_cidr} overlaps {other} of node {owner}: its pods are not reachable",
                    where=f"node {name}",
                    remedy="give each node a podCIDR of its own (delete and join one of the two again)",
                )
        owner = self._macs.get(_mac(endpoint), "")
        if not owner:
            return None
        return InvalidInputError(
            f"VtepMAC {endpoint.vtep_mac} is also that of node {owner}: its pods in {pod_cidr} are not reachable",
            where=f"node {name}: annotation {BACKEND_DATA[pod_cidr.version]}",
            remedy="remove the annotation, so that the node's agent chooses a MAC of its own",
        )


def _read_node(frame: Frame, node: Node) -> _Reading:
    """Judge a node by itself; a family that cannot be read leaves the other alone."""
    endpoints, problems = list[Endpoint](), list[PoplinError]()
    for network in frame.conf.networks:
        pod_cidr = next((c for c in node.pod_cidrs if c.version == network.version), None)
        if pod_cidr is None:
            continue
        try:
            lease = read_lease(node.name, node.annotations, (pod_cidr,))
        except InvalidInputError as error:
            problems.append(error)
            continue
        underlay = frame.underlay(network.version)
        if lease is None or underlay is None:
            continue
        for endpoint in lease.endpoints:
            problem = _mismatch(frame.conf, node, endpoint) or _unreachable(
                frame.conf, node.name, endpoint, underlay
            )
            if problem is None:
                endpoints.append(endpoint)
            else:
                problems.append(problem)
    return _Reading(node, tuple(endpoints), tuple(problems))


def _mismatch(conf: NetConf, node: Node, endpoint: Endpoint) -> PoplinError | None:
    where, backend_type = f"node {node.name}", node.annotations.get(BACKEND_TYPE, "")
    if backend_type != conf.backend.type:
        return TemporaryError(
            f"runs backend {backend_type!r} and this node {conf.backend.type.value!r}: "
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


def _unreachable(conf: NetConf, node: str, endpoint: Endpoint, underlay: Underlay) -> PoplinError | None:
    """Give the reason why what leads to the endpoint would be refused, or would lead elsewhere."""
    pod_cidr, public_ip = endpoint.pod_cidr, endpoint.public_ip
    network = conf.network(pod_cidr)
    if network is not None and not contains(network, pod_cidr):
        return InvalidInputError(
            f"podCIDR {pod_cidr} lies outside the pod network {network}: its pods are not reachable",
            where=f"node {node}",
            remedy="give the node a podCIDR inside Network of net-conf.json",
        )
    if public_ip == underlay.address:
        return InvalidInputError(
            f"publishes {public_ip}, this node's own address: its pods in {pod_cidr} are not reachable",
            where=f"node {node}: annotation {PUBLIC_IP[public_ip.version]}",
            remedy="delete the Node if it is gone, or remove the annotation",
        )
    if conf.backend.type is BackendType.HOST_GW and not underlay.reaches_directly(public_ip):
        return InvalidInputError(
            f"{public_ip} lies in no network of {underlay.link}, so host-gw has no way to it: "
            f"its pods in {pod_cidr} are not reachable",
            where=f"node {node}",
            remedy="use backend vxlan (with DirectRouting), or put the nodes on one link",
        )
    return None


def contains(network: IPNetwork, inner: IPNetwork) -> bool:
    """Tell whether all addresses of `inner` are addresses of `network`."""
    return _lies_in(_span(inner), _span(network))


def _lies_in(inner: Span, outer: Span) -> bool:
    return inner[0] == outer[0] and inner[1] >= outer[1] and inner[2] >= outer[2]


def _span(network: IPNetwork) -> Span:
    return network.version, int(network.network_address), -int(network.broadcast_address)


def _first(entry: tuple[Span, IPNetwork, str]) -> Span:
    return entry[0]


def _mac(endpoint: Endpoint) -> Mac:
    return endpoint.pod_cidr.version, endpoint.vtep_mac


def _overlaps(spans: Mapping[Span, Collection[str]]) -> set[Span]:
    """Give the networks that lie in another or hold one, and those that several nodes claim."""
    found = {span for span, names in spans.items() if len(names) > 1}
    widest: Span | None = None
    for span in sorted(spans):
        if widest is not None and _lies_in(span, widest):
            found |= {widest, span}
        else:
            widest = span
    return found


def _reach(frame: Frame, endpoints: Sequence[Endpoint]) -> NetworkState:
    """Give what leads to these endpoints."""
    conf, states = frame.conf, list[NetworkState]()
    for underlay in frame.underlays:
        version = underlay.address.version
        of_family = [e for e in endpoints if e.pod_cidr.version == version]
        states.append(compile_peers(conf.backend, of_family, underlay))
    return unite(states)
