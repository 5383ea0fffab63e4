"""Two pods, their node and a host outside, in network namespaces of their own: real packets for the tests.

    pod a --veth-- node --veth-- pod b
                    |
                 outside

Pods are wired as Poplin wires them: /32 and /128 addresses, a link-local gateway, permanent neighbours,
the node's ends in POD_LINK_GROUP. The outside host is the node's neighbour and routes nothing.
"""

import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from poplin.dataplane.netns import entered
from poplin.model.kernel import POD_LINK_GROUP

POD_A = {4: "10.244.1.10", 6: "fd00:10:244:1::10"}
POD_B = {4: "10.244.1.20", 6: "fd00:10:244:1::20"}
NODE = {4: "192.0.2.1", 6: "2001:db8:2::1"}
OUTSIDE = {4: "192.0.2.9", 6: "2001:db8:2::9"}
SERVICE = {4: "10.96.0.10", 6: "fd00:10:96::10"}
GATEWAY = {4: "169.254.1.1", 6: "fe80::1"}
HOST_MAC = "ee:ee:ee:ee:ee:ee"
Socket = socket.socket
WAIT_S = 0.4
"""How long a packet that should not come is waited for; one that comes takes well under a millisecond."""


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
    return done.stdout


@dataclass
class Host:
    """One network namespace. Sockets made by it stay in it."""

    name: str
    addresses: dict[int, str]
    sockets: list[Socket] = field(default_factory=list)

    @contextmanager
    def entered(self) -> Iterator[None]:
        with Path(f"/run/netns/{self.name}").open() as namespace, entered(namespace.fileno()):
            yield

    def run(self, *command: str, stdin: str = "") -> str:
        return run("ip", "netns", "exec", self.name, *command, stdin=stdin)

    def open(self, version: int, kind: int, protocol: int = 0) -> Socket:
        with self.entered():
            made = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind, protocol)
        made.settimeout(WAIT_S)
        self.sockets.append(made)
        return made

    def listen(self, version: int, port: int, address: str = "") -> Socket:
        made = self.open(version, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address or self.addresses[version], port))
        made.listen()
        return made

    def connect(self, address: str, port: int, source: tuple[str, int] | None = None) -> Socket:
        """Raises TimeoutError where nothing answers, ConnectionRefusedError or OSError where something refuses."""
        made = self.open(ip_address(address).version, socket.SOCK_STREAM)
        if source:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(source)
        made.connect((address, port))
        return made

    def udp(self, version: int, port: int = 0, address: str = "") -> Socket:
        made = self.open(version, socket.SOCK_DGRAM)
        made.bind((address or self.addresses[version], port))
        return made


@dataclass
class Topology:
    a: Host
    b: Host
    node: Host
    outside: Host

    @property
    def hosts(self) -> tuple[Host, ...]:
        return (self.a, self.b, self.node, self.outside)

    def close_sockets(self) -> None:
        for host in self.hosts:
            while host.sockets:
                host.sockets.pop().close()


@contextmanager
def built() -> Iterator[Topology]:
    """The four namespaces, gone again on the way out."""
    tag = secrets.token_hex(3)
    hosts = [
        Host(f"poplin-{role}-{tag}", addresses)
        for role, addresses in (("a", POD_A), ("b", POD_B), ("node", NODE), ("out", OUTSIDE))
    ]
    topology = Topology(*hosts)
    try:
        for host in hosts:
            run("ip", "netns", "add", host.name)
            host.run(
                *(
                    "sysctl",
                    "-q",
                    "-w",
                    "net.ipv6.conf.default.accept_dad=0",
                    "net.ipv6.conf.all.forwarding=1",
                ),
                *("net.ipv4.ip_forward=1", "net.ipv6.conf.default.accept_ra=0"),
                *("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"),
                *("net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"),
            )
            run("ip", "-n", host.name, "link", "set", "lo", "up")
        wire_outside(topology)
        wire_pod(topology.node, topology.a, "poda")
        wire_pod(topology.node, topology.b, "podb")
        yield topology
    finally:
        topology.close_sockets()
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)


def wire_outside(topology: Topology) -> None:
    node, outside = topology.node, topology.outside
    batch(node, f"link add uplink type veth peer name uplink netns {outside.name}")
    for host in (node, outside):
        batch(
            host,
            "link set uplink up",
            f"addr add {host.addresses[4]}/24 dev uplink",
            f"addr add {host.addresses[6]}/64 dev uplink nodad",
        )
    batch(node, f"route add default via {OUTSIDE[4]}", f"-6 route add default via {OUTSIDE[6]}")


def wire_pod(node: Host, pod: Host, link: str) -> None:
    batch(
        node,
        f"link add {link} address {HOST_MAC} group {POD_LINK_GROUP} type veth peer name eth0 netns {pod.name}",
        f"link set {link} up",
        f"addr add fe80::1/64 dev {link} nodad",
    )
    batch(pod, "link set eth0 up")
    mac = pod.run("cat", "/sys/class/net/eth0/address").strip()
    for version, bits in ((4, 32), (6, 128)):
        address, gateway = pod.addresses[version], GATEWAY[version]
        batch(
            pod,
            f"addr add {address}/{bits} dev eth0 nodad",
            f"neigh replace {gateway} lladdr {HOST_MAC} dev eth0 nud permanent",
            f"-{version} route add default via {gateway} dev eth0 onlink",
        )
        batch(
            node,
            f"neigh replace {address} lladdr {mac} dev {link} nud permanent",
            f"-{version} route add {address}/{bits} dev {link}",
        )


def batch(host: Host, *lines: str) -> None:
    for line in lines:
        run("ip", "-n", host.name, *line.split())
