"""Fields of a Service that follow from each other: what an update keeps, what a type drops, and its IP families.

Pure. Faults are returned as causes; where there are none the document is complete but for the numbers that
`allocation` gives it.
Source: https://kubernetes.io/docs/concepts/services-networking/dual-stack/ and the API reference, "ServiceSpec".
"""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final

from poplin.apiserver.collection import Object
from poplin.apiserver.status import Cause

NONE: Final = "None"
"""The clusterIP of a headless Service."""

OTHER_FAMILY: Final = {"IPv4": "IPv6", "IPv6": "IPv4"}
EXPOSED: Final = frozenset({"NodePort", "LoadBalancer"})
"""The types that have node ports."""


def has_cluster_ip(spec: Mapping[str, Any]) -> bool:
    """Whether its type has a clusterIP; "None" counts as one."""
    return spec.get("type") != "ExternalName"


def has_health_check(spec: Mapping[str, Any]) -> bool:
    """Whether nodes answer a load balancer's question for endpoints of theirs."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def is_headless(spec: Mapping[str, Any]) -> bool:
    return spec.get("clusterIP") == NONE


def carry(new: Object, old: Object) -> None:
    """Keep what the cluster gave a Service where an update leaves it out, so that a plain PUT loses no address."""
    before, after = old.get("spec") or {}, new.setdefault("spec", {})
    if has_cluster_ip(before) and has_cluster_ip(after):
        after["clusterIP"] = after.get("clusterIP") or before.get("clusterIP", "")
        same = after["clusterIP"] == before.get("clusterIP")
        for key in ("clusterIPs", "ipFamilies") if same else ():
            if not after.get(key) and before.get(key):
                after[key] = before[key]
        if not after.get("ipFamilyPolicy") and before.get("ipFamilyPolicy"):
            after["ipFamilyPolicy"] = before["ipFamilyPolicy"]
    if has_health_check(before) and has_health_check(after):
        number = after.get("healthCheckNodePort") or before.get("healthCheckNodePort")
        if number:
            after["healthCheckNodePort"] = number
    if before.get("type") in EXPOSED and after.get("type") in EXPOSED:
        _carry_node_ports(before, after)


def _carry_node_ports(before: Object, after: Object) -> None:
    given = {
        (port.get("port"), port.get("protocol")): port.get("nodePort") for port in before.get("ports") or ()
    }
    # One that the update itself gives to another port is not for two.
    asked = {(port.get("nodePort"), port.get("protocol")) for port in after.get("ports") or ()}
    for port in after.get("ports") or ():
        number = given.get((port.get("port"), port.get("protocol")))
        if number and not port.get("nodePort") and (number, port.get("protocol")) not in asked:
            port["nodePort"] = number


def drop_dependent(after: Object, before: Object) -> None:
    """Of two specs, drop from the newer what its type does not have, unless the update itself set it."""

    def drop(*keys: str) -> None:
        for key in keys:
            if after.get(key) == before.get(key):
                after.pop(key, None)

    if has_cluster_ip(before) and not has_cluster_ip(after):
        drop("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy")
    if before.get("type") in EXPOSED and after.get("type") not in EXPOSED:
        numbers = [port.get("nodePort") for port in before.get("ports") or ()]
        for port in after.get("ports") or ():
            if port.get("nodePort") in numbers:
                port.pop("nodePort", None)
        if not after.get("externalIPs"):
            drop("externalTrafficPolicy")
    if has_health_check(before) and not has_health_check(after):
        drop("healthCheckNodePort")
    if before.get("type") == "LoadBalancer" and after.get("type") != "LoadBalancer":
        drop("allocateLoadBalancerNodePorts", "loadBalancerClass")


def normalize_addresses(after: Object, before: Object | None) -> None:
    """Bring clusterIPs in line with clusterIP, which is all that old clients know."""
    first, many = after.get("clusterIP") or "", after.get("clusterIPs") or []
    changed = before is None or first != (before.get("clusterIP") or "")
    untouched = before is not None and many == (before.get("clusterIPs") or [])
    if changed and (untouched or not many):
        after["clusterIPs"] = [first] if first else []
    if not after.get("clusterIPs"):
        after.pop("clusterIPs", None)


def complete_families(after: Object, before: Object | None, configured: Sequence[str]) -> list[Cause]:
    """Fill in ipFamilyPolicy and ipFamilies; `configured` are the cluster's families, its default first."""
    if not has_cluster_ip(after) or (before is not None and _keeps_preference(after, before)):
        return []
    selectorless = is_headless(after) and not after.get("selector")
    if not after.get("ipFamilyPolicy"):
        after["ipFamilyPolicy"] = "RequireDualStack" if selectorless else "SingleStack"
    policy = after["ipFamilyPolicy"]
    if causes := list(check_addresses(after)):
        return causes
    if before is not None:
        causes += _change_families(after, before)
    addresses, families = after.get("clusterIPs") or [], list(after.get("ipFamilies") or ())
    if policy == "SingleStack":
        for values, what in ((addresses, "cluster IPs"), (families, "IP families")):
            if len(values) > 1:
                message = (
                    f"must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                )
                causes.append(Cause("spec.ipFamilyPolicy", f'Invalid value: "{policy}": {message}'))
    for index, address in enumerate(addresses if not is_headless(after) else ()):
        family = family_of(address)
        if index < len(families):
            continue
        if family in configured:
            families.append(family)
        else:
            message = f"{family} is not configured on this cluster"
            causes.append(
                Cause(f"spec.clusterIPs[{index}]", f"Invalid value: {_quote(addresses)}: {message}")
            )
    if not causes and not selectorless:
        causes += _check_configured(policy, families, configured)
    if causes:
        return causes
    families = families or [configured[0]]
    both = selectorless or len(configured) > 1
    if policy != "SingleStack" and len(families) == 1 and both:
        families.append(OTHER_FAMILY[families[0]])
    after["ipFamilies"] = families
    return []


def _keeps_preference(after: Object, before: Object) -> bool:
    """Whether it prefers two families as before: those are not given one when the cluster comes to have it."""
    return after.get("ipFamilyPolicy") == before.get("ipFamilyPolicy") == "PreferDualStack" and all(
        (after.get(key) or []) == (before.get(key) or []) for key in ("clusterIPs", "ipFamilies")
    )


def _change_families(after: Object, before: Object) -> Iterator[Cause]:
    """A policy of one family lets go of the second; without it nobody may take the second away."""
    for key, what in (("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")):
        old, new = before.get(key) or [], after.get(key) or []
        if after["ipFamilyPolicy"] == "SingleStack":
            if old == new and len(new) > 1:
                after[key] = new[:1]
        elif len(old) == 2 and len(new) == 1:
            policy = after["ipFamilyPolicy"]
            message = f"must be 'SingleStack' to release the secondary {what}"
            yield Cause("spec.ipFamilyPolicy", f'Invalid value: "{policy}": {message}')


def _check_configured(policy: str, families: Sequence[str], configured: Sequence[str]) -> Iterator[Cause]:
    if policy == "RequireDualStack" and len(configured) < 2:
        message = "this cluster is not configured for dual-stack services"
        yield Cause("spec.ipFamilyPolicy", f'Invalid value: "{policy}": {message}')
    for index, family in enumerate(families):
        if family not in configured:
            message = f'Invalid value: "{family}": not configured on this cluster'
            yield Cause(f"spec.ipFamilies[{index}]", message)


def check_addresses(spec: Mapping[str, Any]) -> Iterator[Cause]:
    """Whether clusterIP, clusterIPs and ipFamilies are well formed and agree."""
    first, addresses = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    families = spec.get("ipFamilies") or []
    where = "spec.clusterIPs"
    if not first and addresses:
        yield Cause(
            where, f"Invalid value: {_quote(addresses)}: must be empty when `clusterIP` is not specified"
        )
    elif first and addresses and addresses[0] != first:
        yield Cause(where, f"Invalid value: {_quote(addresses)}: first value must match `clusterIP`")
    if len(addresses) > 2:
        message = "may only hold up to 2 values"
        yield Cause(where, f"Invalid value: {_quote(addresses)}: {message}")
    for index, family in enumerate(families):
        if family not in OTHER_FAMILY:
            message = f'Unsupported value: "{family}": supported values: "IPv4", "IPv6"'
            yield Cause(f"spec.ipFamilies[{index}]", message, "FieldValueNotSupported")
        elif family in families[:index]:
            yield Cause(f"spec.ipFamilies[{index}]", f'Duplicate value: "{family}"', "FieldValueDuplicate")
    seen: list[str] = []
    for index, address in enumerate(addresses):
        here = f"{where}[{index}]"
        if address == NONE:
            if len(addresses) > 1:
                message = "'None' must be the first and only value"
                yield Cause(here, f"Invalid value: {_quote(addresses)}: {message}")
            continue
        family = family_of(address)
        if not family:
            yield Cause(here, f'Invalid value: "{address}": must be a valid IP address')
            continue
        if family in seen:
            message = "may specify no more than one IP for each IP family"
            yield Cause(where, f"Invalid value: {_quote(addresses)}: {message}")
        if index < len(families) and families[index] != family:
            message = f"expected an {families[index]} value as indicated by `ipFamilies[{index}]`"
            yield Cause(here, f'Invalid value: "{address}": {message}')
        seen.append(family)


def family_of(text: str) -> str:
    """Give "IPv4" or "IPv6", "" for what is no address."""
    try:
        return f"IPv{ip_address(text).version}"
    except ValueError:
        return ""


def _quote(values: Sequence[str]) -> str:
    return "[" + ",".join(f'"{value}"' for value in values) + "]"
