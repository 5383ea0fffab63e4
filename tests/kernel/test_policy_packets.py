"""Random clusters and policies, their table in a real kernel, and a packet for every question: it agrees with the evaluator.

pods of n1, each in a namespace --veth-- n1 --veth-- far: n2's pods, n2, and hosts outside
"""

import errno
import secrets
import select as polling
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kernel.topology import GATEWAY, HOST_MAC, Host, run
from poplin.compile.policy.compiler import compile_policy
from poplin.compile.policy.world import build_world
from poplin.dataplane.conntrack import ConntrackSocket
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.kernel import POD_LINK_GROUP
from poplin.plan.nftables import plan_table
from property.policy_cases import NAMES, NAMESPACES, NODES, OUTSIDE, PORTS, clusters
from property.test_policy import packets, read, to_packet

PODS = range(2, 2 + len(NAMES) * len(NAMESPACES))
LOCAL = {4: "10.244.1.{}", 6: "fd00:10:244:1::{:x}"}
REMOTE = {4: "10.244.2.{}", 6: "fd00:10:244:2::{:x}"}
LINK = {4: ("192.0.2.1", "192.0.2.2", 24), 6: ("2001:db8:2::1", "2001:db8:2::2", 64)}
SETTLE_S = 0.15
"""How long packets are waited for that a busy machine may delay; they take microseconds."""


@dataclass
class Bench:
    """`hosts` by address; sockets wait at every address and port for as long as the bench stands."""

    node: Host
    hosts: dict[str, Host]
    names: list[str]
    receivers: dict[int, tuple[socket.socket, str, int]] = field(default_factory=dict)
    listeners: list[socket.socket] = field(default_factory=list)
    senders: dict[str, socket.socket] = field(default_factory=dict)

    def open_all(self) -> None:
        for address, host in self.hosts.items():
            version = ip_address(address).version
            for port in PORTS:
                receiver = host.udp(version, port, address)
                receiver.setblocking(False)
                self.receivers[receiver.fileno()] = (receiver, address, port)
                self.listeners.append(host.listen(version, port, address))
            self.senders[address] = host.udp(version, 0, address)

    def datagrams(self, asked):
        """Those of the questions (source, destination, protocol, port) whose datagram arrives."""
        token = secrets.token_bytes(6)
        by_text = {token + str(number).encode(): one for number, one in enumerate(asked)}
        for text, (source, destination, _, port) in by_text.items():
            self.senders[source].sendto(text, (destination, port))
        time.sleep(SETTLE_S)
        arrived = set()
        for receiver, address, port in self.receivers.values():
            while True:
                try:
                    text = receiver.recv(100)
                except BlockingIOError:
                    break
                if text in by_text:
                    one = by_text[text]
                    assert (address, port) == (one[1], one[3])
                    arrived.add(one)
        return arrived

    def connections(self, asked):
        """Those of the questions whose connection is established."""
        pending: dict[int, tuple[socket.socket, tuple]] = {}
        for one in asked:
            source, destination, _, port = one
            made = self.hosts[source].open(ip_address(source).version, socket.SOCK_STREAM)
            made.setblocking(False)
            made.bind((source, 0))
            assert made.connect_ex((destination, port)) == errno.EINPROGRESS
            pending[made.fileno()] = (made, one)
        arrived = set()
        poll = polling.poll()
        for number in pending:
            poll.register(number, polling.POLLOUT)
        deadline = time.monotonic() + SETTLE_S
        while (left := deadline - time.monotonic()) > 0:
            for number, _ in poll.poll(left * 1000):
                poll.unregister(number)
                made, one = pending[number]
                assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, one
                arrived.add(one)
        for made, one in pending.values():
            self.hosts[one[0]].sockets.remove(made)
            made.close()
        return arrived


@contextmanager
def built() -> Iterator[Bench]:
    tag = secrets.token_hex(3)
    node, far = Host(f"pp-{tag}-n1", {}), Host(f"pp-{tag}-far", {})
    hosts: dict[str, Host] = {}
    names = []
    try:
        for host in (node, far):
            add(host, names)
        node.run("ip", "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", far.name)
        for near, there, bits in LINK.values():
            for host, address in ((node, near), (far, there)):
                host.run("ip", "address", "add", f"{address}/{bits}", "dev", "eth0", "nodad")
        for host in (node, far):
            host.run("ip", "link", "set", "eth0", "up")
        far.run("ip", "link", "set", "lo", "up")
        for address in [*OUTSIDE, *(REMOTE[version].format(number) for version in REMOTE for number in PODS)]:
            version = ip_address(address).version
            bits = 32 if version == 4 else 128
            far.run("ip", "address", "add", f"{address}/{bits}", "dev", "lo", "nodad")
            node.run("ip", "route", "add", f"{address}/{bits}", "via", LINK[version][1])
            hosts[address] = far
        for block, version in (("10.244.1.0/24", 4), ("fd00:10:244:1::/64", 6)):
            far.run("ip", "route", "add", block, "via", LINK[version][0])
        for number in PODS:
            pod = Host(f"pp-{tag}-{number}", {v: LOCAL[v].format(number) for v in LOCAL})
            add(pod, names)
            wire(node, pod, number)
            hosts |= dict.fromkeys(pod.addresses.values(), pod)
        hosts |= {NODES["n1"]: node, NODES["n2"]: far}
        bench = Bench(node, hosts, names)
        bench.open_all()
        yield bench
    finally:
        for host in {id(one): one for one in (*hosts.values(), node, far)}.values():
            for one in host.sockets:
                one.close()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def add(host, names):
    run("ip", "netns", "add", host.name)
    names.append(host.name)
    for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding", "ipv6.conf.default.forwarding"):
        host.run("sysctl", "-q", "-w", f"net.{key}=1")
    host.run("sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0")


def wire(node, pod, number):
    link = f"pod{number}"
    node.run(
        *f"ip link add {link} address {HOST_MAC} group {POD_LINK_GROUP} type veth peer eth0 netns {pod.name}".split()
    )
    node.run("ip", "link", "set", link, "up")
    node.run("ip", "address", "add", "fe80::1/64", "dev", link, "nodad")
    pod.run("ip", "link", "set", "eth0", "up")
    for version, address in pod.addresses.items():
        bits = 32 if version == 4 else 128
        pod.run("ip", "address", "add", f"{address}/{bits}", "dev", "eth0", "nodad")
        pod.run("ip", "neighbour", "add", GATEWAY[version], "lladdr", HOST_MAC, "dev", "eth0")
        pod.run(
            *f"ip -{version} route add default via {GATEWAY[version]} dev eth0 onlink src {address}".split()
        )
        node.run("ip", "route", "add", f"{address}/{bits}", "dev", link)


@pytest.fixture(scope="module")
def bench():
    with built() as made, made.node.entered(), NftSocket() as nft, ConntrackSocket() as conntrack:
        yield made, nft, conntrack


@settings(
    max_examples=12, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(clusters(), st.sampled_from([4, 6]))
@pytest.mark.timeout(300)
def test_the_kernel_decides_as_the_evaluator(bench, objects, version):
    made, nft, conntrack = bench
    state = read(objects)
    world = build_world(state)
    table = compile_policy(state, "n1")
    nft.apply(plan_table(table, None))
    try:
        conntrack.delete(conntrack.read())
        local = {str(a) for pod in state.pods if pod.node_name == "n1" for a in pod.addresses}
        asked, wanted = [], set()
        for one in packets(objects, version):
            source, destination = one[:2]
            if source == destination or not {source, destination} & local:
                continue
            said = world.evaluate(to_packet(*one))
            asked.append(one)
            if (source not in local or said.egress.allowed) and (
                destination not in local or said.ingress.allowed
            ):
                wanted.add(one)
        udp = [one for one in asked if one[2] == "UDP"]
        tcp = [one for one in asked if one[2] == "TCP"]
        assert {one for one in wanted if one[2] == "UDP"} == made.datagrams(udp)
        assert {one for one in wanted if one[2] == "TCP"} == made.connections(tcp)
    finally:
        nft.apply(plan_table(None, table))
