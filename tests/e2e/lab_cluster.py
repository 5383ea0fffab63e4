"""A cluster without machines: the embedded API server, the controllers, and a kubelet that only says so."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec
import yaml

from poplin.apiserver.server import ApiServer, Settings, serve
from poplin.datastore.client import STRATEGIC_MERGE, ApiClient, Query, RefusedError, Stream, Unreachable
from poplin.datastore.kubeconfig import read_kubeconfig
from poplin.datastore.reflector import Reflector
from poplin.datastore.source import Put, Replaced
from poplin.lab.controllers.object import NODES, PODS, Object, format_time
from poplin.lab.controllers.runtime import run

NETWORKS = (ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48"))
PLURALS = {
    "Pod": "/api/v1/namespaces/default/pods",
    "Node": "/api/v1/nodes",
    "Event": "/api/v1/namespaces/default/events",
    "PersistentVolumeClaim": "/api/v1/namespaces/default/persistentvolumeclaims",
    "ReplicaSet": "/apis/apps/v1/namespaces/default/replicasets",
    "Deployment": "/apis/apps/v1/namespaces/default/deployments",
    "DaemonSet": "/apis/apps/v1/namespaces/default/daemonsets",
    "StatefulSet": "/apis/apps/v1/namespaces/default/statefulsets",
    "ControllerRevision": "/apis/apps/v1/namespaces/default/controllerrevisions",
    "Job": "/apis/batch/v1/namespaces/default/jobs",
    "CronJob": "/apis/batch/v1/namespaces/default/cronjobs",
}


class Kubelet:
    """Says of every pod that has a node that it runs and is ready, or has succeeded; and lets pods go at once.

    `verdict` may answer otherwise: a phase ("Running", "Succeeded", "Failed"), or "" for nothing yet.
    """

    def __init__(self, client: ApiClient, verdict: Callable[[Object], str]) -> None:
        self._client = client
        self._verdict = verdict

    async def run(self) -> None:
        async for event in Reflector(self._client, PODS).events():
            if isinstance(event, Put):
                await self._tend(event.object)
            elif isinstance(event, Replaced):
                await asyncio.gather(*map(self._tend, event.objects))

    async def _tend(self, pod: Object) -> None:
        if not pod.spec.get("nodeName"):
            return
        with contextlib.suppress(RefusedError):  # the pod may be gone
            if pod.deleting:
                options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
                await self._client.request("DELETE", PODS.path(*pod.key), body=options)
                return
            phase = self._verdict(pod)
            if phase and pod.status.get("phase") != phase:
                await self.tell(pod, phase)

    async def tell(self, pod: Object, phase: str) -> None:
        now = format_time(datetime.now(UTC))
        ready = "True" if phase == "Running" else "False"
        conditions = [
            {"type": kind, "status": ready, "lastTransitionTime": now}
            for kind in ("Ready", "ContainersReady")
        ]
        body = {"status": {"phase": phase, "startTime": now, "conditions": conditions}}
        path = PODS.path(*pod.key, "status")
        await self._client.request("PATCH", path, body=body, content_type=STRATEGIC_MERGE)


class LateStream:
    """A watch whose news arrive late."""

    def __init__(self, stream: Stream, lag_s: float) -> None:
        self._stream = stream
        self._lag_s = lag_s

    async def read(self, limit_s: float) -> bytes | None:
        chunk = await self._stream.read(limit_s)
        await asyncio.sleep(self._lag_s)
        return chunk


class LateClient(ApiClient):
    """A client that sees what it has written long before its watches tell."""

    lag_s = 0.3

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: Query) -> AsyncIterator[Any]:
        async with super().stream(path, query) as stream:
            yield LateStream(stream, self.lag_s)


class CutStream:
    """A watch that ends when its client is cut off."""

    def __init__(self, stream: Stream, client: "FragileClient") -> None:
        self._stream = stream
        self._client = client

    async def read(self, limit_s: float) -> bytes | None:
        reading = asyncio.create_task(self._stream.read(limit_s))
        cutting = asyncio.create_task(self._client.cut.wait())
        done, waiting = await asyncio.wait({reading, cutting}, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        return reading.result() if reading in done and not self._client.cut.is_set() else b""


class FragileClient(ApiClient):
    """A client that can be cut off from its server: `cut` while it is."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.cut = asyncio.Event()

    async def request(self, method: str, path: str, **more: Any) -> bytes:
        self._check(path)
        return await super().request(method, path, **more)

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: Query) -> AsyncIterator[Any]:
        self._check(path)
        async with super().stream(path, query) as stream:
            yield CutStream(stream, self)

    def _check(self, path: str) -> None:
        if self.cut.is_set():
            raise Unreachable("cut off", where=path)


class Lab:
    """The cluster as a test uses it."""

    def __init__(self, client: ApiClient, theirs: ApiClient, server: ApiServer, kubeconfig: Path) -> None:
        self.client = client
        self.theirs = theirs
        self.server = server
        self.kubeconfig = kubeconfig

    async def add_node(self, name: str, *, heartbeat: datetime | None = None, **spec: Any) -> None:
        now = format_time(heartbeat or datetime.now(UTC))
        status = {
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [
                {"type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now}
            ],
        }
        labels = {"kubernetes.io/hostname": name}
        body = {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}
        await self.client.request("POST", NODES.path(), body=body)

    async def apply(self, text: str) -> None:
        for document in yaml.safe_load_all(text):
            await self.client.request("POST", PLURALS[document["kind"]], body=document)

    async def list(self, kind: str, **labels: str) -> list[dict[str, Any]]:
        query = {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())}
        data = await self.client.request("GET", PLURALS[kind], query=query)
        return msgspec.json.decode(data)["items"]

    async def get(self, kind: str, name: str) -> dict[str, Any]:
        return msgspec.json.decode(await self.client.request("GET", f"{PLURALS[kind]}/{name}"))

    async def patch(self, kind: str, name: str, body: Any) -> None:
        path = f"{PLURALS[kind]}/{name}"
        await self.client.request("PATCH", path, body=body, content_type=STRATEGIC_MERGE)

    async def delete(self, kind: str, name: str) -> None:
        await self.client.request("DELETE", f"{PLURALS[kind]}/{name}")

    async def until(self, holds: Callable[[], Any], within_s: float = 20) -> Any:
        """What the coroutine function `holds` gives, once it is true."""
        async with asyncio.timeout(within_s):
            while not (answer := await holds()):  # noqa: ASYNC110  - another process' state has no event
                await asyncio.sleep(0.02)
        return answer

    async def kubectl(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "kubectl", *arguments, env=os.environ | {"KUBECONFIG": str(self.kubeconfig)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()


@contextlib.asynccontextmanager
async def running_lab(
    directory: Path,
    *,
    nodes: int = 3,
    controllers: Sequence[str] | None = None,
    verdict: Callable[[Object], str] = lambda _: "Running",
    client_of: type[ApiClient] = ApiClient,
) -> AsyncIterator[Lab]:
    server = ApiServer(Settings(directory))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kubeconfig = directory / "kubeconfig"
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(server)
            await stack.enter_async_context(serve(server, [listener]))
            server.write_kubeconfig(kubeconfig, f"https://127.0.0.1:{listener.getsockname()[1]}")
            client = await stack.enter_async_context(ApiClient(read_kubeconfig([kubeconfig])))
            theirs = await stack.enter_async_context(client_of(client.access))
            lab = Lab(client, theirs, server, kubeconfig)
            for number in range(nodes):
                await lab.add_node(f"node-{number}")
            tasks = [
                asyncio.create_task(run(theirs, cluster_networks=NETWORKS, controllers=controllers)),
                asyncio.create_task(Kubelet(client, verdict).run()),
            ]
            try:
                yield lab
            finally:
                for task in tasks:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(one, asyncio.CancelledError) for one in results), results
