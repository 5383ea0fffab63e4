"""Services: a connection's first packet, loading, one Service more, throughput; beside kube-proxy's layouts.

A pod, its node and a pod that is every endpoint, for each layout of its own; packets of all are sent in
turn. The layout with a chain for each Service is measured up to 10,000: at 45,000 it takes minutes to load
(kube-proxy's authors: 540 s).

    python -m bench.services [--json]
"""

import json
import os
import random
import resource
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median

from bench.node import namespace, run_in
from bench.report import Figure, against, at_least, main, percentile, within
from bench.service_layouts import (
    PORT,
    TARGET_PORT,
    Given,
    as_objects,
    chain_each,
    chains_of,
    given_services,
    long_chain,
    our_table,
)
from poplin.agent.service_rules import KEY, element_operations
from poplin.compile.services.endpoints import Place
from poplin.compile.services.table import ServiceTable
from poplin.dataplane.netns import entered
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.kernel import POD_LINK_GROUP
from poplin.model.nftables import Element, Table, goto
from poplin.plan.nftables import AddChain, AddElements, AddRule, Operation, plan_table, transactions

SIZES = (10, 1000, 10_000, 45_000)
LOADS = (10_000, 45_000)
LARGEST = {"a chain each": 10_000, "a long chain": 45_000}
PACKETS = 3000
TURN = 25
CHANGES = 21
ROUNDS = 8
CLIENT, SERVER, GATEWAY = IPv4Address("10.244.0.2"), IPv4Address("10.244.0.3"), "169.254.1.1"
SERVERS = (SERVER, IPv4Address("10.244.0.4"))
HOST_MAC = "ee:ee:ee:ee:ee:ee"


@dataclass(slots=True)
class World:
    """A node with two pods, and an open nftables socket in it."""

    node: int
    client: int
    server: int
    nft: NftSocket


@contextmanager
def world() -> Iterator[World]:
    with (
        namespace("node") as (_, node),
        namespace("client") as (_, client),
        namespace("server") as (_, server),
    ):
        ip(node, "link set lo up")
        run_in(node, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        for pod, link, addresses in ((client, "client", (CLIENT,)), (server, "server", SERVERS)):
            path = f"/proc/{os.getpid()}/fd/{pod}"
            ip(
                node,
                f"link add {link} address {HOST_MAC} group {POD_LINK_GROUP} type veth peer name eth0 netns {path}",
                f"link set {link} up",
            )
            ip(pod, "link set lo up", "link set eth0 up", *(f"addr add {a}/32 dev eth0" for a in addresses))
            ip(
                pod,
                f"neigh add {GATEWAY} lladdr {HOST_MAC} dev eth0",
                f"route add default via {GATEWAY} dev eth0 onlink",
            )
            mac = json.loads(run_in(pod, "ip", "-j", "link", "show", "eth0"))[0]["address"]
            for address in addresses:
                ip(node, f"neigh add {address} lladdr {mac} dev {link}", f"route add {address}/32 dev {link}")
        with entered(node):
            nft = NftSocket()
        with nft:
            yield World(node, client, server, nft)


def ip(netns_fd: int, *lines: str) -> None:
    for line in lines:
        run_in(netns_fd, "ip", *line.split())


def run() -> list[Figure]:
    """All figures."""
    return [*first_packets(), *loads(), *throughput()]


# ---- a connection's first packet ----


def first_packets() -> Iterator[Figure]:
    """The node's whole work for it: a datagram's way from a pod's send to the other pod's socket is one call.

    To one Service, which is in the processor's caches whatever the number; and to any of them, where each
    packet finds its elements in memory that nobody has touched lately.
    """
    small: dict[tuple[str, int], float] = {}
    for size in SIZES:
        services = given_services(size, SERVERS)
        tables: dict[str, Table | None] = {"no Service": None, "ours": our_table(services).table()}
        for name, make in (("a chain each", chain_each), ("a long chain", long_chain)):
            if size <= LARGEST[name]:
                tables[name] = make(services)
        samples = sample(tables, services)
        for which in ("one", "any"):
            for percent in (50, 99):
                value = percentile(samples[which, "ours"], percent)
                what = f"first packet to {which} of {size} Services, p{percent}"
                least = small.setdefault((which, percent), value)
                budget = {50: 1.05, 99: 1.3}[percent] if which == "one" and size == SIZES[-1] else None
                if size == SIZES[0]:
                    yield Figure(what, value, "us")
                else:
                    yield against(what, value, "us", f"of {SIZES[0]}", least, budget)
                for name in tables:
                    if name != "ours":
                        yield against(what, value, "us", name, percentile(samples[which, name], percent))


def sample(
    tables: Mapping[str, Table | None], services: Sequence[Given]
) -> dict[tuple[str, str], list[float]]:
    """Microseconds by ("one" or "any" Service, layout)."""
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    middle = services[len(services) // 2].address
    with ExitStack() as stack:
        worlds = {name: stack.enter_context(world()) for name in tables}
        for name, table in tables.items():
            for transaction in transactions(plan_table(table, None)):
                worlds[name].nft.apply(transaction)
            stack.enter_context(receiver(worlds[name]))
        for _ in range(PACKETS // TURN):
            anyone = [random.choice(services).address for _ in range(TURN)]
            for which, addresses in (("one", [middle] * TURN), ("any", anyone)):
                for name, one in worlds.items():
                    if tables[name] is None:
                        samples[which, name] += first_sends(one, [SERVER] * TURN, TARGET_PORT)
                    else:
                        samples[which, name] += first_sends(one, addresses, PORT)
    return samples


def first_sends(one: World, addresses: Sequence[IPv4Address], port: int) -> list[float]:
    times = []
    with entered(one.client):
        for address in addresses:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.connect((str(address), port))
                start = time.perf_counter_ns()
                sender.send(b"x")
                times.append((time.perf_counter_ns() - start) / 1000)
    return times


@contextmanager
def receiver(one: World) -> Iterator[socket.socket]:
    with entered(one.server):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("0.0.0.0", TARGET_PORT))
    with made:
        yield made
        made.settimeout(1)
        made.recv(16)


# ---- loading, and changes ----


def loads() -> Iterator[Figure]:
    for size in LOADS:
        services = given_services(size, SERVERS)
        yield from our_load(size, services)
        if size <= LARGEST["a chain each"]:
            yield from peer_load(size, services)


def our_load(size: int, services: Sequence[Given]) -> Iterator[Figure]:
    with world() as one:
        memory, kernel = resident_mib(), kernel_mib()
        objects = [as_objects(service) for service in services]
        objects_mib = resident_mib() - memory
        compiled = Spent()
        table = ServiceTable(Place("n"))
        for service, slices in objects:
            table.put(service, slices)
        operations = plan_table(table.table(), None)
        table.take_changes()
        structure = table.structure()
        compiled.stop()
        written = Spent()
        for transaction in transactions(operations):
            one.nft.apply(transaction)
        written.stop()
        del operations
        yield Figure(f"load of {size}: in force after", 1000 * (compiled.wall_s + written.wall_s), "ms")
        yield within(f"load of {size}: our time", compiled.user_s + written.user_s, "s", 2.0)
        yield within(f"load of {size}: the kernel's time", written.kernel_s, "s", 0.5)
        yield Figure(f"load of {size}: resident memory", resident_mib() - memory - objects_mib, "MiB")
        yield Figure(f"load of {size}: the kernel's memory", kernel_mib() - kernel, "MiB")

        def change(act: Callable[[], None]) -> tuple[float, float, float]:
            nonlocal structure
            spent = Spent()
            act()
            new = table.structure()
            changes = (*plan_table(new, structure), *element_operations(table.take_changes()))
            ours_ms = 1000 * spent.elapsed_s()
            applied = Spent()
            one.nft.apply(changes)
            applied.stop()
            structure = new
            return ours_ms, 1000 * applied.wall_s, 1000 * applied.kernel_s

        extra = [Given(IPv4Address("10.100.0.0") + number, SERVERS) for number in range(CHANGES)]
        added = [change(partial(table.put, *as_objects(new))) for new in extra]
        less = [Given(new.address, SERVERS[:1]) for new in extra]
        removed = [change(partial(table.put, *as_objects(new))) for new in less]
        for what, rows in (("one Service more", added), ("one endpoint less", removed)):
            ours, wall, kernel_ms = (median(column) for column in zip(*rows, strict=True))
            yield Figure(f"{what} at {size}: our time", ours, "ms")
            yield Figure(f"{what} at {size}: in the kernel after", wall, "ms")
            yield within(f"{what} at {size}: the kernel's time", kernel_ms, "ms", 1.0)
        if plan_table(table.table(), one.nft.read_table(KEY)):
            raise AssertionError("the kernel holds something else")


def peer_load(size: int, services: Sequence[Given]) -> Iterator[Figure]:
    with world() as one:
        kernel = kernel_mib()
        table = chain_each(services)
        operations = plan_table(table, None)
        written = Spent()
        one.nft.apply(operations)
        written.stop()
        yield Figure(f"a chain each, load of {size}: the kernel's time", written.kernel_s, "s")
        yield Figure(f"a chain each, load of {size}: the kernel's memory", kernel_mib() - kernel, "MiB")
        times = []
        for number in range(5):
            changes = one_more(table, Given(IPv4Address("10.100.0.0") + number, SERVERS))
            spent = Spent()
            one.nft.apply(changes)
            spent.stop()
            times.append(1000 * spent.kernel_s)
        yield Figure(f"a chain each, one Service more at {size}: the kernel's time", median(times), "ms")


def one_more(table: Table, service: Given) -> list[Operation]:
    """What adds one Service to that layout: its chains, and one element of the verdict map."""
    own = list(chains_of(service))
    ways = table.sets[0]
    return [
        *(AddChain(table.key, replace(chain, rules=())) for chain in own),
        *(AddRule(table.key, chain.name, rule) for chain in own for rule in chain.rules),
        AddElements(table.key, ways, frozenset({Element(service.key, goto(service.name))})),
    ]


class Spent:
    """Time since its making: of the clock, and of this process in itself and in the kernel."""

    def __init__(self) -> None:
        self._wall_s = time.perf_counter()
        self._usage = resource.getrusage(resource.RUSAGE_SELF)
        self.wall_s = self.user_s = self.kernel_s = 0.0

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._wall_s

    def stop(self) -> None:
        now = resource.getrusage(resource.RUSAGE_SELF)
        self.wall_s = self.elapsed_s()
        self.user_s = now.ru_utime - self._usage.ru_utime
        self.kernel_s = now.ru_stime - self._usage.ru_stime


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def kernel_mib() -> float:
    """The machine's kernel memory: what others do meanwhile is in it."""
    found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(found[name].split()[0]) for name in ("Slab", "Percpu", "VmallocUsed")) / 1024


# ---- throughput ----


def throughput() -> Iterator[Figure]:
    """TCP from pod to pod over the node, to the Service and to the pod itself in turn."""
    with world() as one, ExitStack() as stack:
        services = given_services(1000, [SERVER])
        one.nft.apply(plan_table(our_table(services).table(), None))
        with entered(one.server):
            command = ["iperf3", "-s", "-p", str(TARGET_PORT)]
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        targets = {"Service": (services[0].address, PORT), "pod": (SERVER, TARGET_PORT)}
        wait_until_reachable(one, *targets["pod"])
        rates: dict[str, list[float]] = {name: [] for name in targets}
        for number in range(ROUNDS):
            for name in sorted(targets, reverse=bool(number % 2)):
                rates[name].append(gigabits_per_s(one, *targets[name]))
    ratio = median(ours / direct for ours, direct in zip(rates["Service"], rates["pod"], strict=True))
    yield at_least("throughput to a Service, beside the pod itself", ratio, "x", 0.97)
    yield Figure("throughput to a Service", median(rates["Service"]), "Gbit/s")


def gigabits_per_s(one: World, address: IPv4Address, port: int) -> float:
    said = run_in(one.client, "iperf3", "-J", "-t", "1", "-c", str(address), "-p", str(port))
    return float(json.loads(said)["end"]["sum_received"]["bits_per_second"]) / 1e9


def wait_until_reachable(one: World, address: IPv4Address, port: int) -> None:
    for _ in range(50):
        with entered(one.client), socket.socket() as probe:
            if probe.connect_ex((str(address), port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("iperf3 does not listen")


if __name__ == "__main__":
    main("Services: first packet, loading, changes, throughput", run)
