"""EndpointSlices that files lack, as the controller would write them for the pods that the files have."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Final

from poplin.datastore.file import select
from poplin.datastore.resource import Resource
from poplin.lab.controllers.endpoint import ZONE, Ports, has_endpoints, make_endpoints, selects, write_ports
from poplin.lab.controllers.endpoint_slice import SERVICE_NAME
from poplin.lab.controllers.object import ENDPOINT_SLICES, NODES, PODS, SERVICES, Json, Key, Object

READY: Final = [{"type": "Ready", "status": "True"}]


def derive_slices(
    services: Sequence[Json], pods: Iterable[Json], documents: Sequence[Json]
) -> dict[Key, list[Json]]:
    """EndpointSlices by Service, of those with a selector and without any among `documents`.

    Pods that say nothing of their conditions count as ready.
    """
    nodes = _objects(documents, NODES)
    known = {
        (one.namespace, one.labels.get(SERVICE_NAME)) for one in _objects(documents, ENDPOINT_SLICES).values()
    }
    all_pods = _objects([_with_conditions(pod) for pod in pods], PODS).values()

    def zone_of(node: str) -> str:
        found = nodes.get(("", node))
        return found.labels.get(ZONE, "") if found else ""

    derived = {}
    for key, service in _objects(services, SERVICES).items():
        if key in known or not has_endpoints(service):
            continue
        own = [pod for pod in all_pods if pod.namespace == service.namespace and selects(service, pod)]
        derived[key] = [
            one
            for family in _families(service)
            for one in _slices(service, family, make_endpoints(service, own, family, zone_of))
        ]
    return derived


def _slices(service: Object, family: str, wanted: dict[Ports, list[Json]]) -> list[Json]:
    return [
        {
            "apiVersion": ENDPOINT_SLICES.api_version,
            "kind": ENDPOINT_SLICES.kind,
            "metadata": {
                "name": f"{service.name}-{family.lower()}-{number}",
                "namespace": service.namespace,
                "labels": {SERVICE_NAME: service.name},
            },
            "addressType": family,
            "ports": write_ports(ports),
            "endpoints": endpoints,
        }
        for number, (ports, endpoints) in enumerate(wanted.items())
    ]


def _families(service: Object) -> list[str]:
    ips = service.spec.get("clusterIPs") or [service.spec.get("clusterIP")]
    return [f"IPv{ip_address(ip).version}" for ip in ips if ip and ip != "None"]


def _with_conditions(pod: Json) -> Json:
    status = pod.get("status") or {}
    return pod if status.get("conditions") else pod | {"status": status | {"conditions": READY}}


def _objects(documents: Sequence[Json], resource: Resource[Object]) -> dict[Key, Object]:
    found = select(documents, resource, None, None)
    return {key: one for key, one in found.items() if isinstance(one, Object)}
