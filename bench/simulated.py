"""A cluster that exists only as the answers of its API server: nodes and pods, listed, watched and changed.

It serves what an agent asks for, from bytes made beforehand, in a process of its own: any resource but nodes
and pods is an empty list. Plain HTTP on 127.0.0.1 of the namespace that the process was started in.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from multiprocessing.connection import Connection
from typing import Any, Final

import msgspec
from aiohttp import web

from bench.reflector import make_pod

PREFIX: Final = "flannel.alpha.coreos.com"
POD_NETWORK: Final = "10.128.0.0/9"
TICK_S: Final = 0.01
PODS_A_NODE: Final = 30


def make_node(number: int, version: int, *, beat: int = 0) -> dict[str, Any]:
    """A node with its lease published, as large as a real one; `version` decides where it is reached."""
    address = IPv4Address("10.64.0.2") + number + (version & 1) * 65536
    octets = number.to_bytes(3, "big").hex(":")
    condition = {
        "lastHeartbeatTime": f"2026-01-02T03:{beat // 60 % 60:02}:{beat % 60:02}Z",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
        "status": "False",
        "message": "kubelet has what it needs",
    }
    kinds = ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready", "NetworkUnavailable")
    images = [
        {"names": [f"registry.example/app-{i}@sha256:{'a' * 64}"], "sizeBytes": 12345678} for i in range(20)
    ]
    pod_cidr = f"{IPv4Address('10.128.0.0') + number * 256}/24"
    return {
        "metadata": {
            "name": f"node-{number}",
            "uid": f"6b7f0b9e-0000-4000-8000-{number:012d}",
            "resourceVersion": str(version),
            "labels": {
                "kubernetes.io/hostname": f"node-{number}",
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": f"zone-{number % 3}",
            },
            "annotations": {
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                f"{PREFIX}/kube-subnet-manager": "true",
                f"{PREFIX}/backend-type": "vxlan",
                f"{PREFIX}/backend-data": f'{{"VNI":1,"VtepMAC":"02:00:00:{octets}"}}',
                f"{PREFIX}/public-ip": str(address),
            },
        },
        "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": str(address)}],
            "conditions": [condition | {"type": kind} for kind in kinds],
            "images": images,
        },
    }


@dataclass(slots=True)
class Collection:
    """Objects of one resource as JSON, and the queues of who watches them."""

    objects: list[bytes] = field(default_factory=list)
    watchers: set[asyncio.Queue[bytes]] = field(default_factory=set)

    def put(self, number: int, body: bytes) -> None:
        """Replace an object, and tell whoever watches."""
        self.objects[number] = body
        line = _event("MODIFIED", body)
        for watcher in self.watchers:
            watcher.put_nowait(line)


class Cluster:
    """The server. Objects are numbered; the agent under test is that of node 0."""

    def __init__(self, nodes: int, pods: int) -> None:
        self._version = nodes + pods + 2  # even: every node is where it was made
        self._own: dict[str, str] = {}
        self._collections = {
            "nodes": Collection([_encode(make_node(number, 0)) for number in range(nodes)]),
            "pods": Collection([_encode(_pod(number, 1)) for number in range(pods)]),
        }
        self._changes = self._mixed()
        self._beats = self._heartbeats()

    async def listen(self) -> int:
        """Serve from here on; give the port."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        app.router.add_patch("/{path:.*}", self._patch)
        app.router.add_post("/{path:.*}", self._post)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    async def change(self, kind: str, per_second: int, seconds: float) -> int:
        """Make changes at an even rate: `kind` "changes" or "heartbeats". Give how many there were."""
        source = self._changes if kind == "changes" else self._beats
        clock = asyncio.get_running_loop().time
        began, made = clock(), 0
        while (spent_s := clock() - began) < seconds:
            while made < spent_s * per_second:
                next(source)
                made += 1
            await asyncio.sleep(TICK_S)
        return made

    def _mixed(self) -> Iterator[None]:
        """Nodes that are reached elsewhere and pods with other labels and addresses, in turns."""
        nodes, pods = self._collections["nodes"], self._collections["pods"]
        step = 0
        while True:
            number = 1 + step % (len(nodes.objects) - 1)
            moved = step // (len(nodes.objects) - 1) + 1
            self._version += 2
            nodes.put(number, _encode(make_node(number, self._version + (moved & 1))))
            yield
            self._version += 2
            pod = _pod(step % len(pods.objects), self._version)
            pod["metadata"]["labels"]["version"] = f"v{step % 7}"
            pods.put(step % len(pods.objects), _encode(pod))
            yield
            step += 1

    def _heartbeats(self) -> Iterator[None]:
        """Node statuses as kubelets repeat them: nothing in them that concerns a network."""
        nodes = self._collections["nodes"]
        beat = 0
        while True:
            beat += 1
            number = 1 + beat % (len(nodes.objects) - 1)
            parity = int(json.loads(nodes.objects[number])["metadata"]["resourceVersion"]) & 1
            self._version += 2
            nodes.put(number, _encode(make_node(number, self._version + parity, beat=beat)))
            yield

    async def _get(self, request: web.Request) -> web.StreamResponse:
        collection = self._collections.get(request.path.rpartition("/")[2], Collection())
        if "watch" in request.query:
            return await self._watch(request, collection)
        start = int(request.query.get("continue", "0"))
        end = start + int(request.query.get("limit", len(collection.objects)))
        more = str(end) if end < len(collection.objects) else ""
        metadata = _encode({"resourceVersion": str(self._version), "continue": more})
        items = b",".join(collection.objects[start:end])
        body = b'{"metadata":%b,"items":[%b]}' % (metadata, items)
        return web.Response(body=body, content_type="application/json")

    async def _watch(self, request: web.Request, collection: Collection) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        changes: asyncio.Queue[bytes] = asyncio.Queue()
        collection.watchers.add(changes)
        try:
            if "sendInitialEvents" in request.query:
                initial, version = list(collection.objects), self._version
                for start in range(0, len(initial), 500):
                    await response.write(
                        b"".join(_event("ADDED", body) for body in initial[start : start + 500])
                    )
                annotations = {"k8s.io/initial-events-end": "true"}
                end = {"metadata": {"resourceVersion": str(version), "annotations": annotations}}
                await response.write(_event("BOOKMARK", _encode(end)))
            while True:
                await response.write(await changes.get())
        finally:
            collection.watchers.discard(changes)

    async def _patch(self, request: web.Request) -> web.Response:
        """Merge what an agent writes to its own Node."""
        patch = await request.json()
        self._own |= patch.get("metadata", {}).get("annotations", {})
        self._version += 2
        node = make_node(0, self._version)
        node["metadata"]["annotations"] = self._own
        body = _encode(node)
        self._collections["nodes"].put(0, body)
        return web.Response(body=body, content_type="application/json")

    async def _post(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), status=201, content_type="application/json")


def serve(connection: Connection, nodes: int, pods: int) -> None:
    """A process: tell the port, then answer each (kind, changes a second, seconds) when they are made."""

    async def main() -> None:
        cluster = Cluster(nodes, pods)
        connection.send(await cluster.listen())
        while True:
            order = await asyncio.to_thread(connection.recv)
            connection.send(await cluster.change(*order))

    asyncio.run(main())


def _pod(number: int, version: int) -> dict[str, Any]:
    pod = make_pod(number, version)
    pod["spec"]["nodeName"] = f"node-{number // PODS_A_NODE}"
    address = str(IPv4Address("10.128.0.1") + number // PODS_A_NODE * 256 + number % PODS_A_NODE)
    pod["status"] |= {"podIP": address, "podIPs": [{"ip": address}]}
    return pod


def _event(kind: str, body: bytes) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (kind.encode(), body)


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value)
