"""A pod's spec -> what the runtime is asked for. Pure.

Source: API reference, "Pod"; the labels are kubelet's own, so that crictl and its like know whose each thing is.
"""

from math import ceil
from typing import Final

from poplin.lab.controllers.object import Json
from poplin.lab.controllers.quantity import parse_milli
from poplin.lab.cri.image import ECHO, ECHO_PROGRAM
from poplin.lab.cri.message import (
    Capability,
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    Int64Value,
    KeyValue,
    LinuxContainerConfig,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    Mount,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
    PortMapping,
    Protocol,
)
from poplin.lab.kubelet.command import expand
from poplin.lab.kubelet.document import Pod
from poplin.lab.kubelet.runtime import ContainerOrder

POD_NAME: Final = "io.kubernetes.pod.name"
POD_NAMESPACE: Final = "io.kubernetes.pod.namespace"
POD_UID: Final = "io.kubernetes.pod.uid"
CONTAINER_NAME: Final = "io.kubernetes.container.name"

# What a container that is not privileged shall not read, and not write (kubelet's default "procMount"): these
# parts of /proc and /sys are the machine's, not the container's.
MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
)
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

CPU_PERIOD_US: Final = 100_000
SHARES_PER_CPU: Final = 1024
MIN_SHARES: Final = 2


def make_sandbox_config(pod: Pod, *, attempt: int, log_directory: str, cgroup: str) -> PodSandboxConfig:
    """The sandbox. `cgroup` is the parent of all pods' cgroups."""
    security = pod.spec.get("securityContext") or {}
    return PodSandboxConfig(
        metadata=PodSandboxMetadata(pod.name, pod.uid, pod.namespace, attempt),
        hostname="" if pod.host_network else pod.hostname,
        log_directory=log_directory,
        port_mappings=() if pod.host_network else tuple(_port_mappings(pod)),
        labels={**pod.labels, POD_NAME: pod.name, POD_NAMESPACE: pod.namespace, POD_UID: pod.uid},
        annotations=dict(pod.annotations),
        linux=LinuxPodSandboxConfig(
            cgroup_parent=f"{cgroup}/pod{pod.uid}",
            security_context=LinuxSandboxSecurityContext(
                namespace_options=_namespaces(pod),
                privileged=any(
                    (c.get("securityContext") or {}).get("privileged")
                    for c in (*pod.init_containers(), *pod.containers())
                ),
            ),
            sysctls={one["name"]: one["value"] for one in security.get("sysctls") or ()},
        ),
    )


def make_container_config(pod: Pod, order: ContainerOrder, log_path: str) -> ContainerConfig:
    """The container. What the spec does not say, the image does. `log_path` is below the sandbox's directory."""
    container = order.container
    command = [expand(str(word), order.environment) for word in container.get("command") or ()]
    args = [expand(str(word), order.environment) for word in container.get("args") or ()]
    image = str(container.get("image") or "")
    if order.stand_in:
        image, command, args = ECHO, [ECHO_PROGRAM, *echo_ports(container)], []
    return ContainerConfig(
        metadata=ContainerMetadata(str(container["name"]), order.attempt),
        image=ImageSpec(image),
        command=tuple(command),
        args=tuple(args),
        working_dir="" if order.stand_in else str(container.get("workingDir") or ""),
        envs=tuple(KeyValue(key, value) for key, value in order.environment.items()),
        mounts=tuple(Mount(b.target, b.source, readonly=b.read_only) for b in order.bindings),
        labels={
            CONTAINER_NAME: str(container["name"]),
            POD_NAME: pod.name,
            POD_NAMESPACE: pod.namespace,
            POD_UID: pod.uid,
        },
        log_path=log_path,
        stdin=bool(container.get("stdin")),
        stdin_once=bool(container.get("stdinOnce")),
        tty=bool(container.get("tty")),
        linux=LinuxContainerConfig(
            make_resources(container.get("resources") or {}),
            _security(pod, container, stand_in=order.stand_in),
        ),
    )


def echo_ports(container: Json) -> list[str]:
    """The container's ports as the echo server is told of them."""
    return [f"{p['containerPort']}/{p.get('protocol') or 'TCP'}" for p in container.get("ports") or ()]


def make_resources(resources: Json) -> LinuxContainerResources:
    """Requests and limits as the kernel takes them (kubelet's MilliCPUToShares and MilliCPUToQuota)."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    cpu_milli = parse_milli(limits.get("cpu") or 0)
    request_milli = parse_milli(requests.get("cpu") or limits.get("cpu") or 0)
    return LinuxContainerResources(
        cpu_period=CPU_PERIOD_US if cpu_milli else 0,
        cpu_quota=cpu_milli * CPU_PERIOD_US // 1000,
        cpu_shares=max(MIN_SHARES, request_milli * SHARES_PER_CPU // 1000),
        memory_limit_in_bytes=ceil(parse_milli(limits.get("memory") or 0) / 1000),
    )


def _port_mappings(pod: Pod) -> list[PortMapping]:
    return [
        PortMapping(
            Protocol[str(port.get("protocol") or "TCP")],
            int(port["containerPort"]),
            int(port["hostPort"]),
            str(port.get("hostIP") or ""),
        )
        for container in pod.containers()
        for port in container.get("ports") or ()
        if port.get("hostPort")
    ]


def _namespaces(pod: Pod) -> NamespaceOption:
    spec = pod.spec
    pid = NamespaceMode.POD if spec.get("shareProcessNamespace") else NamespaceMode.CONTAINER
    return NamespaceOption(
        network=NamespaceMode.NODE if pod.host_network else NamespaceMode.POD,
        pid=NamespaceMode.NODE if spec.get("hostPID") else pid,
        ipc=NamespaceMode.NODE if spec.get("hostIPC") else NamespaceMode.POD,
    )


def _security(pod: Pod, container: Json, *, stand_in: bool) -> LinuxContainerSecurityContext:
    """The container's own word goes before the pod's. The echo server may bind any port, whoever it stands in for."""
    whole = pod.spec.get("securityContext") or {}
    own = {**whole, **(container.get("securityContext") or {})}
    if stand_in:
        return LinuxContainerSecurityContext(
            namespace_options=_namespaces(pod), masked_paths=MASKED, readonly_paths=READ_ONLY
        )
    capabilities = own.get("capabilities") or {}
    privileged = bool(own.get("privileged"))
    groups = [*(whole.get("supplementalGroups") or ()), *([whole["fsGroup"]] if "fsGroup" in whole else ())]
    return LinuxContainerSecurityContext(
        capabilities=Capability(tuple(capabilities.get("add") or ()), tuple(capabilities.get("drop") or ())),
        privileged=privileged,
        namespace_options=_namespaces(pod),
        masked_paths=() if privileged else MASKED,
        readonly_paths=() if privileged else READ_ONLY,
        run_as_user=_number(own.get("runAsUser")),
        run_as_group=_number(own.get("runAsGroup")) if own.get("runAsUser") is not None else None,
        readonly_rootfs=bool(own.get("readOnlyRootFilesystem")),
        supplemental_groups=tuple(int(group) for group in groups),
        no_new_privs=own.get("allowPrivilegeEscalation") is False,
    )


def _number(value: int | None) -> Int64Value | None:
    return None if value is None else Int64Value(int(value))
