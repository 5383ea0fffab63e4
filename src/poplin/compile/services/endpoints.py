"""Which endpoints of a Service's port this node may send to, and why not to the others."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from poplin.compile.destination_nat import encode_port
from poplin.model.cluster import Node
from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.service import Endpoint, EndpointSlice, ServicePort

ZONE_LABEL: Final = "topology.kubernetes.io/zone"

Target = bytes
"""An endpoint's address and port, as a map's value has them: address, port, two zeros."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the packets are that are to be served: this node, as Services see it.

    `zone` is the Node's label topology.kubernetes.io/zone, "" without one; `addresses` are all its own, and
    `node_port_addresses` those at which it serves node ports.
    """

    node_name: str
    zone: str = ""
    addresses: tuple[IPAddress, ...] = ()
    node_port_addresses: tuple[IPAddress, ...] = ()


def place_at(own: Node) -> Place:
    """Give a node's place, with node ports at the first InternalIP of each family."""
    first = {address.version: address for address in reversed(own.internal_addresses)}
    addresses = (*own.internal_addresses, *own.external_addresses)
    return Place(own.name, own.labels.get(ZONE_LABEL, ""), addresses, tuple(first.values()))


@dataclass(frozen=True, slots=True)
class Choice:
    """Who may be sent to: by the policy Cluster, and by Local; both sorted and without repetition.

    `serving` are all on any node that still serve, whom a flow that knows them may go on with.
    """

    cluster: tuple[Target, ...] = ()
    local: tuple[Target, ...] = ()
    serving: frozenset[Target] = frozenset()

    @property
    def anywhere(self) -> bool:
        """Whether some node has an endpoint."""
        return bool(self.serving)


def choose_endpoints(
    slices: Iterable[EndpointSlice], port: ServicePort, version: int, place: Place
) -> Choice:
    """Choose among all endpoints of a port in a family.

    Ready ones serve; where there is none, those that still serve while they terminate (KEP-1669), for
    Cluster and for Local each by itself. Topology hints narrow Cluster alone, where `hinted` says so.
    """
    ready: dict[Target, Endpoint] = {}
    ending: dict[Target, Endpoint] = {}
    for target, endpoint in list_endpoints(slices, port, version):
        if endpoint.ready:
            ready.setdefault(target, endpoint)
        elif endpoint.serving and endpoint.terminating:
            ending.setdefault(target, endpoint)
    return Choice(
        cluster=tuple(sorted(hinted(ready, place) if ready else ending)),
        local=_on_node(ready, place) or _on_node(ending, place),
        serving=frozenset((*ready, *ending)),
    )


def list_endpoints(
    slices: Iterable[EndpointSlice], port: ServicePort, version: int
) -> Iterator[tuple[Target, Endpoint]]:
    """Give all endpoints of a port in a family, in whatever state; one may stand in several slices."""
    for one in slices:
        for own in one.ports:
            if own.name == port.name and own.protocol == port.protocol:
                tail = encode_port(own.port)
                for endpoint in one.endpoints:
                    if endpoint.address.version == version:
                        yield endpoint.address.packed + tail, endpoint


def hinted(ready: dict[Target, Endpoint], place: Place) -> Iterable[Target]:
    """Give the ready endpoints that are meant for this node, else for its zone, else all.

    Hints count only where every ready endpoint has one and some match: otherwise they are about to change,
    and nobody may be left without an endpoint (KEP-2433, KEP-3015).
    """
    endpoints = ready.values()
    if all(endpoint.nodes for endpoint in endpoints):
        near = [target for target, endpoint in ready.items() if place.node_name in endpoint.nodes]
        if near:
            return near
    if place.zone and all(endpoint.zones for endpoint in endpoints):
        near = [target for target, endpoint in ready.items() if place.zone in endpoint.zones]
        if near:
            return near
    return ready


def _on_node(endpoints: dict[Target, Endpoint], place: Place) -> tuple[Target, ...]:
    return tuple(
        sorted(target for target, endpoint in endpoints.items() if endpoint.node_name == place.node_name)
    )


class Reason(StrEnum):
    """Why an endpoint is drawn, or is not."""

    READY = "ready"
    HINTS_UNUSED = "ready; its hints are for others, but so many are missing or elsewhere that none counts"
    LAST = "terminating, and drawn as long as it serves since no other is ready"
    NOT_READY = "not ready"
    STOPPED = "terminating, and serves no more"
    ELSEWHERE = "on another node, and the traffic policy is Local"
    ENDING = "terminating, and others are ready"
    HINTED_AWAY = "its hints are for other nodes or zones"
    TOO_MANY = "beyond the number of endpoints that one Service can have"


def judge_endpoint(
    target: Target, endpoint: Endpoint, choice: Choice, place: Place, *, local: bool, drawn: bool
) -> Reason:
    """Say why it is as it is: `choice` and `drawn` are decided, and leave one reason each.

    `local` says which policy has chosen.
    """
    if drawn:
        if not endpoint.ready:
            return Reason.LAST
        given = endpoint.nodes or endpoint.zones
        near = place.node_name in endpoint.nodes or (place.zone and place.zone in endpoint.zones)
        return Reason.HINTS_UNUSED if given and not near and not local else Reason.READY
    if target not in choice.serving:
        return Reason.STOPPED if endpoint.terminating else Reason.NOT_READY
    if target in (choice.local if local else choice.cluster):
        return Reason.TOO_MANY
    if local and endpoint.node_name != place.node_name:
        return Reason.ELSEWHERE
    return Reason.HINTED_AWAY if endpoint.ready else Reason.ENDING


def contains_any(networks: Iterable[IPNetwork], addresses: Iterable[IPAddress]) -> bool:
    """Tell whether one of the addresses lies in one of the networks."""
    return any(address in network for network in networks for address in addresses)
