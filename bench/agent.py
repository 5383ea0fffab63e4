"""What the agent and the command line cost: start, memory, and CPU while nothing happens.

    python -m bench.agent [--json]

Starts are of fresh interpreters, interleaved, and medians. A node's start is from the process's to the CNI
configuration, by which the runtime knows that the node is ready.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.node import POPLIN, BenchNode, node_object, single_node
from bench.report import Figure, main, within

STARTS = 11
AGENT_STARTS = 5
IDLE_S = 10.0
SETTLE_S = 1.0
CLUSTERS = (3, 1000)
MEMORY_LIMIT_MB = {3: 60.0, 1000: 110.0}
COMMANDS = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "import of the agent": (sys.executable, "-c", "import poplin.agent.agent"),
    "poplin --help": (str(POPLIN), "--help"),
    "poplin status, no agent": (str(POPLIN), "status", "--run-dir", "/nonexistent"),
}


def measure_starts() -> list[Figure]:
    """Milliseconds from the start of a process to its end."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(STARTS):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=False, capture_output=True, timeout=60)
            times[name].append((time.perf_counter() - start) * 1000)
    return [Figure(name, statistics.median(spent), "ms") for name, spent in times.items()]


def peers(count: int) -> list[dict[str, Any]]:
    """Nodes that have published their leases."""
    found = []
    for number in range(2, count + 2):
        high, low = divmod(number, 250)
        node = node_object(f"n{number}", [f"10.{245 + high}.{low}.0/24"], [f"10.99.{high}.{low + 1}"])
        prefix = "flannel.alpha.coreos.com"
        node["metadata"]["annotations"] = {
            f"{prefix}/kube-subnet-manager": "true",
            f"{prefix}/backend-type": "vxlan",
            f"{prefix}/backend-data": f'{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}',
            f"{prefix}/public-ip": f"10.99.{high}.{low + 1}",
        }
        found.append(node)
    return found


def measure_cluster(nodes: int) -> list[Figure]:
    """One node's agent in a cluster of `nodes` that stands still."""
    others = peers(nodes - 1)
    starts = []
    for last in range(AGENT_STARTS, 0, -1):
        with single_node("vxlan", others) as node:
            starts.append(node.ready_s * 1000)
            idle = measure_idle(node, nodes) if last == 1 else []
    return [Figure(f"agent ready, {nodes} nodes", statistics.median(starts), "ms"), *idle]


def measure_idle(node: BenchNode, nodes: int) -> list[Figure]:
    """Memory, and CPU over some seconds."""
    time.sleep(SETTLE_S)
    before = cpu_s(node.agent.pid)
    time.sleep(IDLE_S)
    percent = (cpu_s(node.agent.pid) - before) / IDLE_S * 100
    memory = memory_mb(node.agent.pid)
    note = f"Pss {memory['Pss']:.1f}, private {private(memory):.1f}"
    what = f"agent resident, {nodes} nodes"
    return [
        within(what, memory["Rss"], "MB", MEMORY_LIMIT_MB[nodes], note),
        Figure(f"agent idle, {nodes} nodes", percent, "% CPU"),
    ]


def cpu_s(pid: int) -> float:
    """Seconds of user and system time (man 5 proc_pid_stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> dict[str, float]:
    """What /proc/PID/smaps_rollup says, in 10^6 bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}


def private(memory: dict[str, float]) -> float:
    """What would be free if the process ended."""
    return memory["Private_Clean"] + memory["Private_Dirty"]


def run(clusters: Sequence[int] = CLUSTERS) -> list[Figure]:
    """Give all figures."""
    return [*measure_starts(), *(figure for nodes in clusters for figure in measure_cluster(nodes))]


if __name__ == "__main__":
    main("The agent at rest, and how things start", run)
