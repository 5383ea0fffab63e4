"""The result of an ADD, encoded for and decoded from every protocol version from 0.3.1 to 1.1.0.

One value has the fields of the newest version; older ones are written without what they lack. The field
`version` of an address, which 0.3.1 and 0.4.0 require, follows from the address.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Final

import msgspec

from poplin.cni.error import CniError, ErrorCode
from poplin.model.kernel import IPAddress, IPInterface, IPNetwork

VERSIONS: Final = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Supported protocol versions, oldest first."""


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of the result. `sandbox` is the netns path, "" for one of the host; 0 and "" are left out.

    `socket_path` and `pci_id` are only ever echoed from another plugin's result.
    """

    name: str
    mac: str = ""
    mtu_bytes: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True)
class IPConfig:
    """An address, its gateway, and the index in `Result.interfaces` of the interface that has it."""

    address: IPInterface
    gateway: IPAddress | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A route in the pod. None and 0 are left out; `priority`, `table` and `scope` may be 0 and mean it."""

    dst: IPNetwork
    gw: IPAddress | None = None
    mtu_bytes: int = 0
    advmss_bytes: int = 0
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True, slots=True)
class Dns:
    """Resolver configuration; we make none, but echo another plugin's."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What an ADD made."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


def chain_result(previous: Result, ours: Result) -> Result:
    """The result of a chain: what stood before, then ours with its interface indexes moved behind it."""
    shift = len(previous.interfaces)
    ips = (ip if ip.interface is None else replace(ip, interface=ip.interface + shift) for ip in ours.ips)
    return Result(
        interfaces=previous.interfaces + ours.interfaces,
        ips=(*previous.ips, *ips),
        routes=previous.routes + ours.routes,
        dns=previous.dns if ours.dns == Dns() else ours.dns,
    )


def encode_result(result: Result, cni_version: str) -> bytes:
    """The JSON that a successful ADD prints, in protocol version `cni_version` (one of `VERSIONS`)."""
    newest = cni_version == "1.1.0"
    text: dict[str, Any] = {
        "cniVersion": cni_version,
        "interfaces": [_interface(interface, newest=newest) for interface in result.interfaces],
        "ips": [_ip(ip, with_version=cni_version in {"0.3.1", "0.4.0"}) for ip in result.ips],
        "routes": [_route(route, newest=newest) for route in result.routes],
        "dns": _present(
            nameservers=result.dns.nameservers,
            domain=result.dns.domain,
            search=result.dns.search,
            options=result.dns.options,
        ),
    }
    return msgspec.json.encode(text) + b"\n"


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _interface(interface: Interface, *, newest: bool) -> dict[str, Any]:
    text = {"name": interface.name, **_present(mac=interface.mac, sandbox=interface.sandbox)}
    if newest:
        text |= _present(mtu=interface.mtu_bytes, socketPath=interface.socket_path, pciID=interface.pci_id)
    return text


def _ip(ip: IPConfig, *, with_version: bool) -> dict[str, Any]:
    text: dict[str, Any] = {"address": str(ip.address)}
    if with_version:
        text["version"] = str(ip.address.version)
    if ip.gateway is not None:
        text["gateway"] = str(ip.gateway)
    if ip.interface is not None:
        text["interface"] = ip.interface
    return text


def _route(route: Route, *, newest: bool) -> dict[str, Any]:
    text: dict[str, Any] = {"dst": str(route.dst)}
    if route.gw is not None:
        text["gw"] = str(route.gw)
    if newest:
        text |= _present(mtu=route.mtu_bytes, advmss=route.advmss_bytes)
        for name, value in (("priority", route.priority), ("table", route.table), ("scope", route.scope)):
            if value is not None:
                text[name] = value
    return text


class _InterfaceText(msgspec.Struct):
    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socketPath: str = ""  # noqa: N815  - the protocol's own spelling
    pciID: str = ""  # noqa: N815  - the protocol's own spelling


class _IPText(msgspec.Struct):
    address: str
    gateway: str | None = None
    interface: int | None = None


class _RouteText(msgspec.Struct):
    dst: str
    gw: str | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class _DnsText(msgspec.Struct):
    nameservers: list[str] | None = None
    domain: str = ""
    search: list[str] | None = None
    options: list[str] | None = None


class _ResultText(msgspec.Struct):
    # Go writes a nil slice as null.
    interfaces: list[_InterfaceText] | None = None
    ips: list[_IPText] | None = None
    routes: list[_RouteText] | None = None
    dns: _DnsText | None = None


_DECODER: Final = msgspec.json.Decoder(_ResultText)


def decode_result(text: bytes | memoryview) -> Result:
    """Read a result of any supported version. Raises CniError (6) for anything else."""
    try:
        found = _DECODER.decode(text)
        dns = found.dns or _DnsText()
        return Result(
            interfaces=tuple(
                Interface(i.name, i.mac, i.mtu, i.sandbox, i.socketPath, i.pciID)
                for i in found.interfaces or ()
            ),
            ips=tuple(
                IPConfig(ip_interface(ip.address), _gateway(ip.gateway), ip.interface)
                for ip in found.ips or ()
            ),
            routes=tuple(_decode_routes(found.routes or ())),
            dns=Dns(
                tuple(dns.nameservers or ()), dns.domain, tuple(dns.search or ()), tuple(dns.options or ())
            ),
        )
    except ValueError as error:  # msgspec's errors and ipaddress's
        raise CniError(ErrorCode.DECODING_FAILURE, "prevResult is not a CNI result", str(error)) from None


def _decode_routes(routes: Iterable[_RouteText]) -> Iterable[Route]:
    for r in routes:
        # Other plugins may leave host bits in a destination.
        dst = ip_network(r.dst, strict=False)
        yield Route(dst, _gateway(r.gw), r.mtu, r.advmss, r.priority, r.table, r.scope)


def _gateway(text: str | None) -> IPAddress | None:
    return ip_address(text) if text else None
