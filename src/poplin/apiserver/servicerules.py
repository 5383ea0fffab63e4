"""Rules for Services (API reference, "ServiceSpec"; what `service` and `allocation` have filled in is there)."""

from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final

from poplin.apiserver.collection import Object
from poplin.apiserver.netrules import check_port, is_address, is_network
from poplin.apiserver.service import (
    EXPOSED,
    has_cluster_ip,
    has_health_check,
    is_headless,
)
from poplin.apiserver.status import Cause
from poplin.apiserver.syntax import check, check_labels

ONCE: Final = "may not change once set"


def check_service(new: Object, old: Object | None) -> Iterator[Cause]:
    spec = new.get("spec") or {}
    ports = spec.get("ports") or []
    if not has_cluster_ip(spec):
        yield from _check_external_name(spec)
    elif not ports and not is_headless(spec):
        yield Cause("spec.ports", "Required value", "FieldValueRequired")
    if is_headless(spec) and spec.get("type") in EXPOSED:
        yield Cause(
            "spec.clusterIPs[0]",
            f"Invalid value: \"None\": may not be set to 'None' for {spec['type']} services",
        )
    yield from _check_ports(ports, spec)
    yield from check_labels(spec.get("selector"), "spec.selector")
    yield from _check_external_addresses(spec)
    yield from _check_load_balancer(spec)
    distribution = spec.get("trafficDistribution")
    if distribution is not None and distribution not in DISTRIBUTIONS:
        listed = ", ".join(f'"{one}"' for one in DISTRIBUTIONS)
        message = f'Unsupported value: "{distribution}": supported values: {listed}'
        yield Cause("spec.trafficDistribution", message, "FieldValueNotSupported")
    if old is not None:
        yield from _check_update(spec, old.get("spec") or {})


DISTRIBUTIONS: Final = ("PreferClose", "PreferSameNode", "PreferSameZone")


def _forbidden(field: str, why: str) -> Cause:
    return Cause(field, f"Forbidden: {why}", "FieldValueForbidden")


def _check_external_name(spec: Mapping[str, Any]) -> Iterator[Cause]:
    name = (spec.get("externalName") or "").removesuffix(".")
    if not name:
        yield Cause("spec.externalName", "Required value", "FieldValueRequired")
    else:
        yield from check(name, "subdomain", "spec.externalName")
    for key in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if spec.get(key):
            yield _forbidden(f"spec.{key}", "may not be set for ExternalName services")


def _check_ports(ports: list[Object], spec: Mapping[str, Any]) -> Iterator[Cause]:
    names: set[str] = set()
    pairs: set[tuple[Any, Any]] = set()
    node_ports: set[tuple[Any, Any]] = set()
    for index, port in enumerate(ports):
        where, name = f"spec.ports[{index}]", port.get("name")
        if not name and len(ports) > 1:
            yield Cause(f"{where}.name", "Required value", "FieldValueRequired")
        elif name:
            yield from check(name, "label", f"{where}.name")
            if name in names:
                yield Cause(f"{where}.name", f'Duplicate value: "{name}"', "FieldValueDuplicate")
            names.add(name)
        pair = (port.get("protocol"), port.get("port"))
        if pair in pairs:
            message = f'Duplicate value: {{"port":{pair[1]},"protocol":"{pair[0]}"}}'
            yield Cause(where, message, "FieldValueDuplicate")
        pairs.add(pair)
        yield from check_port(port.get("targetPort"), f"{where}.targetPort")
        number = port.get("nodePort")
        if not number:
            continue
        if spec.get("type") not in EXPOSED:
            yield _forbidden(f"{where}.nodePort", f"may not be used when `type` is '{spec.get('type')}'")
        elif (port.get("protocol"), number) in node_ports:
            yield Cause(f"{where}.nodePort", f"Duplicate value: {number}", "FieldValueDuplicate")
        node_ports.add((port.get("protocol"), number))


def _check_external_addresses(spec: Mapping[str, Any]) -> Iterator[Cause]:
    for index, text in enumerate(spec.get("externalIPs") or ()):
        where = f"spec.externalIPs[{index}]"
        if not is_address(text):
            yield Cause(where, f'Invalid value: "{text}": must be a valid IP address')
            continue
        address = ip_address(text)
        for what, wrong in (
            ("unspecified", address.is_unspecified),
            ("in the loopback range", address.is_loopback),
            ("in the link-local range", address.is_link_local),
            ("in the multicast range", address.is_multicast),
        ):
            if wrong:
                yield Cause(where, f'Invalid value: "{text}": may not be {what}')
    policy = spec.get("externalTrafficPolicy")
    if policy and spec.get("type") not in EXPOSED and not spec.get("externalIPs"):
        message = f'Invalid value: "{policy}": may only be set for externally-accessible services'
        yield Cause("spec.externalTrafficPolicy", message)


def _check_load_balancer(spec: Mapping[str, Any]) -> Iterator[Cause]:
    for index, network in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        if not is_network(network.strip()):
            where = f"spec.loadBalancerSourceRanges[{index}]"
            yield Cause(where, f'Invalid value: "{network}": must be a valid CIDR value')
    if spec.get("type") != "LoadBalancer":
        for key in ("loadBalancerSourceRanges", "loadBalancerClass", "allocateLoadBalancerNodePorts"):
            if spec.get(key) not in (None, [], ""):
                yield _forbidden(f"spec.{key}", "may only be used when `type` is 'LoadBalancer'")
    if spec.get("healthCheckNodePort") and not has_health_check(spec):
        why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        yield _forbidden("spec.healthCheckNodePort", why)


def _check_update(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Cause]:
    if has_cluster_ip(new) and has_cluster_ip(old):
        for key in ("clusterIPs", "ipFamilies"):
            before, after = old.get(key) or [], new.get(key) or []
            for index, value in enumerate(before):
                # The first stays; the second may only go.
                if (index < len(after) and after[index] != value) or (index == 0 and not after):
                    listed = "[" + ",".join(f'"{one}"' for one in after) + "]"
                    yield Cause(f"spec.{key}[{index}]", f"Invalid value: {listed}: {ONCE}")
    if has_health_check(new) and has_health_check(old):
        number, before = new.get("healthCheckNodePort"), old.get("healthCheckNodePort")
        if before and number != before:
            yield Cause("spec.healthCheckNodePort", f"Invalid value: {number}: field is immutable")
    kept = old.get("type") == new.get("type") == "LoadBalancer"
    if kept and new.get("loadBalancerClass") != old.get("loadBalancerClass"):
        value = new.get("loadBalancerClass") or ""
        yield Cause("spec.loadBalancerClass", f'Invalid value: "{value}": {ONCE}')
