"""NetworkPolicy: what a connection's first packet waits, what a change costs, and how long a cluster is computed.

    python -m bench.policy [--json]

First packets: a node with 100 pods and 10, 1,000 or 10,000 policies, spread evenly over them; a datagram of a new
flow from one pod to another that the last of the policies allows, from send to receipt within one process. Beside it
the same policies as they are written elsewhere: a chain for each pod that jumps to one for each of its policies, whose
rules look into a set of addresses for each selector. Established connections are accepted by the second rule of either.

Changes: a pod's label, and a pod that arrives, from the object to the end of the kernel's transaction, in a cluster
of 10,000 pods. Calculation: the pods' and policies' objects, already decoded, to the whole table; each in a process
of its own, and resident memory is what it grew by.
"""

import gc
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from multiprocessing import get_context
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM, socket
from time import perf_counter

from bench.nftables import namespace
from bench.report import Figure, against, main, percentile, within
from poplin.compile.nft_rule import (
    CT_STATE,
    DPORT,
    IPV4,
    L4PROTO,
    OIFGROUP,
    equals,
    has_any,
    in_set,
    rule,
)
from poplin.compile.policy.compiler import PolicyCompiler
from poplin.compile.policy.network_policy import translate
from poplin.dataplane.netns import entered
from poplin.dataplane.nftables.socket import NftSocket
from poplin.datastore.parse import intern_labels
from poplin.model.cluster import (
    Namespace,
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicyRule,
    Pod,
    PodPhase,
    TransportProtocol,
)
from poplin.model.kernel import POD_LINK_GROUP
from poplin.model.nftables import (
    ACCEPT,
    DROP,
    BaseChain,
    Chain,
    ChainType,
    CtState,
    Element,
    Hook,
    KeyType,
    Lookup,
    Set,
    Table,
    jump,
)
from poplin.model.selector import NAMESPACE, And, In, select
from poplin.plan.nftables import plan_table

SIZES = (10, 1_000, 10_000)
LOCAL_PODS = 100
PEER_PODS = 10_000
PORTS = 10
FLOWS = 1500
ROUNDS = 3
CHANGES = 60
NODE = "n1"
SERVER, CLIENT = IPv4Address("10.244.1.1"), IPv4Address("10.244.1.2")
UDP = TransportProtocol.UDP


def run() -> list[Figure]:
    """Microseconds of first packets, milliseconds of changes, seconds and megabytes of calculations."""
    figures = [figure for size in SIZES for figure in first_packets(size)]
    figures += [figure for size in SIZES for figure in changes(size)]
    figures += [
        *calculation("250k endpoints x 10k policies", partial(endpoints, 250_000, 10_000), 3.4, 400),
        *calculation("1k tenants", partial(tenants, 1_000), 0.045, 10),
        *calculation("10k tenants", partial(tenants, 10_000), 0.39, 48),
        *calculation("100k tenants", partial(tenants, 100_000), 6.9, 402),
        *calculation("a policy of 1,000 rules", partial(one_policy, rules=1_000)),
        *calculation("a selector of 100k pods", partial(one_policy, pods=100_000)),
        *calculation("10k CIDRs", partial(one_policy, cidrs=10_000)),
    ]
    return figures


# Clusters


def pod(number: int, address: IPv4Address, **labels: str) -> Pod:
    return Pod(
        "default",
        f"pod-{number}",
        labels=intern_labels(labels),
        node_name=NODE if number < LOCAL_PODS else f"node-{number // LOCAL_PODS}",
        phase=PodPhase.RUNNING,
        addresses=(address,),
    )


def policy(
    number: int, namespace: str, pods: dict[str, str], peers: dict[str, str], port: int
) -> NetworkPolicy:
    return NetworkPolicy(
        namespace,
        f"policy-{number}",
        select(And(tuple(In(key, frozenset({value})) for key, value in pods.items()))),
        (NetworkPolicyRule(0, (by_label(namespace, peers),), (NetworkPolicyPort(UDP, port),)),),
    )


def by_label(namespace: str, labels: dict[str, str]) -> NetworkPolicyPeer:
    parts = [In(key, frozenset({value})) for key, value in labels.items()]
    return NetworkPolicyPeer(select(And((In(NAMESPACE, frozenset({namespace})), *parts))))


def spread(policies: int) -> tuple[list[Pod], list[NetworkPolicy]]:
    """100 pods of this node, each selected by its share of the policies, and the pods that these allow.

    The server is the first pod, and the last of its policies allows the client, the second.
    """
    roles = max(1, policies // LOCAL_PODS) * LOCAL_PODS
    last = (policies - 1) // LOCAL_PODS * LOCAL_PODS
    pods = [
        pod(number, SERVER + number, app=f"app-{number}", role=f"role-{last}" if number == 1 else "none")
        for number in range(LOCAL_PODS)
    ]
    pods += [
        pod(
            LOCAL_PODS + number, IPv4Address("10.245.0.0") + number, app="peer", role=f"role-{number % roles}"
        )
        for number in range(PEER_PODS)
    ]
    some = [
        policy(
            number,
            "default",
            {"app": f"app-{number % LOCAL_PODS}"},
            {"role": f"role-{number}"},
            1000 + number // LOCAL_PODS % PORTS,
        )
        for number in range(policies)
    ]
    return pods, some


def compiler_of(pods: Sequence[Pod], policies: Sequence[NetworkPolicy]) -> PolicyCompiler:
    compiler = PolicyCompiler(NODE)
    for one in policies:
        compiler.put_policy(translate(one))
    for each in pods:
        compiler.put_pod(each)
    return compiler


# First packets


def linear(pods: Sequence[Pod], policies: Sequence[NetworkPolicy]) -> Table:
    """The policies as chains of their own with a set of addresses for each selector."""
    by_role: dict[str, list[Element]] = {}
    for one in pods:
        by_role.setdefault(one.labels["role"], []).append(Element(one.addresses[0].packed))
    chains, sets, of_pod = [], [], {}
    for number, _ in enumerate(policies):
        port = 1000 + number // LOCAL_PODS % PORTS
        name = f"policy-{number}"
        sets.append(Set(name, (KeyType.IPV4_ADDR,), elements=frozenset(by_role.get(f"role-{number}", ()))))
        match = (*equals(L4PROTO, 17), *equals(DPORT, port), *in_set([IPV4.saddr], name))
        chains.append(Chain(name, (rule(IPV4.only, match, ACCEPT),)))
        of_pod.setdefault(number % LOCAL_PODS, []).append(rule(jump(name)))
    chains += [Chain(f"pod-{number}", (*rules, rule(DROP))) for number, rules in of_pod.items()]
    verdicts = frozenset(Element((SERVER + number).packed, jump(f"pod-{number}")) for number in of_pod)
    sets.append(Set("pods", (KeyType.IPV4_ADDR,), (KeyType.VERDICT,), elements=verdicts))
    forward = Chain(
        "forward",
        (
            rule(has_any(CT_STATE, CtState.ESTABLISHED | CtState.RELATED), ACCEPT),
            rule(
                equals(OIFGROUP, POD_LINK_GROUP),
                IPV4.only,
                IPV4.daddr.load(0),
                Lookup(0, "pods", verdict=True),
            ),
        ),
        BaseChain(ChainType.FILTER, Hook.FORWARD, 10),
    )
    return Table("poplin-policy", (forward, *chains), tuple(sets))


def first_packets(size: int) -> list[Figure]:
    """The path without any table is the third in each round, and is taken off nobody."""
    pods, policies = spread(size)
    port = 1000 + (size - 1) // LOCAL_PODS % PORTS
    ways = {
        "ours": compiler_of(pods, policies).table(),
        "linear chains": linear(pods, policies),
        "none": None,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with path() as (node, send), entered(node), NftSocket() as nft:
        for _ in range(ROUNDS):
            for name, table in ways.items():
                nft.apply(plan_table(table, None))
                times[name] += send(port)
                if table is not None:
                    nft.apply(plan_table(None, table))
    figures = [
        against(
            f"first packet, {size} policies, p{percent}",
            percentile(times["ours"], percent),
            "µs",
            "linear chains",
            percentile(times["linear chains"], percent),
            1.0 if size > SIZES[0] else None,
        )
        for percent in (50, 99)
    ]
    return [*figures, Figure("first packet, no table, p50", percentile(times["none"], 50), "µs")]


@contextmanager
def path() -> Iterator[tuple[int, Callable[[int], list[float]]]]:
    """A node with the server's and the client's namespaces on it; and what sends a datagram in FLOWS new flows."""
    with ExitStack() as stack:
        node, server, client = (stack.enter_context(namespace()) for _ in range(3))
        with entered(node):
            subprocess.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], check=True)
        for number, (netns_fd, address) in enumerate(((server, SERVER), (client, CLIENT))):
            peer = f"/proc/{os.getpid()}/fd/{netns_fd}"
            ip(
                node,
                f"link add pod{number} address ee:ee:ee:ee:ee:ee group {POD_LINK_GROUP} type veth peer name eth0 netns {peer}",
            )
            ip(node, f"link set pod{number} up")
            ip(node, f"route add {address}/32 dev pod{number}")
            ip(netns_fd, "link set eth0 up")
            ip(netns_fd, f"addr add {address}/32 dev eth0")
            ip(netns_fd, "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0")
            ip(netns_fd, "route add default via 169.254.1.1 dev eth0 onlink")

        def send(port: int) -> list[float]:
            with ExitStack() as sockets:
                with entered(server):
                    receiver = sockets.enter_context(socket(AF_INET, SOCK_DGRAM))
                receiver.bind((str(SERVER), port))
                receiver.settimeout(5)
                times = []
                with entered(client):
                    for _ in range(FLOWS):
                        with socket(AF_INET, SOCK_DGRAM) as sender:
                            sender.connect((str(SERVER), port))
                            start = perf_counter()
                            sender.send(b"x")
                            receiver.recv(8)
                            times.append((perf_counter() - start) * 1e6)
                return times

        yield node, send


def ip(netns_fd: int, line: str) -> None:
    with entered(netns_fd):
        subprocess.run(["ip", *line.split()], check=True)


# Changes


def changes(size: int) -> list[Figure]:
    """A pod takes the label that the server's last policy allows, and loses it; a pod comes, and goes."""
    pods, policies = spread(size)
    compiler = compiler_of(pods, policies)
    table = compiler.table()
    stranger = pods[-1]
    allowed = replace(stranger, labels=intern_labels({"app": "peer", "role": pods[1].labels["role"]}))
    fresh = replace(allowed, name="fresh", addresses=(IPv4Address("10.246.0.1"),))
    times: dict[str, list[float]] = {"label": [], "arrival": []}
    operations: dict[str, int] = {}
    gc.collect()
    gc.freeze()
    with namespace() as netns_fd, entered(netns_fd), NftSocket() as nft:
        nft.apply(plan_table(table, None))
        for number in range(CHANGES):
            for what, spent in times.items():
                start = perf_counter()
                if what == "label":
                    compiler.put_pod(stranger if number % 2 else allowed)
                elif number % 2:
                    compiler.delete_pod(fresh.namespace, fresh.name)
                else:
                    compiler.put_pod(fresh)
                after = compiler.table()
                planned = plan_table(after, table)
                nft.apply(planned)
                spent.append((perf_counter() - start) * 1e3)
                operations[what] = len(planned)
                table = after
    gc.unfreeze()
    names = {"label": "a pod's label", "arrival": "a pod's arrival"}
    return [
        within(
            f"{names[what]}, {size} policies, p99", percentile(times[what], 99), "ms", 10,
            f"p50 {percentile(times[what], 50):.2f} ms, {operations[what]} operations",
        )
        for what in times
    ]  # fmt: skip


# Calculation

Cluster = tuple[list[Namespace], list[Pod], list[NetworkPolicy]]


def endpoints(pods: int, policies: int) -> Cluster:
    """Pods in namespaces of 250 with 25 applications each; every policy selects one of these."""
    spaces, random_labels = policies // 10, random.Random(1)
    found = [
        Pod(
            f"ns-{number % spaces}",
            f"pod-{number}",
            labels=intern_labels(
                {"app": f"app-{number // spaces % 25}", "hash": f"h-{number // spaces % 25}"}
            ),
            node_name=NODE if number < LOCAL_PODS else "elsewhere",
            phase=PodPhase.RUNNING,
            addresses=(IPv4Address((10 << 24) + number),),
        )
        for number in range(pods)
    ]
    some = [
        policy(
            number,
            f"ns-{number % spaces}",
            {"app": f"app-{number // spaces}"},
            {"app": f"app-{random_labels.randrange(25)}"},
            80,
        )
        for number in range(policies)
    ]
    return [Namespace(f"ns-{number}") for number in range(spaces)], found, some


def tenants(count: int) -> Cluster:
    """Namespaces with a pod and a policy each, that lets only the namespace's own pods in."""
    pods = [
        Pod(
            f"ns-{number}",
            "pod",
            labels=intern_labels({"app": "tenant"}),
            node_name=NODE if number < LOCAL_PODS else "elsewhere",
            phase=PodPhase.RUNNING,
            addresses=(IPv4Address((10 << 24) + number),),
        )
        for number in range(count)
    ]
    some = [
        NetworkPolicy(f"ns-{number}", "own", ingress=(NetworkPolicyRule(0, (by_label(f"ns-{number}", {}),)),))
        for number in range(count)
    ]
    return [Namespace(f"ns-{number}") for number in range(count)], pods, some


def one_policy(rules: int = 1, pods: int = 1_000, cidrs: int = 0) -> Cluster:
    spread_out = [replace(one, namespace="default") for one in spread(1)[0][:LOCAL_PODS]]
    peers = [pod(LOCAL_PODS + n, IPv4Address((10 << 24) + n), app="peer") for n in range(pods)]
    blocks = tuple(
        NetworkPolicyPeer(block=IPv4Network(((20 << 24) + 2 * 256 * number, 24))) for number in range(cidrs)
    )
    made = NetworkPolicy(
        "default",
        "large",
        ingress=tuple(
            NetworkPolicyRule(
                n, (by_label("default", {"app": "peer"}), *blocks), (NetworkPolicyPort(UDP, 1 + n),)
            )
            for n in range(rules)
        ),
    )
    return [Namespace("default")], [*spread_out, *peers], [made]


def calculation(
    name: str, make: Callable[[], Cluster], limit_s: float | None = None, limit_mb: float | None = None
) -> list[Figure]:
    with get_context("spawn").Pool(1) as pool:
        spent_s, grown_mb, write_s = pool.apply(calculate, (make,))
    figures = [
        Figure(f"{name}: calculation", spent_s, "s")
        if limit_s is None
        else within(f"{name}: calculation", spent_s, "s", limit_s),
        Figure(f"{name}: writing it to the kernel", write_s, "s"),
    ]
    if limit_mb is not None:
        figures.append(within(f"{name}: resident", grown_mb, "MB", limit_mb))
    return figures


def calculate(make: Callable[[], Cluster]) -> tuple[float, float, float]:
    """Seconds of CPU, megabytes of the objects and of what came of them, and seconds of the kernel's transaction."""
    before_mb = resident_mb()
    namespaces, pods, policies = make()
    gc.collect()
    gc.disable()  # as the agent does while it takes in its first lists
    start = time.process_time()
    compiler = PolicyCompiler(NODE)
    for one in namespaces:
        compiler.put_namespace(one)
    for each in policies:
        compiler.put_policy(translate(each))
    for other in pods:
        compiler.put_pod(other)
    table = compiler.table()
    spent_s = time.process_time() - start
    grown_mb = resident_mb() - before_mb
    with namespace() as netns_fd, entered(netns_fd), NftSocket() as nft:
        begin = perf_counter()
        nft.apply(plan_table(table, None))
        return spent_s, grown_mb, perf_counter() - begin


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


if __name__ == "__main__":
    main("NetworkPolicy: first packets, changes, calculation", run)
