"""A node's lease: what its peers need to reach its pods, and flannel's node annotations that carry it.

The annotations are those of flannel's Kubernetes subnet manager, byte for byte, so that a node running
flanneld can be a peer. flanneld finds its own MAC by splitting `backend-data`: the JSON stays compact,
with VtepMAC last.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import msgspec

from poplin.model.errors import InvalidInputError
from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.netconf import BackendType

PREFIX: Final = "flannel.alpha.coreos.com/"
MANAGED: Final = PREFIX + "kube-subnet-manager"
BACKEND_TYPE: Final = PREFIX + "backend-type"
BACKEND_DATA: Final[Mapping[int, str]] = {4: PREFIX + "backend-data", 6: PREFIX + "backend-v6-data"}
PUBLIC_IP: Final[Mapping[int, str]] = {4: PREFIX + "public-ip", 6: PREFIX + "public-ipv6"}
PUBLIC_IP_OVERWRITE: Final[Mapping[int, str]] = {
    4: PREFIX + "public-ip-overwrite",
    6: PREFIX + "public-ipv6-overwrite",
}

_BROADCAST: Final = ip_address("255.255.255.255")
_MAC: Final = re.compile(r"(?!00:00:00:00:00:00)[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
"""A MAC that a device may have: neither zero nor of a group (IEEE 802, bit 0 of the first octet)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A node in one family: the address that peers send to, its pods, and its VTEP's MAC.

    `vtep_mac` is "" where the backend has no device; `vni` is then 0.
    """

    public_ip: IPAddress
    pod_cidr: IPNetwork
    vtep_mac: str = ""
    vni: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A node as its peers see it, with an endpoint for each family that it serves, IPv4 first."""

    node: str
    backend_type: str
    endpoints: tuple[Endpoint, ...]


class _VxlanData(msgspec.Struct):
    VNI: int
    VtepMAC: str


def annotate(lease: Lease) -> dict[str, str]:
    """Give the annotations that publish the lease."""
    annotations = {MANAGED: "true", BACKEND_TYPE: str(lease.backend_type)}
    for endpoint in lease.endpoints:
        version = endpoint.public_ip.version
        annotations[PUBLIC_IP[version]] = str(endpoint.public_ip)
        annotations[BACKEND_DATA[version]] = (
            msgspec.json.encode(_VxlanData(endpoint.vni, endpoint.vtep_mac)).decode()
            if endpoint.vtep_mac
            else "null"
        )
    return annotations


def read_lease(node: str, annotations: Mapping[str, str], pod_cidrs: Sequence[IPNetwork]) -> Lease | None:
    """Read the lease that a node has published; None where it has published none.

    A family without a public address or a podCIDR has no endpoint. Raises InvalidInputError, naming the
    annotation, for one that cannot be read.
    """
    if annotations.get(MANAGED) != "true":
        return None
    backend_type = annotations.get(BACKEND_TYPE, "")
    endpoints = []
    for version in (4, 6):
        cidr = next((c for c in pod_cidrs if c.version == version), None)
        public_ip = annotations.get(PUBLIC_IP[version])
        if cidr is None or not public_ip:
            continue
        vni, mac = 0, ""
        if backend_type == BackendType.VXLAN:
            vni, mac = _read_vxlan(node, BACKEND_DATA[version], annotations)
            if not mac:
                continue
        endpoints.append(Endpoint(_address(node, PUBLIC_IP[version], annotations, version), cidr, mac, vni))
    return Lease(node, backend_type, tuple(endpoints))


def overwritten_public_ip(node: str, annotations: Mapping[str, str], version: int) -> IPAddress | None:
    """Give the public address of that IP version which a user has set on the node, None for none."""
    if not annotations.get(PUBLIC_IP_OVERWRITE[version]):
        return None
    return _address(node, PUBLIC_IP_OVERWRITE[version], annotations, version)


def _address(node: str, key: str, annotations: Mapping[str, str], version: int) -> IPAddress:
    text = annotations[key]
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or address.version != version or not _is_of_a_host(address):
        raise InvalidInputError(
            f"{text!r} is not an IPv{version} address that peers can send to",
            where=f"node {node}: annotation {key}",
            remedy="correct it, or remove the annotation",
        )
    return address


def _is_of_a_host(address: IPAddress) -> bool:
    """Tell whether the address may be one host's and means the same on every other."""
    return not (
        address.is_unspecified
        or address.is_multicast
        or address.is_loopback
        or address == _BROADCAST
        or (address.version == 6 and address.is_link_local)
    )


def _read_vxlan(node: str, key: str, annotations: Mapping[str, str]) -> tuple[int, str]:
    """Give (VNI, VtepMAC), (0, "") where nothing is published."""
    text = annotations.get(key, "null")
    if text == "null":
        return 0, ""
    try:
        data = msgspec.json.decode(text, type=_VxlanData)
    except msgspec.MsgspecError as error:
        problem = str(error)
    else:
        mac = data.VtepMAC.lower()
        if _MAC.fullmatch(mac):
            return data.VNI, mac
        problem = f"VtepMAC {data.VtepMAC!r} is not the MAC of a device"
    raise InvalidInputError(
        problem,
        where=f"node {node}: annotation {key}",
        remedy="remove the annotation, so that the node's agent writes it anew",
    )
