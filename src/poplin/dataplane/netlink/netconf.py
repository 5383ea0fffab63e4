"""What RTM_NEWNETCONF tells: somebody set a parameter under net/ipv4/conf or net/ipv6/conf (struct netconfmsg). Pure."""

import sys
from typing import Final

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import parse
from poplin.dataplane.netlink.frame import NameOf, decoder

_HEADER_BYTES: Final = 4
"""The family, and what aligns the attributes."""

_NAMES: Final = {uapi.NETCONFA_IFINDEX_ALL: "all", uapi.NETCONFA_IFINDEX_DEFAULT: "default"}


@decoder
def decode_configured_link(body: bytes, name_of: NameOf) -> str:
    """The link that a parameter is of, "all" or "default"; "" where the message does not say."""
    value = parse(body, _HEADER_BYTES).get(uapi.NETCONFA_IFINDEX)
    if value is None:
        return ""
    index = int.from_bytes(value, sys.byteorder, signed=True)
    return _NAMES.get(index) or name_of(index)
