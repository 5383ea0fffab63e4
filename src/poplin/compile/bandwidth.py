"""A pod's limits of bandwidth -> queueing disciplines on the node's side of its veth, where no pod can lift them.

What goes to the pod waits in a tbf of its host link. What it sends is led, as it comes in there, through the
tbf of an ifb device of its own, and goes on from the host link as if nothing had been: a veth has a queue for
what leaves it only.
"""

from dataclasses import dataclass, replace
from typing import Final

from poplin.model.attachment import Attachment, Limit, ifb_name
from poplin.model.kernel import BURST_NS_MAX, Link, Redirect, Shaping, TokenBucket

ETHERNET_HEADER_BYTES: Final = 18
"""With a VLAN tag: what the kernel counts beside the packet that the MTU is of."""

SEGMENTED_BYTES: Final = 72 << 10
"""The longest packet that the kernel makes of many (64 KiB, and the headers of all): it passes as one."""

LONGEST_BURST_S: Final = 0.1
LEAST_BURST_S: Final = 0.004
"""The kernel wakes a queue late by up to a tick (HZ=250): a burst makes up for that much."""

QUEUE_S: Final = 0.05
QUEUE_FRAMES: Final = 16

_NOTHING: Final = frozenset[Shaping]()
_STEP_NS: Final = 64
_U32_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What an attachment's limits add to the node's side: links, and what shapes them and the host link."""

    links: tuple[Link, ...] = ()
    shaping: frozenset[Shaping] = _NOTHING


_UNLIMITED: Final = Limits()


def compile_bandwidth(attachment: Attachment, host: Link) -> Limits:
    """Give what keeps an attachment within its limits; nothing where it has none."""
    ingress, egress, mtu_bytes = attachment.ingress, attachment.egress, attachment.mtu_bytes
    if ingress is None and egress is None:
        return _UNLIMITED
    shaping: set[Shaping] = set()
    if ingress is not None:
        shaping.add(token_bucket(host.name, ingress, mtu_bytes))
    if egress is None:
        return Limits((), frozenset(shaping))
    ifb = replace(host, name=ifb_name(host.name), kind="ifb", mac="", mtu_bytes=0)
    shaping |= {token_bucket(ifb.name, egress, mtu_bytes), Redirect(host.name, ifb.name)}
    return Limits((ifb,), frozenset(shaping))


def token_bucket(link: str, limit: Limit, mtu_bytes: int) -> TokenBucket:
    """Give the queueing discipline of one limit.

    A burst that nobody chose is as long as the longest packet that the kernel handles as one, but for slow
    links, where that would be felt, and fast ones, where it would not last until the kernel wakes the queue.
    Every burst lets one frame pass, and none is longer than BURST_NS_MAX; a rate at which both cannot be is
    raised to one (3 kbit/s for an MTU of 1450).
    """
    frame_bytes = mtu_bytes + ETHERNET_HEADER_BYTES
    rate = max(limit.rate_bits_s // 8, -(-frame_bytes * 10**9 // (BURST_NS_MAX - _STEP_NS)))
    if limit.burst_bits:
        burst_bytes = max(limit.burst_bits // 8, frame_bytes)
    else:
        usual = min(SEGMENTED_BYTES, int(rate * LONGEST_BURST_S))
        burst_bytes = max(usual, int(rate * LEAST_BURST_S), 2 * frame_bytes)
    burst_ns = min(-(-burst_bytes * 10**9 // (rate * _STEP_NS)) * _STEP_NS, BURST_NS_MAX)
    queue_bytes = max(int(rate * QUEUE_S), burst_bytes + QUEUE_FRAMES * frame_bytes)
    return TokenBucket(link, rate, burst_ns, min(queue_bytes, _U32_MAX))
