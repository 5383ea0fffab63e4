"""One node's pods in its container runtime, as the kubelet asks for them.

What runs is the runtime's own knowledge: a kubelet that starts finds it by the labels and needs no memory.
"""

import asyncio
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

import msgspec

from poplin.lab.controllers.object import Json
from poplin.lab.cri.client import Cri, CriError, CriNotFoundError
from poplin.lab.cri.message import (
    AttachRequest,
    Container,
    ContainerState,
    ContainerStatusResponse,
    ExecRequest,
    PodSandbox,
    PodSandboxConfig,
    PodSandboxStatusResponse,
    SandboxState,
)
from poplin.lab.cri.pod import CONTAINER_NAME, POD_UID, make_container_config, make_sandbox_config
from poplin.lab.cri.streaming import RemoteConsole
from poplin.lab.kubelet.document import Pod
from poplin.lab.kubelet.processes import finish, process_name
from poplin.lab.kubelet.runtime import ContainerOrder, ImageError, SandboxView
from poplin.lab.kubelet.stream.console import Console
from poplin.lab.message import ProcessState

log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02
RELIST_S: Final = 2.0
LOAD: Final = "put it there with `poplin lab load FILE`"
UNKNOWN_EXIT: Final = 255
"""The code of a container whose end nobody knows."""


@dataclass(frozen=True, slots=True)
class CriSandbox:
    """A sandbox by the runtime's own name for it."""

    id: str
    view: SandboxView


class CriRuntime:
    """A PodRuntime (see kubelet.runtime). Use as an async context.

    `netns_fd` is the node's, `logs` holds a directory for each pod, by uid; `cgroup` all pods' cgroups.
    With `stand_in` the echo server serves for images that are not in the store.
    """

    def __init__(self, cri: Cri, netns_fd: int, *, logs: Path, cgroup: str, stand_in: bool = True) -> None:
        self.cri = cri
        self.version = ""
        self._netns_fd = netns_fd
        self._logs = logs
        self._cgroup = cgroup
        self._stand_in = stand_in
        self._sandboxes: dict[str, CriSandbox] = {}
        self._ids: dict[str, str] = {}
        self._states: dict[str, ProcessState] = {}
        self._ended: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> Self:
        """Wait until the runtime answers, and take over what runs. Raises CriError."""
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while True:
            try:
                version = await self.cri.version()
                break
            except CriError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(POLL_S)
        self.version = f"{version.runtime_name}://{version.runtime_version}"
        for one in await self.cri.list_sandboxes():
            uid = one.labels.get(POD_UID, "")
            if uid and (one.state is SandboxState.READY or uid not in self._sandboxes):
                self._sandboxes[uid] = await self._read_sandbox(one)
        await self._relist()
        self._tasks = [
            asyncio.create_task(self._follow(), name="events of the container runtime"),
            asyncio.create_task(self._look_again(), name="containers of the container runtime"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- sandboxes ----

    def sandbox(self, uid: str) -> SandboxView | None:
        """See PodRuntime."""
        found = self._sandboxes.get(uid)
        return found.view if found else None

    def pods(self) -> Collection[str]:
        """See PodRuntime."""
        return {name.partition("/")[0] for name in self._states} | self._sandboxes.keys()

    async def make_sandbox(self, pod: Pod) -> SandboxView:
        """See PodRuntime."""
        attempts = [0]
        for one in await self.cri.list_sandboxes({POD_UID: pod.uid}):
            attempts.append(one.metadata.attempt + 1 if one.metadata else 0)
            await self.cri.remove_sandbox(one.id)
        (self._logs / pod.uid).mkdir(parents=True, exist_ok=True)

        async def make() -> SandboxView:
            sandbox_id = await self.cri.run_sandbox(self._sandbox_config(pod, max(attempts)))
            self._sandboxes[pod.uid] = CriSandbox(sandbox_id, SandboxView("", (), ready=False))
            [made] = [
                one for one in await self.cri.list_sandboxes({POD_UID: pod.uid}) if one.id == sandbox_id
            ]
            self._sandboxes[pod.uid] = await self._read_sandbox(made)
            return self._sandboxes[pod.uid].view

        return await finish(make())

    async def remove_sandbox(self, uid: str) -> None:
        """See PodRuntime. Its containers go with it."""
        for one in await self.cri.list_sandboxes({POD_UID: uid}):
            await finish(self.cri.remove_sandbox(one.id))
        self._sandboxes.pop(uid, None)
        for name in self.of_pod(uid):
            self._forget(name)

    async def _read_sandbox(self, sandbox: PodSandbox) -> CriSandbox:
        response = await self.cri.sandbox_status(sandbox.id)
        network = response.status.network if response.status else None
        texts = [network.ip, *(one.ip for one in network.additional_ips)] if network else []
        addresses = sorted((ip_address(text) for text in texts if text), key=lambda a: a.version)
        ready = sandbox.state is SandboxState.READY
        return CriSandbox(sandbox.id, SandboxView(_read_netns(response), addresses, ready))

    def _sandbox_config(self, pod: Pod, attempt: int) -> PodSandboxConfig:
        return make_sandbox_config(
            pod, attempt=attempt, log_directory=str(self._logs / pod.uid), cgroup=self._cgroup
        )

    # ---- containers ----

    async def can_run(
        self,
        container: Json,
        environment: Mapping[str, str],  # noqa: ARG002  - the image says it all
    ) -> bool:
        """See PodRuntime: whether the image is in the store."""
        image = str(container.get("image") or "")
        if await self.cri.find_image(image) is not None:
            return True
        if container.get("imagePullPolicy") == "Never":
            what = f'Container image "{image}" is not present with pull policy of Never'
            raise ImageError("ErrImageNeverPull", what, remedy=LOAD)
        if not self._stand_in:
            what = f'image "{image}" is not in the store, and a lab has no registry'
            raise ImageError("ErrImagePull", what, remedy=LOAD)
        return False

    async def start(self, pod: Pod, order: ContainerOrder) -> ProcessState:
        """See PodRuntime. Leaves nothing of a container that cannot be started."""
        return await finish(self._start(pod, order))

    async def _start(self, pod: Pod, order: ContainerOrder) -> ProcessState:
        name = process_name(pod.uid, str(order.container["name"]), order.attempt)
        order.log.parent.mkdir(parents=True, exist_ok=True)
        config = make_container_config(pod, order, str(order.log.relative_to(self._logs / pod.uid)))
        sandbox = self._sandboxes[pod.uid]
        container_id = await self.cri.create_container(sandbox.id, config, self._sandbox_config(pod, 0))
        # It may have ended before the answer comes.
        self._ids[name] = container_id
        try:
            await self.cri.start_container(container_id)
        except CriError:
            self._forget(name)
            with suppress(CriError):
                await self.cri.remove_container(container_id)
            raise
        return await self._read_state(name)

    async def wait(self, name: str) -> ProcessState:
        """See PodRuntime."""
        while (state := self._states[name]).code is None:
            await self._ended.setdefault(name, asyncio.Event()).wait()
        return state

    async def stop(self, name: str, grace_s: float) -> ProcessState:
        """See PodRuntime."""
        await self.cri.stop_container(self._ids[name], math.ceil(grace_s))
        return await self._read_state(name)

    async def execute(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],  # noqa: ARG002  - the container's own is used
        timeout_s: float,
    ) -> int:
        """See PodRuntime. The environment is the container's own."""
        return (await self.cri.exec_sync(self._ids[name], command, math.ceil(timeout_s))).exit_code

    async def open_command(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],  # noqa: ARG002  - the container's own is used
        *,
        stdin: bool,
        tty: bool,
    ) -> Console:
        """See PodRuntime."""
        request = ExecRequest(self._ids[name], tuple(command), tty=tty, stdin=stdin, stderr=not tty)
        url = await self.cri.exec_url(request)
        return await RemoteConsole.open(url, self._netns_fd, stdin=stdin, tty=tty)

    async def attach(self, name: str, order: ContainerOrder, *, stdin: bool) -> Console:
        """See PodRuntime."""
        tty = bool(order.container.get("tty"))
        stdin = stdin and bool(order.container.get("stdin"))
        url = await self.cri.attach_url(AttachRequest(self._ids[name], stdin=stdin, tty=tty, stderr=not tty))
        return await RemoteConsole.open(url, self._netns_fd, stdin=stdin, tty=tty)

    async def forget(self, name: str) -> None:
        """See PodRuntime."""
        if name in self._ids:
            await self.cri.remove_container(self._ids[name])
            self._forget(name)

    def find(self, uid: str, container: str) -> Mapping[int, ProcessState]:
        """See PodRuntime."""
        prefix = f"{uid}/{container}/"
        return {
            int(name.rpartition("/")[2]): state
            for name, state in self._states.items()
            if name.startswith(prefix)
        }

    def of_pod(self, uid: str) -> Sequence[str]:
        """See PodRuntime."""
        return [name for name in self._states if name.startswith(f"{uid}/")]

    def reference(self, name: str) -> str:
        """See PodRuntime."""
        return f"containerd://{self._ids[name]}"

    def container_id(self, name: str) -> str:
        """What the runtime calls a container. Raises KeyError."""
        return self._ids[name]

    def _forget(self, name: str) -> None:
        for known in (self._ids, self._states, self._ended):
            known.pop(name, None)

    # ---- what becomes of them ----

    async def _follow(self) -> None:
        """Hear of ends. A runtime that is away is asked until it is back."""
        away = False
        while True:
            try:
                async with aclosing(self.cri.exits()) as exits:
                    async for container_id in exits:
                        away = False
                        await self._note_end(container_id)
            except CriError as error:
                if not away:
                    log.warning("container runtime away", extra={"error": str(error)})
                away = True
            await asyncio.sleep(POLL_S)

    async def _note_end(self, container_id: str) -> None:
        """Wait for the status of a container whose process has ended, which is on its way."""
        name = next((name for name, known in self._ids.items() if known == container_id), "")
        with suppress(CriNotFoundError):
            while name in self._ids and (await self._read_state(name)).code is None:  # noqa: ASYNC110  - its event has come, its status has none
                await asyncio.sleep(POLL_S)

    async def _look_again(self) -> None:
        """Whatever was missed while the runtime was away is found by asking for everything."""
        while True:
            await asyncio.sleep(RELIST_S)
            with suppress(CriError):
                await self._relist()

    async def _relist(self) -> None:
        for container in await self.cri.list_containers():
            name = _name(container)
            if not name:
                continue
            self._ids[name] = container.id
            known = self._states.get(name)
            if known is None or (known.code is None and container.state is not ContainerState.RUNNING):
                with suppress(CriNotFoundError):
                    await self._read_state(name)

    async def _read_state(self, name: str) -> ProcessState:
        state = read_state(name, await self.cri.container_status(self._ids[name]))
        self._states[name] = state
        if state.code is not None and name in self._ended:
            self._ended[name].set()
        return state


def read_state(name: str, response: ContainerStatusResponse) -> ProcessState:
    """A container's status as the state of its process; `pid` is the runtime's number for it, 0 for none."""
    status = response.status
    if status is None:
        return ProcessState(name, 0, 0, 0.0, UNKNOWN_EXIT)
    try:
        pid = int(msgspec.json.decode(response.info["info"])["pid"])
    except (KeyError, TypeError, ValueError):
        pid = 0
    ended = status.state in {ContainerState.EXITED, ContainerState.UNKNOWN}
    since = (status.started_at or status.created_at) / 1e9
    # A process that ends at once may have been seen to end before it was seen to run.
    finished = max(since, status.finished_at / 1e9) if ended else 0
    return ProcessState(name, pid, 0, since, status.exit_code if ended else None, finished)


def _read_netns(response: PodSandboxStatusResponse) -> str:
    """The path of a sandbox's network namespace, "" where it is the node's."""
    try:
        info = msgspec.json.decode(response.info["info"])
        namespaces = info["runtimeSpec"]["linux"]["namespaces"]
    except (KeyError, TypeError, ValueError):
        return ""
    return next((str(one.get("path") or "") for one in namespaces if one["type"] == "network"), "")


def _name(container: Container) -> str:
    """What the kubelet calls a container, "" for one that is not a kubelet's."""
    uid, name = container.labels.get(POD_UID), container.labels.get(CONTAINER_NAME)
    if not uid or not name or container.state is ContainerState.CREATED:
        return ""
    return process_name(uid, name, container.metadata.attempt if container.metadata else 0)
