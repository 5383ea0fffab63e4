"""networking.k8s.io/v1 NetworkPolicy (Kubernetes API reference, "NetworkPolicy v1").

A mistake in a rule costs that rule: it allows nothing, the others stand, and the value says what was wrong.
The API server refuses most of them; files and older servers do not.
"""

import re
from collections.abc import Callable, Iterable
from ipaddress import ip_interface
from typing import Final, TypeVar

from msgspec import field

from poplin.datastore.core import Wire
from poplin.datastore.parse import FieldError, parse_network
from poplin.datastore.resource import Resource, WireObject
from poplin.model.cluster import (
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicyRule,
    TransportProtocol,
)
from poplin.model.kernel import IPNetwork
from poplin.model.selector import (
    EVERYTHING,
    NAMESPACE,
    NAMESPACE_PREFIX,
    And,
    Expression,
    Has,
    In,
    Not,
    Selector,
    scope,
    select,
)

LABEL_KEY: Final = re.compile(r"[A-Za-z0-9_./-]{1,317}")
LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
PORT_NAME: Final = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
MAX_PORT_NAME: Final = 15
T = TypeVar("T")


class WireRequirement(Wire):
    key: str
    operator: str
    values: list[str] | None = None


class WireLabelSelector(Wire):
    match_labels: dict[str, str] | None = None
    match_expressions: list[WireRequirement] | None = None


class WireBlock(Wire):
    cidr: str
    excepts: list[str] | None = field(default=None, name="except")


class WirePeer(Wire):
    pod_selector: WireLabelSelector | None = None
    namespace_selector: WireLabelSelector | None = None
    ip_block: WireBlock | None = field(default=None, name="ipBlock")


class WirePort(Wire):
    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class WireRule(Wire):
    ports: list[WirePort] | None = None
    sources: list[WirePeer] | None = field(default=None, name="from")
    destinations: list[WirePeer] | None = field(default=None, name="to")


class WireSpec(Wire):
    pod_selector: WireLabelSelector | None = None
    policy_types: list[str] | None = None
    ingress: list[WireRule] | None = None
    egress: list[WireRule] | None = None


class WireNetworkPolicy(WireObject):
    spec: WireSpec | None = None


def to_network_policy(wire: WireNetworkPolicy) -> NetworkPolicy:
    """Give the policy; without policyTypes it is for ingress, and for egress where it has such rules."""
    namespace, spec = wire.metadata.namespace, wire.spec or WireSpec()
    problems: list[str] = []
    types = spec.policy_types or (["Ingress", "Egress"] if spec.egress else ["Ingress"])
    problems += [
        f"spec.policyTypes: {kind!r} is not Ingress or Egress"
        for kind in types
        if kind not in {"Ingress", "Egress"}
    ]
    selector = _attempt(
        lambda: select(And(tuple(_requirements(spec.pod_selector, "spec.podSelector")))),
        problems,
        "every pod of the namespace is closed",
    )
    ingress = _rules(spec.ingress, "ingress", namespace, problems) if selector else ()
    egress = _rules(spec.egress, "egress", namespace, problems) if selector else ()
    return NetworkPolicy(
        namespace=namespace,
        name=wire.metadata.name,
        pod_selector=selector or EVERYTHING,
        ingress=ingress if "Ingress" in types else None,
        egress=egress if "Egress" in types else None,
        problems=tuple(problems),
        uid=wire.metadata.uid,
    )


def _attempt(read: Callable[[], T], problems: list[str], effect: str) -> T | None:
    try:
        return read()
    except FieldError as error:
        problems.append(f"{error}; {effect}")
        return None


def _rules(
    wires: Iterable[WireRule] | None, direction: str, namespace: str, problems: list[str]
) -> tuple[NetworkPolicyRule, ...]:
    rules = []
    for index, wire in enumerate(wires or ()):
        path = f"spec.{direction}[{index}]"
        peers, word = (wire.sources, "from") if direction == "ingress" else (wire.destinations, "to")

        def read(
            index: int = index,
            path: str = path,
            wire: WireRule = wire,
            peers: list[WirePeer] | None = peers,
            word: str = word,
        ) -> NetworkPolicyRule:
            return NetworkPolicyRule(
                index,
                tuple(
                    _peer(peer, f"{path}.{word}[{place}]", namespace)
                    for place, peer in enumerate(peers or ())
                ),
                tuple(_port(port, f"{path}.ports[{place}]") for place, port in enumerate(wire.ports or ())),
            )

        rule = _attempt(read, problems, "this rule allows nothing")
        if rule is not None:
            rules.append(rule)
            problems += _host_bits(peers or (), f"{path}.{word}")
    return tuple(rules)


def _host_bits(peers: Iterable[WirePeer], path: str) -> list[str]:
    """What the API allows and hardly anybody means: the bits after the prefix say nothing."""
    blocks = [(place, peer.ip_block) for place, peer in enumerate(peers) if peer.ip_block]
    texts = [
        (f"{path}[{place}].ipBlock.{name}", text)
        for place, block in blocks
        for name, text in [("cidr", block.cidr), *(("except", hole) for hole in block.excepts or ())]
    ]
    read = [(where, text, parse_network(text, where)) for where, text in texts]
    return [
        f"{where}: {text!r} has bits beyond its prefix; it is read as {network}"
        for where, text, network in read
        if ip_interface(text).ip != network.network_address
    ]


def _peer(wire: WirePeer, path: str, namespace: str) -> NetworkPolicyPeer:
    pods, namespaces, block = wire.pod_selector, wire.namespace_selector, wire.ip_block
    if block is not None:
        if pods is not None or namespaces is not None:
            raise FieldError(f"{path}.ipBlock", block.cidr, "allowed beside a selector")
        return _block(block, f"{path}.ipBlock")
    if pods is None and namespaces is None:
        raise FieldError(path, {}, "a podSelector, a namespaceSelector or an ipBlock")
    return NetworkPolicyPeer(_peer_selector(pods, namespaces, path, namespace))


def _peer_selector(
    pods: WireLabelSelector | None, namespaces: WireLabelSelector | None, path: str, namespace: str
) -> Selector:
    parts = list(_requirements(pods, f"{path}.podSelector"))
    if namespaces is None:
        parts.append(In(NAMESPACE, frozenset({namespace})))
    else:
        parts.append(Has(NAMESPACE))
        parts += _requirements(namespaces, f"{path}.namespaceSelector", NAMESPACE_PREFIX)
    return select(And(tuple(parts)))


def _block(wire: WireBlock, path: str) -> NetworkPolicyPeer:
    block = parse_network(wire.cidr, f"{path}.cidr")
    excepts: list[IPNetwork] = []
    for place, text in enumerate(wire.excepts or ()):
        hole = parse_network(text, f"{path}.except[{place}]")
        if hole.version != block.version or not hole.subnet_of(block):  # type: ignore[arg-type]  # of one version
            raise FieldError(f"{path}.except[{place}]", text, f"within {block}")
        excepts.append(hole)
    return NetworkPolicyPeer(block=block, excepts=tuple(excepts))


def _port(wire: WirePort, path: str) -> NetworkPolicyPort:
    protocol = wire.protocol or "TCP"
    if protocol not in TransportProtocol.__members__:
        raise FieldError(f"{path}.protocol", protocol, "TCP, UDP or SCTP")
    port, end = wire.port, wire.end_port
    if isinstance(port, int) and not 0 < port < 1 << 16:
        raise FieldError(f"{path}.port", port, "a port from 1 to 65535")
    if isinstance(port, str) and not (PORT_NAME.fullmatch(port) and len(port) <= MAX_PORT_NAME):
        raise FieldError(f"{path}.port", port, "a port's number or name")
    if end is not None:
        if not isinstance(port, int):
            raise FieldError(f"{path}.endPort", end, "allowed without a port's number")
        if not port <= end < 1 << 16:
            raise FieldError(f"{path}.endPort", end, f"a port from {port} to 65535")
    return NetworkPolicyPort(TransportProtocol(protocol), port, end)


def _requirements(wire: WireLabelSelector | None, path: str, prefix: str = "") -> Iterable[Expression]:
    if wire is None:
        return
    for key, value in (wire.match_labels or {}).items():
        yield In(_key(key, f"{path}.matchLabels", prefix), _values([value], f"{path}.matchLabels[{key}]"))
    for place, requirement in enumerate(wire.match_expressions or ()):
        yield _requirement(requirement, f"{path}.matchExpressions[{place}]", prefix)


def _requirement(wire: WireRequirement, path: str, prefix: str) -> Expression:
    key, values = _key(wire.key, f"{path}.key", prefix), wire.values or []
    if wire.operator in {"In", "NotIn"}:
        if not values:
            raise FieldError(f"{path}.values", values, f"enough for {wire.operator}")
        among = In(key, _values(values, f"{path}.values"))
        return among if wire.operator == "In" else Not(among)
    if wire.operator in {"Exists", "DoesNotExist"}:
        if values:
            raise FieldError(f"{path}.values", values, f"allowed with {wire.operator}")
        return Has(key) if wire.operator == "Exists" else Not(Has(key))
    raise FieldError(f"{path}.operator", wire.operator, "In, NotIn, Exists or DoesNotExist")


def _key(key: str, path: str, prefix: str) -> str:
    if not LABEL_KEY.fullmatch(key):
        raise FieldError(path, key, "a label's key")
    if not prefix and scope(key):
        raise FieldError(path, key, "a label of pods: it is kept for what they inherit")
    return prefix + key


def _values(values: Iterable[str], path: str) -> frozenset[str]:
    for value in values:
        if not LABEL_VALUE.fullmatch(value):
            raise FieldError(path, value, "a label's value")
    return frozenset(values)


NETWORK_POLICIES: Final = Resource(
    group="networking.k8s.io",
    version="v1",
    plural="networkpolicies",
    kind="NetworkPolicy",
    namespaced=True,
    struct=WireNetworkPolicy,
    to_model=to_network_policy,
)
