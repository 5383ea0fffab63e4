"""What a load balancer outside the cluster asks each node: whether it has endpoints of a Service itself."""

from collections.abc import Iterable
from dataclasses import dataclass

from poplin.compile.services.endpoints import Place
from poplin.model.service import EndpointSlice, Service


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The answer on a healthCheckNodePort. `local_endpoints`: ready ones on this node, each address once."""

    port: int
    namespace: str
    name: str
    local_endpoints: int


def compile_health_check(
    service: Service, slices: Iterable[EndpointSlice], place: Place
) -> HealthCheck | None:
    """Give a Service's health check; None where it has no port for it, or its external policy is not Local."""
    if not service.health_check_node_port or not service.external_local or service.served_elsewhere:
        return None
    local = {
        endpoint.address
        for one in slices
        for endpoint in one.endpoints
        if endpoint.ready and endpoint.node_name == place.node_name
    }
    return HealthCheck(service.health_check_node_port, service.namespace, service.name, len(local))
