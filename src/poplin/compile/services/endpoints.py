"""Which endpoints of a Service's port this node may send to."""

from collections.abc import Iterable
from dataclasses import dataclass

from poplin.compile.destination_nat import encode_port
from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.service import Endpoint, EndpointSlice, ServicePort

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
    for one in slices:
        for own in one.ports:
            if own.name != port.name or own.protocol != port.protocol:
                continue
            tail = encode_port(own.port)
            for endpoint in one.endpoints:
                if endpoint.address.version != version:
                    continue
                if endpoint.ready:
                    ready.setdefault(endpoint.address.packed + tail, endpoint)
                elif endpoint.serving and endpoint.terminating:
                    ending.setdefault(endpoint.address.packed + tail, endpoint)
    return Choice(
        cluster=tuple(sorted(hinted(ready, place) if ready else ending)),
        local=_on_node(ready, place) or _on_node(ending, place),
        serving=frozenset((*ready, *ending)),
    )


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


def contains_any(networks: Iterable[IPNetwork], addresses: Iterable[IPAddress]) -> bool:
    """Tell whether one of the addresses lies in one of the networks."""
    return any(address in network for network in networks for address in addresses)
