"""A node for a benchmark: a namespace with an uplink, and a real agent in it, from a file of objects."""

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from poplin.dataplane.netns import create_netns, delete_netns, entered, open_netns

POPLIN = Path(__file__).parent.parent / ".venv/bin/poplin"
SHIM = Path(__file__).parent.parent / "src/poplin/cni/poplin-cni"


@dataclass(frozen=True, slots=True)
class BenchNode:
    """`fd` is the node's namespace, `directory` holds the agent's state, `agent` is its process."""

    fd: int
    directory: Path
    agent: subprocess.Popen[bytes]

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


@contextmanager
def single_node(backend: str = "host-gw") -> Iterator[BenchNode]:
    """A node with a running agent, ready for pods."""
    with namespace("fabric") as (_, fabric), namespace("node") as (node_name, node):
        run_in(fabric, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", node_name)
        run_in(fabric, "ip", "link", "set", "up0", "up")
        for command in ("link set lo up", "link set eth0 up", "address add 10.99.0.1/24 dev eth0"):
            run_in(node, "ip", *command.split())
        directory = Path(tempfile.mkdtemp(prefix="poplin-bench-"))
        objects = [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": "n1"},
                "spec": {"podCIDR": "10.244.0.0/22", "podCIDRs": ["10.244.0.0/22"]},
                "status": {"addresses": [{"type": "InternalIP", "address": "10.99.0.1"}]},
            }
        ]
        state = {"apiVersion": "v1", "kind": "List", "items": objects}
        (directory / "state.json").write_text(json.dumps(state))
        (directory / "net-conf.json").write_text(
            json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": backend}})
        )
        with entered(node), (directory / "agent.log").open("wb") as log:
            agent = subprocess.Popen(
                [
                    *(str(POPLIN), "agent", "--node-name", "n1"),
                    *("--state", str(directory / "state.json")),
                    *("--net-conf", str(directory / "net-conf.json")),
                    *("--state-dir", str(directory / "lib"), "--run-dir", str(directory / "run")),
                    *("--cni-conf-dir", str(directory / "net.d"), "--health-address", ""),
                ],
                stderr=log,
            )
        try:
            deadline = time.monotonic() + 30
            while not (directory / "net.d/10-poplin.conflist").exists():
                if time.monotonic() > deadline or agent.poll() is not None:
                    raise RuntimeError((directory / "agent.log").read_text())
                time.sleep(0.02)
            yield BenchNode(node, directory, agent)
        finally:
            agent.terminate()
            agent.wait(20)
            shutil.rmtree(directory)
