"""Pods as processes of this machine: the lab's init starts them, the kubelet calls the CNI plugin itself."""

import asyncio
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from poplin import __version__
from poplin.lab.container import ContainerSpec, EchoPort
from poplin.lab.controllers.object import Json
from poplin.lab.directory import Directory
from poplin.lab.isolation import enter_options
from poplin.lab.kubelet.command import find_arguments
from poplin.lab.kubelet.document import Pod
from poplin.lab.kubelet.place import NodePlace
from poplin.lab.kubelet.processes import Processes, finish, process_name
from poplin.lab.kubelet.runtime import ContainerOrder, SandboxView
from poplin.lab.kubelet.sandbox import Sandbox, make_sandbox, remove_sandbox, stands
from poplin.lab.kubelet.stream.console import Attachment, Command, Console, Sink
from poplin.lab.message import ProcessState
from poplin.lab.runtime import open_input
from poplin.model.errors import PoplinError


class ProcessRuntime:
    """One node's pods; `processes` are all nodes', `sandboxes` what an earlier kubelet left on this one."""

    def __init__(
        self, directory: Directory, place: NodePlace, processes: Processes, sandboxes: dict[str, Sandbox]
    ) -> None:
        self._directory = directory
        self._place = place
        self._processes = processes
        self._sandboxes = sandboxes

    @property
    def version(self) -> str:
        """See PodRuntime."""
        return f"poplin-lab://{__version__}"

    def sandbox(self, uid: str) -> SandboxView | None:
        """See PodRuntime."""
        found = self._sandboxes.get(uid)
        return SandboxView(found.netns, found.addresses(), stands(found)) if found else None

    def pods(self) -> Collection[str]:
        """See PodRuntime."""
        return self._processes.pods() | self._sandboxes.keys()

    async def make_sandbox(self, pod: Pod) -> SandboxView:
        """See PodRuntime. A pod on the node's network needs none."""
        if pod.host_network:
            return SandboxView(self._place.netns, ())
        await self.remove_sandbox(pod.uid)

        async def make() -> Sandbox:
            made = await asyncio.to_thread(make_sandbox, self._directory, self._place, pod)
            return self._sandboxes.setdefault(pod.uid, made)

        made = await finish(make())
        return SandboxView(made.netns, made.addresses())

    async def remove_sandbox(self, uid: str) -> None:
        """See PodRuntime."""
        if uid in self._sandboxes:
            sandbox = self._sandboxes[uid]
            await finish(asyncio.to_thread(remove_sandbox, self._directory, self._place, sandbox))
            del self._sandboxes[uid]

    async def can_run(self, container: Json, environment: Mapping[str, str]) -> bool:
        """See PodRuntime: whether this machine has the program."""
        return bool(find_arguments(container, environment))

    async def start(self, pod: Pod, order: ContainerOrder) -> ProcessState:
        """See PodRuntime."""
        container, sandbox = order.container, self._sandboxes.get(pod.uid)
        ports = [
            EchoPort(int(port["containerPort"]), str(port.get("protocol") or "TCP"))
            for port in container.get("ports") or ()
        ]
        spec = ContainerSpec(
            netns=sandbox.netns if sandbox else self._place.netns,
            hostname=self._place.name if pod.host_network else pod.hostname,
            log=str(order.log),
            scratch=str(self._directory.scratch),
            arguments=() if order.stand_in else find_arguments(container, order.environment),
            environment=dict(order.environment),
            directory=str(container.get("workingDir") or ""),
            bindings=tuple(order.bindings),
            ports=tuple(ports) if order.stand_in else (),
            tty=bool(container.get("tty")),
            stdin=bool(container.get("stdin")),
        )
        order.log.parent.mkdir(parents=True, exist_ok=True)
        return await self._processes.start(process_name(pod.uid, str(container["name"]), order.attempt), spec)

    async def wait(self, name: str) -> ProcessState:
        """See PodRuntime."""
        return await self._processes.wait(name)

    async def stop(self, name: str, grace_s: float) -> ProcessState:
        """See PodRuntime."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._processes.kill(name, signal.SIGTERM)
                return await self._processes.wait(name)
        await self._processes.kill(name, signal.SIGKILL)
        return await self._processes.wait(name)

    async def forget(self, name: str) -> None:
        """See PodRuntime."""
        await self._processes.forget(name)

    def find(self, uid: str, container: str) -> Mapping[int, ProcessState]:
        """See PodRuntime."""
        return self._processes.find(uid, container)

    def of_pod(self, uid: str) -> Sequence[str]:
        """See PodRuntime."""
        return self._processes.of_pod(uid)

    def reference(self, name: str) -> str:
        """See PodRuntime."""
        return f"poplin://{name}"

    async def execute(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], timeout_s: float
    ) -> int:
        """See PodRuntime."""
        process = await asyncio.create_subprocess_exec(
            "nsenter",
            *enter_options(self._processes.get(name).pid),
            "--",
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(timeout_s):
                return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def open_command(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, stdin: bool, tty: bool
    ) -> Console:
        """See PodRuntime."""
        pid = self._processes.get(name).pid
        return await Command.start(pid, command, environment, stdin=stdin, tty=tty)

    async def attach(self, name: str, order: ContainerOrder, *, stdin: bool) -> Console:
        """See PodRuntime."""
        tty, once = bool(order.container.get("tty")), bool(order.container.get("stdinOnce"))
        given = terminal = -1
        if stdin or tty:
            with suppress(PoplinError):
                given = await asyncio.to_thread(open_input, self._directory.socket, name, once=once and stdin)
        if tty and given >= 0:
            terminal = os.dup(given)
        sink = await Sink.open(given) if given >= 0 else None
        return Attachment(order.log, self._processes, name, sink, terminal=terminal, once=once)
