"""Queueing disciplines and filters <-> the body of RTM_*QDISC and RTM_*TFILTER (struct tcmsg). Pure.

Ours are known by their numbers: the handle of a root queueing discipline, the priority of a filter. All other
ones are somebody else's and are not read.

Source: include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h, linux/tc_act/tc_mirred.h; man 8 tc-tbf, tc-u32.
"""

import sys
from struct import Struct
from typing import Final

from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.attribute import pack, parse
from poplin.dataplane.netlink.frame import IndexOf, NameOf, decoder, pack_text, unpack_text
from poplin.model.kernel import Redirect, TokenBucket

TCMSG: Final = Struct("=BxxxiIII")
"""Family, link's index, handle, parent, info."""

MAJOR: Final = 0x706F
"""Major number of our root queueing disciplines' handles, and the priority of our filters ("po")."""

TICK_NS: Final = 64
"""A tick of the packet scheduler (PSCHED_SHIFT)."""

_HANDLE: Final = MAJOR << 16
_INGRESS_HANDLE: Final = 0xFFFF0000
_FILTER: Final = MAJOR << 16 | int.from_bytes(uapi.ETH_P_ALL.to_bytes(2, "big"), sys.byteorder)

# struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate.
_RATE: Final = Struct("=BBHhHI")
# What follows two of them in struct tc_tbf_qopt: limit, buffer, mtu.
_BUCKET: Final = Struct("=III")
_U64: Final = Struct("=Q")
_U32_MAX: Final = 2**32 - 1

# struct tc_u32_sel with one key: flags, offshift, nkeys, offmask, off, offoff, hoff, hmask; mask, val, off, offmask.
_MATCH_ALL: Final = Struct("=BBBxHHhhIIIii").pack(uapi.TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
# struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
_MIRRED: Final = Struct("=IIiiiiI")


def encode_token_bucket(bucket: TokenBucket, index_of: IndexOf) -> bytes:
    """The body to make, change or remove a link's root queueing discipline."""
    rate = bucket.rate_bytes_s
    parameters = (
        _RATE.pack(0, uapi.TC_LINKLAYER_ETHERNET, 0, 0, 0, min(rate, _U32_MAX))
        + bytes(_RATE.size)
        + _BUCKET.pack(bucket.limit_bytes, bucket.burst_ns // TICK_NS, 0)
    )
    options = pack(uapi.TCA_TBF_PARMS, parameters)
    if rate > _U32_MAX:
        options += pack(uapi.TCA_TBF_RATE64, _U64.pack(rate))
    return b"".join(
        (
            TCMSG.pack(uapi.AF_UNSPEC, index_of(bucket.link), _HANDLE, uapi.TC_H_ROOT, 0),
            pack_text(uapi.TCA_KIND, "tbf"),
            pack(uapi.TCA_OPTIONS | uapi.NLA_F_NESTED, options),
        )
    )


def encode_ingress(link: str, index_of: IndexOf) -> bytes:
    """The body to make what holds the filters of a link's incoming packets; one that stands is left as it is."""
    return TCMSG.pack(uapi.AF_UNSPEC, index_of(link), _INGRESS_HANDLE, uapi.TC_H_CLSACT, 0) + pack_text(
        uapi.TCA_KIND, "clsact"
    )


def encode_filter_key(link: str, index_of: IndexOf) -> bytes:
    """The body to remove every filter of ours from a link's incoming packets."""
    return TCMSG.pack(uapi.AF_UNSPEC, index_of(link), 0, uapi.TC_H_CLSACT_INGRESS, _FILTER)


def encode_redirect(redirect: Redirect, index_of: IndexOf) -> bytes:
    """The body to make a filter that leads every packet to the other device."""
    mirred = _MIRRED.pack(0, 0, uapi.TC_ACT_STOLEN, 0, 0, uapi.TCA_EGRESS_REDIR, index_of(redirect.to))
    action = pack_text(uapi.TCA_ACT_KIND, "mirred") + pack(
        uapi.TCA_ACT_OPTIONS | uapi.NLA_F_NESTED, pack(uapi.TCA_MIRRED_PARMS, mirred)
    )
    actions = pack(1 | uapi.NLA_F_NESTED, action)
    options = pack(uapi.TCA_U32_SEL, _MATCH_ALL) + pack(uapi.TCA_U32_ACT | uapi.NLA_F_NESTED, actions)
    return b"".join(
        (
            encode_filter_key(redirect.link, index_of),
            pack_text(uapi.TCA_KIND, "u32"),
            pack(uapi.TCA_OPTIONS | uapi.NLA_F_NESTED, options),
        )
    )


ALL_QDISCS: Final = TCMSG.pack(uapi.AF_UNSPEC, 0, 0, 0, 0)
"""The body of a dump of the queueing disciplines of all links."""


def encode_filter_query(index: int) -> bytes:
    """The body of a dump of the filters of one link's incoming packets."""
    return TCMSG.pack(uapi.AF_UNSPEC, index, 0, uapi.TC_H_CLSACT_INGRESS, 0)


@decoder
def decode_token_bucket(body: bytes, name_of: NameOf) -> TokenBucket | None:
    """A root queueing discipline of ours, None for any other."""
    _, index, handle, parent, _ = TCMSG.unpack_from(body)
    found = parse(body, TCMSG.size)
    if (handle, parent) != (_HANDLE, uapi.TC_H_ROOT) or unpack_text(found.get(uapi.TCA_KIND, b"")) != "tbf":
        return None
    options = parse(found.get(uapi.TCA_OPTIONS, b""))
    parameters = options.get(uapi.TCA_TBF_PARMS, b"")
    *_, rate = _RATE.unpack_from(parameters)
    if uapi.TCA_TBF_RATE64 in options:
        (rate,) = _U64.unpack(options[uapi.TCA_TBF_RATE64])
    limit_bytes, ticks, _ = _BUCKET.unpack_from(parameters, 2 * _RATE.size)
    return TokenBucket(name_of(index), rate, ticks * TICK_NS, limit_bytes)


@decoder
def decode_redirect(body: bytes, name_of: NameOf) -> Redirect | None:
    """A filter of ours, None for any other. One whose device is gone leads to "if0"."""
    _, index, _, _, info = TCMSG.unpack_from(body)
    found = parse(body, TCMSG.size)
    if info != _FILTER or unpack_text(found.get(uapi.TCA_KIND, b"")) != "u32":
        return None
    options = parse(found.get(uapi.TCA_OPTIONS, b""))
    action = parse(parse(options.get(uapi.TCA_U32_ACT, b"")).get(1, b""))
    parameters = parse(action.get(uapi.TCA_ACT_OPTIONS, b"")).get(uapi.TCA_MIRRED_PARMS)
    if parameters is None:
        return None  # a table of keys, which every u32 filter begins with
    *_, to = _MIRRED.unpack_from(parameters)
    return Redirect(name_of(index), name_of(to))


@decoder
def decode_shaped_link(body: bytes, name_of: NameOf) -> str:
    """The link that a notification about anybody's queueing discipline or filter is about."""
    _, index, *_ = TCMSG.unpack_from(body)
    return name_of(index)
