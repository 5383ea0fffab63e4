"""Limits of bandwidth: how near to its limit a pod's TCP comes, beside Go's `ptp` and `bandwidth` plugins.

One iperf3 connection at a time, between the pod and its node, in both families and both ways; its first second,
in which the burst passes and TCP finds its pace, does not count. Run `python -m bench.bandwidth [--json]`.
"""

import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bench.node import SHIM, cluster_file, namespace, node_object, run_in, running_agent
from bench.report import Figure, main, within
from poplin.compile.bandwidth import token_bucket
from poplin.dataplane.netns import create_netns, delete_netns, entered, open_netns
from poplin.model.attachment import Limit

GO_PLUGINS = Path("/usr/lib/cni")
RATES_MBIT_S = (10, 100, 1000)
SECONDS = 2
SERVER_WAIT_S = 0.3
WITHIN_PERCENT = 10.0
NODE = {4: "10.99.0.1", 6: "fd00:99::1"}
POD_CIDRS = {4: "10.244.0.0/24", 6: "fd00:10:244::/64"}
MTU_BYTES = 1500


@dataclass(frozen=True, slots=True)
class Side:
    """A node in its namespace, and the plugins that its pods go through, each with its configuration."""

    name: str
    fd: int
    plugins: tuple[tuple[Path, Mapping[str, Any]], ...]

    def call(self, command: str, netns: str, rate_bits_s: int) -> None:
        """Run the plugins as a runtime runs a list."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": netns,
            "CNI_NETNS": f"/run/netns/{netns}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(GO_PLUGINS),
        }
        # The burst that we choose where nobody does: Go's plugin wants one.
        bucket = token_bucket("", Limit(rate_bits_s), MTU_BYTES)
        burst_bits = bucket.burst_ns * rate_bits_s // 10**9
        limits = {
            "ingressRate": rate_bits_s,
            "ingressBurst": burst_bits,
            "egressRate": rate_bits_s,
            "egressBurst": burst_bits,
        }
        result: Any = None
        for program, config in self.plugins if command == "ADD" else self.plugins[:1]:
            given = dict(config) | {"runtimeConfig": {"bandwidth": limits}}
            if result is not None:
                given["prevResult"] = result
            with entered(self.fd):
                done = subprocess.run(
                    [program],
                    input=json.dumps(given),
                    env=environment,
                    text=True,
                    capture_output=True,
                    check=False,
                )
            if done.returncode:
                raise RuntimeError(f"{program.name} {command}: {done.stdout}{done.stderr}")
            result = json.loads(done.stdout) if done.stdout else None


def measure(side: Side, version: int, way: str, rate_mbit_s: int) -> float:
    """Give the megabits per second that one connection brings through."""
    netns = f"pb{os.getpid()}-{secrets.token_hex(4)}"
    pod_fd = open_netns(create_netns(netns))
    try:
        side.call("ADD", netns, rate_mbit_s * 10**6)
        time.sleep(SERVER_WAIT_S)  # an IPv6 address takes a moment to be local
        command = ("iperf3", "-c", NODE[version], "-t", str(SECONDS), "-O", "1", "-J")
        report = json.loads(run_in(pod_fd, *command, *(("-R",) if way == "ingress" else ())))
        side.call("DEL", netns, rate_mbit_s * 10**6)
        if "sum_received" not in report["end"]:
            raise RuntimeError(f"iperf3: {report.get('error', 'measured nothing')}")
        return float(report["end"]["sum_received"]["bits_per_second"]) / 10**6
    finally:
        os.close(pod_fd)
        delete_netns(netns)


@contextmanager
def served(fd: int) -> Iterator[None]:
    """An iperf3 server in the namespace, on the addresses of NODE."""
    run_in(fd, "ip", "link", "set", "lo", "up")
    for version, bits in ((4, 32), (6, 128)):
        nodad = ("nodad",) if version == 6 else ()
        run_in(fd, "ip", "address", "add", f"{NODE[version]}/{bits}", "dev", "eth0", *nodad)
    with entered(fd):
        server = subprocess.Popen(["iperf3", "-s"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(SERVER_WAIT_S)
        yield
    finally:
        server.terminate()
        server.wait(10)


@contextmanager
def node_namespace(kind: str) -> Iterator[int]:
    """A namespace with an uplink, eth0, whose other end is in a fabric's."""
    with namespace("fabric") as (_, fabric), namespace(kind) as (name, fd):
        run_in(fabric, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", name)
        run_in(fabric, "ip", "link", "set", "up0", "up")
        run_in(fd, "ip", "link", "set", "eth0", "up")
        yield fd


@contextmanager
def our_side() -> Iterator[Side]:
    """A node with a real agent."""
    conf = {
        "Network": "10.244.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "fd00:10:244::/48",
        "Backend": {"Type": "host-gw"},
    }
    objects = [node_object("n1", list(POD_CIDRS.values()), list(NODE.values()))]
    with (
        node_namespace("node") as fd,
        served(fd),
        cluster_file(objects, conf) as cluster,
        running_agent(fd, "n1", cluster) as agent,
    ):
        yield Side("poplin", fd, ((SHIM, agent.config),))


@contextmanager
def go_side() -> Iterator[Side]:
    """Go's plugins, as a list with `bandwidth` behind `ptp`."""
    with (
        tempfile.TemporaryDirectory(prefix="poplin-bench-") as data_dir,
        node_namespace("go") as fd,
        served(fd),
    ):
        head = {"cniVersion": "1.0.0", "name": "bench-bandwidth"}
        ipam = {
            "type": "host-local",
            "dataDir": data_dir,
            "ranges": [[{"subnet": "10.89.0.0/16"}], [{"subnet": "fd00:89::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        ptp = head | {"type": "ptp", "ipam": ipam}
        bandwidth = head | {"type": "bandwidth"}
        yield Side("Go's", fd, ((GO_PLUGINS / "ptp", ptp), (GO_PLUGINS / "bandwidth", bandwidth)))


def run() -> list[Figure]:
    """Give how far from its limit each connection stayed, in percent."""
    with ExitStack() as stack:
        sides = [stack.enter_context(our_side()), stack.enter_context(go_side())]
        figures = []
        for rate_mbit_s, way, version in product(RATES_MBIT_S, ("ingress", "egress"), (4, 6)):
            ours, theirs = (measure(side, version, way, rate_mbit_s) for side in sides)
            figures.append(
                within(
                    f"{way} {rate_mbit_s} Mbit/s, IPv{version}: off by",
                    abs(ours / rate_mbit_s - 1) * 100,
                    "%",
                    WITHIN_PERCENT,
                    f"{ours:.1f} Mbit/s; {sides[1].name} {theirs:.1f}",
                )
            )
    return figures


if __name__ == "__main__":
    main("Bandwidth of a limited pod", run)
