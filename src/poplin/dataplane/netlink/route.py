"""Routes <-> the body of RTM_*ROUTE (man 7 rtnetlink, struct rtmsg). Pure."""

from ipaddress import IPv4Network, IPv6Network
from struct import Struct
from typing import Final, cast

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import pack, parse
from poplin.dataplane.netlink.frame import (
    IndexOf,
    NameOf,
    decoder,
    family,
    pack_u32,
    unpack_ip,
    unpack_u32,
)
from poplin.model.kernel import IPAddress, Route, RouteKind, Scope

RTMSG: Final = Struct("=BBBBBBBBI")
"""Family, destination length, source length, TOS, table, protocol, scope, type, flags."""

_PROTOCOL: Final = Struct("=5xB")
_VIA_INET6: Final = Struct("=H").pack(uapi.AF_INET6)
_KINDS: Final = {kind.value: kind for kind in RouteKind}
_SCOPES: Final = {scope.value: scope for scope in Scope}
_WITHOUT_NEXTHOP: Final = {RouteKind.BLACKHOLE, RouteKind.UNREACHABLE, RouteKind.PROHIBIT, RouteKind.THROW}


def encode_route(route: Route, index_of: IndexOf) -> bytes:
    """The body to make or remove a route."""
    destination = route.destination
    parts = [
        RTMSG.pack(
            family(destination.version),
            destination.prefixlen,
            0,
            0,
            route.table if route.table < 256 else 0,
            route.protocol,
            route.scope,
            route.kind,
            uapi.RTNH_F_ONLINK if route.onlink else 0,
        ),
        pack(uapi.RTA_DST, destination.network_address.packed),
    ]
    if route.gateway is not None:
        parts.append(_encode_gateway(route.gateway, destination.version))
    if route.link:
        parts.append(pack_u32(uapi.RTA_OIF, index_of(route.link)))
    if route.table >= 256:
        parts.append(pack_u32(uapi.RTA_TABLE, route.table))
    if route.source is not None:
        parts.append(pack(uapi.RTA_PREFSRC, route.source.packed))
    if route.metric:
        parts.append(pack_u32(uapi.RTA_PRIORITY, route.metric))
    if route.mtu_bytes:
        parts.append(pack(uapi.RTA_METRICS, pack_u32(uapi.RTAX_MTU, route.mtu_bytes)))
    return b"".join(parts)


def _encode_gateway(gateway: IPAddress, version: int) -> bytes:
    if gateway.version == version:
        return pack(uapi.RTA_GATEWAY, gateway.packed)
    return pack(uapi.RTA_VIA, _VIA_INET6 + gateway.packed)


@decoder
def decode_route(body: bytes, name_of: NameOf) -> Route | None:
    """The route, or None for what a Route cannot say: another family, a kind or scope without a name.

    Of a multipath route the destination is right and the next hops are missing, so that it equals no
    route of ours and can still be replaced or removed under its key.
    """
    family_, length, _, _, table, protocol, scope, kind, flags = RTMSG.unpack_from(body)
    if family_ not in (uapi.AF_INET, uapi.AF_INET6) or kind not in _KINDS or scope not in _SCOPES:
        return None
    found = parse(body, RTMSG.size)
    version_6 = family_ == uapi.AF_INET6
    address = found.get(uapi.RTA_DST) or bytes(16 if version_6 else 4)
    metric = unpack_u32(found[uapi.RTA_PRIORITY]) if uapi.RTA_PRIORITY in found else 0
    # An IPv6 reject route is reported with the loopback device, which nobody asked for.
    link = found.get(uapi.RTA_OIF) if _KINDS[kind] not in _WITHOUT_NEXTHOP else None
    return Route(
        destination=IPv6Network((address, length)) if version_6 else IPv4Network((address, length)),
        gateway=_decode_gateway(found),
        link=name_of(unpack_u32(link)) if link is not None else "",
        kind=_KINDS[kind],
        scope=_SCOPES[scope],
        onlink=bool(flags & uapi.RTNH_F_ONLINK),
        source=unpack_ip(found[uapi.RTA_PREFSRC]) if uapi.RTA_PREFSRC in found else None,
        mtu_bytes=_decode_mtu(found[uapi.RTA_METRICS]) if uapi.RTA_METRICS in found else 0,
        metric=0 if version_6 and metric == uapi.IP6_RT_PRIO_USER else metric,
        table=unpack_u32(found[uapi.RTA_TABLE]) if uapi.RTA_TABLE in found else table,
        protocol=protocol,
    )


def _decode_gateway(found: dict[int, bytes]) -> IPAddress | None:
    if uapi.RTA_GATEWAY in found:
        return unpack_ip(found[uapi.RTA_GATEWAY])
    if uapi.RTA_VIA in found:
        return unpack_ip(found[uapi.RTA_VIA][2:])
    return None


def _decode_mtu(metrics: bytes) -> int:
    mtu = parse(metrics).get(uapi.RTAX_MTU)
    return unpack_u32(mtu) if mtu is not None else 0


@decoder
def decode_protocol(body: bytes) -> int:
    """The route's rtm_protocol alone: in a flood of other owners' routes nobody needs to look further."""
    (protocol,) = _PROTOCOL.unpack_from(body)
    return cast("int", protocol)


def encode_route_filter(ip_version: int, *, protocol: int, table: int, index: int = 0) -> bytes:
    """The body of a dump of one family's routes; zero stands for any. Needs NETLINK_GET_STRICT_CHK."""
    header = RTMSG.pack(family(ip_version), 0, 0, 0, 0, protocol, 0, 0, 0)
    table_ = pack_u32(uapi.RTA_TABLE, table) if table else b""
    return header + table_ + (pack_u32(uapi.RTA_OIF, index) if index else b"")


def encode_route_query(destination: IPAddress, source: IPAddress | None, index: int) -> bytes:
    """The body of RTM_GETROUTE for one packet: sent here, or (`index` not 0) come in from that link.

    The kernel answers with the route that it would take, not with a copy made for the packet.
    """
    bits = destination.max_prefixlen
    return b"".join(
        (
            RTMSG.pack(
                family(destination.version),
                bits,
                bits if source is not None else 0,
                *(0, 0, 0, 0, 0),
                uapi.RTM_F_FIB_MATCH,
            ),
            pack(uapi.RTA_DST, destination.packed),
            pack(uapi.RTA_SRC, source.packed) if source is not None else b"",
            pack_u32(uapi.RTA_IIF, index) if index else b"",
        )
    )
