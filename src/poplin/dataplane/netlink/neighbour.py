"""Neighbours and vxlan forwarding entries <-> the body of RTM_*NEIGH (struct ndmsg). Pure."""

from struct import Struct
from typing import Final

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import pack, parse
from poplin.dataplane.netlink.frame import (
    IndexOf,
    NameOf,
    decoder,
    family,
    pack_mac,
    pack_u32,
    unpack_ip,
    unpack_mac,
)
from poplin.model.kernel import FdbEntry, IPAddress, Neighbour

NDMSG: Final = Struct("=BBHiHBB")
"""Family, two paddings, link's index, state, flags, type."""

_STATE: Final = Struct("=H")
_STATE_OFFSET: Final = 8


def encode_neighbour(neighbour: Neighbour, index_of: IndexOf) -> bytes:
    """The body to make or remove a permanent neighbour."""
    ip_family = family(neighbour.address.version)
    return b"".join(
        (
            NDMSG.pack(ip_family, 0, 0, index_of(neighbour.link), uapi.NUD_PERMANENT, 0, 0),
            pack(uapi.NDA_DST, neighbour.address.packed),
            pack_mac(uapi.NDA_LLADDR, neighbour.mac),
            pack(uapi.NDA_PROTOCOL, bytes((neighbour.protocol,))) if neighbour.protocol else b"",
        )
    )


def encode_fdb_entry(entry: FdbEntry, index_of: IndexOf) -> bytes:
    """The body to make or remove a permanent entry of a vxlan device's own table."""
    index = index_of(entry.link)
    return b"".join(
        (
            NDMSG.pack(uapi.AF_BRIDGE, 0, 0, index, uapi.NUD_PERMANENT, uapi.NTF_SELF, 0),
            pack_mac(uapi.NDA_LLADDR, entry.mac),
            pack(uapi.NDA_DST, entry.destination.packed),
        )
    )


@decoder
def is_permanent(body: bytes) -> bool:
    """Whether the entry is one that somebody set, as against one that the kernel learned."""
    (state,) = _STATE.unpack_from(body, _STATE_OFFSET)
    return bool(state & uapi.NUD_PERMANENT)


@decoder
def decode_neighbour(body: bytes, name_of: NameOf) -> Neighbour | FdbEntry | None:
    """The entry in whichever state it is; its `mac` is "" where it is not known.

    None for what neither value can say: another family, an entry of a bridge, one without an address.
    """
    family_, _, _, index, _, flags, _ = NDMSG.unpack_from(body)
    found = parse(body, NDMSG.size)
    if uapi.NDA_DST not in found:
        return None
    mac = unpack_mac(found.get(uapi.NDA_LLADDR, b""))
    if family_ in (uapi.AF_INET, uapi.AF_INET6):
        protocol = found.get(uapi.NDA_PROTOCOL)
        address = unpack_ip(found[uapi.NDA_DST])
        return Neighbour(name_of(index), address, mac, protocol[0] if protocol else 0)
    if family_ == uapi.AF_BRIDGE and flags & uapi.NTF_SELF:
        return FdbEntry(name_of(index), mac, unpack_ip(found[uapi.NDA_DST]))
    return None


def encode_neighbour_filter(family_: int, index: int) -> bytes:
    """The body of a dump of one family (AF_BRIDGE: forwarding entries), of one link or (0) of all."""
    return NDMSG.pack(family_, 0, 0, 0, 0, 0, 0) + (pack_u32(uapi.NDA_IFINDEX, index) if index else b"")


def encode_neighbour_key(address: IPAddress, index: int) -> bytes:
    """The body of RTM_GETNEIGH for one entry."""
    return NDMSG.pack(family(address.version), 0, 0, index, 0, 0, 0) + pack(uapi.NDA_DST, address.packed)
