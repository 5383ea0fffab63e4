"""A Service's pods as endpoints: which there are, on which ports, and in which state.

Source: API reference, "EndpointSlice"; KEP-1672 (terminating endpoints), KEP-4444 and KEP-3015 (trafficDistribution).
"""

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any, Final

from poplin.lab.controllers.object import Json, Object
from poplin.lab.controllers.pod import is_finished, is_ready

ZONE: Final = "topology.kubernetes.io/zone"

Port = tuple[str, str, int, str]
"""Name, protocol, number and application protocol, "" for none."""
Ports = tuple[Port, ...]


def selects(service: Object, pod: Object) -> bool:
    """Whether the pod is one of the Service's; a Service without a selector has none."""
    selector = service.spec.get("selector") or {}
    return bool(selector) and selector.items() <= pod.labels.items()


def has_endpoints(service: Object) -> bool:
    """Whether its endpoints are found by us: those of others are their makers' business."""
    return bool(service.spec.get("selector")) and service.spec.get("type") != "ExternalName"


def make_endpoints(
    service: Object, pods: Iterable[Object], family: str, zone_of: Callable[[str], str]
) -> dict[Ports, list[Json]]:
    """Endpoints of one family ("IPv4") by the ports they have; `zone_of` a node's name is "" for none.

    Pods whose containers have stopped for good are none, those that are about to stop are.
    """
    found: dict[Ports, list[Json]] = {}
    for pod in sorted(pods, key=lambda one: one.name):
        address = address_of(pod, family)
        if address and not is_finished(pod):
            zone = zone_of(pod.spec.get("nodeName") or "")
            endpoint = make_endpoint(service, pod, address, zone)
            found.setdefault(make_ports(service, pod), []).append(endpoint)
    return found


def address_of(pod: Object, family: str) -> str:
    """The pod's address of a family, "" without one."""
    for one in pod.status.get("podIPs") or ():
        if f"IPv{ip_address(one['ip']).version}" == family:
            return str(one["ip"])
    return ""


def make_endpoint(service: Object, pod: Object, address: str, zone: str) -> Json:
    """The endpoint that a pod is, as the API writes it."""
    serving = is_ready(pod)
    ready = bool(service.spec.get("publishNotReadyAddresses")) or (serving and not pod.deleting)
    node = pod.spec.get("nodeName") or ""
    endpoint: Json = {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": pod.deleting},
        "targetRef": {"kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid},
    }
    if node:
        endpoint["nodeName"] = node
    if zone:
        endpoint["zone"] = zone
    if pod.spec.get("hostname") and pod.spec.get("subdomain") == service.name:
        endpoint["hostname"] = pod.spec["hostname"]
    hints = make_hints(service.spec.get("trafficDistribution"), node, zone) if ready else {}
    if hints:
        endpoint["hints"] = hints
    return endpoint


def make_hints(distribution: str | None, node: str, zone: str) -> Json:
    """Whom a ready endpoint is for: those that are near, as the Service prefers it."""
    hints: Json = {}
    if distribution and zone:
        hints["forZones"] = [{"name": zone}]
    if distribution == "PreferSameNode" and node:
        hints["forNodes"] = [{"name": node}]
    return hints


def make_ports(service: Object, pod: Object) -> Ports:
    """The Service's ports as this pod has them; a name that it has no port of is left out."""
    found = []
    for port in service.spec.get("ports") or ():
        protocol = port.get("protocol") or "TCP"
        number = find_port(pod, port.get("targetPort") or port["port"], protocol)
        if number:
            found.append((port.get("name") or "", protocol, number, port.get("appProtocol") or ""))
    return tuple(sorted(found))


def find_port(pod: Object, target: int | str, protocol: str) -> int:
    """The number of a target port, 0 where it is a name that the pod does not know."""
    if isinstance(target, int):
        return target
    sidecars = [one for one in pod.spec.get("initContainers") or () if one.get("restartPolicy") == "Always"]
    for container in (*(pod.spec.get("containers") or ()), *sidecars):
        for port in container.get("ports") or ():
            if port.get("name") == target and (port.get("protocol") or "TCP") == protocol:
                return int(port["containerPort"])
    return 0


def write_ports(ports: Ports) -> list[Json]:
    """As the API writes them."""
    return [
        {"name": name, "port": number, "protocol": protocol}
        | ({"appProtocol": application} if application else {})
        for name, protocol, number, application in ports
    ]


def read_ports(ports: Iterable[Mapping[str, Any]] | None) -> Ports:
    """The inverse."""
    return tuple(
        sorted(
            (p.get("name") or "", p.get("protocol") or "TCP", p.get("port") or 0, p.get("appProtocol") or "")
            for p in ports or ()
        )
    )
