"""Pod to pod across two nodes: ours beside the same path made by hand, interleaved.

Two nodes joined by a veth, each with a real agent, their pods by the real poplin-cni. Beside them the same
devices, addresses, MTU and MACs made with `ip` and `bridge` and no rule at all, twice, so that the second
tells what the noise is; and the path as flannel makes it, with pods on the bridge cni0. Every round measures
all of them in turn, in an order that reverses; a ratio is the median of the rounds' ratios.

    python -m bench.throughput [--json]
"""

import json
import multiprocessing
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_network

from bench.cni import Plugin
from bench.node import SHIM, cluster_file, namespace, node_object, run_in, running_agent
from bench.report import Figure, main, percentile
from poplin.dataplane.netns import entered, in_namespace
from poplin.dataplane.sysctl import write_sysctl

BACKENDS = ("host-gw", "vxlan")
ROUNDS = 12
SLICE_S = 1
PORT = 5201
REACHABLE_ATTEMPTS = 50
INTERVAL = 2
"""How many of the ROUNDS sorted ratios lie beyond each end of the confidence interval."""
ROUND_TRIPS = 2000
PAYLOAD = b"x" * 64
LEAST_RATIO = 0.97
HOST_MAC = "ee:ee:ee:ee:ee:ee"
POD_CIDRS = {1: ("10.244.1.0/24", "fd00:10:244:1::/64"), 2: ("10.244.2.0/24", "fd00:10:244:2::/64")}
NODE_ADDRESSES = {1: ("10.99.0.1", "fd00:10:99::1"), 2: ("10.99.0.2", "fd00:10:99::2")}
GATEWAYS = ("169.254.1.1", "fe80::1")
UNDERLAY_MTU_BYTES = 1500
OVERHEAD_BYTES = {"host-gw": 0, "vxlan": 70}


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod's namespace and its addresses by IP version."""

    fd: int
    addresses: dict[int, str]


@dataclass(frozen=True, slots=True)
class Path:
    """A pod on each of two nodes."""

    name: str
    client: Pod
    server: Pod


# ---- the paths ----


@contextmanager
def two_nodes() -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """The names and descriptors of two nodes' namespaces, whose eth0 are the two ends of one veth."""
    with namespace("n1") as one, namespace("n2") as two:
        ip(one[1], f"link add eth0 type veth peer name eth0 netns {two[0]}")
        for index, (_, fd) in enumerate((one, two), 1):
            v4, v6 = NODE_ADDRESSES[index]
            ip(fd, "link set lo up", "link set eth0 up", f"address add {v4}/24 dev eth0")
            ip(fd, f"address add {v6}/64 dev eth0 nodad")
        yield one, two


@contextmanager
def ours(backend: str) -> Iterator[Path]:
    """The path that two agents make."""
    conf = {
        "Network": "10.244.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "fd00:10:244::/48",
        "Backend": {"Type": backend},
    }
    objects = [node_object(f"n{i}", POD_CIDRS[i], NODE_ADDRESSES[i]) for i in (1, 2)]
    with two_nodes() as nodes, cluster_file(objects, conf) as cluster, ExitStack() as stack:
        pods = []
        for index, (_, fd) in enumerate(nodes, 1):
            node = stack.enter_context(running_agent(fd, f"n{index}", cluster))
            name, pod_fd = stack.enter_context(namespace(f"pod{index}"))
            Plugin("poplin", SHIM, node.config, fd).call("ADD", name)
            links = json.loads(run_in(pod_fd, "ip", "-j", "address", "show", "scope", "global"))
            found = [address for link in links for address in link.get("addr_info", ()) if address]
            by_version = {6 if a["family"] == "inet6" else 4: a["local"] for a in found}
            pods.append(Pod(pod_fd, by_version))
        yield Path("poplin", *pods)


@contextmanager
def by_hand(name: str, backend: str, *, bridged: bool) -> Iterator[Path]:
    """The same path without any rule; `bridged` puts the pods on cni0, as flannel's plugin does."""
    with two_nodes() as nodes, ExitStack() as stack:
        pods = []
        for index, (_, fd) in enumerate(nodes, 1):
            with entered(fd):
                write_sysctl("net/ipv4/ip_forward", "1")
                write_sysctl("net/ipv6/conf/all/forwarding", "1")
            connect_node(fd, index, 3 - index, backend)
            pod_name, pod_fd = stack.enter_context(namespace(f"pod{index}"))
            join = bridge_pod if bridged else route_pod
            mtu_bytes = UNDERLAY_MTU_BYTES - OVERHEAD_BYTES[backend]
            addresses = tuple(str(ip_network(cidr)[2]) for cidr in POD_CIDRS[index])
            join(fd, pod_fd, pod_name, index, addresses, mtu_bytes)
            pods.append(Pod(pod_fd, {4: addresses[0], 6: addresses[1]}))
        yield Path(name, *pods)


def connect_node(fd: int, own: int, peer: int, backend: str) -> None:
    """Routes to the peer's pods, by way of the peer or of VXLAN devices as flanneld makes them."""
    for version, cidr, local, remote in zip(
        (4, 6), POD_CIDRS[peer], NODE_ADDRESSES[own], NODE_ADDRESSES[peer], strict=True
    ):
        if backend == "host-gw":
            ip(fd, f"-{version} route add {cidr} via {remote} dev eth0")
            continue
        device = "flannel.1" if version == 4 else "flannel-v6.1"
        length = 32 if version == 4 else 128
        vtep, peer_vtep = (ip_network(POD_CIDRS[i][version == 6]).network_address for i in (own, peer))
        mtu_bytes = UNDERLAY_MTU_BYTES - (50 if version == 4 else 70)
        ip(
            fd,
            f"link add {device} address {vtep_mac(own)} mtu {mtu_bytes} type vxlan id 1 dev eth0"
            f" local {local} dstport 8472 nolearning",
            f"link set {device} up",
            f"address add {vtep}/{length} dev {device}",
            f"neighbour add {peer_vtep} lladdr {vtep_mac(peer)} dev {device} nud permanent",
            f"-{version} route add {cidr} via {peer_vtep} dev {device} onlink",
        )
        run_in(fd, *f"bridge fdb add {vtep_mac(peer)} dev {device} dst {remote} self permanent".split())


def vtep_mac(node: int) -> str:
    """The MAC of a node's VXLAN devices."""
    return f"02:00:00:00:00:0{node}"


def route_pod(
    fd: int, pod_fd: int, pod_name: str, index: int, addresses: Sequence[str], mtu_bytes: int
) -> None:
    """A pod on a veth of its own with permanent neighbours at both ends."""
    mac = f"0a:58:00:00:00:0{index}"
    ip(
        fd,
        f"link add pod0 address {HOST_MAC} mtu {mtu_bytes} type veth"
        f" peer name eth0 address {mac} mtu {mtu_bytes} netns {pod_name}",
        "link set pod0 up",
    )
    ip(pod_fd, "link set eth0 up")
    for version, address, gateway in zip((4, 6), addresses, GATEWAYS, strict=True):
        nodad = "nodad" if version == 6 else ""
        ip(
            pod_fd,
            f"address add {address} dev eth0 {nodad}",
            f"neighbour add {gateway} lladdr {HOST_MAC} dev eth0 nud permanent",
            f"-{version} route add default via {gateway} dev eth0 onlink",
        )
        ip(
            fd,
            f"-{version} route add {address} dev pod0",
            f"neighbour add {address} lladdr {mac} dev pod0 nud permanent",
        )


def bridge_pod(
    fd: int, pod_fd: int, pod_name: str, index: int, addresses: Sequence[str], mtu_bytes: int
) -> None:
    """A pod on the bridge cni0, which is its gateway."""
    ip(
        fd,
        f"link add cni0 mtu {mtu_bytes} type bridge",
        "link set cni0 up",
        f"link add pod0 mtu {mtu_bytes} type veth peer name eth0 mtu {mtu_bytes} netns {pod_name}",
        "link set pod0 master cni0 up",
    )
    run_in(fd, "bridge", "link", "set", "dev", "pod0", "hairpin", "on")
    ip(pod_fd, "link set eth0 up")
    for version, address, cidr in zip((4, 6), addresses, POD_CIDRS[index], strict=True):
        network, nodad = ip_network(cidr), "nodad" if version == 6 else ""
        ip(fd, f"address add {network[1]}/{network.prefixlen} dev cni0 {nodad}")
        ip(
            pod_fd,
            f"address add {address}/{network.prefixlen} dev eth0 {nodad}",
            f"-{version} route add default via {network[1]}",
        )


def ip(fd: int, *lines: str) -> None:
    """Run `ip` in the namespace, once for each line."""
    for line in lines:
        run_in(fd, "ip", *line.split())


# ---- the measurements: each gives one round's samples of one path ----


def measure_stream(path: Path, version: int) -> list[float]:
    """TCP throughput of one iperf3 run, in Gbit/s as received."""
    address = path.server.addresses[version]
    report = json.loads(run_in(path.client.fd, "iperf3", "-c", address, "-t", str(SLICE_S), "-J"))
    return [report["end"]["sum_received"]["bits_per_second"] / 1e9]


def measure_round_trips(path: Path, version: int) -> list[float]:
    """Microseconds of TCP round trips between two processes, as applications see them."""
    with (
        echo_server(path.server, version) as port,
        in_namespace(path.client.fd, lambda: socket.socket(family(version))) as near,
    ):
        near.connect((path.server.addresses[version], port))
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return timed_trips(lambda: near.send(PAYLOAD), lambda: near.recv(len(PAYLOAD)))


def measure_kernel_path(path: Path, version: int) -> list[float]:
    """Microseconds of UDP round trips of one process that holds both ends: no wake-up, the path alone."""
    with (
        in_namespace(path.client.fd, lambda: socket.socket(family(version), socket.SOCK_DGRAM)) as near,
        in_namespace(path.server.fd, lambda: socket.socket(family(version), socket.SOCK_DGRAM)) as far,
    ):
        near.bind((path.client.addresses[version], 0))
        far.bind((path.server.addresses[version], 0))
        near.connect(far.getsockname())
        far.connect(near.getsockname())
        for end in (near, far):
            end.settimeout(2)

        def answer() -> None:
            far.send(far.recv(len(PAYLOAD)))
            near.recv(len(PAYLOAD))

        return timed_trips(lambda: near.send(PAYLOAD), answer)


def timed_trips(ask: Callable[[], object], answer: Callable[[], object]) -> list[float]:
    """Microseconds of each round trip, after some that warm up."""
    clock, times = time.perf_counter, []
    for _ in range(ROUND_TRIPS + ROUND_TRIPS // 10):
        start = clock()
        ask()
        answer()
        times.append((clock() - start) * 1e6)
    return times[-ROUND_TRIPS:]


@contextmanager
def echo_server(pod: Pod, version: int) -> Iterator[int]:
    """A process that sends back what one TCP client sends; the port."""
    address = (pod.addresses[version], 0)
    with in_namespace(pod.fd, lambda: socket.create_server(address, family=family(version))) as listener:
        child = multiprocessing.get_context("fork").Process(target=echo, args=(listener,), daemon=True)
        child.start()
        try:
            yield listener.getsockname()[1]
        finally:
            child.terminate()
            child.join()


def echo(listener: socket.socket) -> None:
    """Serve one client until it goes."""
    far, _ = listener.accept()
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := far.recv(4096):
        far.send(data)


def family(version: int) -> socket.AddressFamily:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if version == 4 else socket.AF_INET6


@contextmanager
def serving(path: Path) -> Iterator[None]:
    """An iperf3 server in the far pod, once it can be reached."""
    with entered(path.server.fd):
        server = subprocess.Popen(
            ["iperf3", "-s", "-p", str(PORT)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    try:
        for address in path.server.addresses.values():
            wait_reachable(path.client, address)
        yield
    finally:
        server.terminate()
        server.wait(10)


def wait_reachable(client: Pod, address: str) -> None:
    """Wait until the far pod answers: leases have to come across, and neighbours to be found."""
    with entered(client.fd):
        for _ in range(REACHABLE_ATTEMPTS):
            ping = ["ping", "-c1", "-W1", address]
            if not subprocess.run(ping, check=False, capture_output=True, timeout=5).returncode:
                return
            time.sleep(0.1)
    raise RuntimeError(f"{address} does not answer")


# ---- comparison ----


@dataclass(frozen=True, slots=True)
class Measurement:
    """`percents` of a round's samples are its values; one that is not `budgeted` is only told."""

    name: str
    unit: str
    sample: Callable[[Path, int], list[float]]
    percents: tuple[int, ...]
    higher_is_better: bool = False
    budgeted: bool = True


MEASUREMENTS = (
    Measurement("TCP throughput", "Gbit/s", measure_stream, (50,), higher_is_better=True),
    Measurement("TCP round trip", "us", measure_round_trips, (50, 99)),
    Measurement("kernel's path", "us", measure_kernel_path, (50,), budgeted=False),
)


def compare(backend: str, version: int, measurement: Measurement, paths: Sequence[Path]) -> list[Figure]:
    """Measure all paths in turn; the first is ours, the second by hand, the third the same again."""
    rounds: list[list[list[float]]] = []
    for number in range(ROUNDS):
        order = paths if number % 2 else paths[::-1]
        samples = {path.name: measurement.sample(path, version) for path in order}
        rounds.append([samples[path.name] for path in paths])
    figures = []
    for percent in measurement.percents:
        columns = list(zip(*([percentile(s, percent) for s in one] for one in rounds), strict=True))
        tail = f" p{percent}" if len(measurement.percents) > 1 else ""
        what = f"{backend} IPv{version} {measurement.name}{tail}"
        own, hand, again, bridge = columns
        noise = f"A/A {statistics.median(ratios(again, hand)):.3f}"
        figures += [
            figure(what, measurement, "by hand", own, hand, noise),
            figure(what, measurement, "cni0 by hand", own, bridge, ""),
        ]
    return figures


def figure(
    what: str,
    measurement: Measurement,
    peer: str,
    own: Sequence[float],
    other: Sequence[float],
    note: str,
) -> Figure:
    """Ours beside another path: the median of the rounds' ratios, with its confidence interval."""
    found = sorted(ratios(own, other))
    # The interval between these order statistics holds the median with 96 % (binomial, 12 rounds).
    low, high = found[INTERVAL], found[-1 - INTERVAL]
    budget = LEAST_RATIO if measurement.higher_is_better else 1 / LEAST_RATIO
    return Figure(
        what,
        statistics.median(own),
        measurement.unit,
        peer,
        statistics.median(other),
        statistics.median(found),
        round(budget, 3) if measurement.budgeted else None,
        higher_is_better=measurement.higher_is_better,
        note=f"[{low:.3f}, {high:.3f}] {note}".rstrip(),
    )


def ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(own, other, strict=True)]


def run() -> list[Figure]:
    """Every backend, family and measurement."""
    figures = []
    for backend in BACKENDS:
        with ExitStack() as stack:
            paths = [
                stack.enter_context(ours(backend)),
                stack.enter_context(by_hand("by hand", backend, bridged=False)),
                stack.enter_context(by_hand("by hand again", backend, bridged=False)),
                stack.enter_context(by_hand("cni0 by hand", backend, bridged=True)),
            ]
            for path in paths:
                stack.enter_context(serving(path))
            for version in (4, 6):
                for measurement in MEASUREMENTS:
                    figures += compare(backend, version, measurement, paths)
    return figures


if __name__ == "__main__":
    main("Pod to pod across two nodes, beside the same path by hand", run)
