"""CNI ADD and DEL: ours beside the Go reference plugins `bridge` and `ptp` with host-local, interleaved.

What is timed is what a runtime waits for: from the start of the plugin's process to its end. Namespaces
are made beforehand and removed afterwards, untimed. Run `python -m bench.cni [--json]`.
"""

import json
import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.node import SHIM, namespace, single_node
from bench.report import Figure, against, main, percentile
from poplin.dataplane.netns import create_netns, delete_netns, entered

GO_PLUGINS = Path("/usr/lib/cni")
SERIAL_ROUNDS = 60
AT_ONCE = 30
BURSTS = 4
PAUSE_S = 0.15
"""Untimed, after each call: what a plugin leaves the kernel or an agent to do shall not slow the next one."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin, its configuration, and the namespace of its node."""

    name: str
    program: Path
    config: dict[str, Any]
    node_fd: int

    def call(self, command: str, netns: str) -> float:
        """Run the plugin once and give its milliseconds. Raises RuntimeError with its words where it fails."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": netns,
            "CNI_NETNS": f"/run/netns/{netns}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(GO_PLUGINS),
        }
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, entered(self.node_fd):
            stdin.write(json.dumps(self.config).encode())
            stdin.seek(0)
            streams = [(os.POSIX_SPAWN_DUP2, stdin.fileno(), 0), (os.POSIX_SPAWN_DUP2, stdout.fileno(), 1)]
            start = time.perf_counter()
            pid = os.posix_spawn(self.program, [str(self.program)], environment, file_actions=streams)
            _, status = os.waitpid(pid, 0)
            spent_ms = (time.perf_counter() - start) * 1000
            if status:
                stdout.seek(0)
                raise RuntimeError(f"{self.name} {command}: {stdout.read().decode()}")
        return spent_ms


def go_plugin(kind: str, node_fd: int, data_dir: str, subnet: str) -> Plugin:
    """A reference plugin as a plain kubelet network would have it."""
    config: dict[str, Any] = {
        "cniVersion": "1.0.0",
        "name": f"bench-{kind}",
        "type": kind,
        "ipam": {
            "type": "host-local",
            "dataDir": data_dir,
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    if kind == "bridge":
        config |= {"bridge": "cni0", "isGateway": True, "hairpinMode": True}
    return Plugin(kind, GO_PLUGINS / kind, config, node_fd)


def measure_serial(plugins: Sequence[Plugin]) -> dict[str, dict[str, list[float]]]:
    """ADD and DEL one after the other, the plugins taking turns."""
    samples: dict[str, dict[str, list[float]]] = {p.name: {"ADD": [], "DEL": []} for p in plugins}
    for _ in range(SERIAL_ROUNDS):
        for plugin in plugins:
            netns = f"pb{os.getpid()}-{secrets.token_hex(4)}"
            create_netns(netns)
            try:
                for command in ("ADD", "DEL"):
                    samples[plugin.name][command].append(plugin.call(command, netns))
                    time.sleep(PAUSE_S)
            finally:
                delete_netns(netns)
    return samples


def measure_burst(plugins: Sequence[Plugin]) -> dict[str, dict[str, list[float]]]:
    """AT_ONCE calls at the same moment, the plugins taking turns."""
    samples: dict[str, dict[str, list[float]]] = {p.name: {"ADD": [], "DEL": []} for p in plugins}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in range(BURSTS):
            for plugin in plugins:
                names = [f"pb{os.getpid()}-{secrets.token_hex(4)}" for _ in range(AT_ONCE)]
                for name in names:
                    create_netns(name)
                try:
                    for command in ("ADD", "DEL"):
                        calls = [threads.submit(plugin.call, command, name) for name in names]
                        samples[plugin.name][command] += [call.result() for call in calls]
                        time.sleep(PAUSE_S)
                finally:
                    for name in names:
                        delete_netns(name)
    return samples


def run() -> list[Figure]:
    """Give the figures of all plugins, ours beside the faster of the two."""
    with ExitStack() as stack:
        node = stack.enter_context(single_node())
        data_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="poplin-bench-"))
        _, bridge_node = stack.enter_context(namespace("bridge"))
        _, ptp_node = stack.enter_context(namespace("ptp"))
        plugins = [
            Plugin("poplin", SHIM, node.config, node.fd),
            go_plugin("bridge", bridge_node, data_dir, "10.88.0.0/16"),
            go_plugin("ptp", ptp_node, data_dir, "10.89.0.0/16"),
        ]
        figures = []
        for how, samples, percent, budget in (
            ("serial", measure_serial(plugins), 50, 0.25),
            (f"{AT_ONCE} at once", measure_burst(plugins), 99, 0.5),
        ):
            for command in ("ADD", "DEL"):
                found = {name: percentile(of[command], percent) for name, of in samples.items()}
                ours = found.pop("poplin")
                peer = min(found, key=lambda name: found[name])
                what = f"{command} {how}, p{percent}"
                figures.append(against(what, ours, "ms", peer, found[peer], budget))
    return figures


if __name__ == "__main__":
    main("CNI ADD and DEL, from process start to end", run)
