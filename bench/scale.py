"""How the agent grows: in simulated clusters of 100, 500 and 5,000 nodes with up to 150,000 pods.

    python -m bench.scale [--json]

A real agent process in a namespace, over the real API client; only the cluster behind the API is simulated
(`bench/simulated.py`), in a process of its own that does not count. "in sync" is the time from the start of the
agent's process to the CNI configuration, "start" the CPU until the agent has come to rest. Changes are half of
them nodes whose lease changes, half pods. "x" is how many times the cost for ten times the nodes.
"""

import gc
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from bench.agent import cpu_s, memory_mb
from bench.node import POPLIN, await_conflist, cluster_file, namespace, run_in
from bench.reflector import process
from bench.report import Figure, main
from bench.simulated import POD_NETWORK, serve
from poplin.dataplane.netns import entered

CLUSTERS = ((100, 1_500), (500, 15_000), (5_000, 150_000))
"""Nodes and pods."""

CHANGES_PER_S = 100
CHURN_S = 10.0
REST_S = 1.0
REST_PERCENT = 3.0
REST_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one cluster costs its agent. Memory is resident, in 10^6 bytes; CPU is percent of one."""

    in_sync_s: float
    start_cpu_s: float
    memory_mb: float
    peak_mb: float
    idle_percent: float
    churn_percent: float
    heartbeat_percent: float


UNITS = {
    "in_sync_s": ("in sync", "s"),
    "start_cpu_s": ("CPU of the start", "s"),
    "memory_mb": ("resident", "MB"),
    "peak_mb": ("resident at its peak", "MB"),
    "idle_percent": ("idle", "% CPU"),
    "churn_percent": (f"{CHANGES_PER_S} changes a second", "% CPU"),
    "heartbeat_percent": (f"{CHANGES_PER_S} heartbeats a second", "% CPU"),
}


@contextmanager
def simulated_agent(nodes: int, pods: int) -> Iterator[tuple[subprocess.Popen[bytes], Connection, float]]:
    """An agent of node 0, the connection to its cluster, and the seconds until it was in sync."""
    conf = {"Network": POD_NETWORK, "Backend": {"Type": "vxlan"}}
    with (
        namespace("fabric") as (_, fabric),
        namespace("node") as (name, fd),
        cluster_file([], conf) as directory,
    ):
        run_in(fabric, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", name)
        run_in(fabric, "ip", "link", "set", "up0", "up")
        for command in ("link set lo up", "link set eth0 up", "address add 10.64.0.2/10 dev eth0"):
            run_in(fd, "ip", *command.split())
        with entered(fd):
            server = process(serve, nodes, pods)
            connection = server.__enter__()
        try:
            kubeconfig = write_kubeconfig(directory, connection.recv())
            with agent_of(fd, directory, kubeconfig) as (agent, ready_s):
                yield agent, connection, ready_s
        finally:
            server.__exit__(None, None, None)


def write_kubeconfig(directory: Path, port: int) -> Path:
    """A kubeconfig for plain HTTP, without credentials."""
    path = directory / "kubeconfig"
    path.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, users: [{name: u, user: {}}],\n"
        " contexts: [{name: c, context: {cluster: c, user: u}}],\n"
        f" clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]}}\n"
    )
    return path


@contextmanager
def agent_of(fd: int, directory: Path, kubeconfig: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """The agent's process, in sync. Raises RuntimeError with its log where it does not come to that."""
    command = [
        *(str(POPLIN), "agent", "--node-name", "node-0", "--kubeconfig", str(kubeconfig)),
        *("--net-conf", str(directory / "net-conf.json"), "--health-address", ""),
        *("--state-dir", str(directory / "lib"), "--run-dir", str(directory / "run")),
        *("--cni-conf-dir", str(directory / "net.d"), "--log-level", "warning"),
    ]
    start = time.perf_counter()
    with entered(fd), (directory / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command, stderr=log)
    try:
        await_conflist(agent, directory, start)
        yield agent, time.perf_counter() - start
    finally:
        agent.terminate()
        agent.wait(30)


def measure(nodes: int, pods: int) -> Cost:
    """One cluster, from the agent's start on."""
    with simulated_agent(nodes, pods) as (agent, cluster, in_sync_s):
        pid = agent.pid
        start_cpu_s = await_rest(pid)
        idle = percent(pid, lambda: time.sleep(CHURN_S / 2))
        memory = memory_mb(pid)["Rss"]

        def change(kind: str) -> None:
            cluster.send((kind, CHANGES_PER_S, CHURN_S))
            cluster.recv()

        change("changes")  # the first ones find caches cold
        churn = percent(pid, lambda: change("changes"))
        heartbeats = percent(pid, lambda: change("heartbeats"))
        return Cost(in_sync_s, start_cpu_s, memory, peak_mb(pid), idle, churn, heartbeats)


def percent(pid: int, work: Callable[[], None]) -> float:
    """Percent of one CPU that a process spends while `work` runs."""
    before, began = cpu_s(pid), time.perf_counter()
    work()
    return (cpu_s(pid) - before) / (time.perf_counter() - began) * 100


def await_rest(pid: int) -> float:
    """Wait until a process does next to nothing; give the CPU seconds it has spent by then."""
    deadline = time.perf_counter() + REST_WAIT_S
    while time.perf_counter() < deadline:
        spent = cpu_s(pid)
        time.sleep(REST_S)
        if (cpu_s(pid) - spent) / REST_S * 100 < REST_PERCENT:
            return spent
    raise RuntimeError(f"the agent has not come to rest within {REST_WAIT_S:g} s")


def peak_mb(pid: int) -> float:
    """The most that a process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith("VmHWM"))


def run(clusters: Sequence[tuple[int, int]] = CLUSTERS) -> list[Figure]:
    """All clusters, smallest first, each figure with its growth from the one before."""
    figures = []
    costs = []
    for nodes, pods in clusters:
        costs.append((nodes, measure(nodes, pods)))
        gc.collect()
    for (nodes, cost), before in zip(costs, [None, *costs], strict=False):
        for field, (what, unit) in UNITS.items():
            value = getattr(cost, field)
            note = ""
            if before is not None and getattr(before[1], field):
                note = f"x {value / getattr(before[1], field):.1f} for x {nodes / before[0]:.0f}"
            figures.append(Figure(f"{nodes} nodes: {what}", value, unit, note=note))
    return figures


if __name__ == "__main__":
    main("The agent in simulated clusters", run)
