"""250 pods on one node, 200 of them attached in the same moment: how long, how much, and what one more costs.

Run `python -m bench.crowd [--json]`. A call that fails ends the benchmark with the plugin's words.
"""

import os
import secrets
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.agent import cpu_s, memory_mb
from bench.cni import PAUSE_S, Plugin
from bench.node import POPLIN, SHIM, BenchNode, run_in, single_node
from bench.report import Figure, main, percentile
from poplin.dataplane.netns import create_netns, delete_netns

AT_ONCE = 200
PODS = 250
SINGLE = 20
SETTLE_S = 2.0
IDLE_S = 10.0
AUDITS = 5


def at_once(plugin: Plugin, command: str, names: Sequence[str]) -> tuple[float, list[float]]:
    """Call for all names in the same moment: seconds until the last is done, and milliseconds of each."""
    with ThreadPoolExecutor(len(names)) as threads:
        start = time.perf_counter()
        calls = [threads.submit(plugin.call, command, name) for name in names]
        spent_ms = [call.result() for call in calls]
        return time.perf_counter() - start, spent_ms


def singly(plugin: Plugin) -> float:
    """Median milliseconds of an ADD by itself."""
    samples = []
    for _ in range(SINGLE):
        name = f"pb{os.getpid()}-{secrets.token_hex(4)}"
        create_netns(name)
        try:
            samples.append(plugin.call("ADD", name))
            time.sleep(PAUSE_S)
            plugin.call("DEL", name)
            time.sleep(PAUSE_S)
        finally:
            delete_netns(name)
    return statistics.median(samples)


def measure_standing(node: BenchNode) -> list[Figure]:
    """What the agent costs while its pods stand."""
    pid = node.agent.pid
    time.sleep(SETTLE_S)
    before = cpu_s(pid)
    time.sleep(IDLE_S)
    idle = (cpu_s(pid) - before) / IDLE_S * 100
    before = cpu_s(pid)
    for _ in range(AUDITS):
        run_in(node.fd, str(POPLIN), "check", "--run-dir", str(node.directory / "run"))
    audit_ms = (cpu_s(pid) - before) / AUDITS * 1000
    return [
        Figure(f"agent resident, {PODS} pods", memory_mb(pid)["Rss"], "MB"),
        Figure(f"agent idle, {PODS} pods", idle, "% CPU"),
        Figure(f"audit of {PODS} pods", audit_ms, "ms CPU"),
    ]


def run() -> list[Figure]:
    """Give the figures."""
    names = [f"pb{os.getpid()}-{number}" for number in range(PODS)]
    with single_node() as node:
        plugin = Plugin("poplin", SHIM, node.config, node.fd)
        alone_ms = singly(plugin)
        for name in names:
            create_netns(name)
        try:
            add_s, add_ms = at_once(plugin, "ADD", names[:AT_ONCE])
            for name in names[AT_ONCE:]:
                plugin.call("ADD", name)
            crowded_ms = singly(plugin)
            standing = measure_standing(node)
            delete_s, delete_ms = at_once(plugin, "DEL", names[:AT_ONCE])
            for name in names[AT_ONCE:]:
                plugin.call("DEL", name)
        finally:
            for name in names:
                delete_netns(name)
    return [
        Figure(f"{AT_ONCE} ADDs at once, all done", add_s, "s"),
        Figure(f"{AT_ONCE} ADDs at once, p99", percentile(add_ms, 99), "ms"),
        Figure(f"{AT_ONCE} DELs at once, all done", delete_s, "s"),
        Figure(f"{AT_ONCE} DELs at once, p99", percentile(delete_ms, 99), "ms"),
        Figure(
            f"ADD beside {PODS} pods, p50", crowded_ms, "ms", "beside none", alone_ms, crowded_ms / alone_ms
        ),
        *standing,
    ]


if __name__ == "__main__":
    main(f"{PODS} pods on one node", run)
