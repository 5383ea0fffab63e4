"""EndpointSlices of Services with a selector, brought up to date with as few writes as will do.

Source: API reference, "EndpointSlice"; Kubernetes documentation, "EndpointSlices" (distribution of endpoints). An
endpoint stays in its slice; slices that change anyway take new ones first. A family without endpoints keeps one
empty slice: it says that nobody is there, where none at all would say that nobody has looked.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import Cluster, Controller
from poplin.lab.controllers.endpoint import (
    ZONE,
    Ports,
    has_endpoints,
    make_endpoints,
    read_ports,
    selects,
    write_ports,
)
from poplin.lab.controllers.object import (
    ENDPOINT_SLICES,
    NODES,
    PODS,
    SERVICES,
    Json,
    Key,
    Object,
    controller_of,
    owner_reference,
)
from poplin.lab.controllers.write import Create, Outcome, Write, delete, patch

LIMIT: Final = 100
"""Endpoints of a slice."""
NAME: Final = "endpointslice-controller"
SERVICE_NAME: Final = "kubernetes.io/service-name"
MANAGED_BY: Final = "endpointslice.kubernetes.io/managed-by"
HEADLESS: Final = "service.kubernetes.io/headless"


def reconcile(
    service: Object, family: str, wanted: dict[Ports, list[Json]], slices: Iterable[Object]
) -> list[Write]:
    """Make `slices`, which are the Service's of one family, hold the wanted endpoints and nothing else."""
    slices = sorted(slices, key=lambda one: (one.created, one.name))
    writes: list[Write] = []
    spare = [one for one in slices if read_ports(one.ports) not in wanted or not one.endpoints]
    for ports, endpoints in wanted.items():
        mine = [one for one in slices if one not in spare and read_ports(one.ports) == ports]
        writes += _distribute(service, family, ports, endpoints, mine, spare)
    if not wanted:
        if spare:
            kept = spare.pop(0)
            writes += _update(service, kept, kept.ports or [], [])
        else:
            writes.append(_create(service, family, (), []))
    writes += [delete(ENDPOINT_SLICES, one) for one in spare]
    return writes


def _distribute(
    service: Object,
    family: str,
    ports: Ports,
    endpoints: Sequence[Json],
    slices: Sequence[Object],
    spare: list[Object],
) -> list[Write]:
    """Bring endpoints of the same ports into `slices`, then into spare ones, which are taken, then into new ones."""
    left = {endpoint["targetRef"]["uid"]: endpoint for endpoint in endpoints}
    contents: list[tuple[Object, list[Json]]] = []
    for one in slices:
        uids = [(old.get("targetRef") or {}).get("uid") for old in one.endpoints or ()]
        contents.append((one, [left.pop(uid) for uid in uids if uid in left]))
    fresh = list(left.values())
    # The fullest of those that change anyway; else the fullest that has room for all.
    for one, content in sorted(contents, key=lambda pair: -len(pair[1])):
        if content != one.endpoints and content:
            room = LIMIT - len(content)
            content.extend(fresh[:room])
            del fresh[:room]
    for one, content in sorted(contents, key=lambda pair: -len(pair[1])):
        if fresh and content == one.endpoints and len(content) + len(fresh) <= LIMIT:
            content.extend(fresh)
            fresh = []
    writes: list[Write] = []
    listed = write_ports(ports)
    for one, content in contents:
        if content:
            writes += _update(service, one, listed, content)
        else:
            spare.append(one)
    while fresh:
        content, fresh = fresh[:LIMIT], fresh[LIMIT:]
        if spare:
            writes += _update(service, spare.pop(0), listed, content)
        else:
            writes.append(_create(service, family, ports, content))
    return writes


def _create(service: Object, family: str, ports: Ports, endpoints: Sequence[Json]) -> Create:
    metadata = {
        "generateName": f"{service.name}-",
        "namespace": service.namespace,
        "labels": make_labels(service),
        "ownerReferences": [owner_reference(service)],
    }
    body: Json = {
        "metadata": metadata,
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": write_ports(ports),
    }
    return Create(ENDPOINT_SLICES, service.namespace, body)


def _update(service: Object, one: Object, ports: list[Json], endpoints: list[Json]) -> list[Write]:
    """The write that makes a slice so, if it is not."""
    change: Json = {}
    if (one.endpoints or []) != endpoints:
        change["endpoints"] = endpoints
    if read_ports(one.ports) != read_ports(ports):
        change["ports"] = ports
    labels = make_labels(service)
    if one.labels != labels:
        gone: Json = dict.fromkeys(one.labels.keys() - labels.keys())
        change["metadata"] = {"labels": {**gone, **labels}}
    return [patch(ENDPOINT_SLICES, one, change, strategic=False)] if change else []


def make_labels(service: Object) -> dict[str, str]:
    """The Service's own labels and those by which its slices are found."""
    ours = {SERVICE_NAME: service.name, MANAGED_BY: f"{NAME}.k8s.io"}
    if service.spec.get("clusterIP") == "None":
        ours[HEADLESS] = ""
    return {key: value for key, value in service.labels.items() if key != HEADLESS} | ours


def _decide(cluster: Cluster, key: Key, now: datetime) -> Outcome:
    del now
    service = cluster[SERVICES].get(key)
    if service is None or not has_endpoints(service):
        return Outcome()
    pods = [pod for pod in cluster[PODS].find("namespace", key[0]) if selects(service, pod)]
    slices = cluster[ENDPOINT_SLICES].find("owner", service.uid)

    def zone_of(node: str) -> str:
        found = cluster[NODES].get(("", node))
        return found.labels.get(ZONE, "") if found else ""

    families = service.spec.get("ipFamilies") or []
    writes: list[Write] = [delete(ENDPOINT_SLICES, one) for one in slices if one.address_type not in families]
    for family in families:
        wanted = make_endpoints(service, pods, family, zone_of)
        writes += reconcile(service, family, wanted, [one for one in slices if one.address_type == family])
    return Outcome(tuple(writes))


def _affected(cluster: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    if resource is SERVICES:
        return (one.key,)
    if resource is ENDPOINT_SLICES:
        reference = controller_of(one)
        ours = reference is not None and reference["kind"] == SERVICES.kind
        return ((one.namespace, reference["name"]),) if reference is not None and ours else ()
    pods = cluster[PODS].find("node", one.name) if resource is NODES else [one]
    return {
        service.key
        for pod in pods
        for label in pod.labels.items()
        for service in cluster[SERVICES].find("selector", (pod.namespace, *label))
        if selects(service, pod)
    }


ENDPOINT_SLICE: Final = Controller(NAME, (SERVICES, PODS, ENDPOINT_SLICES, NODES), _affected, _decide)
