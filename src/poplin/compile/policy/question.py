"""Questions that people ask of policy: who may reach whom, at which port; and the answers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from ipaddress import ip_address
from typing import Final, NamedTuple

from poplin.compile.policy.world import Explanation, PolicyState, World
from poplin.model.cluster import ContainerPort, Pod
from poplin.model.errors import InvalidInputError
from poplin.model.kernel import IPAddress
from poplin.model.policy import ICMP, ICMPV6, NUMBERS, PORTED, PROTOCOLS, TCP, Packet, protocol_name

NODE_PREFIX: Final = "node/"
ICMP_WORD: Final = "icmp"
MAX_PORT: Final = 65535
EPHEMERAL_PORT: Final = 32768
"""The source port of packets that are asked about: no NetworkPolicy can ask for it."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection: a pod, a node, or an address. `ports` are those that the pod declares."""

    title: str
    addresses: tuple[IPAddress, ...]
    ports: tuple[ContainerPort, ...] = ()


class Service(NamedTuple):
    """What is asked for at the destination. `protocol` is IANA's number; `port` 0 where it has none."""

    protocol: int
    port: int = 0

    def __str__(self) -> str:
        return f"{protocol_name(self.protocol)} {self.port}" if self.port else protocol_name(self.protocol)


@dataclass(frozen=True, slots=True)
class Answer:
    """The explanations of one connection, one for each family that both ends have."""

    source: End
    destination: End
    service: Service
    explanations: tuple[Explanation, ...]

    @property
    def allowed(self) -> bool:
        return all(one.allowed for one in self.explanations)


def split_target(text: str) -> tuple[str, str]:
    """DST and PORT[/PROTO] of `DST[:PORT[/PROTO]]`; an IPv6 address with a port stands in brackets."""
    bracketed = re.fullmatch(r"\[([^]]*)\](?::(.*))?", text)
    if bracketed:
        return bracketed[1], bracketed[2] or ""
    if text.count(":") > 1:
        return text, ""
    name, _, port = text.partition(":")
    return name, port


def find_end(state: PolicyState, text: str, namespace: str) -> End:
    """The pod, node or address that a text means: "pod", "namespace/pod", "node/name", "10.1.2.3".

    Raises InvalidInputError where there is none.
    """
    try:
        address = ip_address(text)
    except ValueError:
        pass
    else:
        pod = next((pod for pod in living(state.pods) if address in pod.addresses), None)
        return End(text, (address,)) if pod is None else replace(to_end(pod), addresses=(address,))
    place, _, name = text.rpartition("/")
    wanted = (place or namespace, name)
    pod = next((pod for pod in state.pods if (pod.namespace, pod.name) == wanted), None)
    if pod is not None:
        if pod.finished:
            raise InvalidInputError(f"pod {text} has finished, and has no network", where=text)
        return to_end(pod)
    if text.startswith(NODE_PREFIX):
        node = next((node for node in state.nodes if node.name == name), None)
        if node is None:
            raise InvalidInputError("no node of this name", where=text, remedy="see `kubectl get nodes`")
        return End(text, (*node.internal_addresses, *node.external_addresses))
    known = [f"{pod.namespace}/{pod.name}" for pod in living(state.pods)]
    near = get_close_matches("/".join(wanted), known, n=1)
    raise InvalidInputError(
        "no pod of this name",
        where="/".join(wanted),
        remedy=f"did you mean {near[0]}?" if near else "write NAMESPACE/POD, node/NAME or an address",
    )


def living(pods: Iterable[Pod]) -> list[Pod]:
    """The pods that can be an end of anything."""
    return [pod for pod in pods if not pod.finished]


def to_end(pod: Pod) -> End:
    return End(f"{pod.namespace}/{pod.name}", pod.addresses, pod.ports)


def find_services(destination: End, text: str) -> list[Service]:
    """What `PORT[/PROTO]` means at a destination: a number, the name of a declared port, or icmp.

    Of no text, every port that the pod declares, or ICMP where it declares none. Raises InvalidInputError.
    """
    icmp = Service(ICMP if destination.addresses and destination.addresses[0].version == 4 else ICMPV6)
    declared = [Service(NUMBERS[port.protocol], port.port) for port in destination.ports]
    if not text:
        return sorted(set(declared)) or [icmp]
    port, _, protocol_text = text.partition("/")
    if port.lower() == ICMP_WORD:
        return [icmp]
    numbers = {name.lower(): number for name, number in PROTOCOLS.items() if number in PORTED}
    protocol = numbers.get(protocol_text.lower(), 0)
    if protocol_text and not protocol:
        raise InvalidInputError(
            f"{protocol_text!r} is no protocol with ports",
            where=text,
            remedy=f"write one of {', '.join(numbers)}",
        )
    if port.isdecimal() and 0 < int(port) <= MAX_PORT:
        return [Service(protocol or TCP, int(port))]
    named = [
        Service(NUMBERS[one.protocol], one.port)
        for one in destination.ports
        if one.name == port and protocol in {0, NUMBERS[one.protocol]}
    ]
    if not named:
        names = ", ".join(sorted({one.name for one in destination.ports if one.name})) or "none"
        raise InvalidInputError(
            f"{port!r} is no port from 1 to {MAX_PORT}, nor the name of one",
            where=destination.title,
            remedy=f"its named ports: {names}",
        )
    return named


def ask(world: World, source: End, destination: End, service: Service) -> Answer:
    """Whether the source may open such a connection. Raises InvalidInputError where the ends have no family in common."""
    versions = sorted(
        {one.version for one in source.addresses} & {one.version for one in destination.addresses}
    )
    if not versions:
        raise InvalidInputError(
            f"{source.title} and {destination.title} have no address of one family",
            remedy="wait until both have theirs, or ask for others",
        )
    explanations = []
    for version in versions:
        ends = (_of(source, version), _of(destination, version))
        protocol = service.protocol
        if protocol in {ICMP, ICMPV6}:
            protocol = ICMP if version == 4 else ICMPV6
        packet = Packet(*ends, protocol, service.port, EPHEMERAL_PORT if protocol in PORTED else 0)
        explanations.append(world.evaluate(packet))
    return Answer(source, destination, service, tuple(explanations))


def ask_all(world: World, ends: Sequence[End], port: str) -> list[Answer]:
    """Every pair of ends, each way, at each destination's ports; see `find_services`."""
    answers = []
    for destination in ends:
        services = find_services(destination, port)
        answers += [
            ask(world, source, destination, service)
            for source in ends
            if source is not destination and _share(source, destination)
            for service in services
        ]
    return answers


def _share(one: End, other: End) -> bool:
    return not {address.version for address in one.addresses}.isdisjoint(
        address.version for address in other.addresses
    )


def _of(end: End, version: int) -> IPAddress:
    return next(address for address in end.addresses if address.version == version)
