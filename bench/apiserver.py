"""The embedded API server: requests and watch events a second, the time of large lists, memory.

    python -m bench.apiserver [--json]

The server runs in a process of its own and is asked over TLS on 127.0.0.1, as clients do. Loads are bounded by
counts. Memory is the server's resident set with all pods stored and cached.
"""

import asyncio
import contextlib
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from bench.report import Figure, main

PROGRAM = """
import asyncio, socket, sys
from pathlib import Path
from poplin.apiserver.server import ApiServer, Settings, serve
async def main():
    directory = Path(sys.argv[1])
    server = ApiServer(Settings(directory / "data", tokens=directory / "tokens.csv"))
    async with server, serve(server, [socket.socket(fileno=int(sys.argv[2]))]):
        await asyncio.Event().wait()
asyncio.run(main())
"""
PODS = "/api/v1/namespaces/default/pods"
MAPS = "/api/v1/namespaces/default/configmaps"
CONCURRENCY = 32
PODS_STORED = 10_000


def make_pod(index: int) -> dict[str, Any]:
    """A pod of an ordinary size: about 2 KiB as stored."""
    environment = [{"name": f"VARIABLE_{number}", "value": f"value-{number}"} for number in range(10)]
    probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10}
    container = {
        "name": "web",
        "image": "registry.example.org/team/web:1.2.3",
        "env": environment,
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": probe,
        "livenessProbe": probe,
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
    }
    labels = {"app": f"app-{index % 100}", "pod-template-hash": "5d4f8c7b9d", "tier": "backend"}
    return {
        "metadata": {"name": f"pod-{index}", "labels": labels},
        "spec": {"nodeName": f"node-{index % 10}", "containers": [container]},
    }


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[aiohttp.ClientSession, int]]:
    """A server process; yields a client session with its base URL, and the process id."""
    (directory / "tokens.csv").write_text("token,bench,1\n")
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROGRAM,
            str(directory),
            str(listener.fileno()),
            pass_fds=[listener.fileno()],
        )
    connector = aiohttp.TCPConnector(ssl=False, limit=0)
    headers = {"Authorization": "Bearer token"}
    try:
        async with aiohttp.ClientSession(
            url,
            connector=connector,
            headers=headers,
            read_bufsize=1 << 22,
            timeout=aiohttp.ClientTimeout(None),
        ) as session:
            async with session.get("/readyz") as answer:
                answer.raise_for_status()
            yield session, process.pid
    finally:
        process.terminate()
        await process.wait()


async def rate(count: int, work: Callable[[int], Awaitable[None]]) -> float:
    """Calls a second of `work(0..count-1)`, CONCURRENCY at a time."""
    todo = iter(range(count))

    async def worker() -> None:
        for index in todo:
            await work(index)

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return count / (time.perf_counter() - start)


async def ask(session: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    async with session.request(method, path, data=data) as answer:
        answer.raise_for_status()
        return await answer.read()


async def measure_watches(session: aiohttp.ClientSession, watchers: int, events: int) -> float:
    """Deliveries a second: `events` updates, each seen by every one of `watchers`."""
    revision = json.loads(await ask(session, "GET", MAPS))["metadata"]["resourceVersion"]
    ready = asyncio.Semaphore(0)

    async def look() -> None:
        async with session.get(MAPS, params={"watch": "true", "resourceVersion": revision}) as answer:
            ready.release()
            seen = 0
            async for chunk in answer.content.iter_any():
                seen += chunk.count(b"\n")
                if seen >= events:
                    return

    looking = [asyncio.create_task(look()) for _ in range(watchers)]
    for _ in looking:
        await ready.acquire()
    start = time.perf_counter()

    async def write(index: int) -> None:
        await ask(session, "POST", MAPS, {"metadata": {"name": f"w-{index}"}, "data": {"k": "v" * 1000}})

    await asyncio.gather(rate(events, write), *looking)
    return watchers * events / (time.perf_counter() - start)


async def timed(count: int, work: Callable[[], Awaitable[Any]]) -> float:
    """The median seconds of `count` calls."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        await work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def resident_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


async def measure(pods: int) -> dict[str, float]:
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        async with running(Path(name)) as (session, process):
            results["memory empty MiB"] = resident_mib(process)

            async def create(index: int) -> None:
                await ask(session, "POST", PODS, make_pod(index))

            async def get(index: int) -> None:
                await ask(session, "GET", f"{PODS}/pod-{index % pods}")

            async def update(index: int) -> None:
                patch = {
                    "status": {"phase": "Running", "podIP": f"10.244.0.{index % 250}", "message": str(index)}
                }
                headers = {"Content-Type": "application/merge-patch+json"}
                path = f"{PODS}/pod-{index % pods}/status"
                async with session.patch(path, data=json.dumps(patch), headers=headers) as answer:
                    answer.raise_for_status()

            results["create pod/s"] = await rate(pods, create)
            results["get pod/s"] = await rate(3000, get)
            results["patch status/s"] = await rate(3000, update)
            results["create latency ms"] = 1000 * await timed(
                50, lambda: ask(session, "POST", MAPS, {"metadata": {"generateName": "l-"}})
            )
            results["list all ms"] = 1000 * await timed(5, lambda: ask(session, "GET", PODS))
            results["list by label ms"] = 1000 * await timed(
                5, lambda: ask(session, "GET", f"{PODS}?labelSelector=app%3Dapp-7")
            )
            results["list by node ms"] = 1000 * await timed(
                5, lambda: ask(session, "GET", f"{PODS}?fieldSelector=spec.nodeName%3Dnode-7")
            )
            results["watch events/s to 50"] = await measure_watches(session, 50, 400)
            results["memory with pods MiB"] = resident_mib(process)
        start = time.perf_counter()
        async with running(Path(name)) as (session, process):
            results["restart with pods s"] = time.perf_counter() - start
            await ask(session, "GET", PODS)
            results["memory after restart MiB"] = resident_mib(process)
    return results


def run() -> list[Figure]:
    """All measurements; the unit is the last word of each one's name."""
    results = asyncio.run(measure(PODS_STORED))
    return [
        Figure(name.rpartition(" ")[0], value, name.rpartition(" ")[2]) for name, value in results.items()
    ]


if __name__ == "__main__":
    main(f"The embedded API server with {PODS_STORED} pods", run)
