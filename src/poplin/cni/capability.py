"""What the runtime asks for by capabilities: ranges of addresses, host ports and bandwidth (CONVENTIONS.md of CNI), as values.

https://github.com/containernetworking/cni/blob/main/CONVENTIONS.md, "Dynamic Plugin specific Fields".
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from ipaddress import ip_address, ip_network
from itertools import combinations
from typing import Any, Final, TypeVar

import msgspec

from poplin.cni.error import CniError, ErrorCode
from poplin.compile.host_ports import clashes
from poplin.model.attachment import Limit, PortMapping
from poplin.model.cluster import TransportProtocol
from poplin.model.kernel import IPAddress

T = TypeVar("T", bound=msgspec.Struct)

INGRESS_BANDWIDTH: Final = "kubernetes.io/ingress-bandwidth"
EGRESS_BANDWIDTH: Final = "kubernetes.io/egress-bandwidth"

NO_BURSTS: Final = frozenset({0, 2**31 - 1, 2**32 - 1})
"""Bursts that say nothing: a pod's annotations have none, and runtimes pass one of these in its place.

Taken at its word, 2^32 - 1 bits would let each pod send half a gigabyte before its limit is felt.
"""

RATES: Final = range(1_000, 10**15 + 1)
"""Bits per second that Kubernetes allows in the annotations (1k to 1P)."""

_QUANTITY: Final = re.compile(
    r"\+?(\d+\.?\d*|\.\d+)(?:([eE][+-]?\d{1,2})|([numkMGTPE]|[KMGTPE]i)?)", re.ASCII
)
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


class HostPort(msgspec.Struct, frozen=True, rename="camel"):
    """One of `portMappings`. `host_ip` "" is every address of the node; `protocol` in either case."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = msgspec.field(default="", name="hostIP")


class IPRange(msgspec.Struct, frozen=True, rename="camel"):
    """A part of one of `ipRanges`; `range_start` and `range_end` "" are the subnet's first and last address."""

    subnet: str
    range_start: str = ""
    range_end: str = ""


class Bandwidth(msgspec.Struct, frozen=True, rename="camel"):
    """Rates in bits per second, bursts in bits; a rate of 0 is no limit."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


def decode_member(found: Mapping[str, Any], kind: type[T]) -> T:
    """Give a member of runtimeConfig, whatever the case of its names. Raises CniError (6).

    containerd's go-cni writes "HostPort" where CONVENTIONS.md has "hostPort": plugins in Go do not see a
    difference, for Go's decoder takes either.
    """
    names = {field.encode_name.lower(): field.encode_name for field in msgspec.structs.fields(kind)}
    try:
        return msgspec.convert({names.get(key.lower(), key): value for key, value in found.items()}, kind)
    except msgspec.ValidationError as error:
        raise CniError(
            ErrorCode.DECODING_FAILURE, "cannot decode the network configuration", f"runtimeConfig: {error}"
        ) from None


def read_port_mappings(found: Sequence[HostPort]) -> tuple[PortMapping, ...]:
    """Give the mappings, each once. Raises CniError (7) for what is no port, and for one port mapped twice.

    A container port without a hostPort, which some runtimes pass as hostPort 0, is none.
    """
    mappings = tuple(dict.fromkeys(_read_port_mapping(one) for one in found if one.host_port != 0))
    for one, other in combinations(mappings, 2):
        if clashes(one, other):
            raise _wrong(
                f"portMappings: host port {one.host_port}/{one.protocol} leads to two ports of the pod",
                f"{one.container_port} and {other.container_port}",
            )
    return mappings


def read_ranges(found: Sequence[Sequence[IPRange]]) -> tuple[tuple[IPAddress, IPAddress], ...]:
    """Give the (first, last) addresses from which a pod's are to come.

    Each inner list stands for one address, which any of its ranges may have. Raises CniError (7) for what is no
    range, and for two addresses of a family, which a pod has not.
    """
    sets = [[_read_range(one) for one in ranges] for ranges in found if ranges]
    families = [{first.version for first, _ in ranges} for ranges in sets]
    if any(len(family) > 1 for family in families):
        raise _wrong("ipRanges: a list has ranges of both families")
    if len(families) > len(set[int]().union(*families)):
        raise _wrong("ipRanges: two lists are of one family, and a pod has one address of each")
    return tuple(one for ranges in sets for one in ranges)


def read_limits(
    bandwidth: Bandwidth | None, annotations: Mapping[str, str]
) -> tuple[Limit | None, Limit | None]:
    """Give the limits of ingress and egress, None for none.

    The pod's annotations count only where the runtime has not turned them into the capability. Raises
    CniError (7).
    """
    if bandwidth is None:
        return _read_annotation(INGRESS_BANDWIDTH, annotations), _read_annotation(
            EGRESS_BANDWIDTH, annotations
        )
    return (
        _limit("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst),
        _limit("egress", bandwidth.egress_rate, bandwidth.egress_burst),
    )


def parse_quantity(text: str) -> Decimal:
    """Read a Kubernetes quantity ("10M", "1.5Gi", "1e6"). Raises ValueError."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no quantity")
    number, exponent, suffix = match.groups()
    if exponent:
        return Decimal(number + exponent)
    if suffix in _BINARY:
        return Decimal(number) * Decimal(2 ** _BINARY[suffix])
    return Decimal(number).scaleb(_DECIMAL[suffix or ""])


def _read_port_mapping(one: HostPort) -> PortMapping:
    where = f"portMappings: host port {one.host_port}"
    for port in (one.host_port, one.container_port):
        if not 0 < port < 1 << 16:
            raise _wrong(f"{where}: {port} is no port")
    try:
        protocol = TransportProtocol(one.protocol.upper())
    except ValueError:
        raise _wrong(f"{where}: {one.protocol!r} is none of tcp, udp and sctp") from None
    try:
        address = ip_address(one.host_ip) if one.host_ip else None
    except ValueError as error:
        raise _wrong(f"{where}: hostIP: {error}") from None
    return PortMapping(protocol, one.host_port, one.container_port, address)


def _read_range(one: IPRange) -> tuple[IPAddress, IPAddress]:
    try:
        subnet = ip_network(one.subnet)
        first = ip_address(one.range_start) if one.range_start else subnet.network_address
        last = ip_address(one.range_end) if one.range_end else subnet.broadcast_address
    except ValueError as error:
        raise _wrong(f"ipRanges: {error}") from None
    for address in (first, last):
        if address not in subnet:
            raise _wrong(f"ipRanges: {address} is not in {subnet}")
    if int(first) > int(last):
        raise _wrong(f"ipRanges: {first} comes after {last}")
    return first, last


def _limit(way: str, rate_bits_s: int, burst_bits: int) -> Limit | None:
    if rate_bits_s < 0 or burst_bits < 0:
        raise _wrong(f"bandwidth: {way}: neither a rate nor a burst is negative")
    if rate_bits_s == 0:
        return None
    return Limit(max(rate_bits_s, 8), 0 if burst_bits in NO_BURSTS else burst_bits)


def _read_annotation(key: str, annotations: Mapping[str, str]) -> Limit | None:
    text = annotations.get(key)
    if text is None:
        return None
    try:
        rate_bits_s = int(parse_quantity(text))
    except ValueError as error:
        raise _wrong(f"annotation {key}: {error}") from None
    if rate_bits_s not in RATES:
        raise _wrong(f"annotation {key}: {text} is not from 1k to 1P bits per second")
    return Limit(rate_bits_s)


def _wrong(msg: str, details: str = "") -> CniError:
    return CniError(ErrorCode.BAD_CONFIG, msg, details)
