"""What runs a lab's pods: its own processes beside containerd, one pod at a time and many at once."""

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.report import Figure, main
from poplin.datastore.client import ApiClient
from poplin.datastore.kubeconfig import find_access
from poplin.lab.lifecycle import require
from poplin.lab.report import kubeconfig_path

POPLIN = str(Path(sys.executable).parent / "poplin")
RUNTIMES = ("process", "containerd")
PODS = "/api/v1/namespaces/default/pods"
UPS, ROUNDS, MANY = 3, 10, 30
LIMIT_S = 60.0


def run() -> list[Figure]:
    """Measure, both runtimes in turn. Needs root; makes labs and takes them down."""
    ups: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
    for _ in range(UPS):
        for runtime in RUNTIMES:
            began = time.monotonic()
            with _lab(runtime, 3):
                ups[runtime].append(time.monotonic() - began)
    with _lab("process", 2), _lab("containerd", 2):
        ones, manies = asyncio.run(_measure())
        shims = _shims_mb()
    figures = []
    for runtime in RUNTIMES:
        starts, ends = zip(*ones[runtime], strict=True)
        figures += [
            Figure(f"{runtime}: lab up, 3 nodes ready, median", statistics.median(ups[runtime]), "s"),
            Figure(f"{runtime}: a pod from create to Ready, median", statistics.median(starts), "s"),
            Figure(f"{runtime}: a pod from delete to gone, median", statistics.median(ends), "s"),
            Figure(f"{runtime}: {MANY} pods at once on 2 nodes, all Ready", manies[runtime], "s"),
        ]
    return [*figures, Figure("containerd: memory of a pod's shim (PSS), mean", shims, "MB")]


@contextlib.contextmanager
def _lab(runtime: str, nodes: int) -> Iterator[None]:
    try:
        _poplin("up", "--nodes", str(nodes), "--name", _name(runtime), "--runtime", runtime)
        yield
    finally:
        _poplin("down", "--name", _name(runtime))


def _name(runtime: str) -> str:
    return f"b{os.getpid()}-{runtime[:4]}"


def _poplin(*arguments: str) -> None:
    subprocess.run([POPLIN, "lab", *arguments], check=True, stdout=subprocess.DEVNULL, timeout=120)


async def _measure() -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    ones: dict[str, list[tuple[float, float]]] = {runtime: [] for runtime in RUNTIMES}
    manies = {}
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for runtime in RUNTIMES:
            access = find_access({}, kubeconfig=kubeconfig_path(*require(_name(runtime))))
            clients[runtime] = await stack.enter_async_context(ApiClient(access))
        for number in range(ROUNDS):
            for runtime, client in clients.items():
                start_s = await _run_pods(client, [f"one-{number}"])
                ones[runtime].append((start_s, await _remove_pod(client, f"one-{number}")))
        for runtime, client in clients.items():
            manies[runtime] = await _run_pods(client, [f"many-{number}" for number in range(MANY)])
    return ones, manies


async def _run_pods(client: ApiClient, names: list[str]) -> float:
    """Seconds until pods with these names are all ready. What runs is the same program either way."""
    script = "trap 'exit 0' TERM; sleep 1000 & wait"
    container = {"name": "main", "image": "busybox", "command": ["sh", "-c", script]}
    spec = {"containers": [container]}
    began = time.monotonic()
    for name in names:
        await client.request("POST", PODS, body={"metadata": {"name": name}, "spec": spec})
    await _until(client, lambda pods: sum(map(_ready, pods)) == len(names))
    return time.monotonic() - began


async def _remove_pod(client: ApiClient, name: str) -> float:
    began = time.monotonic()
    await client.request("DELETE", f"{PODS}/{name}")
    await _until(client, lambda pods: not pods)
    return time.monotonic() - began


async def _until(client: ApiClient, holds: Callable[[list[Any]], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not holds(  # noqa: ASYNC110  - another process' state has no event
            msgspec.json.decode(await client.request("GET", PODS))["items"]
        ):
            await asyncio.sleep(0.005)


def _ready(pod: Any) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)


def _shims_mb() -> float:
    """The mean of the shims' memory; they are found by the directory of the lab in their command line."""
    root = str(require(_name("containerd"))[0].root).encode()
    shares = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(b"containerd-shim-runc-v2") and any(root in word for word in words):
                lines = (path.parent / "smaps_rollup").read_text().splitlines()
                shares += [int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")]
    return statistics.mean(shares)


if __name__ == "__main__":
    main("What runs a lab's pods", run)
