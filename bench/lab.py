"""The lab: how soon it stands, how soon many pods run in it, and why its agents are forked."""

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.report import Figure, main, within
from poplin.datastore.client import ApiClient
from poplin.datastore.kubeconfig import find_access
from poplin.lab.lifecycle import require
from poplin.lab.message import Question
from poplin.lab.report import kubeconfig_path
from poplin.lab.runtime import ask

POPLIN = str(Path(sys.executable).parent / "poplin")
NAME = f"bench-{os.getpid()}"
ROUNDS = 5
NODES, PODS = 20, 200
LIMIT_3_NODES_S = 3.0
LIMIT_200_PODS_S = 60.0


def run() -> list[Figure]:
    """Measure. Needs root; makes one lab after another and takes each down."""
    ups, downs = zip(*(_up_and_down(3) for _ in range(ROUNDS)), strict=True)
    figures = [
        within("lab up, 3 nodes ready, median", statistics.median(ups), "s", LIMIT_3_NODES_S),
        Figure("lab down, median", statistics.median(downs), "s"),
        Figure("importing what an agent needs", _import_s("poplin.agent.agent"), "s", note="a fork saves it"),
    ]
    began = time.monotonic()
    with _lab(NODES):
        up_s = time.monotonic() - began
        pods_s = asyncio.run(_deploy())
        figures.append(within(f"{NODES} nodes and {PODS} pods ready", up_s + pods_s, "s", LIMIT_200_PODS_S))
        directory, _ = require(NAME)
        states = ask(directory.socket, Question(0))
        for kind, what in (("agent-", "an agent"), ("server", "the server")):
            figures.append(_memory(what, [state.pid for state in states if state.id.startswith(kind)]))
        figures.append(_memory("an echo server", [state.pid for state in states if "/" in state.id]))
    return figures


def _up_and_down(nodes: int) -> tuple[float, float]:
    """Seconds of the two commands, as a user waits for them."""
    began = time.monotonic()
    with _lab(nodes):
        up_s = time.monotonic() - began
        began = time.monotonic()
    return up_s, time.monotonic() - began


@contextlib.contextmanager
def _lab(nodes: int) -> Iterator[None]:
    try:
        _poplin("up", "--nodes", str(nodes), "--name", NAME)
        yield
    finally:
        _poplin("down", "--name", NAME)


def _poplin(*arguments: str) -> None:
    subprocess.run([POPLIN, "lab", *arguments], check=True, stdout=subprocess.DEVNULL, timeout=120)


def _import_s(module: str) -> float:
    """Median seconds from the start of a Python to its having imported a module."""
    samples = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        samples.append(time.monotonic() - began)
    return statistics.median(samples)


async def _deploy() -> float:
    """Seconds until all pods of a Deployment are ready."""
    labels = {"app": "web"}
    container = {"name": "web", "image": "example.org/web:1", "ports": [{"containerPort": 80}]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": PODS, "selector": {"matchLabels": labels}, "template": template},
    }
    path = "/apis/apps/v1/namespaces/default/deployments"
    access = find_access({}, kubeconfig=kubeconfig_path(*require(NAME)))
    began = time.monotonic()
    async with ApiClient(access) as client, asyncio.timeout(LIMIT_200_PODS_S * 2):
        await client.request("POST", path, body=body)
        ready = 0
        while ready < PODS:
            await asyncio.sleep(0.1)
            found = msgspec.json.decode(await client.request("GET", f"{path}/web"))
            ready = found.get("status", {}).get("readyReplicas") or 0
    return time.monotonic() - began


def _memory(what: str, pids: list[int]) -> Figure:
    """The mean of what processes have for themselves, with their share of what they have in common."""
    shares = []
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        shares += [int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")]
    return Figure(f"memory of {what} (PSS), mean", statistics.mean(shares), "MB", note=f"of {len(shares)}")


if __name__ == "__main__":
    main("The lab: up, down, and 200 pods on 20 nodes", run)
