"""The core group, v1: Node, Namespace, ConfigMap, Pod (Kubernetes API reference, "core/v1")."""

from dataclasses import replace

import msgspec
from msgspec import field

from poplin.datastore.parse import FieldError, intern_labels, parse_address, parse_networks
from poplin.datastore.resource import Resource, WireObject
from poplin.model.cluster import (
    ConditionStatus,
    ConfigMap,
    ContainerPort,
    Namespace,
    Node,
    Pod,
    PodPhase,
    TransportProtocol,
)

POD_IPS = "poplin.io/pod-ips"
"""Annotation with a pod's addresses, comma between them, which its node writes before kubelet has the status."""

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def keep_annotations(annotations: dict[str, str] | None) -> dict[str, str]:
    """All annotations but the whole object over again, which kubectl leaves there for itself."""
    if annotations and LAST_APPLIED in annotations:
        return {key: value for key, value in annotations.items() if key != LAST_APPLIED}
    return intern_labels(annotations)


class Wire(msgspec.Struct, rename="camel", gc=False):
    """A part of an object."""


class WireNamespace(WireObject):
    pass


def to_namespace(wire: WireNamespace) -> Namespace:
    return Namespace(
        name=wire.metadata.name,
        labels=intern_labels(wire.metadata.labels),
        annotations=keep_annotations(wire.metadata.annotations),
    )


class WireConfigMap(WireObject):
    data: dict[str, str] | None = None


def to_config_map(wire: WireConfigMap) -> ConfigMap:
    return ConfigMap(namespace=wire.metadata.namespace, name=wire.metadata.name, data=wire.data or {})


class WireNodeSpec(Wire):
    pod_cidr: str | None = field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")


class WireNodeAddress(Wire):
    type: str
    address: str


class WireCondition(Wire):
    type: str
    status: ConditionStatus


class WireNodeStatus(Wire):
    addresses: list[WireNodeAddress] | None = None
    conditions: list[WireCondition] | None = None


class WireNode(WireObject):
    spec: WireNodeSpec | None = None
    status: WireNodeStatus | None = None


def to_node(wire: WireNode) -> Node:
    spec = wire.spec or WireNodeSpec()
    status = wire.status or WireNodeStatus()
    cidrs = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])
    addresses = [
        (entry.type, parse_address(entry.address, f"status.addresses[{index}].address"))
        for index, entry in enumerate(status.addresses or ())
        if entry.type in {"InternalIP", "ExternalIP"}
    ]
    conditions = {condition.type: condition.status for condition in status.conditions or ()}
    return Node(
        name=wire.metadata.name,
        uid=wire.metadata.uid,
        labels=intern_labels(wire.metadata.labels),
        annotations=keep_annotations(wire.metadata.annotations),
        pod_cidrs=parse_networks(cidrs, "spec.podCIDRs"),
        internal_addresses=tuple(address for kind, address in addresses if kind == "InternalIP"),
        external_addresses=tuple(address for kind, address in addresses if kind == "ExternalIP"),
        network_unavailable=conditions.get("NetworkUnavailable"),
    )


class WirePort(Wire):
    container_port: int
    protocol: TransportProtocol | None = None
    name: str | None = None
    host_port: int | None = None
    host_ip: str | None = field(default=None, name="hostIP")


class WireContainer(Wire):
    ports: list[WirePort] | None = None
    restart_policy: str | None = None


class WirePodSpec(Wire):
    node_name: str | None = None
    service_account_name: str | None = None
    host_network: bool | None = None
    init_containers: list[WireContainer] | None = None
    containers: list[WireContainer] | None = None


class WirePodIP(Wire):
    ip: str = ""


class WirePodStatus(Wire):
    phase: PodPhase | None = None
    pod_ip: str | None = field(default=None, name="podIP")
    pod_ips: list[WirePodIP] | None = field(default=None, name="podIPs")


class WirePod(WireObject):
    spec: WirePodSpec
    status: WirePodStatus | None = None


def to_pod(wire: WirePod) -> Pod:
    metadata, spec = wire.metadata, wire.spec
    status = wire.status or WirePodStatus()
    if status.pod_ips:
        ips = [entry.ip for entry in status.pod_ips]
    else:
        ips = [status.pod_ip] if status.pod_ip else []
    announcement = "" if any(ips) else (metadata.annotations or {}).get(POD_IPS, "")
    return Pod(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        labels=intern_labels(metadata.labels),
        annotations=keep_annotations(metadata.annotations),
        node_name=spec.node_name or "",
        service_account=spec.service_account_name or "",
        host_network=bool(spec.host_network),
        phase=status.phase or PodPhase.PENDING,
        deleting=metadata.deletion_timestamp is not None,
        addresses=tuple(parse_address(ip, f"status.podIPs[{i}].ip") for i, ip in enumerate(ips) if ip)
        or tuple(
            parse_address(ip, f"metadata.annotations[{POD_IPS}]") for ip in announcement.split(",") if ip
        ),
        announced=bool(announcement),
        ports=_ports(spec),
    )


def to_policy_pod(wire: WirePod) -> Pod:
    return replace(to_pod(wire), annotations={})


def _ports(spec: WirePodSpec) -> tuple[ContainerPort, ...]:
    ports = [
        _port(port, f"spec.containers[{i}].ports[{j}]")
        for i, container in enumerate(spec.containers or ())
        if container.ports
        for j, port in enumerate(container.ports)
    ]
    ports += [
        _port(port, f"spec.initContainers[{i}].ports[{j}]")
        for i, container in enumerate(spec.init_containers or ())
        if container.ports and container.restart_policy == "Always"
        for j, port in enumerate(container.ports)
    ]
    return tuple(ports)


def _port(wire: WirePort, path: str) -> ContainerPort:
    if not 0 < wire.container_port < 1 << 16:
        raise FieldError(f"{path}.containerPort", wire.container_port, "a port from 1 to 65535")
    host_address = parse_address(wire.host_ip, f"{path}.hostIP") if wire.host_ip else None
    return ContainerPort(
        port=wire.container_port,
        protocol=wire.protocol or TransportProtocol.TCP,
        name=wire.name or "",
        host_port=wire.host_port or 0,
        # The unspecified address of a family is how users write "every address".
        host_address=None if host_address is None or host_address.is_unspecified else host_address,
    )


NAMESPACES = Resource(
    group="",
    version="v1",
    plural="namespaces",
    kind="Namespace",
    namespaced=False,
    struct=WireNamespace,
    to_model=to_namespace,
)
NODES = Resource(
    group="", version="v1", plural="nodes", kind="Node", namespaced=False, struct=WireNode, to_model=to_node
)
CONFIG_MAPS = Resource(
    group="",
    version="v1",
    plural="configmaps",
    kind="ConfigMap",
    namespaced=True,
    struct=WireConfigMap,
    to_model=to_config_map,
)
PODS = Resource(
    group="", version="v1", plural="pods", kind="Pod", namespaced=True, struct=WirePod, to_model=to_pod
)
POLICY_PODS = replace(PODS, to_model=to_policy_pod)
"""Pods without what policy does not ask for: an agent keeps those of the whole cluster."""
