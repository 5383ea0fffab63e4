"""The messages of the container runtime interface that a kubelet here sends and reads.

Names and numbers are those of the package runtime.v1 (kubernetes/cri-api); fields that are neither sent nor
read are left out, which the wire format allows.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated

from poplin.lab.cri.protobuf import Message


class NamespaceMode(IntEnum):
    """Whose namespace a container uses. POD is what an absent option means."""

    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class Protocol(IntEnum):
    """Of a port mapping."""

    TCP = 0
    UDP = 1
    SCTP = 2


class SandboxState(IntEnum):
    """Of a pod's sandbox."""

    READY = 0
    NOT_READY = 1


class ContainerState(IntEnum):
    """Of a container."""

    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3


class Propagation(IntEnum):
    """Of a mount."""

    PRIVATE = 0
    HOST_TO_CONTAINER = 1
    BIDIRECTIONAL = 2


class Empty(Message, frozen=True):
    """A message without fields, or one whose fields do not matter here."""


# ---- the runtime itself ----


class VersionRequest(Message, frozen=True):
    """Ask which runtime it is; `version` is the kubelet's."""

    version: Annotated[str, 1] = "v1"


class VersionResponse(Message, frozen=True):
    """Which runtime it is."""

    runtime_name: Annotated[str, 2] = ""
    runtime_version: Annotated[str, 3] = ""


class Condition(Message, frozen=True):
    """RuntimeCondition: "RuntimeReady" or "NetworkReady"."""

    type: Annotated[str, 1] = ""
    status: Annotated[bool, 2] = False
    reason: Annotated[str, 3] = ""
    message: Annotated[str, 4] = ""


class RuntimeStatus(Message, frozen=True):
    """What holds of the runtime."""

    conditions: Annotated[tuple[Condition, ...], 1] = ()


class StatusResponse(Message, frozen=True):
    """What holds of the runtime."""

    status: Annotated[RuntimeStatus | None, 1] = None


# ---- sandboxes ----


class DNSConfig(Message, frozen=True):
    """What goes into the sandbox's resolv.conf."""

    servers: Annotated[tuple[str, ...], 1] = ()
    searches: Annotated[tuple[str, ...], 2] = ()
    options: Annotated[tuple[str, ...], 3] = ()


class PortMapping(Message, frozen=True):
    """A hostPort, which becomes CNI's portMappings."""

    protocol: Annotated[Protocol, 1] = Protocol.TCP
    container_port: Annotated[int, 2] = 0
    host_port: Annotated[int, 3] = 0
    host_ip: Annotated[str, 4] = ""


class NamespaceOption(Message, frozen=True):
    """Whose namespaces are used."""

    network: Annotated[NamespaceMode, 1] = NamespaceMode.POD
    pid: Annotated[NamespaceMode, 2] = NamespaceMode.POD
    ipc: Annotated[NamespaceMode, 3] = NamespaceMode.POD


class Int64Value(Message, frozen=True):
    """A number that may be absent: 0 is a user, too."""

    value: Annotated[int, 1] = 0


class LinuxSandboxSecurityContext(Message, frozen=True):
    """Of the sandbox as a whole."""

    namespace_options: Annotated[NamespaceOption | None, 1] = None
    privileged: Annotated[bool, 6] = False


class LinuxPodSandboxConfig(Message, frozen=True):
    """Of the sandbox on Linux. `cgroup_parent` is a path below each hierarchy's root."""

    cgroup_parent: Annotated[str, 1] = ""
    security_context: Annotated[LinuxSandboxSecurityContext | None, 2] = None
    sysctls: Annotated[Mapping[str, str], 3] = {}


class PodSandboxMetadata(Message, frozen=True):
    """Which pod a sandbox is of. The four together are unique on a node."""

    name: Annotated[str, 1] = ""
    uid: Annotated[str, 2] = ""
    namespace: Annotated[str, 3] = ""
    attempt: Annotated[int, 4] = 0


class PodSandboxConfig(Message, frozen=True):
    """A sandbox to be made. `log_directory` is where the containers' log paths begin."""

    metadata: Annotated[PodSandboxMetadata | None, 1] = None
    hostname: Annotated[str, 2] = ""
    log_directory: Annotated[str, 3] = ""
    dns_config: Annotated[DNSConfig | None, 4] = None
    port_mappings: Annotated[tuple[PortMapping, ...], 5] = ()
    labels: Annotated[Mapping[str, str], 6] = {}
    annotations: Annotated[Mapping[str, str], 7] = {}
    linux: Annotated[LinuxPodSandboxConfig | None, 8] = None


class RunPodSandboxRequest(Message, frozen=True):
    """Make a sandbox and attach it."""

    config: Annotated[PodSandboxConfig | None, 1] = None


class PodSandboxId(Message, frozen=True):
    """RunPodSandboxResponse, and the requests that name a sandbox."""

    pod_sandbox_id: Annotated[str, 1] = ""


class PodSandboxStatusRequest(Message, frozen=True):
    """Ask about a sandbox."""

    pod_sandbox_id: Annotated[str, 1] = ""
    verbose: Annotated[bool, 2] = False


class PodIP(Message, frozen=True):
    """An address as text."""

    ip: Annotated[str, 1] = ""


class PodSandboxNetworkStatus(Message, frozen=True):
    """The addresses of a sandbox, the first one apart."""

    ip: Annotated[str, 1] = ""
    additional_ips: Annotated[tuple[PodIP, ...], 2] = ()


class PodSandboxStatus(Message, frozen=True):
    """A sandbox as it is. `created_at` in nanoseconds since 1970."""

    id: Annotated[str, 1] = ""
    metadata: Annotated[PodSandboxMetadata | None, 2] = None
    state: Annotated[SandboxState, 3] = SandboxState.READY
    created_at: Annotated[int, 4] = 0
    network: Annotated[PodSandboxNetworkStatus | None, 5] = None
    labels: Annotated[Mapping[str, str], 7] = {}


class PodSandboxStatusResponse(Message, frozen=True):
    """A sandbox, and with `verbose` texts of JSON about it."""

    status: Annotated[PodSandboxStatus | None, 1] = None
    info: Annotated[Mapping[str, str], 2] = {}


class PodSandbox(Message, frozen=True):
    """A sandbox in a list."""

    id: Annotated[str, 1] = ""
    metadata: Annotated[PodSandboxMetadata | None, 2] = None
    state: Annotated[SandboxState, 3] = SandboxState.READY
    created_at: Annotated[int, 4] = 0
    labels: Annotated[Mapping[str, str], 5] = {}


class PodSandboxFilter(Message, frozen=True):
    """Which sandboxes: those with all of the labels."""

    id: Annotated[str, 1] = ""
    label_selector: Annotated[Mapping[str, str], 3] = {}


class ListPodSandboxRequest(Message, frozen=True):
    """Ask for sandboxes; no filter means all."""

    filter: Annotated[PodSandboxFilter | None, 1] = None


class ListPodSandboxResponse(Message, frozen=True):
    """The sandboxes."""

    items: Annotated[tuple[PodSandbox, ...], 1] = ()


# ---- containers ----


class ImageSpec(Message, frozen=True):
    """A reference to an image: a name with a tag, or an id."""

    image: Annotated[str, 1] = ""


class KeyValue(Message, frozen=True):
    """A variable of the environment."""

    key: Annotated[str, 1] = ""
    value: Annotated[str, 2] = ""


class Mount(Message, frozen=True):
    """A file or directory of the node inside a container."""

    container_path: Annotated[str, 1] = ""
    host_path: Annotated[str, 2] = ""
    readonly: Annotated[bool, 3] = False
    propagation: Annotated[Propagation, 5] = Propagation.PRIVATE


class LinuxContainerResources(Message, frozen=True):
    """Limits; 0 is none. CPU times in microseconds."""

    cpu_period: Annotated[int, 1] = 0
    cpu_quota: Annotated[int, 2] = 0
    cpu_shares: Annotated[int, 3] = 0
    memory_limit_in_bytes: Annotated[int, 4] = 0


class Capability(Message, frozen=True):
    """Capabilities beside or less the runtime's default."""

    add_capabilities: Annotated[tuple[str, ...], 1] = ()
    drop_capabilities: Annotated[tuple[str, ...], 2] = ()


class LinuxContainerSecurityContext(Message, frozen=True):
    """What a container may do. The user and group None are the image's."""

    capabilities: Annotated[Capability | None, 1] = None
    privileged: Annotated[bool, 2] = False
    namespace_options: Annotated[NamespaceOption | None, 3] = None
    run_as_user: Annotated[Int64Value | None, 5] = None
    readonly_rootfs: Annotated[bool, 7] = False
    supplemental_groups: Annotated[tuple[int, ...], 8] = ()
    no_new_privs: Annotated[bool, 11] = False
    run_as_group: Annotated[Int64Value | None, 12] = None
    masked_paths: Annotated[tuple[str, ...], 13] = ()
    readonly_paths: Annotated[tuple[str, ...], 14] = ()


class LinuxContainerConfig(Message, frozen=True):
    """Of a container on Linux."""

    resources: Annotated[LinuxContainerResources | None, 1] = None
    security_context: Annotated[LinuxContainerSecurityContext | None, 2] = None


class ContainerMetadata(Message, frozen=True):
    """Which container of its pod; `attempt` counts restarts."""

    name: Annotated[str, 1] = ""
    attempt: Annotated[int, 2] = 0


class ContainerConfig(Message, frozen=True):
    """A container to be made. `command` empty means the image's entry point, `args` empty its arguments."""

    metadata: Annotated[ContainerMetadata | None, 1] = None
    image: Annotated[ImageSpec | None, 2] = None
    command: Annotated[tuple[str, ...], 3] = ()
    args: Annotated[tuple[str, ...], 4] = ()
    working_dir: Annotated[str, 5] = ""
    envs: Annotated[tuple[KeyValue, ...], 6] = ()
    mounts: Annotated[tuple[Mount, ...], 7] = ()
    labels: Annotated[Mapping[str, str], 9] = {}
    annotations: Annotated[Mapping[str, str], 10] = {}
    log_path: Annotated[str, 11] = ""
    stdin: Annotated[bool, 12] = False
    stdin_once: Annotated[bool, 13] = False
    tty: Annotated[bool, 14] = False
    linux: Annotated[LinuxContainerConfig | None, 15] = None


class CreateContainerRequest(Message, frozen=True):
    """Make a container in a sandbox, whose configuration is told once more."""

    pod_sandbox_id: Annotated[str, 1] = ""
    config: Annotated[ContainerConfig | None, 2] = None
    sandbox_config: Annotated[PodSandboxConfig | None, 3] = None


class ContainerId(Message, frozen=True):
    """CreateContainerResponse, and the requests that name a container."""

    container_id: Annotated[str, 1] = ""


class StopContainerRequest(Message, frozen=True):
    """SIGTERM, and SIGKILL after `timeout` seconds; 0 is SIGKILL at once."""

    container_id: Annotated[str, 1] = ""
    timeout: Annotated[int, 2] = 0


class ContainerFilter(Message, frozen=True):
    """Which containers: those with all of the labels."""

    id: Annotated[str, 1] = ""
    pod_sandbox_id: Annotated[str, 3] = ""
    label_selector: Annotated[Mapping[str, str], 4] = {}


class ListContainersRequest(Message, frozen=True):
    """Ask for containers; no filter means all."""

    filter: Annotated[ContainerFilter | None, 1] = None


class Container(Message, frozen=True):
    """A container in a list. `created_at` in nanoseconds since 1970."""

    id: Annotated[str, 1] = ""
    pod_sandbox_id: Annotated[str, 2] = ""
    metadata: Annotated[ContainerMetadata | None, 3] = None
    image: Annotated[ImageSpec | None, 4] = None
    image_ref: Annotated[str, 5] = ""
    state: Annotated[ContainerState, 6] = ContainerState.CREATED
    created_at: Annotated[int, 7] = 0
    labels: Annotated[Mapping[str, str], 8] = {}


class ListContainersResponse(Message, frozen=True):
    """The containers."""

    containers: Annotated[tuple[Container, ...], 1] = ()


class ContainerStatusRequest(Message, frozen=True):
    """Ask about a container."""

    container_id: Annotated[str, 1] = ""
    verbose: Annotated[bool, 2] = False


class ContainerStatus(Message, frozen=True):
    """A container as it is; times in nanoseconds since 1970, 0 before it started or while it runs."""

    id: Annotated[str, 1] = ""
    metadata: Annotated[ContainerMetadata | None, 2] = None
    state: Annotated[ContainerState, 3] = ContainerState.CREATED
    created_at: Annotated[int, 4] = 0
    started_at: Annotated[int, 5] = 0
    finished_at: Annotated[int, 6] = 0
    exit_code: Annotated[int, 7] = 0
    image: Annotated[ImageSpec | None, 8] = None
    image_ref: Annotated[str, 9] = ""
    reason: Annotated[str, 10] = ""
    message: Annotated[str, 11] = ""
    labels: Annotated[Mapping[str, str], 12] = {}
    log_path: Annotated[str, 15] = ""


class ContainerStatusResponse(Message, frozen=True):
    """A container, and with `verbose` texts of JSON about it: "info" has its "pid"."""

    status: Annotated[ContainerStatus | None, 1] = None
    info: Annotated[Mapping[str, str], 2] = {}


# ---- commands in containers ----


class ExecSyncRequest(Message, frozen=True):
    """Run a command in a container; `timeout` in seconds, 0 is none."""

    container_id: Annotated[str, 1] = ""
    cmd: Annotated[tuple[str, ...], 2] = ()
    timeout: Annotated[int, 3] = 0


class ExecSyncResponse(Message, frozen=True):
    """What the command wrote and how it ended."""

    stdout: Annotated[bytes, 1] = b""
    stderr: Annotated[bytes, 2] = b""
    exit_code: Annotated[int, 3] = 0


class ExecRequest(Message, frozen=True):
    """Prepare to run a command with its streams. With a terminal, `stderr` must be False."""

    container_id: Annotated[str, 1] = ""
    cmd: Annotated[tuple[str, ...], 2] = ()
    tty: Annotated[bool, 3] = False
    stdin: Annotated[bool, 4] = False
    stdout: Annotated[bool, 5] = True
    stderr: Annotated[bool, 6] = True


class AttachRequest(Message, frozen=True):
    """Prepare to have a container's own streams. With a terminal, `stderr` must be False."""

    container_id: Annotated[str, 1] = ""
    stdin: Annotated[bool, 2] = False
    tty: Annotated[bool, 3] = False
    stdout: Annotated[bool, 4] = True
    stderr: Annotated[bool, 5] = True


class UrlResponse(Message, frozen=True):
    """Where the streams are to be had, once and soon."""

    url: Annotated[str, 1] = ""


# ---- images ----


class ImageStatusRequest(Message, frozen=True):
    """Ask about an image."""

    image: Annotated[ImageSpec | None, 1] = None


class Image(Message, frozen=True):
    """An image in the store."""

    id: Annotated[str, 1] = ""
    repo_tags: Annotated[tuple[str, ...], 2] = ()
    repo_digests: Annotated[tuple[str, ...], 3] = ()


class ImageStatusResponse(Message, frozen=True):
    """An image, None where it is not in the store."""

    image: Annotated[Image | None, 1] = None


class ListImagesResponse(Message, frozen=True):
    """The images in the store."""

    images: Annotated[tuple[Image, ...], 1] = ()


# ---- containerd's own ----


class SubscribeRequest(Message, frozen=True):
    """Ask for events that one of the filters lets through (containerd.services.events.v1)."""

    filters: Annotated[tuple[str, ...], 1] = ()


class Wrapped(Message, frozen=True):
    """google.protobuf.Any: a message and the name of its type."""

    type_url: Annotated[str, 1] = ""
    value: Annotated[bytes, 2] = b""


class Envelope(Message, frozen=True):
    """An event."""

    topic: Annotated[str, 3] = ""
    event: Annotated[Wrapped | None, 4] = None


class TaskExit(Message, frozen=True):
    """A process of a container has ended; the first one's id is the container's (containerd.events)."""

    container_id: Annotated[str, 1] = ""
    id: Annotated[str, 2] = ""
