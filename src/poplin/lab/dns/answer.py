"""A DNS message -> the message that answers it (RFC 1035, 2308, 6891). Pure but for the order of addresses.

The lab has no name server to ask further. A name outside the cluster is answered by SERVFAIL at once, not by
REFUSED: a resolver takes that for an answer it need not wait for, where musl's sits out its timeout after REFUSED.
"""

import random
from collections.abc import Sequence
from typing import Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from poplin.lab.dns.zone import Found, Name, Record, Zone, text

TTL_S: Final = 5
UDP_BYTES: Final = 1232
"""What passes everywhere without fragments (dnsflagday.net 2020)."""
TCP_BYTES: Final = 65535
_PLAIN_BYTES: Final = 512
_HEADER_BYTES: Final = 12
_ALIASES: Final = 8
"""CNAMEs that are followed."""
_TRANSFERS: Final = {dns.rdatatype.AXFR, dns.rdatatype.IXFR}


def answer(zone: Zone, wire: bytes, limit_bytes: int | None = None) -> bytes | None:
    """The answer to a message as it came; None where it deserves none.

    `limit_bytes` None is UDP's: as much as the client takes.
    """
    try:
        query = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return _refuse_nonsense(wire)
    if query.flags & dns.flags.QR:
        return None
    response = dns.message.make_response(query, recursion_available=True, our_payload=UDP_BYTES)
    code = _check(query)
    if code is None:
        _fill(zone, query, response)
    else:
        response.set_rcode(code)
    if limit_bytes is None:
        limit_bytes = min(max(query.payload, _PLAIN_BYTES), UDP_BYTES) if query.edns >= 0 else _PLAIN_BYTES
    return _write(response, limit_bytes)


def _refuse_nonsense(wire: bytes) -> bytes | None:
    """FORMERR, under the number and the opcode that the message has."""
    if len(wire) < _HEADER_BYTES or wire[2] & 0x80:
        return None
    return wire[:2] + bytes([0x80 | wire[2] & 0x79, dns.rcode.FORMERR]) + bytes(8)


def _write(response: dns.message.Message, limit_bytes: int) -> bytes:
    """The message, with as many addresses as go in: not every resolver comes again by TCP for the rest."""
    while True:
        try:
            return response.to_wire(max_size=limit_bytes)
        except dns.exception.TooBig:
            response.flags |= dns.flags.TC
        if response.additional:
            response.additional.clear()
        elif response.answer:
            last = response.answer.pop()
            half = list(last)[: len(last) // 2]
            if half:
                response.answer.append(dns.rrset.from_rdata_list(last.name, last.ttl, half))
        else:
            response.authority.clear()


def _check(query: dns.message.Message) -> dns.rcode.Rcode | None:
    """Why a query is not looked at, None where it is."""
    if query.edns > 0:
        return dns.rcode.BADVERS
    if query.opcode() != dns.opcode.QUERY:
        return dns.rcode.NOTIMP
    if len(query.question) != 1:
        return dns.rcode.FORMERR
    [question] = query.question
    if question.rdclass not in {dns.rdataclass.IN, dns.rdataclass.ANY} or question.rdtype in _TRANSFERS:
        return dns.rcode.REFUSED
    return None


def _fill(zone: Zone, query: dns.message.Message, response: dns.message.Message) -> None:
    [question] = query.question
    kind = dns.rdatatype.to_text(question.rdtype)
    asked = read_name(question.name)
    found = zone.look_up(asked)
    if not found.apex:
        response.set_rcode(dns.rcode.SERVFAIL)
        if query.edns >= 0:
            reason = dns.edns.EDEOption(
                dns.edns.EDECode.NO_REACHABLE_AUTHORITY, "no name server beyond the cluster"
            )
            response.use_edns(0, payload=UDP_BYTES, options=[reason])
        return
    response.flags |= dns.flags.AA
    records = list(found.records)
    if kind != "CNAME":
        records, found = _follow_aliases(zone, records, found)
    wanted = [one for one in records if one.type in {kind, "CNAME"} or kind == "ANY"]
    if asked == found.apex:
        wanted += [one for one in _make_apex(found.apex) if kind in {one.type, "ANY"}]
    # Clients take the first: whoever is asked, the load is spread.
    random.shuffle(wanted)
    wanted.sort(key=lambda one: one.type != "CNAME")
    _add(response.answer, wanted, {asked: question.name})
    if wanted and kind in {"SRV", "ANY"}:
        _add(response.additional, found.more, {})
    if not wanted:
        if not found.exists:
            response.set_rcode(dns.rcode.NXDOMAIN)
        soa = [one for one in _make_apex(found.apex) if one.type == "SOA"]
        _add(response.authority, soa, {})


def _follow_aliases(zone: Zone, records: list[Record], found: Found) -> tuple[list[Record], Found]:
    """Add what an alias leads to, as far as that is ours."""
    last, seen = found, list(records)
    for _ in range(_ALIASES):
        alias = next((one for one in last.records if one.type == "CNAME"), None)
        if alias is None:
            break
        onward = zone.look_up(tuple(alias.data.lower().rstrip(".").split(".")))
        if not onward.apex:
            break
        seen += [one for one in onward.records if one not in seen]
        last = onward
    return seen, found


def _make_apex(apex: Name) -> list[Record]:
    """A zone's own records. Negative answers live as long as others (RFC 2308)."""
    server = text(("ns", "dns", *apex))
    times = f"1 7200 1800 86400 {TTL_S}"
    return [
        Record(apex, "SOA", f"{server} {text(('hostmaster', *apex))} {times}"),
        Record(apex, "NS", server),
    ]


def _add(
    section: list[dns.rrset.RRset], records: Sequence[Record], spelled: dict[Name, dns.name.Name]
) -> None:
    """Write records, those of a name and type together; names in `spelled` as the client wrote them."""
    grouped: dict[tuple[Name, str], list[str]] = {}
    for one in records:
        grouped.setdefault((one.name, one.type), []).append(one.data)
    for (name, kind), data in grouped.items():
        owner = spelled.get(name) or dns.name.from_text(text(name))
        section.append(dns.rrset.from_text_list(owner, TTL_S, "IN", kind, data))


def read_name(name: dns.name.Name) -> Name:
    """The labels of a name, in small letters; bytes that are no text match nothing."""
    return tuple(label.decode("ascii", "replace").lower() for label in name.labels if label)
