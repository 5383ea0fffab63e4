"""`poplin explain` for a Service: which endpoints may be drawn and why, and what policy says of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address
from typing import Any, Final

from poplin.compile.policy.question import NODE_PREFIX, Answer, End, ask
from poplin.compile.policy.question import Service as Asked
from poplin.compile.policy.world import PolicyState, World
from poplin.compile.services.endpoints import Place, place_at
from poplin.compile.services.frontend import Kind
from poplin.compile.services.listing import KINDS
from poplin.compile.services.route import Candidate, Route, list_routes
from poplin.datastore.offline import list_pods, list_services, to_services
from poplin.lab.controllers.derivation import derive_slices
from poplin.model.errors import InvalidInputError, PoplinError
from poplin.model.kernel import IPAddress
from poplin.model.service import PROTOCOL_NUMBERS, EndpointSlice, Service, ServicePort

PREFIXES: Final = ("svc/", "service/")
NOWHERE: Final = Place("-")
"""The node of a pod that has none yet, and of outsiders where no node is known: no endpoint is on it."""

Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Services:
    """The cluster's Services with their slices. Those of `derived` have slices made up from selector and pods."""

    wanted: Mapping[Name, tuple[Service, tuple[EndpointSlice, ...]]]
    derived: frozenset[Name]


@dataclass(frozen=True, slots=True)
class Passage:
    """A connection to a Service: its route, the pods at its end, and what policy says of each that is drawn."""

    source: End
    route: Route
    derived: bool
    admitted: bool
    ends: Mapping[Candidate, End]
    answers: Mapping[Candidate, Answer]

    @property
    def outcome(self) -> str:
        if not self.admitted:
            return "dropped"
        if not self.answers:
            return {"reject": "rejected", "drop": "dropped"}[self.route.verdict]
        allowed = {one.allowed for one in self.answers.values()}
        return "allowed" if allowed == {True} else "denied" if allowed == {False} else "partly allowed"


def read_services(documents: Sequence[dict[str, Any]], *, derive: bool) -> tuple[Services, list[PoplinError]]:
    """The Services among objects. `derive`: they are of files, which may lack clusterIPs and slices."""
    derived: dict[Name, list[dict[str, Any]]] = {}
    if derive:
        given = list_services(documents)
        derived = derive_slices(given, list_pods(documents), documents)
        made = [one for slices in derived.values() for one in slices]
        documents = [*documents, *given, *made]
    services, slices, problems = to_services(documents)
    own: dict[Name, list[EndpointSlice]] = {}
    for one in slices:
        own.setdefault((one.namespace, one.service), []).append(one)
    wanted = {
        name: (one, tuple(own.get(name, ()))) for one in services for name in [(one.namespace, one.name)]
    }
    return Services(wanted, frozenset(derived)), problems


def follow(
    services: Services,
    state: PolicyState,
    world: World,
    source: End,
    target: tuple[str, str],
    namespace: str,
) -> list[Passage]:
    """Every way from a source to a Service by its name or address; none where `target` means no Service.

    `target` is DST and PORT[/PROTO], see `split_target`. Raises InvalidInputError.
    """
    text, port = target
    name = _find_name(services, state, text, namespace)
    address = None if name else _address(text)
    if name is None and address is None:
        return []
    passages: list[Passage] = []
    seen = False
    for place, from_outside in _places(state, source):
        for route in _routes(services, name, address, place, from_outside=from_outside):
            asked = route.frontend.port.port if name else route.frontend.number
            if _means(port, route.frontend.port, asked):
                seen = True
                passages += _pass(services, world, source, route)
    if not seen:
        _refuse(services, name, address, port)
    elif not passages:
        raise InvalidInputError(f"{source.title} and {text} have no address of one family")
    return passages


def _find_name(services: Services, state: PolicyState, text: str, namespace: str) -> Name | None:
    """The Service that a text names: one with a prefix always, another where no pod has the name."""
    prefix = next((one for one in PREFIXES if text.startswith(one)), "")
    place, _, name = text.removeprefix(prefix).rpartition("/")
    wanted = (place or namespace, name)
    if wanted in services.wanted:
        taken = any((pod.namespace, pod.name) == wanted for pod in state.pods)
        return None if taken and not prefix else wanted
    if prefix:
        near = get_close_matches("/".join(wanted), ["/".join(one) for one in services.wanted], n=1)
        raise InvalidInputError(
            "no Service of this name",
            where="/".join(wanted),
            remedy=f"did you mean {prefix}{near[0]}?" if near else "see `kubectl get services -A`",
        )
    return None


def _address(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _places(state: PolicyState, source: End) -> Iterator[tuple[Place, bool]]:
    """Where a source's packets meet the Service, and whether they come there from outside: then at any node."""
    nodes = {node.name: place_at(node) for node in state.nodes}
    pods = {f"{pod.namespace}/{pod.name}": pod.node_name for pod in state.pods}
    own = source.title.removeprefix(NODE_PREFIX) if source.title.startswith(NODE_PREFIX) else ""
    own = own or next((name for name, at in nodes.items() if set(source.addresses) & set(at.addresses)), "")
    own = pods.get(source.title, own)
    if own:
        yield nodes.get(own, Place(own)), False
    elif source.title in pods:
        yield NOWHERE, False
    else:
        yield from ((place, True) for place in nodes.values() or [NOWHERE])


def _routes(
    services: Services, name: Name | None, address: IPAddress | None, place: Place, *, from_outside: bool
) -> list[Route]:
    """By name those at the clusterIPs, or from outside those at other addresses if there are any."""
    chosen = [services.wanted[name]] if name else services.wanted.values()
    routes = [route for one in chosen for route in list_routes(*one, place, from_outside=from_outside)]
    if name is None:
        # Of several Services that want one address and port, the one that `ServiceTable` grants it to.
        found = sorted(
            (route for route in routes if route.frontend.address == address),
            key=lambda one: (
                one.frontend.kind,
                one.service.created,
                (one.service.namespace, one.service.name),
            ),
        )
        return list({route.frontend.key: route for route in reversed(found)}.values())
    outer = [route for route in routes if route.frontend.kind is not Kind.CLUSTER_IP]
    if from_outside and outer:
        return outer
    return [route for route in routes if route.frontend.kind is Kind.CLUSTER_IP]


def _means(text: str, port: ServicePort, number: int) -> bool:
    wanted, _, protocol = text.partition("/")
    return wanted in {"", str(number), port.name} and protocol.upper() in {"", port.protocol}


def _pass(services: Services, world: World, source: End, route: Route) -> Iterator[Passage]:
    version = route.frontend.address.version
    own = next((one for one in source.addresses if one.version == version), None)
    if own is None:
        return
    seen = source
    if route.masquerades and any(one.version == version for one in route.place.addresses):
        seen = End(f"{NODE_PREFIX}{route.place.node_name}", route.place.addresses)
    ends = {one: _end(world, one.address) for one in route.candidates}
    admitted = route.admits(own)
    protocol = PROTOCOL_NUMBERS[route.frontend.port.protocol]
    answers = {
        one: ask(world, seen, ends[one], Asked(protocol, one.port))
        for one in route.candidates
        if one.drawn and admitted
    }
    name = (route.service.namespace, route.service.name)
    yield Passage(source, route, name in services.derived, admitted, ends, answers)


def _end(world: World, address: IPAddress) -> End:
    pod = world.by_address.get(address)
    return End(f"{pod.namespace}/{pod.name}" if pod else str(address), (address,))


def _refuse(services: Services, name: Name | None, address: IPAddress | None, port: str) -> None:
    """Say what is wrong where a Service is meant and none of its ports; an address may be another's."""
    for one, _ in [services.wanted[name]] if name else services.wanted.values():
        if name is None and address not in one.cluster_ips:
            continue
        if one.served_elsewhere or not one.cluster_ips:
            raise InvalidInputError(
                "a Service without an address of its own" if not one.served_elsewhere else "not served here",
                where=f"Service {one.namespace}/{one.name}",
                remedy="it is headless, an ExternalName or another proxy's: ask for what its name leads to",
            )
        ports = ", ".join(f"{p.port}/{p.protocol}" + (f" ({p.name})" if p.name else "") for p in one.ports)
        raise InvalidInputError(
            f"{port!r} is none of its ports: such packets are rejected",
            where=f"Service {one.namespace}/{one.name}",
            remedy=f"its ports: {ports}",
        )


def passage_json(passage: Passage) -> dict[str, Any]:
    """What `-o json` has of it, but policy's answers, which are among the connections."""
    route, frontend = passage.route, passage.route.frontend
    return {
        "namespace": route.service.namespace,
        "name": route.service.name,
        "kind": KINDS[frontend.kind],
        "address": str(frontend.address),
        "port": frontend.number,
        "protocol": str(frontend.port.protocol),
        "source": passage.source.title,
        "node": None if route.place == NOWHERE else route.place.node_name,
        "from_outside": route.from_outside,
        "outcome": passage.outcome,
        "admitted": passage.admitted,
        "verdict": route.verdict,
        "traffic_policy": "Local" if route.local else "Cluster",
        "affinity_timeout_s": route.service.affinity_timeout_s,
        "masquerade": route.masquerades,
        "endpoints_derived": passage.derived,
        "endpoints": [
            {
                "address": str(one.address),
                "port": one.port,
                "destination": passage.ends[one].title,
                "node": one.node_name or None,
                "drawn": one.drawn,
                "reason": one.reason.name,
                "message": one.reason.value,
                "allowed": passage.answers[one].allowed if one in passage.answers else None,
            }
            for one in route.candidates
        ],
    }


def describe(passage: Passage) -> Iterator[str]:
    """What holds of the whole passage, line by line."""
    route = passage.route
    if passage.derived:
        yield "no EndpointSlice: endpoints are derived from the selector and the pods"
    if route.place == NOWHERE:
        yield "on no known node: as from a node without endpoints"
    if not passage.admitted:
        yield "the source is not in loadBalancerSourceRanges"
    if not route.candidates:
        yield "no endpoints"
    elif not any(one.drawn for one in route.candidates):
        yield "none of the endpoints may be drawn"
    if route.local:
        yield f"traffic policy Local: only endpoints on {route.place.node_name}"
    if route.service.affinity_timeout_s is not None:
        yield (
            f"session affinity: for {route.service.affinity_timeout_s} s a client goes where it went before, "
            "while that serves"
        )
    if route.masquerades and passage.answers:
        yield f"endpoints see the address of {route.place.node_name} as the source"
