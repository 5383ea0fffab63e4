"""A node for a benchmark: a namespace with an uplink, and a real agent in it, from a file of objects."""

import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poplin.dataplane.netns import create_netns, delete_netns, entered, open_netns

POPLIN = Path(__file__).parent.parent / ".venv/bin/poplin"
SHIM = Path(__file__).parent.parent / "src/poplin/cni/poplin-cni"
READY_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class BenchNode:
    """`fd` is the node's namespace, `directory` holds the agent's state, `agent` is its process.

    `ready_s` is the time from the start of the process until the CNI configuration was installed.
    """

    fd: int
    directory: Path
    agent: subprocess.Popen[bytes]
    ready_s: float

    @property
    def config(self) -> dict[str, str]:
        """The CNI configuration of one ADD."""
        return {
            "cniVersion": "1.0.0",
            "name": "poplin",
            "type": "poplin-cni",
            "socket": str(self.directory / "run/cni.sock"),
            "stateDir": str(self.directory / "lib"),
        }


@contextmanager
def namespace(kind: str) -> Iterator[tuple[str, int]]:
    """A namespace's name and descriptor, gone afterwards."""
    name = f"pb{os.getpid()}-{kind}-{secrets.token_hex(3)}"
    path = create_netns(name)
    fd = open_netns(path)
    try:
        yield name, fd
    finally:
        os.close(fd)
        delete_netns(name)


def run_in(fd: int, *command: str) -> str:
    """Run a program in the namespace and give its output."""
    with entered(fd):
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def node_object(name: str, pod_cidrs: Sequence[str], addresses: Sequence[str]) -> dict[str, Any]:
    """A Node as a cluster would have it."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)},
        "status": {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]},
    }


@contextmanager
def cluster_file(objects: Sequence[dict[str, Any]], net_conf: dict[str, Any]) -> Iterator[Path]:
    """A directory with what agents read: the cluster's objects and the network configuration."""
    with tempfile.TemporaryDirectory(prefix="poplin-bench-") as name:
        directory = Path(name)
        state = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        (directory / "state.json").write_text(json.dumps(state))
        (directory / "net-conf.json").write_text(json.dumps(net_conf))
        yield directory


@contextmanager
def running_agent(fd: int, name: str, cluster: Path) -> Iterator[BenchNode]:
    """The agent of the node `name` in the namespace `fd`, ready for pods. Raises RuntimeError with its log."""
    directory = cluster / name
    directory.mkdir()
    command = [
        *(str(POPLIN), "agent", "--node-name", name),
        *("--state", str(cluster / "state.json")),
        *("--net-conf", str(cluster / "net-conf.json")),
        *("--state-dir", str(directory / "lib"), "--run-dir", str(directory / "run")),
        *("--cni-conf-dir", str(directory / "net.d"), "--health-address", ""),
    ]
    start = time.perf_counter()
    with entered(fd), (directory / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command, stderr=log)
    try:
        await_conflist(agent, directory, start)
        yield BenchNode(fd, directory, agent, time.perf_counter() - start)
    finally:
        agent.terminate()
        agent.wait(20)


def await_conflist(agent: subprocess.Popen[bytes], directory: Path, start: float) -> None:
    """Wait until the agent has installed the CNI configuration. Raises RuntimeError with its log."""
    while not (directory / "net.d/10-poplin.conflist").exists():
        if time.perf_counter() - start > READY_WAIT_S or agent.poll() is not None:
            raise RuntimeError((directory / "agent.log").read_text())
        time.sleep(0.002)


@contextmanager
def single_node(backend: str = "host-gw", others: Sequence[dict[str, Any]] = ()) -> Iterator[BenchNode]:
    """A node with a running agent, ready for pods; `others` are the cluster's other nodes."""
    conf = {"Network": "10.240.0.0/12", "Backend": {"Type": backend}}
    objects = [node_object("n1", ["10.244.0.0/22"], ["10.99.0.1"]), *others]
    with (
        namespace("fabric") as (_, fabric),
        namespace("node") as (node_name, node),
        cluster_file(objects, conf) as cluster,
    ):
        run_in(fabric, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", node_name)
        run_in(fabric, "ip", "link", "set", "up0", "up")
        for command in ("link set lo up", "link set eth0 up", "address add 10.99.0.1/24 dev eth0"):
            run_in(node, "ip", *command.split())
        with running_agent(node, "n1", cluster) as agent:
            yield agent
