"""One container of a pod: started, probed, restarted, stopped."""

import asyncio
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from enum import Enum, auto
from typing import Final, Protocol

from poplin.lab.container import DEFAULT_PATH
from poplin.lab.controllers.object import Json
from poplin.lab.kubelet.document import Pod
from poplin.lab.kubelet.probe import Target, Verdict, ask, read_schedule
from poplin.lab.kubelet.runtime import ContainerOrder, ImageError, PodRuntime
from poplin.lab.kubelet.status import ContainerView, Running, Terminated, Waiting, read_terminated
from poplin.lab.message import ProcessState
from poplin.model.errors import PoplinError
from poplin.model.kernel import IPAddress

RESTART_S: Final = (0, 10, 20, 40, 80, 160, 300)
"""Waits before a container is started again, as kubelet's: the last repeats, ten good minutes are a fresh start."""
FORGIVEN_S: Final = 600
KILLED: Final = 128 + signal.SIGKILL
EXEC_TIMEOUT_S: Final = 60


class Role(Enum):
    """What a container is in its pod."""

    MAIN = auto()
    INIT = auto()
    SIDECAR = auto()


class Surroundings(Protocol):
    """What a container needs of its pod."""

    pod: Pod
    runtime: PodRuntime

    def changed(self) -> None:
        """A view is another."""
        ...

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Say something about the pod to people."""
        ...

    async def environment(self, container: Json) -> dict[str, str]:
        """The container's variables. Raises PoplinError."""
        ...

    async def make_order(
        self, container: Json, attempt: int, environment: Mapping[str, str]
    ) -> ContainerOrder:
        """The container with all that it mounts. Raises PoplinError."""
        ...

    def probe_from(self) -> tuple[int, IPAddress]:
        """The node's namespace and the pod's address."""
        ...


class Container:
    """A container and its view. `spec` is the API's.

    `up` is set once its startup probe, or its start where it has none, has gone well.
    """

    def __init__(self, pod: Surroundings, spec: Json, role: Role) -> None:
        self._pod = pod
        self._spec = spec
        self._role = role
        self._environment: dict[str, str] = {}
        self._attempt = 0
        self.up = asyncio.Event()
        self.view = ContainerView(
            str(spec["name"]), str(spec.get("image") or ""), sidecar=role is Role.SIDECAR
        )

    @property
    def name(self) -> str:
        return self.view.name

    @property
    def spec(self) -> Json:
        """The API's."""
        return self._spec

    @property
    def attempt(self) -> int:
        """Counts runs from 0: the one that goes on, or is to come after a wait."""
        return self._attempt

    @property
    def process(self) -> ProcessState | None:
        """The process, while it runs."""
        state = self._pod.runtime.find(self._pod.pod.uid, self.name).get(self._attempt)
        return state if state is not None and state.code is None else None

    @property
    def environment(self) -> dict[str, str]:
        """What a command run beside the process gets."""
        return {
            "PATH": DEFAULT_PATH,
            "HOSTNAME": self._pod.pod.hostname,
            "HOME": "/root",
            **self._environment,
        }

    def restore(self, *, sandbox_stood: bool) -> bool:
        """Take up what an earlier kubelet left; tell whether the container has ended for good."""
        found = self._pod.runtime.find(self._pod.pod.uid, self.name)
        told = self._pod.pod.statuses().get(self.name)
        if told is not None:
            self.view = replace(self.view, last=read_terminated(told.get("lastState") or {}))
        if found:
            self._attempt = max(found)
        elif told is not None:
            ending = read_terminated(told.get("state") or {})
            if ending is not None and sandbox_stood and not self._restarts(ending.code):
                self.view = replace(self.view, state=ending, restarts=int(told["restartCount"]))
                return True
            # One that ran has been lost together with the process that knew its end.
            began = ending or "running" in (told.get("state") or {})
            self._attempt = int(told["restartCount"]) + (1 if began else 0)
            if began:
                now = time.time()
                self.view = replace(self.view, last=ending or Terminated(KILLED, now, now, "lost"))
        self.view = replace(self.view, restarts=self._attempt)
        return False

    async def live(self) -> None:
        """Run, and run again as the restart policy says; returns when that is over."""
        failures = 0
        while True:
            state = await self._find_or_start()
            if state is None and isinstance(self.view.state, Terminated):
                return
            lived_s = 0.0
            if state is not None:
                ending = await self._accompany(state)
                lived_s = ending.ended - ending.since
                if not self._restarts(ending.code):
                    return
                self._attempt += 1
            failures = 1 if lived_s > FORGIVEN_S else failures + 1
            wait_s = RESTART_S[min(failures, len(RESTART_S)) - 1] if state else max(1, min(failures, 10))
            if wait_s and state is not None:
                message = f"back-off {wait_s}s restarting failed container={self.name}"
                self._set(state=Waiting("CrashLoopBackOff", message))
                self._pod.tell("BackOff", message, warning=True)
            await asyncio.sleep(wait_s)
            self._set(restarts=self._attempt)

    async def stop(self, grace_s: float) -> None:
        """End the process, if there is one: preStop, SIGTERM, after the grace SIGKILL. Nobody restarts it."""
        found = self._pod.runtime.find(self._pod.pod.uid, self.name)
        # The latest, which may be an earlier kubelet's.
        state = found[max(found)] if found else None
        if state is None or state.code is not None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._run_pre_stop(state)
        self._end(await self._pod.runtime.stop(state.id, max(0.0, deadline - loop.time())))

    def _set(self, **fields: object) -> None:
        view = replace(self.view, **fields)  # type: ignore[arg-type]  # a view's own fields
        if view != self.view:
            self.view = view
            if view.started:
                self.up.set()
            self._pod.changed()

    def _restarts(self, code: int) -> bool:
        policy = self._pod.pod.restart_policy
        match self._role:
            case Role.SIDECAR:
                return True
            case Role.INIT:
                return code != 0 and policy != "Never"
            case Role.MAIN:
                return policy == "Always" or (policy == "OnFailure" and code != 0)

    async def _find_or_start(self) -> ProcessState | None:
        """The process of this attempt, None where there is none to wait for."""
        found = self._pod.runtime.find(self._pod.pod.uid, self.name).get(self._attempt)
        try:
            self._environment = await self._pod.environment(self._spec)
            if found is not None:
                return found
            return await self._start()
        except PoplinError as error:
            if isinstance(self.view.state, Waiting):
                reason = error.reason if isinstance(error, ImageError) else "CreateContainerError"
                self._set(state=Waiting(reason, str(error)))
            self._pod.tell("Failed", f"container {self.name}: {error}", warning=True)
            return None

    async def _start(self) -> ProcessState | None:
        here = await self._pod.runtime.can_run(self._spec, self._environment)
        if not here:
            ends = self._role is Role.INIT or self._pod.pod.is_of_job()
            self._tell_of_echo(ends=ends)
            if ends:
                now = time.time()
                self._set(state=Terminated(0, now, now, "its image is not here: nothing was run"))
                return None
        order = await self._pod.make_order(self._spec, self._attempt, self._environment)
        state = await self._pod.runtime.start(self._pod.pod, replace(order, stand_in=not here))
        self._pod.tell("Started", f"Started container {self.name}")
        return state

    def _tell_of_echo(self, *, ends: bool) -> None:
        ports = ", ".join(
            f"{port['containerPort']}/{port.get('protocol') or 'TCP'}"
            for port in self._spec.get("ports") or ()
        )
        does = "counts as done" if ends else f"the echo server stands in on {ports}" if ports else "is idle"
        self._pod.tell(
            "ImageNotHere", f"container {self.name}: image {self.view.image} cannot be run in a lab; {does}"
        )

    async def _accompany(self, state: ProcessState) -> Terminated:
        """Probe a process until it ends."""
        self._set(
            state=Running(state.since),
            started="startupProbe" not in self._spec,
            ready=not {"startupProbe", "readinessProbe"} & self._spec.keys(),
            process=self._pod.runtime.reference(state.id),
        )
        probing = asyncio.create_task(self._probe(state), name=f"probes of {state.id}")
        try:
            ended = await self._pod.runtime.wait(state.id)
        finally:
            probing.cancel()
            with suppress(asyncio.CancelledError):
                await probing
        return self._end(ended)

    def _end(self, state: ProcessState) -> Terminated:
        ending = Terminated(state.code or 0, state.since, state.ended)
        restarts = self._restarts(ending.code)
        self._set(state=ending, ready=False, started=False, **({"last": ending} if restarts else {}))
        return ending

    async def _probe(self, state: ProcessState) -> None:
        if "startupProbe" in self._spec:
            await self._repeat("startupProbe", state)
        async with asyncio.TaskGroup() as tasks:
            for kind in ("livenessProbe", "readinessProbe"):
                if kind in self._spec:
                    tasks.create_task(self._repeat(kind, state), name=f"{kind} of {state.id}")

    async def _repeat(self, kind: str, state: ProcessState) -> None:
        """Ask until the process ends; a startup probe until it has passed."""
        probe = self._spec[kind]
        schedule = read_schedule(probe)
        verdict = Verdict(schedule)
        await asyncio.sleep(schedule.initial_delay_s)
        while True:
            wrong = await ask(probe, self._target(state), schedule.timeout_s)
            if wrong:
                word = kind.removesuffix("Probe").capitalize()
                self._pod.tell("Unhealthy", f"{word} probe failed: {wrong}", warning=True)
            if verdict.add(not wrong):
                if kind == "startupProbe" and verdict.holds:
                    self._set(started=True, ready="readinessProbe" not in self._spec)
                    return
                if kind == "readinessProbe":
                    self._set(ready=bool(verdict.holds))
                elif not verdict.holds:
                    verdict.starts_over()
                    await self._kill_failed(kind, state)
            await asyncio.sleep(schedule.period_s)

    async def _kill_failed(self, kind: str, state: ProcessState) -> None:
        word = kind.removesuffix("Probe")
        self._pod.tell("Killing", f"Container {self.name} failed {word} probe, will be restarted")
        grace_s = self._spec[kind].get("terminationGracePeriodSeconds")
        if grace_s is None:
            grace_s = self._pod.pod.spec.get("terminationGracePeriodSeconds", 30)
        # The process' end cancels this.
        await self._pod.runtime.stop(state.id, grace_s)

    def _target(self, state: ProcessState) -> Target:
        netns_fd, address = self._pod.probe_from()
        named = {p["name"]: int(p["containerPort"]) for p in self._spec.get("ports") or () if p.get("name")}
        runtime, environment = self._pod.runtime, self.environment

        async def execute(command: list[str]) -> int:
            return await runtime.execute(state.id, command, environment, EXEC_TIMEOUT_S)

        return Target(netns_fd, address, named, execute)

    async def _run_pre_stop(self, state: ProcessState) -> None:
        hook = (self._spec.get("lifecycle") or {}).get("preStop") or {}
        if "sleep" in hook:
            await asyncio.sleep(float(hook["sleep"].get("seconds") or 0))
        elif hook:
            wrong = await ask(hook, self._target(state), EXEC_TIMEOUT_S)
            if wrong:
                self._pod.tell("FailedPreStopHook", f"container {self.name}: {wrong}", warning=True)
