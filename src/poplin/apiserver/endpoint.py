"""How pods find the API: the Service `kubernetes` in `default`, with its endpoints.

https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from poplin.apiserver.collection import Object
from poplin.apiserver.lifecycle import Lifecycle
from poplin.apiserver.options import Options

NAME: Final = "kubernetes"
NAMESPACE: Final = "default"
PORT: Final = "https"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`cluster_ip` is what pods use, at 443; the server itself listens at `addresses` (of one family) and `port`."""

    cluster_ip: str
    addresses: Sequence[str]
    port: int


async def publish(lifecycle: Lifecycle, endpoint: Endpoint) -> None:
    """Create the Service, Endpoints and EndpointSlice, or bring them up to date."""
    version = ip_address(endpoint.cluster_ip).version
    labels = {"component": "apiserver", "provider": "kubernetes"}
    service = {
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "clusterIP": endpoint.cluster_ip,
            "clusterIPs": [endpoint.cluster_ip],
            "ipFamilies": [f"IPv{version}"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": PORT, "port": 443, "targetPort": endpoint.port, "protocol": "TCP"}],
        },
    }
    ports = [{"name": PORT, "port": endpoint.port, "protocol": "TCP"}]
    endpoints = {
        "metadata": {"name": NAME, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address} for address in endpoint.addresses], "ports": ports}],
    }
    endpoint_slice = {
        "metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": f"IPv{version}",
        "endpoints": [
            {"addresses": [address], "conditions": {"ready": True}} for address in endpoint.addresses
        ],
        "ports": ports,
    }
    await _put(lifecycle, "", "services", service)
    await _put(lifecycle, "", "endpoints", endpoints)
    await _put(lifecycle, "discovery.k8s.io", "endpointslices", endpoint_slice)


async def _put(lifecycle: Lifecycle, group: str, plural: str, wanted: Object) -> None:
    resource = lifecycle.registry.find(group, "v1", plural)
    if resource is None:
        return
    key = (NAMESPACE, NAME)
    if lifecycle.collection(resource).head(key) is None:
        await lifecycle.create(resource, NAMESPACE, wanted, Options())
    else:
        await lifecycle.update(resource, key, lambda _: wanted, Options())
