"""net-conf.json: JSON text -> `NetConf`, each mistake named by its key.

Keys are those of flannel's configuration (Documentation/configuration.md and backends.md of flannel),
matched without regard to case as its Go decoder does, and one of ours: `NonMasqueradeCIDRs`.
"""

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any, Final, TypeVar

import msgspec

from poplin.model.errors import InvalidInputError
from poplin.model.kernel import IPNetwork
from poplin.model.netconf import Backend, BackendType, NetConf

SUBNET_KEYS: Final = frozenset(
    f"{family}Subnet{what}" for family in ("", "IPv6") for what in ("Len", "Min", "Max")
)
"""Read and left alone: where Kubernetes gives each node its podCIDR they decide nothing."""

NETWORK_KEYS: Final = SUBNET_KEYS | {
    "Network",
    "IPv6Network",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "NonMasqueradeCIDRs",
    "Backend",
}
BACKEND_KEYS: Final[Mapping[BackendType, frozenset[str]]] = {
    BackendType.VXLAN: frozenset(
        {"Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting", "MacPrefix"}
    ),
    BackendType.HOST_GW: frozenset({"Type", "MTU"}),
}
MIN_MTU_BYTES: Final = 1280 + 70
"""IPv6 needs 1280 bytes inside the tunnel (RFC 8200, section 5)."""

T = TypeVar("T")


def parse_netconf(text: str | bytes, where: str = "net-conf.json") -> NetConf:
    """Read a net-conf.json. `where` names the file or object in errors.

    Raises InvalidInputError on the first thing wrong: syntax, an unknown key or backend, a value of the
    wrong type or out of range, networks that overlap.
    """
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidInputError(f"not JSON: {error}", where=where, remedy="correct the syntax") from error
    if not isinstance(raw, dict):
        raise InvalidInputError(
            f"must be a JSON object, not {type(raw).__name__}",
            where=where,
            remedy='write at least {"Network": "10.244.0.0/16"}',
        )
    keys = _known(raw, NETWORK_KEYS, where)
    networks = tuple(
        _network(_take(keys, key, str, "", where), version, f"{where}: {key}")
        for key, enabled, version in (
            ("Network", _take(keys, "EnableIPv4", bool, True, where), 4),
            ("IPv6Network", _take(keys, "EnableIPv6", bool, False, where), 6),
        )
        if enabled
    )
    if not networks:
        raise InvalidInputError(
            "both families are off", where=where, remedy="set EnableIPv4 or EnableIPv6 to true"
        )
    return NetConf(
        networks=networks,
        backend=_backend(_take(keys, "Backend", dict, {}, where), f"{where}: Backend"),
        non_masquerade=_networks(
            _take(keys, "NonMasqueradeCIDRs", list, [], where), f"{where}: NonMasqueradeCIDRs"
        ),
    )


def _backend(raw: dict[str, Any], where: str) -> Backend:
    types = {key.title(): value for key, value in raw.items() if key.lower() == "type"}
    name = _take(types, "Type", str, BackendType.VXLAN.value, where)
    if name not in list(BackendType):
        raise InvalidInputError(
            f"unknown backend {name!r}",
            where=f"{where}: Type",
            remedy=f"use one of: {', '.join(BackendType)}",
        )
    kind = BackendType(name)
    keys = _known(raw, BACKEND_KEYS[kind], where)
    mtu_bytes = _number(keys, "MTU", 0, range(MIN_MTU_BYTES, 65536), where, absent=0)
    if kind is BackendType.HOST_GW:
        return Backend(kind, mtu_bytes)
    return Backend(
        kind,
        mtu_bytes,
        vni=_number(keys, "VNI", 1, range(1, 1 << 24), where),
        port=_number(keys, "Port", 8472, range(1, 1 << 16), where, absent=0),
        direct_routing=_take(keys, "DirectRouting", bool, False, where),
        learning=_take(keys, "Learning", bool, False, where),
        gbp=_take(keys, "GBP", bool, False, where),
    )


def _known(raw: dict[str, Any], known: frozenset[str], where: str) -> dict[str, Any]:
    """Give the object with its keys spelled as in `known`."""
    spelling = {key.lower(): key for key in known}
    found: dict[str, Any] = {}
    for key, value in raw.items():
        name = spelling.get(key.lower())
        if name is None:
            raise InvalidInputError(
                f"unknown key {key!r}", where=where, remedy=f"use only: {', '.join(sorted(known))}"
            )
        if name in found:
            raise InvalidInputError(
                "stands twice, in upper and lower case",
                where=f"{where}: {key}",
                remedy="remove one of the two",
            )
        found[name] = value
    return found


def _take(keys: dict[str, Any], key: str, kind: type[T], default: T, where: str) -> T:
    value = keys.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = {str: "a string", bool: "true or false", int: "a whole number", list: "a list"}
        raise InvalidInputError(
            f"must be {expected.get(kind, 'an object')}, not {value!r}",
            where=f"{where}: {key}",
            remedy="correct the value",
        )
    return value


def _number(
    keys: dict[str, Any], key: str, default: int, allowed: range, where: str, absent: int | None = None
) -> int:
    """Give the number at `key`; `absent` is a value that also means the default."""
    value = _take(keys, key, int, default, where)
    if value == absent:
        return default
    if value not in allowed:
        raise InvalidInputError(
            f"{value} is out of range",
            where=f"{where}: {key}",
            remedy=f"use {allowed.start} to {allowed.stop - 1}",
        )
    return value


def _network(text: str, version: int, where: str) -> IPNetwork:
    if not text:
        raise InvalidInputError(
            "missing", where=where, remedy=f"give the IPv{version} network that all podCIDRs lie in"
        )
    network = _cidr(text, where)
    if network.version != version:
        raise InvalidInputError(
            f"{network} is IPv{network.version}", where=where, remedy=f"write an IPv{version} CIDR"
        )
    return network


def _cidr(text: Any, where: str) -> IPNetwork:
    """Read a CIDR as Go does: with a prefix length, which `ip_network` would take as that of one address."""
    remedy = "write a CIDR without host bits, such as 10.244.0.0/16"
    if not isinstance(text, str):
        raise InvalidInputError(f"must be a string, not {text!r}", where=where, remedy=remedy)
    if not text.partition("/")[2].isdecimal():
        raise InvalidInputError(f"{text!r} has no prefix length", where=where, remedy=remedy)
    try:
        return ip_network(text)
    except ValueError as error:
        raise InvalidInputError(str(error), where=where, remedy=remedy) from error


def _networks(texts: list[Any], where: str) -> tuple[IPNetwork, ...]:
    found: list[IPNetwork] = []
    for text in texts:
        network = _cidr(text, where)
        other = next((n for n in found if n.version == network.version and n.overlaps(network)), None)
        if other is not None:
            raise InvalidInputError(
                f"{network} overlaps {other}", where=where, remedy="remove one of the two"
            )
        found.append(network)
    return tuple(found)
