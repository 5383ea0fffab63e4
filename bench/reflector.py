"""The reflector's speed and memory: pods listed, pods streamed as a list, and changes followed.

A server that only sends prepared bytes and the client that is measured are a process each, so that neither
the server's work nor its memory counts. Run `python -m bench.reflector [--json]`.
"""

import asyncio
import gc
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bench.report import Figure, main

PODS = 10_000
EVENTS = 40_000
PAGE = 500
SLICE = 1 << 18
RUNS = 5
UNITS = {
    "list": "s",
    "CPU of the list": "s",
    "memory kept": "MB",
    "memory at its peak": "MB",
    "process": "MB",
    "changes": "/s",
    "changes a CPU second": "/s",
}


def make_pod(number: int, version: int) -> dict[str, Any]:
    """A pod as a Deployment's looks on a real cluster: about 4.5 kB of JSON, of which we read little."""
    owner = f"web-{number // 10}"
    fields: dict[str, Any] = {
        f"f:{key}": {".": {}, **{f"f:{part}-{i}": {} for i in range(6)}}
        for part in ("spec", "status")
        for key in (f"{part}A", f"{part}B", f"{part}C")
    }
    condition = {"lastProbeTime": None, "lastTransitionTime": "2026-01-02T03:04:05Z", "status": "True"}
    return {
        "metadata": {
            "name": f"{owner}-7d4b9c6f5d-{number:05d}",
            "generateName": f"{owner}-7d4b9c6f5d-",
            "namespace": f"team-{number // 100}",
            "uid": f"6b7f0b9e-0000-4000-8000-{number:012d}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app": owner, "pod-template-hash": "7d4b9c6f5d", "tier": "backend", "version": "v1"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": "0" * 36}
            ],
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": fields}] * 3,
        },
        "spec": {
            "nodeName": f"node-{number // 110}",
            "serviceAccountName": "web",
            "containers": [
                {
                    "name": "web",
                    "image": "registry.example/web:v1.2.3",
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                    "volumeMounts": [{"name": "token", "readOnly": True, "mountPath": "/var/run/secrets"}],
                }
            ],
            "volumes": [{"name": "token", "projected": {"defaultMode": 420, "sources": [{}, {}, {}]}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}] * 2,
        },
        "status": {
            "phase": "Running",
            "hostIP": "192.0.2.10",
            "podIP": f"10.244.{number >> 8}.{number & 255}",
            "podIPs": [{"ip": f"10.244.{number >> 8}.{number & 255}"}],
            "conditions": [condition | {"type": kind} for kind in ("Initialized", "Ready", "PodScheduled")],
            "containerStatuses": [{"name": "web", "ready": True, "containerID": "containerd://" + "a" * 64}],
        },
    }


def chunked(lines: list[bytes]) -> bytes:
    """Lines as an API server sends them: each a chunk of its own."""
    return b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in lines)


def event(kind: str, obj: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": obj}, separators=(",", ":")).encode() + b"\n"


def bookmark(version: int, **annotations: str) -> bytes:
    return event("BOOKMARK", {"metadata": {"resourceVersion": str(version), "annotations": annotations}})


def serve(connection: Connection) -> None:
    """Prepare all answers, tell the port, serve until killed."""
    pods = [make_pod(number, number + 1) for number in range(PODS)]
    pages = []
    for start in range(0, PODS, PAGE):
        metadata = {
            "resourceVersion": str(PODS),
            "continue": str(start + PAGE) if start + PAGE < PODS else "",
        }
        pages.append(json.dumps({"metadata": metadata, "items": pods[start : start + PAGE]}).encode())
    initial = [event("ADDED", pod) for pod in pods]
    initial.append(bookmark(PODS, **{"k8s.io/initial-events-end": "true"}))
    changes = chunked(
        [event("MODIFIED", make_pod(number % PODS, PODS + 1 + number)) for number in range(EVENTS)]
    )
    initial_bytes = chunked(initial)
    refusal = b'{"kind":"Status","code":422,"reason":"Invalid","message":"no streaming lists here"}'

    async def send(writer: asyncio.StreamWriter, body: bytes) -> None:
        for start in range(0, len(body), SLICE):
            writer.write(memoryview(body)[start : start + SLICE])
            await writer.drain()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await converse(reader, writer)
        writer.close()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            url = urlsplit(head.split(b" ", 2)[1].decode())
            query = {key: value[0] for key, value in parse_qs(url.query).items()}
            streaming = "streaming" in url.path
            if "watch" not in query:
                body = pages[int(query.get("continue", "0")) // PAGE]
                await send(writer, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            elif "sendInitialEvents" in query and not streaming:
                await send(
                    writer, b"HTTP/1.1 422 Invalid\r\nContent-Length: %d\r\n\r\n" % len(refusal) + refusal
                )
            else:
                await send(writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                await send(writer, initial_bytes if "sendInitialEvents" in query else b"")
                await send(writer, changes)

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        connection.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


def measure(connection: Connection, port: int, path: str) -> None:
    """List and follow as an agent would, keeping each pod's latest value; send what it took."""
    # The import belongs to what an agent has resident anyway.
    from poplin.datastore.access import Access  # noqa: PLC0415
    from poplin.datastore.client import ApiClient  # noqa: PLC0415
    from poplin.datastore.core import PODS as RESOURCE  # noqa: PLC0415
    from poplin.datastore.reflector import Reflector  # noqa: PLC0415
    from poplin.datastore.source import Put, Replaced  # noqa: PLC0415

    async def main() -> dict[str, float]:
        async with ApiClient(Access(server=f"http://127.0.0.1:{port}/{path}", origin="bench")) as client:
            gc.collect()
            before = resident_bytes()
            began, cpu = time.perf_counter(), time.process_time()
            view: dict[tuple[str, str], Any] = {}
            async with aclosing(Reflector(client, RESOURCE).events()) as events:
                first = await anext(events)
                assert isinstance(first, Replaced), first
                view = {(pod.namespace, pod.name): pod for pod in first.objects}
                del first
                filled, filled_cpu = time.perf_counter(), time.process_time()
                gc.collect()
                kept, peak = resident_bytes(), peak_bytes()
                began_events, began_cpu = time.perf_counter(), time.process_time()
                count = 0
                async for change in events:
                    assert isinstance(change, Put), change
                    view[change.object.namespace, change.object.name] = change.object
                    count += 1
                    if count == EVENTS:
                        break
                ended, ended_cpu = time.perf_counter(), time.process_time()
        assert len(view) == PODS
        return {
            "list": filled - began,
            "CPU of the list": filled_cpu - cpu,
            "memory kept": (kept - before) / 1e6,
            "memory at its peak": (peak - before) / 1e6,
            "process": kept / 1e6,
            "changes": EVENTS / (ended - began_events),
            "changes a CPU second": EVENTS / (ended_cpu - began_cpu),
        }

    connection.send(asyncio.run(main()))


@contextmanager
def process(target: Any, *arguments: Any) -> Iterator[Connection]:
    """A fresh interpreter running a function, which is given the other end of the pipe first."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs, *arguments))
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        child.terminate()
        child.join()


def run() -> list[Figure]:
    """Medians of interleaved runs: plain pages and the streaming list."""
    samples: dict[str, list[dict[str, float]]] = {"pages": [], "streaming": []}
    with process(serve) as server:
        port = server.recv()
        for _, path in itertools.product(range(RUNS), samples):
            with process(measure, port, path) as client:
                samples[path].append(client.recv())
    return [
        Figure(f"{path}: {what}", statistics.median(sample[what] for sample in taken), unit)
        for path, taken in samples.items()
        for what, unit in UNITS.items()
    ]


if __name__ == "__main__":
    main(f"Reflector: {PODS} pods of {len(event('ADDED', make_pod(1, 1)))} bytes, {EVENTS} changes", run)
