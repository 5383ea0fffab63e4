"""Requests as values: the CNI_* environment and the configuration, checked as libcni's plugin skeleton does.

https://github.com/containernetworking/cni/blob/main/SPEC.md (1.1.0), CONVENTIONS.md for `runtimeConfig`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_interface
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from poplin.cni.capability import (
    Bandwidth,
    HostPort,
    IPRange,
    decode_member,
    read_limits,
    read_port_mappings,
    read_ranges,
)
from poplin.cni.error import CniError, ErrorCode
from poplin.cni.result import VERSIONS, Result, decode_result
from poplin.model.attachment import Limit, PortMapping
from poplin.model.kernel import IPAddress


class Command(StrEnum):
    """CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    Command.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    Command.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    Command.DEL: ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
}
_FIRST_VERSION: Final[Mapping[str, str]] = {
    Command.CHECK: "0.4.0",
    Command.GC: "1.1.0",
    Command.STATUS: "1.1.0",
}
_IDENTIFIER: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_NOT_IN_IFNAME: Final = re.compile(r"[/:\s]")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class AttachmentName(msgspec.Struct, frozen=True):
    """One of the attachments that a GC leaves alone."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str


class RuntimeConfig(msgspec.Struct, frozen=True, rename="camel"):
    """What the runtime adds for the capabilities that the configuration declares.

    Ranges, host ports and bandwidth are decoded by `decode_member`, and for an ADD only.
    """

    ips: list[str] | None = None
    ip_ranges: list[list[dict[str, Any]]] | None = None
    mac: str = ""
    port_mappings: list[dict[str, Any]] | None = None
    bandwidth: dict[str, Any] | None = None
    pod_annotations: dict[str, str] | None = msgspec.field(
        default=None, name="io.kubernetes.cri.pod-annotations"
    )


class NetworkConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The network configuration, as far as it is read here. Absent and null are the same, save for GC's list."""

    cni_version: str | None = None
    name: str | None = None
    capabilities: dict[str, bool] | None = None
    runtime_config: RuntimeConfig | None = None
    prev_result: msgspec.Raw = msgspec.Raw()
    valid_attachments: list[AttachmentName] | UnsetType | None = msgspec.field(
        default=UNSET, name="cni.dev/valid-attachments"
    )


@dataclass(frozen=True, slots=True)
class PodArgs:
    """The pod, from CNI_ARGS; "" where the runtime is not Kubernetes's."""

    namespace: str = ""
    name: str = ""
    uid: str = ""
    infra_container_id: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One command. Fields that the command has not are "" or empty.

    `netns` is the path as the runtime gave it. `requested_addresses` has at most one of each family, IPv4
    first, and of a family that `address_ranges` has, other addresses come from those (first, last) only.
    `requested_mac` is "" or lower case. `previous_result` is None for the first plugin of a chain.
    What an interface is to have (`address_ranges`, `port_mappings`, and limits of what comes to the pod and what it sends) is read
    of an ADD only: nothing in a configuration may keep a DEL from its work.
    `valid_attachments` is set for GC only: (container id, interface name) pairs.
    """

    command: Command
    cni_version: str
    network: str = ""
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    pod: PodArgs = PodArgs()
    requested_addresses: tuple[IPAddress, ...] = ()
    address_ranges: tuple[tuple[IPAddress, IPAddress], ...] = ()
    requested_mac: str = ""
    port_mappings: tuple[PortMapping, ...] = ()
    ingress: Limit | None = None
    egress: Limit | None = None
    previous_result: Result | None = None
    valid_attachments: frozenset[tuple[str, str]] = frozenset()


_CONTAINER_ID_MAX: Final = 200
"""With an interface's name it is a file's name (`poplin.cni.deletions`), of 255 bytes at most. Runtimes use 64."""

_DECODER: Final = msgspec.json.Decoder(NetworkConfig)


def parse_request(environment: Mapping[str, str], config: bytes) -> Request:
    """Check a command as libcni's skeleton does, and what the skeleton leaves to the plugin.

    Raises CniError: 4 for the environment, 6 for a configuration that cannot be decoded, 7 for one that is
    wrong, 1 for a protocol version that we do not speak or that has no such command.
    """
    command = _check_environment(environment)
    if command is Command.VERSION and not config:
        return Request(command, VERSIONS[-1])
    try:
        found = _DECODER.decode(config)
    except ValueError as error:  # malformed JSON, a member of another type, or not UTF-8
        raise CniError(
            ErrorCode.DECODING_FAILURE, "cannot decode the network configuration", str(error)
        ) from None
    cni_version = found.cni_version or "0.1.0"
    if command is Command.VERSION:
        return Request(command, found.cni_version or VERSIONS[-1])
    _check_names(command, environment, found.name or "")
    _check_version(command, cni_version)
    runtime = found.runtime_config or RuntimeConfig()
    mappings: tuple[PortMapping, ...] = ()
    ranges: tuple[tuple[IPAddress, IPAddress], ...] = ()
    ingress = egress = None
    if command is Command.ADD:
        ranges = read_ranges([[decode_member(r, IPRange) for r in one] for one in runtime.ip_ranges or ()])
        mappings = read_port_mappings([decode_member(one, HostPort) for one in runtime.port_mappings or ()])
        bandwidth = None if runtime.bandwidth is None else decode_member(runtime.bandwidth, Bandwidth)
        ingress, egress = read_limits(bandwidth, runtime.pod_annotations or {})
    previous = None if bytes(found.prev_result) in {b"", b"null"} else decode_result(found.prev_result)
    if command is Command.CHECK and previous is None:
        raise CniError(ErrorCode.BAD_CONFIG, "CHECK needs the prevResult of the ADD")
    return Request(
        command=command,
        cni_version=cni_version,
        network=found.name or "",
        container_id=environment.get("CNI_CONTAINERID", ""),
        ifname=environment.get("CNI_IFNAME", ""),
        netns=environment.get("CNI_NETNS", ""),
        pod=parse_args(environment.get("CNI_ARGS", "")),
        requested_addresses=_requested_addresses(runtime.ips or ()),
        address_ranges=ranges,
        requested_mac=_requested_mac(runtime.mac),
        port_mappings=mappings,
        ingress=ingress,
        egress=egress,
        previous_result=previous,
        valid_attachments=_valid_attachments(command, found.valid_attachments),
    )


def answer_version(cni_version: str) -> bytes:
    """What VERSION prints: the version that was asked with, and those that we speak."""
    return msgspec.json.encode({"cniVersion": cni_version, "supportedVersions": VERSIONS}) + b"\n"


def parse_args(text: str) -> PodArgs:
    """Read CNI_ARGS ("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;...").

    Raises CniError (4) for what is no KEY=VALUE pair and for an unknown key without IgnoreUnknown.
    """
    if not text:
        return PodArgs()
    pairs: dict[str, str] = {}
    for pair in text.split(";"):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniError(
                ErrorCode.BAD_ENVIRONMENT, "CNI_ARGS is not KEY=VALUE pairs with ';' between", pair
            )
        pairs[key] = value
    ignore_unknown = pairs.pop("IgnoreUnknown", "").lower() in {"1", "true"}
    pod = PodArgs(
        namespace=pairs.pop("K8S_POD_NAMESPACE", ""),
        name=pairs.pop("K8S_POD_NAME", ""),
        uid=pairs.pop("K8S_POD_UID", ""),
        infra_container_id=pairs.pop("K8S_POD_INFRA_CONTAINER_ID", ""),
    )
    if pairs and not ignore_unknown:
        raise CniError(ErrorCode.BAD_ENVIRONMENT, f"unknown CNI_ARGS {','.join(sorted(pairs))}", text)
    return pod


def _check_environment(environment: Mapping[str, str]) -> Command:
    command = environment.get("CNI_COMMAND", "")
    required = ("CNI_COMMAND", *_REQUIRED.get(command, ()))
    missing = [name for name in required if not environment.get(name)]
    if missing:
        raise CniError(ErrorCode.BAD_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")
    try:
        return Command(command)
    except ValueError:
        raise CniError(ErrorCode.BAD_ENVIRONMENT, f"unknown CNI_COMMAND: {command}") from None


def _check_names(command: Command, environment: Mapping[str, str], network: str) -> None:
    if not network:
        raise CniError(ErrorCode.BAD_CONFIG, "missing network name")
    if not _IDENTIFIER.fullmatch(network):
        raise CniError(ErrorCode.BAD_CONFIG, "invalid characters found in network name", network)
    if command not in _REQUIRED:
        return
    container_id, ifname = environment["CNI_CONTAINERID"], environment["CNI_IFNAME"]
    if not _IDENTIFIER.fullmatch(container_id):
        raise CniError(ErrorCode.BAD_ENVIRONMENT, "invalid characters in containerID", container_id)
    if len(container_id) > _CONTAINER_ID_MAX:
        raise CniError(
            ErrorCode.BAD_ENVIRONMENT,
            f"containerID has more than {_CONTAINER_ID_MAX} characters",
            container_id,
        )
    if len(ifname.encode()) > 15:
        raise CniError(
            ErrorCode.BAD_ENVIRONMENT, "interface name is too long", "it should be less than 16 characters"
        )
    if ifname in {".", ".."}:
        raise CniError(ErrorCode.BAD_ENVIRONMENT, "interface name is . or ..")
    if _NOT_IN_IFNAME.search(ifname):
        raise CniError(
            ErrorCode.BAD_ENVIRONMENT, "interface name contains / or : or whitespace characters", ifname
        )


def _check_version(command: Command, cni_version: str) -> None:
    if cni_version not in VERSIONS:
        supported = " ".join(f'"{version}"' for version in VERSIONS)
        raise CniError(
            ErrorCode.INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f'config is "{cni_version}", plugin supports [{supported}]',
        )
    if VERSIONS.index(cni_version) < VERSIONS.index(_FIRST_VERSION.get(command, VERSIONS[0])):
        raise CniError(ErrorCode.INCOMPATIBLE_VERSION, f"config version does not allow {command}")


def _requested_addresses(texts: Sequence[str]) -> tuple[IPAddress, ...]:
    """Addresses of the `ips` capability: with or without a prefix length, which is not used."""
    try:
        addresses = [ip_interface(text).ip for text in texts]
    except ValueError as error:
        raise CniError(ErrorCode.BAD_CONFIG, f"runtimeConfig.ips: {error}") from None
    if len({address.version for address in addresses}) != len(addresses):
        raise CniError(
            ErrorCode.BAD_CONFIG, "runtimeConfig.ips has more than one address of a family", ", ".join(texts)
        )
    return tuple(sorted(addresses, key=lambda address: address.version))


def _requested_mac(text: str) -> str:
    """The MAC of the `mac` capability, "" where none is asked for; it must be of one station."""
    mac = text.lower()
    if mac and not (_MAC.fullmatch(mac) and int(mac[:2], 16) & 1 == 0 and mac != "00:00:00:00:00:00"):
        raise CniError(ErrorCode.BAD_CONFIG, f"runtimeConfig.mac {text} is not a unicast MAC address")
    return mac


def _valid_attachments(
    command: Command, found: list[AttachmentName] | UnsetType | None
) -> frozenset[tuple[str, str]]:
    """The list of a GC. One that is absent is an error, lest everything be removed; Go writes an empty one as null."""
    if command is not Command.GC:
        return frozenset()
    if found is UNSET:
        raise CniError(ErrorCode.BAD_CONFIG, "GC needs cni.dev/valid-attachments")
    return frozenset((a.container_id, a.ifname) for a in found or ())
