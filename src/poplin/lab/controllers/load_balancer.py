"""Addresses of Services of type LoadBalancer, taken from a pool (Kubernetes documentation, "Service").

A Service of another loadBalancerClass is another's. Without a pool nobody gets an address, as in a cluster
without a cloud.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from ipaddress import ip_address
from typing import Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import THE_CLUSTER, Cluster, Controller
from poplin.lab.controllers.object import SERVICES, Json, Key, Object
from poplin.lab.controllers.write import Event, Outcome, Tell, Write, patch_status
from poplin.model.kernel import IPAddress, IPNetwork

CLASS: Final = "poplin.lab/pool"
NAME: Final = "service-lb-controller"


def allot(services: Iterable[Object], pool: Sequence[IPNetwork]) -> list[Write]:
    """Give each load balancer an address of each family it has, and take back what is one's no more."""
    services = sorted(services, key=lambda one: (one.created, one.key))
    taken: set[IPAddress] = set()
    kept: dict[Key, list[IPAddress]] = {}
    for one in services:
        kept[one.key] = [address for address in _keep(one, pool) if address not in taken]
        taken.update(kept[one.key])
    writes: list[Write] = []
    for service in services:
        if not _is_ours(service):
            if service.spec.get("type") != "LoadBalancer" and _ingress(service):
                writes += patch_status(SERVICES, service, {"loadBalancer": {"ingress": None}})
            continue
        addresses = kept[service.key]
        for family in service.spec.get("ipFamilies") or ():
            if any(f"IPv{address.version}" == family for address in addresses):
                continue
            address = find_free(service, family, pool, taken)
            if address is None:
                text = f"no {family} address is free in {', '.join(map(str, pool))}"
                writes.append(Tell(Event(service, "SyncLoadBalancerFailed", text, warning=True)))
            else:
                addresses.append(address)
                taken.add(address)
        ingress = [{"ip": str(address), "ipMode": "VIP"} for address in addresses]
        if ingress != _ingress(service):
            writes += patch_status(SERVICES, service, {"loadBalancer": {"ingress": ingress}})
    return writes


def find_free(
    service: Object, family: str, pool: Iterable[IPNetwork], taken: set[IPAddress]
) -> IPAddress | None:
    """The address that the Service asks for (spec.loadBalancerIP), else the lowest free one; None without any."""
    asked = service.spec.get("loadBalancerIP")
    for network in pool:
        if f"IPv{network.version}" != family:
            continue
        for address in [_parse(asked)] if asked else network.hosts():
            if address is not None and address in network and address not in taken:
                return address
    return None


def _parse(text: str) -> IPAddress | None:
    """An address; None for what people wrote instead."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _keep(service: Object, pool: Sequence[IPNetwork]) -> list[IPAddress]:
    """The addresses that a Service has and may keep."""
    if not _is_ours(service):
        return []
    families = service.spec.get("ipFamilies") or []
    found = [_parse(one.get("ip") or "") for one in _ingress(service)]
    return [
        address
        for address in found
        if address is not None
        and f"IPv{address.version}" in families
        and any(address in network for network in pool)
    ]


def _is_ours(service: Object) -> bool:
    spec = service.spec
    mine = spec.get("loadBalancerClass") in {None, "", CLASS}
    return spec.get("type") == "LoadBalancer" and mine and not service.deleting


def _ingress(service: Object) -> list[Json]:
    return (service.status.get("loadBalancer") or {}).get("ingress") or []


def make_load_balancer(pool: Sequence[IPNetwork]) -> Controller:
    """The row for a cluster with this pool."""

    def decide(cluster: Cluster, _: Key, now: datetime) -> Outcome:
        del now
        concerned = [one for one in cluster[SERVICES] if _concerns(one)]
        return Outcome(tuple(allot(concerned, pool)) if pool else ())

    return Controller(NAME, (SERVICES,), _affected, decide)


def _concerns(service: Object) -> bool:
    return service.spec.get("type") == "LoadBalancer" or bool(_ingress(service))


def _affected(_: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    del resource
    return (THE_CLUSTER,) if _concerns(one) else ()
