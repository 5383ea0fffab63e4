"""The kubelet of all nodes of a lab: watches pods and gives each that is on a node of ours a worker."""

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Self

from poplin.dataplane.netns import NAMED, open_netns
from poplin.datastore.client import ApiClient
from poplin.datastore.kubernetes import KubernetesSource
from poplin.datastore.source import Deleted, Put, Replaced, Unavailable
from poplin.lab.cri.client import Cri
from poplin.lab.cri.containerd import node_containerd
from poplin.lab.cri.runtime import CriRuntime
from poplin.lab.directory import Directory
from poplin.lab.kubelet.document import PODS, Pod
from poplin.lab.kubelet.node import NodeAgent
from poplin.lab.kubelet.place import NodePlace
from poplin.lab.kubelet.pod import PodWorker, Services
from poplin.lab.kubelet.process import ProcessRuntime
from poplin.lab.kubelet.processes import Processes
from poplin.lab.kubelet.runtime import PodRuntime
from poplin.lab.kubelet.sandbox import read_sandboxes
from poplin.lab.kubelet.service_variables import ServiceVariables
from poplin.lab.settings import MissingImage, Runtime, Settings
from poplin.model.errors import PoplinError

log = logging.getLogger(__name__)


class Kubelet:
    """Use as an async context, then `run`. What an earlier kubelet left running is taken over."""

    def __init__(self, directory: Directory, settings: Settings, client: ApiClient) -> None:
        self._directory = directory
        self._settings = settings
        self._source = KubernetesSource(client, component="kubelet")
        self._client = client
        self._variables = ServiceVariables(self._source)
        self._processes = Processes(directory.socket)
        self._stack = AsyncExitStack()
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._uids: dict[tuple[str, str], str] = {}
        self._nodes: dict[str, NodeAgent] = {}
        self._runtimes: dict[str, PodRuntime] = {}

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._processes)
        for place in make_places(self._directory, self._settings):
            self._stack.callback(os.close, place.netns_fd)
            runtime = await self._make_runtime(place)
            self._runtimes[place.name] = runtime
            self._nodes[place.name] = NodeAgent(place, self._client, runtime.version)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._stack.aclose()

    def find(self, namespace: str, name: str) -> PodWorker | None:
        """The worker of a pod that is on a node of ours."""
        return self._workers.get(self._uids.get((namespace, name), ""))

    async def _make_runtime(self, place: NodePlace) -> PodRuntime:
        if self._settings.runtime is Runtime.CONTAINERD:
            containerd = node_containerd(self._directory, place.name)
            cri = await self._stack.enter_async_context(Cri(containerd.address))
            logs, cgroup = self._directory.pods, containerd.cgroup
            return await self._stack.enter_async_context(
                CriRuntime(
                    cri,
                    place.netns_fd,
                    logs=logs,
                    cgroup=cgroup,
                    stand_in=self._settings.missing_image is MissingImage.ECHO,
                )
            )
        sandboxes = {
            uid: one for uid, one in read_sandboxes(self._directory).items() if one.node == place.name
        }
        return ProcessRuntime(self._directory, place, self._processes, sandboxes)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name, node in self._nodes.items():
                tasks.create_task(node.run(), name=f"node {name}")
            tasks.create_task(self._variables.run(), name="watch of services")
            tasks.create_task(self._follow(), name="watch of pods")

    async def _follow(self) -> None:
        orphans = True
        async with aclosing(self._source.watch(PODS)) as events:
            async for event in events:
                match event:
                    case Replaced(objects):
                        self._replace(objects)
                        if orphans:
                            await self._remove_orphans()
                            orphans = False
                    case Put(pod):
                        self._put(pod)
                    case Deleted(namespace, name):
                        self._remove((namespace, name))
                    case Unavailable(error):
                        log.warning("watch out of sync", extra={"watch": "pods", "error": str(error)})

    def _replace(self, pods: Sequence[Pod]) -> None:
        for key in self._uids.keys() - {pod.key for pod in pods}:
            self._remove(key)
        for pod in pods:
            self._put(pod)

    def _put(self, pod: Pod) -> None:
        if pod.node_name not in self._nodes:
            return
        known = self._uids.get(pod.key)
        if known is not None and known != pod.uid:
            self._remove(pod.key)
        self._uids[pod.key] = pod.uid
        worker = self._workers.get(pod.uid)
        if worker is not None:
            worker.update(pod)
            return
        runtime = self._runtimes[pod.node_name]
        services = Services(self._directory, self._settings, self._source, runtime, self._variables)
        worker = PodWorker(pod, self._nodes[pod.node_name], services)
        self._workers[pod.uid] = worker
        task = asyncio.create_task(self._attend(worker, pod.uid), name=f"pod {pod.namespace}/{pod.name}")
        self._tasks[pod.uid] = task

    def _remove(self, key: tuple[str, str]) -> None:
        worker = self._workers.get(self._uids.pop(key, ""))
        if worker is not None:
            worker.remove()

    async def _attend(self, worker: PodWorker, uid: str) -> None:
        try:
            await worker.run()
        except Exception:
            log.exception("pod's worker failed", extra={"pod": worker.pod.name})
        finally:
            del self._workers[uid], self._tasks[uid]

    async def _remove_orphans(self) -> None:
        """End what belongs to pods that were deleted while no kubelet was there."""
        for runtime in self._runtimes.values():
            for uid in set(runtime.pods()) - self._workers.keys():
                with suppress(PoplinError):
                    for name in runtime.of_pod(uid):
                        await runtime.stop(name, 0)
                        await runtime.forget(name)
                    await runtime.remove_sandbox(uid)


def make_places(directory: Directory, settings: Settings) -> list[NodePlace]:
    """The lab's nodes, their namespaces opened; the caller closes them. Raises KernelError."""
    places = []
    for number, name in enumerate(settings.node_names(), start=1):
        path = NAMED / directory.node_namespace(name)
        addresses = [interface.ip for interface in settings.addressing.node(number)]
        places.append(NodePlace(name, str(path), open_netns(path), addresses, directory.node(name)))
    return places
