"""What runs a node's pods, as the kubelet sees it: `process` has the lab's init do it, `lab.cri` containerd.

A container's process is known by a name (`process_name`) and told of as a ProcessState by either.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from poplin.lab.container import Binding
from poplin.lab.controllers.object import Json
from poplin.lab.kubelet.document import Pod
from poplin.lab.kubelet.stream.console import Console
from poplin.lab.message import ProcessState
from poplin.model.errors import TemporaryError
from poplin.model.kernel import IPAddress


@dataclass(frozen=True, slots=True)
class ContainerOrder:
    """A container to be made. `container` is the API's, `log` is where its output goes.

    `stand_in`: it cannot be run here, and the echo server serves its ports.
    """

    container: Json
    attempt: int
    environment: Mapping[str, str]
    bindings: Sequence[Binding]
    log: Path
    stand_in: bool = False


class ImageError(TemporaryError):
    """A container's image cannot be had. `reason` is kubelet's word for it."""

    def __init__(self, reason: str, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SandboxView:
    """A pod's sandbox. `netns` is a path; `addresses` are none where the pod uses the node's network.

    `ready`: it was made to its end and still stands.
    """

    netns: str
    addresses: Sequence[IPAddress]
    ready: bool = True


class PodRuntime(Protocol):
    """One node's pods. Whatever waits for something else than a process' end may raise PoplinError."""

    @property
    def version(self) -> str:
        """As a Node's status has it: "NAME://VERSION"."""
        ...

    def sandbox(self, uid: str) -> SandboxView | None:
        """The sandbox of a pod, None where it has none."""
        ...

    def pods(self) -> Collection[str]:
        """The uids of pods of which there is something."""
        ...

    async def make_sandbox(self, pod: Pod) -> SandboxView:
        """Make and attach the pod's sandbox, in place of one that does not stand."""
        ...

    async def remove_sandbox(self, uid: str) -> None:
        """Detach and remove a pod's sandbox; none is success."""
        ...

    async def can_run(self, container: Json, environment: Mapping[str, str]) -> bool:
        """Whether what the container is made of is here; if not, the echo server may stand in for it.

        Raises ImageError where that is not wanted.
        """
        ...

    async def start(self, pod: Pod, order: ContainerOrder) -> ProcessState:
        """Run a container in the pod's sandbox."""
        ...

    async def wait(self, name: str) -> ProcessState:
        """The process once it has ended."""
        ...

    async def stop(self, name: str, grace_s: float) -> ProcessState:
        """SIGTERM, SIGKILL after the grace; the process once it has ended."""
        ...

    async def forget(self, name: str) -> None:
        """Remove what is left of a process that has ended."""
        ...

    def find(self, uid: str, container: str) -> Mapping[int, ProcessState]:
        """The processes of a container by attempt."""
        ...

    def of_pod(self, uid: str) -> Sequence[str]:
        """Names of all processes of a pod."""
        ...

    def reference(self, name: str) -> str:
        """A process as a container's status has it: "NAME://ID"."""
        ...

    async def execute(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], timeout_s: float
    ) -> int:
        """The exit status of a command run in the container."""
        ...

    async def open_command(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, stdin: bool, tty: bool
    ) -> Console:
        """Run a command in the container with its streams."""
        ...

    async def attach(self, name: str, order: ContainerOrder, *, stdin: bool) -> Console:
        """The streams of the container's own process."""
        ...
