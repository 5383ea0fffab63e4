"""Where a Service's packets go from one node: its frontends, and every endpoint with why it is drawn or not."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from poplin.compile.services.dispatch import inside, outside
from poplin.compile.services.endpoints import (
    Place,
    Reason,
    choose_endpoints,
    judge_endpoint,
    list_endpoints,
)
from poplin.compile.services.frontend import Frontend, Kind, compile_service
from poplin.model.kernel import IPAddress
from poplin.model.service import EndpointSlice, Service


@dataclass(frozen=True, slots=True)
class Candidate:
    """One endpoint. `drawn` says that packets go there; `reason` why, or why not."""

    address: IPAddress
    port: int
    node_name: str
    drawn: bool
    reason: Reason


@dataclass(frozen=True, slots=True)
class Route:
    """One frontend as the node at `place` serves it, to itself and its pods or, if `from_outside`, to others.

    `local` says that the traffic policy Local has chosen.
    """

    service: Service
    frontend: Frontend
    place: Place
    from_outside: bool
    local: bool
    candidates: tuple[Candidate, ...]

    @property
    def verdict(self) -> Literal["serve", "reject", "drop"]:
        if any(one.drawn for one in self.candidates):
            return "serve"
        return "reject" if self.frontend.shape.local is None else "drop"

    @property
    def masquerades(self) -> bool:
        """Whether endpoints see the node's address as the source: an outsider's answer must come by this node."""
        return self.from_outside and self.frontend.shape.local is None

    def admits(self, source: IPAddress) -> bool:
        """Tell whether loadBalancerSourceRanges let a source in."""
        sources = self.frontend.sources
        return sources is None or any(source in network for network in sources)


def list_routes(
    service: Service, slices: Iterable[EndpointSlice], place: Place, *, from_outside: bool
) -> list[Route]:
    """Give the route of each frontend; of a Service that this node does not serve none."""
    slices = tuple(slices)
    return [
        _route(service, frontend, slices, place, from_outside=from_outside)
        for frontend in compile_service(service, slices, place)
    ]


def _route(
    service: Service, frontend: Frontend, slices: Iterable[EndpointSlice], place: Place, *, from_outside: bool
) -> Route:
    internal = frontend.kind is Kind.CLUSTER_IP
    local = service.internal_local if internal else service.external_local and from_outside
    draw = (outside if from_outside else inside)(frontend.shape)
    targets = frontend.targets[draw.offset : draw.offset + draw.count] if draw else ()
    port, version = frontend.port, frontend.address.version
    choice = choose_endpoints(slices, port, version, place)
    # Of one that stands in several slices, the first of the state that serves best is the one that was chosen by.
    listed = reversed(list(list_endpoints(slices, port, version)))
    found = dict(sorted(listed, key=lambda pair: (pair[1].ready, pair[1].serving and pair[1].terminating)))
    drawn = frozenset(targets)
    candidates = tuple(
        Candidate(
            ip_address(target[:-4]),
            int.from_bytes(target[-4:-2]),
            endpoint.node_name,
            target in drawn,
            judge_endpoint(target, endpoint, choice, place, local=local, drawn=target in drawn),
        )
        for target, endpoint in sorted(found.items(), key=lambda pair: pair[0])
    )
    return Route(service, frontend, place, from_outside, local, candidates)
