"""rtnetlink: programming and resync of 64k routes, and a whole pod, beside pyroute2 in the same run.

    python -m bench.netlink [--json]

Everything happens in network namespaces of its own. Rounds are interleaved and figures are medians.
pyroute2 works on fewer routes, and its rate is compared.
"""

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_network,
)
from statistics import median
from time import perf_counter

import pyroute2

from bench.report import Figure, against, at_least, main, within
from poplin.dataplane.netlink.reader import RouteReader
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import create_netns, delete_netns, in_namespace, open_netns
from poplin.model.kernel import POD_LINK_GROUP, Address, Link, Neighbour, Route, Scope, Veth, Vxlan
from poplin.plan.operation import Change, Operation, Put, Remove

ROUTES = 65536
PEER_ROUTES = 2048
GATEWAYS = 64
"""Next hops that the routes share, as pools of several blocks a node give. The kernel compares a new IPv4
route with every next hop of its device (net/ipv4/fib_semantics.c, fib_find_info), so their number tells."""

ROUNDS = 10
PODS = 20
HOST_MAC = "ee:ee:ee:ee:ee:ee"


class TimedSocket:
    """A socket that adds up the time inside its calls: the kernel's part of the work."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self.seconds = 0.0

    def send(self, data: bytes) -> int:
        start = perf_counter()
        try:
            return self._inner.send(data)
        finally:
            self.seconds += perf_counter() - start

    def recv(self, size: int) -> bytes:
        start = perf_counter()
        try:
            return self._inner.recv(size)
        finally:
            self.seconds += perf_counter() - start

    def fileno(self) -> int:
        return self._inner.fileno()

    def close(self) -> None:
        self._inner.close()


@contextmanager
def namespace() -> Iterator[int]:
    """The descriptor of a new namespace, which goes at the end."""
    name = f"pb{os.getpid()}-{secrets.token_hex(4)}"
    fd = open_netns(create_netns(name))
    try:
        yield fd
    finally:
        os.close(fd)
        delete_netns(name)


def timed(function: Callable[[], object]) -> float:
    """Seconds that the call took."""
    start = perf_counter()
    function()
    return perf_counter() - start


def checked(netlink: RouteSocket, operations: list[Operation]) -> None:
    """Apply; a benchmark of failures would be none."""
    failures = netlink.apply(operations)
    if failures:
        raise failures[0].error


def routes(version: int, count: int, gateways: int) -> list[Route]:
    """Routes of the overlay's form, by way of `gateways` next hops."""
    kind: type[IPv4Address | IPv6Address] = IPv4Address if version == 4 else IPv6Address
    base, length, step = (
        (int(IPv4Address("10.0.0.0")), 24, 1 << 8) if version == 4 else (0xFD << 120, 64, 1 << 64)
    )
    network: type[IPv4Network | IPv6Network] = IPv4Network if version == 4 else IPv6Network
    return [
        Route(network((base + i * step, length)), kind(base + i % gateways * step), "vxlan1", onlink=True)
        for i in range(count)
    ]


def measure_routes(version: int) -> list[Figure]:
    """Program, read back and compare; each round also pyroute2's share."""
    wanted = routes(version, ROUTES, GATEWAYS)
    desired = frozenset(wanted)
    times: dict[str, list[float]] = {"put": [], "resync": [], "peer put": [], "peer dump": []}
    with (
        namespace() as fd,
        in_namespace(fd, RouteSocket) as netlink,
        in_namespace(fd, pyroute2.IPRoute) as peer,
    ):
        checked(netlink, [Change(Link("lo")), Put(Link("vxlan1", kind="vxlan", vxlan=Vxlan(1, 8472)))])
        link = netlink.link("vxlan1")
        assert link is not None
        puts: list[Operation] = [Put(route) for route in wanted]
        for _ in range(ROUNDS):
            times["peer put"].append(timed(lambda: put_with_peer(peer, wanted[:PEER_ROUTES], link.index)))
            times["peer dump"].append(timed(lambda: list(peer.get_routes(family=socket_family(version)))))
            checked(netlink, [Remove(route) for route in wanted[:PEER_ROUTES]])
            times["put"].append(timed(lambda: checked(netlink, puts)))
            reader = RouteReader(netlink)
            first = timed(lambda: reader.read(desired))  # noqa: B023  - called at once
            times.setdefault("first", []).append(first)
            times["resync"] += [timed(lambda: resync(reader, desired)) for _ in range(2)]  # noqa: B023  - called at once
            checked(netlink, [Remove(route) for route in wanted])
    name = f"IPv{version}"
    put, peer_put = ROUTES / median(times["put"]), PEER_ROUTES / median(times["peer put"])
    read, peer_read = ROUTES / median(times["resync"]), PEER_ROUTES / median(times["peer dump"])
    return [
        at_least(f"{name}: program {ROUTES} routes", put, "routes/s", 90_000),
        against(f"{name}: the same beside pyroute2", put, "routes/s", "pyroute2", peer_put),
        within(f"{name}: resync, nothing to do", median(times["resync"]) * 1e3, "ms", 150),
        against(f"{name}: the same beside pyroute2's read", read, "routes/s", "pyroute2", peer_read),
        Figure(f"{name}: first read of {ROUTES} routes", median(times["first"]) * 1e3, "ms"),
    ]


def resync(reader: RouteReader, desired: frozenset[Route]) -> None:
    """An audit that finds everything in place."""
    actual = reader.read(desired)
    assert not desired - actual
    assert not actual - desired


def socket_family(version: int) -> int:
    """AF_INET or AF_INET6."""
    return int(socket.AF_INET if version == 4 else socket.AF_INET6)


def put_with_peer(peer: pyroute2.IPRoute, wanted: list[Route], index: int) -> None:
    """The same routes by pyroute2, one request each as its documentation shows."""
    for route in wanted:
        peer.route(
            "add",
            dst=str(route.destination),
            gateway=str(route.gateway),
            oif=index,
            flags=["onlink"],
            proto=112,
        )


def measure_own_gateways(count: int) -> list[Figure]:
    """Each route with its own gateway, as each node of an overlay has."""
    puts: list[Operation] = [Put(route) for route in routes(4, count, count)]
    with namespace() as fd, in_namespace(fd, RouteSocket) as netlink:
        checked(netlink, [Change(Link("lo")), Put(Link("vxlan1", kind="vxlan", vxlan=Vxlan(1, 8472)))])
        seconds = timed(lambda: checked(netlink, puts))
    return [Figure(f"IPv4: program {count} routes, each its own gateway", count / seconds, "routes/s")]


def host_operations(number: int, fd: int) -> list[Operation]:
    """The host side of a dual-stack pod, the pair included."""
    name, mac, address, address6 = pod_identity(number)
    host = Link(name, mac=HOST_MAC, mtu_bytes=1450, group=POD_LINK_GROUP, alias="default/pod")
    return [
        Put(Veth(host, Link("eth0", mac=mac, mtu_bytes=1450), fd)),
        Put(Address(name, IPv6Interface("fe80::1/64"), Scope.LINK)),
        Put(Neighbour(name, address, mac)),
        Put(Neighbour(name, address6, mac)),
        Put(Route(ip_network(address), link=name)),
        Put(Route(ip_network(address6), link=name)),
    ]


def pod_operations(number: int) -> list[Operation]:
    """The pod's own side."""
    _, _, address, address6 = pod_identity(number)
    gateway, gateway6 = IPv4Address("169.254.1.1"), IPv6Address("fe80::1")
    return [
        Change(Link("eth0")),
        Put(Address("eth0", IPv4Interface(address))),
        Put(Address("eth0", IPv6Interface(address6))),
        Put(Neighbour("eth0", gateway, HOST_MAC)),
        Put(Neighbour("eth0", gateway6, HOST_MAC)),
        Put(Route(IPv4Network("0.0.0.0/0"), gateway, "eth0", onlink=True)),
        Put(Route(IPv6Network("::/0"), gateway6, "eth0")),
    ]


def pod_identity(number: int) -> tuple[str, str, IPv4Address, IPv6Address]:
    """Host link, MAC and addresses of a pod."""
    mac = f"0a:58:0a:01:00:{number:02x}"
    return f"pop{number}", mac, IPv4Address(0x0A010002 + number), IPv6Address((0xFD << 120) + 2 + number)


def make_pod(netlink: RouteSocket, number: int, fd: int) -> tuple[float, float]:
    """Seconds altogether, and of them the kernel's, to wire one pod."""
    host, pod = host_operations(number, fd), pod_operations(number)
    node_time = instrument(netlink)
    start = perf_counter()
    checked(netlink, host)
    with in_namespace(fd, RouteSocket) as inside:
        pod_time = instrument(inside)
        checked(inside, pod)
    return perf_counter() - start, node_time() + pod_time()


def instrument(netlink: RouteSocket) -> Callable[[], float]:
    """Count the socket's time from here; what is returned tells it, and ends the counting."""
    channel = netlink._channel  # noqa: SLF001  - the one place where the kernel's time can be told from ours
    plain = channel.socket
    clock = TimedSocket(plain)
    channel.socket = clock  # type: ignore[assignment]

    def stop() -> float:
        channel.socket = plain
        return clock.seconds

    return stop


def make_pod_with_peer(peer: pyroute2.IPRoute, number: int, fd: int) -> float:
    """The same pod by pyroute2."""
    name, mac, address, address6 = pod_identity(number)
    start = perf_counter()
    peer.link(
        "add",
        ifname=name,
        kind="veth",
        address=HOST_MAC,
        mtu=1450,
        peer={"ifname": "eth0", "address": mac, "mtu": 1450, "net_ns_fd": fd},
    )
    index = peer.link_lookup(ifname=name)[0]
    peer.link("set", index=index, state="up", ifalias="default/pod")
    peer.addr("add", index=index, address="fe80::1", prefixlen=64)
    for ip, length in ((address, 32), (address6, 128)):
        peer.neigh("add", dst=str(ip), lladdr=mac, ifindex=index, state="permanent")
        peer.route("add", dst=f"{ip}/{length}", oif=index, proto=112)
    with in_namespace(fd, pyroute2.IPRoute) as inside:
        index = inside.link_lookup(ifname="eth0")[0]
        inside.link("set", index=index, state="up")
        for ip, length, gateway in ((address, 32, "169.254.1.1"), (address6, 128, "fe80::1")):
            inside.addr("add", index=index, address=str(ip), prefixlen=length)
            inside.neigh("add", dst=gateway, lladdr=HOST_MAC, ifindex=index, state="permanent")
            inside.route(
                "add",
                dst="default",
                gateway=gateway,
                oif=index,
                flags=["onlink"],
                family=socket_family(ip.version),
            )
    return perf_counter() - start


def measure_pods() -> list[Figure]:
    """Pods of both families, each in a namespace that the runtime would have made."""
    ours, kernel, peers = [], [], []
    with ExitStack() as stack:
        node = stack.enter_context(namespace())
        netlink = stack.enter_context(in_namespace(node, RouteSocket))
        peer = stack.enter_context(in_namespace(node, pyroute2.IPRoute))
        checked(netlink, [Change(Link("lo"))])
        for number in range(PODS):
            total, inside = make_pod(netlink, 2 * number, stack.enter_context(namespace()))
            ours.append(total)
            kernel.append(inside)
            peers.append(make_pod_with_peer(peer, 2 * number + 1, stack.enter_context(namespace())))
    spent_ms, peers_ms = median(ours) * 1e3, median(peers) * 1e3
    return [
        within("dual-stack pod: pair and all that is on it", spent_ms, "ms", 1.0),
        Figure("  of that inside send and recv", median(kernel) * 1e3, "ms"),
        against("  the same beside pyroute2", spent_ms, "ms", "pyroute2", peers_ms),
    ]


def run() -> list[Figure]:
    """All figures, in the order in which they are printed."""
    figures = [figure for version in (4, 6) for figure in measure_routes(version)]
    figures += [figure for count in (1000, 5000) for figure in measure_own_gateways(count)]
    return figures + measure_pods()


if __name__ == "__main__":
    main("rtnetlink: routes and pods, beside pyroute2", run)
