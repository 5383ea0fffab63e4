"""How pods find the API: the Service `kubernetes` in `default`, with its endpoints.

https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from poplin.apiserver.collection import Object
from poplin.apiserver.deletion import DeleteOptions
from poplin.apiserver.lifecycle import Lifecycle
from poplin.apiserver.options import Options
from poplin.apiserver.resource import lookup
from poplin.model.errors import InvalidInputError
from poplin.model.kernel import IPAddress, IPNetwork

NAME: Final = "kubernetes"
NAMESPACE: Final = "default"
PORT: Final = "https"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`cluster_ip` is what pods use, at 443; the server itself listens at `addresses` (of one family) and `port`."""

    cluster_ip: str
    addresses: Sequence[str]
    port: int

    def names(self) -> list[str]:
        """What pods call the server, for its certificate."""
        prefixes = [
            NAME,
            f"{NAME}.{NAMESPACE}",
            f"{NAME}.{NAMESPACE}.svc",
            f"{NAME}.{NAMESPACE}.svc.cluster.local",
        ]
        return [*prefixes, self.cluster_ip, *self.addresses]


def make_endpoint(networks: Sequence[IPNetwork], addresses: Sequence[IPAddress], port: int) -> Endpoint:
    """The first address of the first range, for a server at those of `addresses` that are of its family.

    Raises InvalidInputError where there are none.
    """
    network = networks[0]
    served = [str(address) for address in addresses if address.version == network.version]
    if not served:
        raise InvalidInputError(
            f"the server has no IPv{network.version} address",
            where=f"service range {network}",
            remedy="name a range of the server's family first",
        )
    return Endpoint(str(network.network_address + 1), served, port)


MIN_HOST_BITS: Final = 3
"""Room for the API's own address and cluster DNS."""


def parse_service_networks(text: str) -> tuple[IPNetwork, ...]:
    """The ranges of a `--service-cidr`: one, or two of different families. Raises InvalidInputError."""
    try:
        networks = tuple(ip_network(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise InvalidInputError(str(error), where=f"--service-cidr {text}") from None
    if len({network.version for network in networks}) < len(networks):
        raise InvalidInputError(
            "two ranges of one family", where=f"--service-cidr {text}", remedy="give one of each family"
        )
    for network in networks:
        if network.max_prefixlen - network.prefixlen < MIN_HOST_BITS:
            raise InvalidInputError(
                f"{network} is too small",
                where=f"--service-cidr {text}",
                remedy=f"use a prefix of at most /{network.max_prefixlen - MIN_HOST_BITS}",
            )
    return networks


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
    standing = lifecycle.collection(resource).head(key)
    if standing is not None and _moves(standing.decode(), wanted):
        # The cluster's range is another one now, and an address never changes in place.
        await lifecycle.delete(resource, key, DeleteOptions())
        standing = None
    if standing is None:
        await lifecycle.create(resource, NAMESPACE, wanted, Options())
    else:
        await lifecycle.update(resource, key, lambda _: wanted, Options())


def _moves(standing: Object, wanted: Object) -> bool:
    """Whether the update would change what must not change."""
    return lookup(standing, "spec.clusterIP") != lookup(wanted, "spec.clusterIP") or (
        standing.get("addressType") != wanted.get("addressType")
    )
