"""Links <-> the body of RTM_*LINK (man 7 rtnetlink, struct ifinfomsg). Pure.

A request names its link by IFLA_IFNAME and leaves ifi_index 0: the kernel finds it without our asking for
the index first.
"""

import sys
from ipaddress import IPv4Address
from struct import Struct
from typing import Final

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import pack, parse
from poplin.dataplane.netlink.frame import (
    IndexOf,
    NameOf,
    decoder,
    pack_mac,
    pack_text,
    pack_u32,
    unpack_ip,
    unpack_mac,
    unpack_text,
    unpack_u32,
)
from poplin.model.kernel import Link, Veth, Vxlan

IFINFOMSG: Final = Struct("=BxHiII")
"""Family, hardware type, index, flags, which flags to change."""

_PORT: Final = Struct(">H")
_NO_FLAGS: Final = IFINFOMSG.pack(uapi.AF_UNSPEC, 0, 0, 0, 0)
_DETAILS: Final = pack_u32(uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_SKIP_STATS)
_NESTED: Final = uapi.NLA_F_NESTED

ALL_LINKS: Final = _NO_FLAGS + _DETAILS
"""The body of a dump of all links."""


def encode_new_link(link: Link, index_of: IndexOf) -> bytes:
    """The body that makes a link of a kind, down and without alias: `encode_new_link_rest` comes after."""
    info = pack_text(uapi.IFLA_INFO_KIND, link.kind)
    if link.vxlan is not None:
        info += pack(uapi.IFLA_INFO_DATA | _NESTED, _encode_vxlan(link.vxlan, index_of))
    return _NO_FLAGS + _encode_attributes(link) + pack(uapi.IFLA_LINKINFO | _NESTED, info)


def encode_new_veth(veth: Veth) -> bytes:
    """The body that makes a veth pair, both ends down: IFF_UP on the peer here is refused with ENOTCONN."""
    peer = _NO_FLAGS + _encode_attributes(veth.peer) + pack_u32(uapi.IFLA_NET_NS_FD, veth.netns_fd)
    info = pack_text(uapi.IFLA_INFO_KIND, "veth") + pack(
        uapi.IFLA_INFO_DATA | _NESTED, pack(uapi.VETH_INFO_PEER | _NESTED, peer)
    )
    return _NO_FLAGS + _encode_attributes(veth.host) + pack(uapi.IFLA_LINKINFO | _NESTED, info)


def encode_new_link_rest(link: Link, index_of: IndexOf) -> bytes:
    """The body of RTM_SETLINK that says the rest of a new link: its alias, its bridge, and whether it is up."""
    alias = pack_text(uapi.IFLA_IFALIAS, link.alias) if link.alias else b""
    return _encode_up(link) + pack_text(uapi.IFLA_IFNAME, link.name) + alias + _encode_master(link, index_of)


def encode_link(link: Link, index_of: IndexOf) -> bytes:
    """The body of RTM_SETLINK that brings what can change to what `link` says; alias "" removes the alias."""
    alias = pack_text(uapi.IFLA_IFALIAS, link.alias)
    return _encode_up(link) + _encode_attributes(link) + alias + _encode_master(link, index_of)


def encode_no_link_local(name: str) -> bytes:
    """The body of RTM_SETLINK that keeps the kernel from giving the link an IPv6 address of its own.

    It must come before the link goes up; EAFNOSUPPORT means that the link has no IPv6 at all.
    """
    mode = pack(uapi.IFLA_INET6_ADDR_GEN_MODE, bytes((uapi.IN6_ADDR_GEN_MODE_NONE,)))
    specification = pack(uapi.IFLA_AF_SPEC | _NESTED, pack(uapi.AF_INET6 | _NESTED, mode))
    return encode_link_name(name) + specification


def encode_rename(index: int, name: str) -> bytes:
    """The body of RTM_SETLINK that gives the link of this index a name."""
    return IFINFOMSG.pack(uapi.AF_UNSPEC, 0, index, 0, 0) + pack_text(uapi.IFLA_IFNAME, name)


def encode_link_name(name: str) -> bytes:
    """The body that means this link and nothing more: to delete it."""
    return _NO_FLAGS + pack_text(uapi.IFLA_IFNAME, name)


def encode_link_query(name: str) -> bytes:
    """The body of RTM_GETLINK for one link."""
    return encode_link_name(name) + _DETAILS


def encode_link_group(group: int) -> bytes:
    """The body of RTM_DELLINK for all links of a group."""
    return _NO_FLAGS + pack_u32(uapi.IFLA_GROUP, group)


def _encode_up(link: Link) -> bytes:
    return IFINFOMSG.pack(uapi.AF_UNSPEC, 0, 0, uapi.IFF_UP if link.up else 0, uapi.IFF_UP)


def _encode_attributes(link: Link) -> bytes:
    return b"".join(
        (
            pack_text(uapi.IFLA_IFNAME, link.name),
            pack_mac(uapi.IFLA_ADDRESS, link.mac) if link.mac else b"",
            pack_u32(uapi.IFLA_MTU, link.mtu_bytes) if link.mtu_bytes else b"",
            pack_u32(uapi.IFLA_GROUP, link.group),
        )
    )


def _encode_master(link: Link, index_of: IndexOf) -> bytes:
    return pack_u32(uapi.IFLA_MASTER, index_of(link.master)) if link.master else b""


def _encode_vxlan(vxlan: Vxlan, index_of: IndexOf) -> bytes:
    local = vxlan.local
    local_kind = uapi.IFLA_VXLAN_LOCAL if isinstance(local, IPv4Address) else uapi.IFLA_VXLAN_LOCAL6
    return b"".join(
        (
            pack_u32(uapi.IFLA_VXLAN_ID, vxlan.vni),
            pack(uapi.IFLA_VXLAN_PORT, _PORT.pack(vxlan.port)),
            pack_u32(uapi.IFLA_VXLAN_LINK, index_of(vxlan.underlay)) if vxlan.underlay else b"",
            pack(local_kind, local.packed) if local is not None else b"",
            pack(uapi.IFLA_VXLAN_LEARNING, bytes((vxlan.learning,))),
            pack(uapi.IFLA_VXLAN_GBP, b"") if vxlan.gbp else b"",
        )
    )


@decoder
def decode_link(body: bytes, name_of: NameOf) -> Link | None:
    """The link; `name_of` names its bridge, and the underlay of a vxlan device.

    None for what one family says of a link: AF_BRIDGE tells of ports, not of links that come and go.
    """
    family_, _, index, flags, _ = IFINFOMSG.unpack_from(body)
    if family_ != uapi.AF_UNSPEC:
        return None
    found = parse(body, IFINFOMSG.size)
    info = parse(found.get(uapi.IFLA_LINKINFO, b""))
    kind = unpack_text(info.get(uapi.IFLA_INFO_KIND, b""))
    master = _decode_number(found, uapi.IFLA_MASTER)
    return Link(
        name=unpack_text(found.get(uapi.IFLA_IFNAME, b"")),
        kind=kind,
        mac=unpack_mac(found.get(uapi.IFLA_ADDRESS, b"")),
        mtu_bytes=_decode_number(found, uapi.IFLA_MTU),
        up=bool(flags & uapi.IFF_UP),
        group=_decode_number(found, uapi.IFLA_GROUP),
        alias=unpack_text(found.get(uapi.IFLA_IFALIAS, b"")),
        vxlan=_decode_vxlan(info.get(uapi.IFLA_INFO_DATA, b""), name_of) if kind == "vxlan" else None,
        master=name_of(master) if master else "",
        index=index,
        parent=_decode_number(found, uapi.IFLA_LINK),
        parent_nsid=_decode_nsid(found),
        carrier=bool(flags & uapi.IFF_LOWER_UP),
    )


def _decode_vxlan(data: bytes, name_of: NameOf) -> Vxlan:
    found = parse(data)
    underlay = _decode_number(found, uapi.IFLA_VXLAN_LINK)
    local = found.get(uapi.IFLA_VXLAN_LOCAL) or found.get(uapi.IFLA_VXLAN_LOCAL6)
    return Vxlan(
        vni=_decode_number(found, uapi.IFLA_VXLAN_ID),
        port=_PORT.unpack(found.get(uapi.IFLA_VXLAN_PORT, b"\0\0"))[0],
        underlay=name_of(underlay) if underlay else "",
        local=unpack_ip(local) if local else None,
        learning=any(found.get(uapi.IFLA_VXLAN_LEARNING, b"")),
        gbp=uapi.IFLA_VXLAN_GBP in found,
    )


def _decode_nsid(found: dict[int, bytes]) -> int:
    value = found.get(uapi.IFLA_LINK_NETNSID)
    return int.from_bytes(value, sys.byteorder, signed=True) if value is not None else -1


def _decode_number(found: dict[int, bytes], kind: int) -> int:
    value = found.get(kind)
    return unpack_u32(value) if value is not None else 0
