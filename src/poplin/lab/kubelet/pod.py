"""One pod on its node, from attachment to removal; its status is told to the API as it changes."""

import asyncio
import base64
import itertools
import logging
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from poplin.datastore.client import JSON_MERGE, RefusedError
from poplin.datastore.kubernetes import KubernetesSource
from poplin.datastore.parse import InvalidObjectError, parse_object
from poplin.lab.controllers.object import Json
from poplin.lab.directory import Directory
from poplin.lab.kubelet.command import make_environment, references
from poplin.lab.kubelet.container import Container, Role
from poplin.lab.kubelet.document import PODS, Pod
from poplin.lab.kubelet.files import make_files, write_files
from poplin.lab.kubelet.node import NodeAgent
from poplin.lab.kubelet.runtime import ContainerOrder, PodRuntime
from poplin.lab.kubelet.service_variables import ServiceVariables
from poplin.lab.kubelet.status import make_status
from poplin.lab.kubelet.volumes import Volumes
from poplin.lab.settings import Settings
from poplin.model.cluster import ObjectReference
from poplin.model.errors import PoplinError
from poplin.model.kernel import IPAddress

log = logging.getLogger(__name__)

RETRY_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Waits after attempts that failed in a row; the last repeats."""
REFRESH_S: Final = 20.0
"""How often volumes are made anew from what the API has; kubelet takes a minute."""
TOKEN_USE: Final = 0.8
"""How much of a token's life it is used for before another is asked for."""
COALESCE_S: Final = 0.02
"""Changes that come this close together are one status."""


@dataclass(frozen=True, slots=True)
class Services:
    """What all pods of a node share."""

    directory: Directory
    settings: Settings
    source: KubernetesSource
    runtime: PodRuntime
    variables: ServiceVariables


class PodWorker:
    """Looks after one pod; `run` returns when the pod is gone from the node and from the API."""

    def __init__(self, pod: Pod, node: NodeAgent, services: Services) -> None:
        self.pod = pod
        self.runtime = services.runtime
        self._node = node
        self._services = services
        self._sandbox = services.runtime.sandbox(pod.uid)
        self._addresses: Sequence[IPAddress] = self._sandbox.addresses if self._sandbox else ()
        self._attached = False
        self._deletion = asyncio.Event()
        self._removed = False
        self._restored = False
        self._changed = asyncio.Event()
        self._events: set[asyncio.Task[None]] = set()
        self._tokens: dict[tuple[str, int], tuple[str, float]] = {}
        self._init = [Container(self, c, _init_role(c)) for c in pod.init_containers()]
        self._main = [Container(self, c, Role.MAIN) for c in pod.containers()]
        self.update(pod)

    def update(self, pod: Pod) -> None:
        """Take in what the API says now."""
        self.pod = pod
        if pod.deleting:
            self._deletion.set()

    def remove(self) -> None:
        """The API has the pod no more: nothing is waited for, nothing is told."""
        self._removed = True
        self._deletion.set()

    async def run(self) -> None:
        """Attend to the pod until it is gone."""
        life = asyncio.create_task(self._live_on(), name=f"pod {self.pod.namespace}/{self.pod.name}")
        refreshing = asyncio.create_task(self._refresh_volumes(), name=f"volumes of {self.pod.name}")
        telling = asyncio.create_task(self._tell_status(), name=f"status of {self.pod.name}")
        try:
            await self._deletion.wait()
            await _cancel(refreshing)
            await _cancel(life)
            await self._end()
        finally:
            await _cancel(refreshing)
            await _cancel(life)
            await _cancel(telling)

    # What a client that wants to reach into the pod asks.

    def find_container(self, name: str) -> Container | None:
        """A container of any kind by its name."""
        return next((one for one in (*self._main, *self._init) if one.name == name), None)

    def log_directory(self, container: str) -> Path:
        """Where its logs are, a file "N.log" for each run."""
        return self._services.directory.pods / self.pod.uid / container

    @property
    def netns(self) -> str | None:
        """The path of the pod's network namespace, None before it has one."""
        if self.pod.host_network:
            return self._node.place.netns
        return self._sandbox.netns if self._sandbox is not None else None

    # What a Container asks of its pod.

    def changed(self) -> None:
        """See Surroundings."""
        # Until then the API knows more than we do.
        if self._restored:
            self._changed.set()

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        """See Surroundings."""
        about = ObjectReference("Pod", self.pod.name, self.pod.namespace, self.pod.uid, "v1")
        telling = self._services.source.create_event(about, reason=reason, message=message, warning=warning)
        task = asyncio.create_task(_quietly(telling), name=f"event about {self.pod.name}")
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    async def environment(self, container: Json) -> dict[str, str]:
        """See Surroundings."""
        variables = await self._services.variables.of_pod(self.pod)
        known = {wanted: await self._read_data(*wanted) for wanted in references(container)}

        def look_up(kind: str, name: str) -> dict[str, str] | None:
            data = known[kind, name]
            return (
                None if data is None else {key: value.decode(errors="replace") for key, value in data.items()}
            )

        return make_environment(
            self.pod, container, list(self._addresses), list(self._node.addresses), look_up, variables
        )

    async def make_order(
        self, container: Json, attempt: int, environment: Mapping[str, str]
    ) -> ContainerOrder:
        """See Surroundings."""
        directory = self._services.directory.pods / self.pod.uid
        volumes = await self._prepare_volumes()
        files = make_files(self.pod, self._addresses, self._services.settings.addressing)
        return ContainerOrder(
            container,
            attempt,
            environment,
            [*write_files(directory / "files", files), *volumes.bindings(container, environment)],
            self.log_directory(container["name"]) / f"{attempt}.log",
        )

    async def _prepare_volumes(self) -> Volumes:
        directory = self._services.directory.pods / self.pod.uid / "volumes"
        volumes = Volumes(self.pod, directory, self._addresses, self._node.addresses)
        await volumes.prepare(self._read_data, self._issue_token)
        return volumes

    async def _refresh_volumes(self) -> None:
        """Let running containers see what has changed. What cannot be read stays as it was."""
        while True:
            await asyncio.sleep(REFRESH_S)
            if not self._attached:
                continue
            try:
                await self._prepare_volumes()
            except PoplinError as error:
                log.info("volumes not refreshed", extra={"pod": self.pod.name, "error": str(error)})

    def probe_from(self) -> tuple[int, IPAddress]:
        """See Surroundings."""
        return self._node.place.netns_fd, self._addresses[0]

    async def _live_on(self) -> None:
        """A fault of ours costs this pod its care, and no other; it can still be deleted."""
        try:
            await self._live()
        except Exception:
            log.exception("pod given up", extra={"pod": self.pod.name})
            self.tell("Failed", "the kubelet has failed; see the lab's server.log", warning=True)

    async def _live(self) -> None:
        if self.pod.finished:
            await self._persist(self._remove_sandbox)
            return
        stood = self.pod.host_network or (self._sandbox is not None and self._sandbox.ready)
        done = {c.name for c in (*self._init, *self._main) if c.restore(sandbox_stood=stood)}
        self._restored = True
        self.changed()
        await self._attach()
        async with asyncio.TaskGroup() as sidecars:
            running = [
                task
                for container in self._init
                if (task := await self._initialize(container, sidecars, done)) is not None
            ]
            if all(container.view.initialized for container in self._init):
                async with asyncio.TaskGroup() as tasks:
                    for container in self._main:
                        if container.name not in done:
                            tasks.create_task(container.live(), name=f"container {container.name}")
            for task in running:
                task.cancel()
        for container in self._init:
            await container.stop(self.pod.grace_s)
        # The pod has ended for good: its address is free again, and the object stays for people to read.
        await self._detach()

    async def _initialize(
        self, container: Container, sidecars: asyncio.TaskGroup, done: set[str]
    ) -> asyncio.Task[None] | None:
        """Run an init container to its end, or a sidecar until it has started; nothing after one that failed."""
        before = self._init[: self._init.index(container)]
        if container.name in done or not all(earlier.view.initialized for earlier in before):
            return None
        if not container.view.sidecar:
            await container.live()
            return None
        task = sidecars.create_task(container.live(), name=f"sidecar {container.name}")
        await container.up.wait()
        return task

    async def _attach(self) -> None:
        """Give the pod its network, if it has none yet."""
        await self._persist(self._make_sandbox)
        assert self._sandbox is not None  # noqa: S101  - just made
        host = self.pod.host_network
        self._addresses = self._node.addresses if host else self._sandbox.addresses
        self._attached = True
        self.changed()

    async def _make_sandbox(self) -> None:
        if self._sandbox is not None and self._sandbox.ready:
            return
        if not self.pod.host_network:
            await self._node.ready.wait()
        self._sandbox = await self.runtime.make_sandbox(self.pod)

    async def _remove_sandbox(self) -> None:
        await self.runtime.remove_sandbox(self.pod.uid)
        self._sandbox = None

    async def _detach(self) -> None:
        await self._persist(self._remove_sandbox)
        self._attached = False
        self.changed()

    async def _end(self) -> None:
        """Stop everything, detach, and let the API forget the pod."""
        if not self._removed:
            self.tell("Killing", "Stopping the pod's containers")
        grace_s = 0 if self._removed else self.pod.grace_s
        async with asyncio.TaskGroup() as tasks:
            for container in self._main:
                tasks.create_task(container.stop(grace_s), name=f"stop {container.name}")
        # Sidecars serve the others to the last (KEP-753).
        for container in reversed(self._init):
            await container.stop(grace_s)
        await self._detach()
        for name in self.runtime.of_pod(self.pod.uid):
            await self.runtime.forget(name)
        shutil.rmtree(self._services.directory.pods / self.pod.uid, ignore_errors=True)
        await self._persist(self._delete_object)

    async def _delete_object(self) -> None:
        if self._removed:
            return
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.pod.uid}}
        try:
            path = PODS.path(self.pod.namespace, self.pod.name)
            await self._services.source.client.request("DELETE", path, body=options)
        except RefusedError as error:
            # Gone, or another one has the name.
            if error.status not in {404, 409}:
                raise

    async def _persist(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it until it is done."""
        for attempt in itertools.count():
            try:
                await work()
            except PoplinError as error:
                log.warning("pod not served", extra={"pod": self.pod.name, "error": str(error)})
                if not self._removed:
                    self.tell("FailedCreatePodSandBox", str(error), warning=True)
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            else:
                return

    async def _tell_status(self) -> None:
        told: Json = {}
        while True:
            await self._changed.wait()
            await asyncio.sleep(COALESCE_S)
            self._changed.clear()
            status = make_status(
                self.pod,
                [container.view for container in self._init],
                [container.view for container in self._main],
                attached=self._attached,
                addresses=self._addresses,
                host_addresses=self._node.addresses,
                now=datetime.now(UTC),
            )
            if status == told:
                continue
            try:
                await self._patch_status(status)
                told = status
            except RefusedError as error:
                if error.status in {404, 409}:
                    continue  # the watch will say so
                log.warning("status refused", extra={"pod": self.pod.name, "error": str(error)})
            except PoplinError as error:
                log.warning("status not told", extra={"pod": self.pod.name, "error": str(error)})
                await asyncio.sleep(RETRY_S[-2])
                self._changed.set()

    async def _patch_status(self, status: Json) -> None:
        body = await self._services.source.client.request(
            "PATCH",
            PODS.path(self.pod.namespace, self.pod.name, "status"),
            body={"metadata": {"uid": self.pod.uid}, "status": status},
            content_type=JSON_MERGE,
        )
        with suppress(msgspec.DecodeError):
            stored = parse_object(PODS, body).value
            if not isinstance(stored, InvalidObjectError) and stored.version > self.pod.version:
                self.update(stored)

    async def _read_data(self, kind: str, name: str) -> Mapping[str, bytes] | None:
        """The data of a ConfigMap or Secret, None where there is none of the name."""
        path = f"/api/v1/namespaces/{self.pod.namespace}/{kind}/{name}"
        try:
            body = await self._services.source.client.request("GET", path)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise
        found = msgspec.json.decode(body, type=_Data)
        if kind == "configmaps":
            plain = {key: value.encode() for key, value in (found.data or {}).items()}
            return plain | {key: base64.b64decode(value) for key, value in (found.binary_data or {}).items()}
        return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}

    async def _issue_token(self, audience: str, lifetime_s: int) -> str:
        """A token of the pod's service account, the same one for most of its life."""
        now = asyncio.get_running_loop().time()
        token, renew = self._tokens.get((audience, lifetime_s), ("", 0.0))
        if now < renew:
            return token
        account = self.pod.spec.get("serviceAccountName") or "default"
        path = f"/api/v1/namespaces/{self.pod.namespace}/serviceaccounts/{account}/token"
        reference = {"kind": "Pod", "apiVersion": "v1", "name": self.pod.name, "uid": self.pod.uid}
        spec: Json = {"expirationSeconds": lifetime_s, "boundObjectRef": reference}
        if audience:
            spec["audiences"] = [audience]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self._services.source.client.request("POST", path, body=body)
        token = str(msgspec.json.decode(answer)["status"]["token"])
        self._tokens[audience, lifetime_s] = token, now + lifetime_s * TOKEN_USE
        return token


class _Data(msgspec.Struct, rename="camel"):
    """Of a ConfigMap or a Secret."""

    data: dict[str, str] | None = None
    binary_data: dict[str, str] | None = None


def _init_role(container: Json) -> Role:
    return Role.SIDECAR if container.get("restartPolicy") == "Always" else Role.INIT


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _quietly(telling: Coroutine[None, None, None]) -> None:
    """An event that cannot be told is for the log."""
    try:
        await telling
    except PoplinError as error:
        log.info("event not told", extra={"error": str(error)})
