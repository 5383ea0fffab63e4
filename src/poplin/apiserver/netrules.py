"""Rules for what carries addresses and ports: EndpointSlices, NetworkPolicies, Nodes."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

from poplin.apiserver.collection import Object
from poplin.apiserver.resource import lookup
from poplin.apiserver.status import Cause
from poplin.apiserver.syntax import check


def check_port(port: Any, where: str) -> Iterator[Cause]:
    """A port number or the name of a container's port."""
    if isinstance(port, int) and not 1 <= port <= 65535:
        yield Cause(where, f"Invalid value: {port}: must be between 1 and 65535, inclusive")
    if isinstance(port, str):
        yield from check(port, "port", where)


def is_address(text: str) -> bool:
    """Whether it is an address of either family."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_network(text: str) -> bool:
    """Whether it is a network in CIDR notation, of either family."""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" in text


def check_network_policy(new: Object, old: Object | None) -> Iterator[Cause]:
    del old
    spec = new.get("spec") or {}
    for index, kind in enumerate(spec.get("policyTypes") or ()):
        if kind not in {"Ingress", "Egress"}:
            message = f'Unsupported value: "{kind}": supported values: "Ingress", "Egress"'
            yield Cause(f"spec.policyTypes[{index}]", message, "FieldValueNotSupported")
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or ()):
            where = f"spec.{direction}[{index}]"
            for number, peer in enumerate(rule.get(peers) or ()):
                yield from _check_peer(peer, f"{where}.{peers}[{number}]")
            for number, port in enumerate(rule.get("ports") or ()):
                yield from _check_policy_port(port, f"{where}.ports[{number}]")


def _check_peer(peer: Object, where: str) -> Iterator[Cause]:
    block = peer.get("ipBlock")
    if not peer:
        yield Cause(where, "Required value: must specify a peer", "FieldValueRequired")
    if block is None:
        return
    if len(peer) > 1:
        message = "Forbidden: may not specify both ipBlock and another peer"
        yield Cause(where, message, "FieldValueForbidden")
    cidr = block.get("cidr", "")
    if not is_network(cidr):
        message = f'Invalid value: "{cidr}": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)'
        yield Cause(f"{where}.ipBlock.cidr", message)
        return
    outer = ip_network(cidr, strict=False)
    for index, text in enumerate(block.get("except") or ()):
        field = f"{where}.ipBlock.except[{index}]"
        if not is_network(text):
            yield Cause(field, f'Invalid value: "{text}": must be a valid CIDR value')
            continue
        inner = ip_network(text, strict=False)
        inside = inner.version == outer.version and inner != outer and inner.subnet_of(outer)  # type: ignore[arg-type]  # one version
        if not inside:
            yield Cause(field, f'Invalid value: "{text}": must be a strict subset of `cidr`')


def _check_policy_port(port: Object, where: str) -> Iterator[Cause]:
    number, end = port.get("port"), port.get("endPort")
    yield from check_port(number, f"{where}.port")
    if end is None:
        return
    if not isinstance(number, int):
        message = f"Invalid value: {end}: may not be specified when `port` is not specified or not a number"
        yield Cause(f"{where}.endPort", message)
    elif end < number:
        yield Cause(f"{where}.endPort", f"Invalid value: {end}: must be greater than or equal to `port`")


def check_slice(new: Object, old: Object | None) -> Iterator[Cause]:
    del old
    version = {"IPv4": 4, "IPv6": 6}.get(new.get("addressType", ""))
    for index, endpoint in enumerate(new.get("endpoints") or ()):
        for number, address in enumerate(endpoint.get("addresses") or ()):
            if version and not (is_address(address) and ip_address(address).version == version):
                where = f"endpoints[{index}].addresses[{number}]"
                yield Cause(where, f'Invalid value: "{address}": must be a valid IPv{version} address')


def check_node(new: Object, old: Object | None) -> Iterator[Cause]:
    for index, text in enumerate(lookup(new, "spec.podCIDRs") or ()):
        if not is_network(text):
            yield Cause(f"spec.podCIDRs[{index}]", f'Invalid value: "{text}": must be a valid CIDR value')
    before = lookup(old, "spec.podCIDRs")
    if before and before != lookup(new, "spec.podCIDRs"):
        message = 'Forbidden: node updates may not change podCIDR except from "" to valid'
        yield Cause("spec.podCIDRs", message, "FieldValueForbidden")
