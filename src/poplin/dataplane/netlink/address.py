"""Addresses <-> the body of RTM_*ADDR (man 7 rtnetlink, struct ifaddrmsg). Pure."""

from ipaddress import IPv4Interface, IPv6Interface
from struct import Struct
from typing import Final

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import pack, parse
from poplin.dataplane.netlink.frame import IndexOf, NameOf, decoder, family
from poplin.model.kernel import Address, Scope

IFADDRMSG: Final = Struct("=BBBBI")
"""Family, prefix length, flags, scope, link's index."""

_SCOPES: Final = {scope.value: scope for scope in Scope}


def encode_address(address: Address, index_of: IndexOf) -> bytes:
    """The body to make or remove an address."""
    interface = address.interface
    return b"".join(
        (
            IFADDRMSG.pack(
                family(interface.version),
                interface.network.prefixlen,
                uapi.IFA_F_NODAD,
                address.scope,
                index_of(address.link),
            ),
            pack(uapi.IFA_LOCAL, interface.packed),
            # The far end of a point-to-point link, where there is one; else the address again.
            pack(uapi.IFA_ADDRESS, interface.packed),
            pack(uapi.IFA_PROTO, bytes((address.protocol,))) if address.protocol else b"",
        )
    )


@decoder
def decode_address(body: bytes, name_of: NameOf) -> Address | None:
    """The address, or None for what an Address cannot say: another family, a scope without a name."""
    family_, length, _, scope, index = IFADDRMSG.unpack_from(body)
    if family_ not in (uapi.AF_INET, uapi.AF_INET6) or scope not in _SCOPES:
        return None
    found = parse(body, IFADDRMSG.size)
    local = found.get(uapi.IFA_LOCAL) or found.get(uapi.IFA_ADDRESS)
    if local is None:
        return None
    protocol = found.get(uapi.IFA_PROTO)
    return Address(
        link=name_of(index),
        interface=IPv4Interface((local, length))
        if family_ == uapi.AF_INET
        else IPv6Interface((local, length)),
        scope=_SCOPES[scope],
        protocol=protocol[0] if protocol else 0,
    )


def encode_address_filter(index: int) -> bytes:
    """The body of a dump of both families' addresses, of one link or (0) of all."""
    return IFADDRMSG.pack(uapi.AF_UNSPEC, 0, 0, 0, index)
