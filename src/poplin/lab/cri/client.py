"""The container runtime interface over a unix socket: each method of the service, typed."""

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError

from poplin.lab.cri.message import (
    AttachRequest,
    Container,
    ContainerConfig,
    ContainerFilter,
    ContainerId,
    ContainerStatusRequest,
    ContainerStatusResponse,
    CreateContainerRequest,
    Empty,
    Envelope,
    ExecRequest,
    ExecSyncRequest,
    ExecSyncResponse,
    Image,
    ImageSpec,
    ImageStatusRequest,
    ImageStatusResponse,
    ListContainersRequest,
    ListContainersResponse,
    ListImagesResponse,
    ListPodSandboxRequest,
    ListPodSandboxResponse,
    PodSandbox,
    PodSandboxConfig,
    PodSandboxFilter,
    PodSandboxId,
    PodSandboxStatusRequest,
    PodSandboxStatusResponse,
    RunPodSandboxRequest,
    StatusResponse,
    StopContainerRequest,
    SubscribeRequest,
    TaskExit,
    UrlResponse,
    VersionRequest,
    VersionResponse,
)
from poplin.lab.cri.protobuf import Message, decode, encode
from poplin.model.errors import TemporaryError

M = TypeVar("M", bound=Message)

TIMEOUT_S: Final = 120.0
"""For one call; stopping a container has its grace on top. As kubelet's runtimeRequestTimeout."""


class CriError(TemporaryError):
    """The runtime refused, or does not answer."""


class CriNotFoundError(CriError):
    """The runtime has no sandbox, container or image of that id."""


class Codec(CodecBase):
    """Our messages, as grpclib wants to be told of them."""

    __content_subtype__ = "proto"

    def encode(self, message: Message, message_type: Any) -> bytes:  # noqa: ARG002  - grpclib's signature
        """See CodecBase."""
        return encode(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        """See CodecBase."""
        return decode(data, message_type)


class Cri:
    """A runtime. Every method raises CriError; use as an async context, on one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._channel = Channel(path=str(path), codec=Codec())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._channel.close()

    async def version(self) -> VersionResponse:
        """Which runtime it is."""
        return await self._runtime("Version", VersionRequest(), VersionResponse)

    async def conditions(self) -> Mapping[str, tuple[bool, str]]:
        """RuntimeReady and NetworkReady: whether each holds, and why not."""
        response = await self._runtime("Status", Empty(), StatusResponse)
        known = response.status.conditions if response.status else ()
        return {one.type: (one.status, one.message) for one in known}

    async def run_sandbox(self, config: PodSandboxConfig) -> str:
        """Make and attach a sandbox; its id."""
        request = RunPodSandboxRequest(config)
        return (await self._runtime("RunPodSandbox", request, PodSandboxId)).pod_sandbox_id

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """End its containers, detach and remove it. One that is not there is success."""
        with suppress(CriNotFoundError):
            await self._runtime("StopPodSandbox", PodSandboxId(sandbox_id), Empty)
            await self._runtime("RemovePodSandbox", PodSandboxId(sandbox_id), Empty)

    async def sandbox_status(self, sandbox_id: str) -> PodSandboxStatusResponse:
        """What is known of a sandbox, the namespaces' paths in its info. Raises CriNotFoundError."""
        request = PodSandboxStatusRequest(sandbox_id, verbose=True)
        return await self._runtime("PodSandboxStatus", request, PodSandboxStatusResponse)

    async def list_sandboxes(self, labels: Mapping[str, str] | None = None) -> Collection[PodSandbox]:
        """The sandboxes that have all of the labels."""
        request = ListPodSandboxRequest(PodSandboxFilter(label_selector=labels or {}))
        return (await self._runtime("ListPodSandbox", request, ListPodSandboxResponse)).items

    async def create_container(
        self, sandbox_id: str, config: ContainerConfig, sandbox: PodSandboxConfig
    ) -> str:
        """Make a container that does not run yet; its id."""
        request = CreateContainerRequest(sandbox_id, config, sandbox)
        return (await self._runtime("CreateContainer", request, ContainerId)).container_id

    async def start_container(self, container_id: str) -> None:
        """Run a container that has been made."""
        await self._runtime("StartContainer", ContainerId(container_id), Empty)

    async def stop_container(self, container_id: str, grace_s: int) -> None:
        """SIGTERM, SIGKILL after the grace; returns when the container has ended. One that is gone is success."""
        request = StopContainerRequest(container_id, grace_s)
        with suppress(CriNotFoundError):
            await self._runtime("StopContainer", request, Empty, TIMEOUT_S + grace_s)

    async def remove_container(self, container_id: str) -> None:
        """Remove a container, killing it if need be. One that is not there is success."""
        with suppress(CriNotFoundError):
            await self._runtime("RemoveContainer", ContainerId(container_id), Empty)

    async def container_status(self, container_id: str) -> ContainerStatusResponse:
        """What is known of a container, its process id in its info. Raises CriNotFoundError."""
        request = ContainerStatusRequest(container_id, verbose=True)
        return await self._runtime("ContainerStatus", request, ContainerStatusResponse)

    async def list_containers(self, labels: Mapping[str, str] | None = None) -> Collection[Container]:
        """The containers that have all of the labels."""
        request = ListContainersRequest(ContainerFilter(label_selector=labels or {}))
        return (await self._runtime("ListContainers", request, ListContainersResponse)).containers

    async def exec_sync(
        self, container_id: str, command: Collection[str], timeout_s: int
    ) -> ExecSyncResponse:
        """Run a command in a container and wait for its end; at most 16 MiB of what it writes are kept."""
        request = ExecSyncRequest(container_id, tuple(command), timeout_s)
        return await self._runtime("ExecSync", request, ExecSyncResponse, timeout_s + TIMEOUT_S)

    async def exec_url(self, request: ExecRequest) -> str:
        """Where to have the streams of a command (see `streaming`)."""
        return (await self._runtime("Exec", request, UrlResponse)).url

    async def attach_url(self, request: AttachRequest) -> str:
        """Where to have a container's own streams."""
        return (await self._runtime("Attach", request, UrlResponse)).url

    async def find_image(self, reference: str) -> Image | None:
        """The image in the store that the reference names, None for none."""
        request = ImageStatusRequest(ImageSpec(reference))
        return (await self._call("ImageService", "ImageStatus", request, ImageStatusResponse)).image

    async def list_images(self) -> Collection[Image]:
        """All images in the store."""
        return (await self._call("ImageService", "ListImages", Empty(), ListImagesResponse)).images

    async def exits(self) -> AsyncGenerator[str, None]:
        """The id of each container whose first process ends from now on; ends with CriError.

        These are containerd's own events: its 1.6 has none in CRI. CRI's status comes a moment later.
        """
        where = f"events at {self._path}"
        subscribe = "/containerd.services.events.v1.Events/Subscribe"
        try:
            async with self._channel.request(
                subscribe, Cardinality.UNARY_STREAM, SubscribeRequest, Envelope
            ) as stream:
                await stream.send_message(SubscribeRequest(('topic=="/tasks/exit"',)), end=True)
                async for envelope in stream:
                    ended = decode(envelope.event.value, TaskExit) if envelope.event else TaskExit()
                    # A command that was run in a container is a process with an id of its own.
                    if ended.container_id == ended.id:
                        yield ended.container_id
        except GRPCError as error:
            raise CriError(error.message or error.status.name, where=where) from error
        except (OSError, StreamTerminatedError) as error:
            raise CriError(f"the runtime does not answer: {error}", where=where) from error
        raise CriError("the runtime has ended", where=where)

    async def _runtime(
        self, method: str, request: Message, response: type[M], timeout_s: float = TIMEOUT_S
    ) -> M:
        return await self._call("RuntimeService", method, request, response, timeout_s)

    async def _call(
        self, service: str, method: str, request: Message, response: type[M], timeout_s: float = TIMEOUT_S
    ) -> M:
        call: UnaryUnaryMethod[Message, M] = UnaryUnaryMethod(
            self._channel, f"/runtime.v1.{service}/{method}", type(request), response
        )
        where = f"{method} at {self._path}"
        try:
            return await call(request, timeout=timeout_s)
        except GRPCError as error:
            kind = CriNotFoundError if error.status is Status.NOT_FOUND else CriError
            raise kind(error.message or error.status.name, where=where) from error
        except TimeoutError as error:
            raise CriError(f"no answer within {timeout_s:g} s", where=where) from error
        except (OSError, StreamTerminatedError) as error:
            raise CriError(f"the runtime does not answer: {error}", where=where) from error
