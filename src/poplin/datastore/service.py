"""Services (core/v1) and EndpointSlices (discovery.k8s.io/v1) of the Kubernetes API."""

from typing import Final

from msgspec import field

from poplin.datastore.core import Wire
from poplin.datastore.parse import FieldError, parse_address, parse_networks
from poplin.datastore.resource import Resource, WireObject
from poplin.model.cluster import TransportProtocol
from poplin.model.kernel import IPAddress
from poplin.model.service import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort

PROXY_NAME: Final = "service.kubernetes.io/service-proxy-name"
SERVICE_NAME: Final = "kubernetes.io/service-name"
HEADLESS: Final = "service.kubernetes.io/headless"
DEFAULT_AFFINITY_S: Final = 10_800
MAX_AFFINITY_S: Final = 86_400


class WireServicePort(Wire):
    port: int
    name: str | None = None
    protocol: TransportProtocol | None = None
    node_port: int | None = None


class WireClientIP(Wire):
    timeout_seconds: int | None = None


class WireAffinityConfig(Wire):
    client_ip: WireClientIP | None = field(default=None, name="clientIP")


class WireServiceSpec(Wire):
    type: str | None = None
    cluster_ip: str | None = field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    ports: list[WireServicePort] | None = None
    load_balancer_source_ranges: list[str] | None = None
    session_affinity: str | None = None
    session_affinity_config: WireAffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    health_check_node_port: int | None = None


class WireIngress(Wire):
    ip: str | None = None
    ip_mode: str | None = None


class WireLoadBalancer(Wire):
    ingress: list[WireIngress] | None = None


class WireServiceStatus(Wire):
    load_balancer: WireLoadBalancer | None = None


class WireService(WireObject):
    spec: WireServiceSpec
    status: WireServiceStatus | None = None


def to_service(wire: WireService) -> Service:
    metadata, spec = wire.metadata, wire.spec
    cluster_ips = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    balanced = spec.type == "LoadBalancer"
    return Service(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        created=metadata.creation_timestamp or "",
        served_elsewhere=spec.type == "ExternalName" or PROXY_NAME in (metadata.labels or ()),
        ports=tuple(_service_port(port, f"spec.ports[{i}]") for i, port in enumerate(spec.ports or ())),
        cluster_ips=_addresses([ip for ip in cluster_ips if ip != "None"], "spec.clusterIPs"),
        external_ips=_addresses(spec.external_ips or (), "spec.externalIPs"),
        load_balancer_ips=_ingress(wire.status) if balanced else (),
        # The API keeps spaces around the text of a range.
        source_ranges=parse_networks(
            [text.strip() for text in spec.load_balancer_source_ranges or ()], "spec.loadBalancerSourceRanges"
        )
        if balanced
        else (),
        affinity_timeout_s=_affinity_timeout_s(spec),
        internal_local=spec.internal_traffic_policy == "Local",
        external_local=spec.external_traffic_policy == "Local" and spec.type in {"NodePort", "LoadBalancer"},
        health_check_node_port=spec.health_check_node_port or 0,
    )


def _service_port(wire: WireServicePort, path: str) -> ServicePort:
    return ServicePort(
        name=wire.name or "",
        protocol=wire.protocol or TransportProtocol.TCP,
        port=_port(wire.port, f"{path}.port"),
        node_port=_port(wire.node_port, f"{path}.nodePort") if wire.node_port else 0,
    )


def _port(number: int, path: str) -> int:
    if not 0 < number < 1 << 16:
        raise FieldError(path, number, "a port from 1 to 65535")
    return number


def _addresses(texts: list[str] | tuple[str, ...], path: str) -> tuple[IPAddress, ...]:
    return tuple(parse_address(text, f"{path}[{i}]") for i, text in enumerate(texts))


def _ingress(status: WireServiceStatus | None) -> tuple[IPAddress, ...]:
    """KEP-1860: an ingress without an ipMode is a VIP; one with a host name alone is none of ours."""
    balancer = status.load_balancer if status else None
    return tuple(
        parse_address(entry.ip, f"status.loadBalancer.ingress[{i}].ip")
        for i, entry in enumerate((balancer and balancer.ingress) or ())
        if entry.ip and entry.ip_mode != "Proxy"
    )


def _affinity_timeout_s(spec: WireServiceSpec) -> int | None:
    if spec.session_affinity != "ClientIP":
        return None
    config = spec.session_affinity_config
    timeout_s = config.client_ip.timeout_seconds if config and config.client_ip else None
    if timeout_s is None:
        return DEFAULT_AFFINITY_S
    if not 0 < timeout_s <= MAX_AFFINITY_S:
        path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        raise FieldError(path, timeout_s, f"a number of seconds from 1 to {MAX_AFFINITY_S}")
    return timeout_s


class WireConditions(Wire):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class WireHint(Wire):
    name: str


class WireHints(Wire):
    for_zones: list[WireHint] | None = None
    for_nodes: list[WireHint] | None = None


class WireEndpoint(Wire):
    addresses: list[str]
    conditions: WireConditions | None = None
    node_name: str | None = None
    hints: WireHints | None = None


class WireEndpointPort(Wire):
    port: int | None = None
    name: str | None = None
    protocol: TransportProtocol | None = None


class WireEndpointSlice(WireObject):
    address_type: str
    endpoints: list[WireEndpoint] | None = None
    ports: list[WireEndpointPort] | None = None


_VERSIONS: Final = {"IPv4": 4, "IPv6": 6}
_READY: Final = WireConditions()


def to_endpoint_slice(wire: WireEndpointSlice) -> EndpointSlice:
    metadata = wire.metadata
    labels = metadata.labels or {}
    version = _VERSIONS.get(wire.address_type, 0)
    return EndpointSlice(
        namespace=metadata.namespace,
        name=metadata.name,
        service="" if HEADLESS in labels else labels.get(SERVICE_NAME, ""),
        ports=tuple(
            EndpointPort(
                port.name or "", port.protocol or TransportProtocol.TCP, _port(port.port, f"ports[{i}].port")
            )
            for i, port in enumerate(wire.ports or ())
            if port.port is not None
        ),
        endpoints=tuple(
            _endpoint(endpoint, version, f"endpoints[{i}].addresses[0]")
            for i, endpoint in enumerate(wire.endpoints or ())
            if endpoint.addresses
        )
        if version
        else (),
    )


def _endpoint(wire: WireEndpoint, version: int, path: str) -> Endpoint:
    """Conditions that nobody has set: ready holds, serving is as ready, terminating does not hold."""
    address = parse_address(wire.addresses[0], path)
    if address.version != version:
        raise FieldError(path, str(address), f"an IPv{version} address, as addressType says")
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local:
        raise FieldError(path, str(address), "an address that another host can have")
    conditions = wire.conditions or _READY
    ready = conditions.ready is not False
    hints = wire.hints
    return Endpoint(
        address=address,
        ready=ready,
        serving=ready if conditions.serving is None else conditions.serving,
        terminating=bool(conditions.terminating),
        node_name=wire.node_name or "",
        zones=_names(hints.for_zones) if hints else (),
        nodes=_names(hints.for_nodes) if hints else (),
    )


def _names(hints: list[WireHint] | None) -> tuple[str, ...]:
    return tuple(hint.name for hint in hints or ())


SERVICES: Final = Resource(
    group="",
    version="v1",
    plural="services",
    kind="Service",
    namespaced=True,
    struct=WireService,
    to_model=to_service,
)
ENDPOINT_SLICES: Final = Resource(
    group="discovery.k8s.io",
    version="v1",
    plural="endpointslices",
    kind="EndpointSlice",
    namespaced=True,
    struct=WireEndpointSlice,
    to_model=to_endpoint_slice,
)
