"""What all tables that rewrite destinations share: when they run, how they mark, who reaches itself."""

from typing import Final

from poplin.compile.nft_rule import (
    CT_MARK,
    CT_STATE,
    CT_STATUS,
    WAY_BACK,
    Network,
    equals,
    has_any,
    rule,
    set_bits,
)
from poplin.model.kernel import IPAddress
from poplin.model.nftables import CtState, CtStatus, Nat, NatKind, Rule

DSTNAT: Final = -110
"""Before NF_IP_PRI_NAT_DST (-100): where two tables translate, the one whose chain comes first wins."""

MASQUERADE_BIT: Final = 0x2000_0000
"""Of the connection mark: this connection gets the address of the interface it leaves by."""


def mark_hairpin() -> Rule:
    """Mark what was translated and goes back where it came from, in the forward hook.

    A pod that reaches itself, then: to answer itself it would not come by the node. A connection's first
    packets decide, so that no other pays for a route.
    """
    return rule(
        has_any(CT_STATUS, CtStatus.DNAT),
        has_any(CT_STATE, CtState.NEW),
        equals(WAY_BACK, 1),
        set_bits(CT_MARK, MASQUERADE_BIT),
        comment="from a pod to itself",
    )


def translate(net: Network, register: int = 0) -> Nat:
    """Rewrite the destination to the address, and the port after it, that lie in registers from `register` on."""
    return Nat(NatKind.DNAT, net.family, register, register + net.address.size_bytes // 4)


def encode_port(number: int) -> bytes:
    """A port as part of a concatenation, padded to a register."""
    return number.to_bytes(2).ljust(4, b"\0")


def encode_key(address: IPAddress | None, protocol: int, port: int) -> bytes:
    """What a packet is sent to, as the concatenation (address .) protocol . port."""
    where = b"" if address is None else address.packed
    return where + protocol.to_bytes(1).ljust(4, b"\0") + encode_port(port)
