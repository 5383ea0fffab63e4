"""One node's pods in its container runtime, as the kubelet asks for them.

What runs is the runtime's own knowledge: a kubelet that starts finds it by the labels and needs no memory.
"""

import asyncio
import logging
import math
from collections.abc import Collection, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

import msgspec

from poplin.lab.controllers.object import Json
from poplin.lab.cri.client import Cri, CriError, CriNotFoundError
from poplin.lab.cri.message import (
    Container,
    ContainerState,
    ContainerStatusResponse,
    PodSandbox,
    PodSandboxConfig,
    SandboxState,
)
from poplin.lab.cri.pod import (
    CONTAINER_NAME,
    POD_UID,
    ContainerOrder,
    make_container_config,
    make_sandbox_config,
)
from poplin.lab.kubelet.document import Pod
from poplin.lab.kubelet.processes import process_name
from poplin.lab.message import ProcessState
from poplin.model.kernel import IPAddress

log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02
RELIST_S: Final = 2.0
UNKNOWN_EXIT: Final = 255
"""The code of a container whose end nobody knows."""


@dataclass(frozen=True, slots=True)
class CriSandbox:
    """A pod's sandbox. `addresses` are none where the pod uses the node's network."""

    uid: str
    id: str
    addresses: tuple[IPAddress, ...]
    ready: bool


class CriRuntime:
    """Use as an async context. `logs` holds a directory for each pod, by uid; `cgroup` all pods' cgroups."""

    def __init__(self, cri: Cri, *, logs: Path, cgroup: str) -> None:
        self.cri = cri
        self._logs = logs
        self._cgroup = cgroup
        self._ids: dict[str, str] = {}
        self._states: dict[str, ProcessState] = {}
        self._ended: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> Self:
        """Wait until the runtime answers, and take over what runs. Raises CriError."""
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while True:
            try:
                await self.cri.version()
                await self._relist()
                break
            except CriError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(POLL_S)
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

    async def list_sandboxes(self) -> Mapping[str, CriSandbox]:
        """The sandboxes that stand, by the pod's uid."""
        found: dict[str, CriSandbox] = {}
        for one in await self.cri.list_sandboxes():
            uid = one.labels.get(POD_UID, "")
            if uid and (one.state is SandboxState.READY or uid not in found):
                found[uid] = await self._read_sandbox(uid, one)
        return found

    async def make_sandbox(self, pod: Pod) -> CriSandbox:
        """Make and attach the pod's sandbox, in place of any it had. Raises CriError."""
        attempts = [0]
        for one in await self.cri.list_sandboxes({POD_UID: pod.uid}):
            attempts.append(one.metadata.attempt + 1 if one.metadata else 0)
            await self.cri.remove_sandbox(one.id)
        (self._logs / pod.uid).mkdir(parents=True, exist_ok=True)
        sandbox_id = await self.cri.run_sandbox(self._sandbox_config(pod, max(attempts)))
        [made] = [one for one in await self.cri.list_sandboxes({POD_UID: pod.uid}) if one.id == sandbox_id]
        return await self._read_sandbox(pod.uid, made)

    async def remove_sandbox(self, uid: str) -> None:
        """End the pod's containers, detach and remove everything of it. Raises CriError."""
        for one in await self.cri.list_sandboxes({POD_UID: uid}):
            await self.cri.remove_sandbox(one.id)
        for name in self.of_pod(uid):
            self._forget(name)

    async def _read_sandbox(self, uid: str, sandbox: PodSandbox) -> CriSandbox:
        status = (await self.cri.sandbox_status(sandbox.id)).status
        network = status.network if status else None
        texts = [network.ip, *(one.ip for one in network.additional_ips)] if network else []
        addresses = sorted((ip_address(text) for text in texts if text), key=lambda a: a.version)
        return CriSandbox(uid, sandbox.id, tuple(addresses), sandbox.state is SandboxState.READY)

    def _sandbox_config(self, pod: Pod, attempt: int) -> PodSandboxConfig:
        return make_sandbox_config(
            pod, attempt=attempt, log_directory=str(self._logs / pod.uid), cgroup=self._cgroup
        )

    # ---- containers ----

    async def has_image(self, container: Json) -> bool:
        """Whether the container's image is in the store. Raises CriError."""
        return await self.cri.find_image(str(container.get("image") or "")) is not None

    async def start(self, pod: Pod, sandbox: CriSandbox, order: ContainerOrder) -> ProcessState:
        """Make and run a container. Raises CriError, after which nothing is left of it."""
        name = process_name(pod.uid, str(order.container["name"]), order.attempt)
        (self._logs / pod.uid / order.log).parent.mkdir(parents=True, exist_ok=True)
        config = make_container_config(pod, order)
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
        """The process once it has ended."""
        while (state := self._states[name]).code is None:
            await self._ended.setdefault(name, asyncio.Event()).wait()
        return state

    async def stop(self, name: str, grace_s: float) -> ProcessState:
        """SIGTERM, SIGKILL after the grace; the process once it has ended. Raises CriError."""
        await self.cri.stop_container(self._ids[name], math.ceil(grace_s))
        return await self._read_state(name)

    async def execute(self, name: str, command: Collection[str], timeout_s: float) -> int:
        """The exit status of a command in the container. Raises CriError."""
        return (await self.cri.exec_sync(self._ids[name], command, math.ceil(timeout_s))).exit_code

    async def forget(self, name: str) -> None:
        """Remove a container that has ended. Raises CriError."""
        if name in self._ids:
            await self.cri.remove_container(self._ids[name])
            self._forget(name)

    def find(self, uid: str, container: str) -> dict[int, ProcessState]:
        """The containers of a name by attempt."""
        prefix = f"{uid}/{container}/"
        return {
            int(name.rpartition("/")[2]): state
            for name, state in self._states.items()
            if name.startswith(prefix)
        }

    def container_id(self, name: str) -> str:
        """What the runtime calls it. Raises KeyError."""
        return self._ids[name]

    def of_pod(self, uid: str) -> list[str]:
        """Names of all containers of a pod."""
        return [name for name in self._states if name.startswith(f"{uid}/")]

    def pods(self) -> set[str]:
        """The uids of pods that have containers."""
        return {name.partition("/")[0] for name in self._states}

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
    return ProcessState(
        name,
        pid,
        0,
        (status.started_at or status.created_at) / 1e9,
        status.exit_code if ended else None,
        status.finished_at / 1e9 if ended else 0,
    )


def _name(container: Container) -> str:
    """What the kubelet calls a container, "" for one that is not a kubelet's."""
    uid, name = container.labels.get(POD_UID), container.labels.get(CONTAINER_NAME)
    if not uid or not name or container.state is ContainerState.CREATED:
        return ""
    return process_name(uid, name, container.metadata.attempt if container.metadata else 0)
