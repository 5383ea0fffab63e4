"""Flows out of what the kernel tells: packets that the policy table logs, and connections that it let pass."""

from collections.abc import Callable, Iterable
from typing import Final

from poplin.compile.policy.denial import DENY, UNKNOWN_POD, Notice, parse_prefix
from poplin.model.connection import Connection
from poplin.model.flow import Flow, FlowEnd, FlowVerdict, LoggedPacket, Ruling
from poplin.model.kernel import IPAddress
from poplin.model.policy import Packet, Reason, Verdict

NameOf = Callable[[IPAddress], FlowEnd]
"""Who has an address."""

RULE_LOGS: Final = "a rule logs it"


def logged_flow(packet: LoggedPacket, time_s: float, name_of: NameOf) -> Flow | None:
    """The flow of a packet that was logged; None for one that no rule of the policy table has told of."""
    notice = parse_prefix(packet.prefix)
    if notice is None:
        return None
    flow = packet.flow
    return Flow(
        time_s=time_s,
        verdict=FlowVerdict.DENIED if notice.word == DENY else FlowVerdict.LOGGED,
        source=name_of(flow.source),
        destination=name_of(flow.destination),
        protocol=flow.protocol,
        port=flow.destination_port,
        rulings=(_told(notice),),
    )


def _told(notice: Notice) -> Ruling:
    if notice.policy == UNKNOWN_POD:
        return Ruling(notice.direction.value, Reason.NOT_KNOWN.value)
    reason = Reason.RULE.value if notice.rule is not None else Reason.NO_RULE.value
    return Ruling(
        notice.direction.value,
        reason if notice.word == DENY else RULE_LOGS,
        str(notice.policy),
        notice.rule,
    )


def first_packet(connection: Connection) -> Packet:
    """A connection's first packet as policy saw it: to the endpoint where the client asked for a Service."""
    original, reply = connection.original, connection.reply
    return Packet(original.source, reply.source, original.protocol, reply.source_port, original.source_port)


def allowed_flow(connection: Connection, time_s: float, name_of: NameOf, verdicts: Iterable[Verdict]) -> Flow:
    """The flow of a connection that stands. `verdicts` are those of the directions that this node decides."""
    original, reply = connection.original, connection.reply
    asked = original.destination, original.destination_port
    return Flow(
        time_s=time_s,
        verdict=FlowVerdict.ALLOWED,
        source=name_of(original.source),
        destination=name_of(reply.source),
        protocol=original.protocol,
        port=reply.source_port,
        rulings=tuple(map(_decided, verdicts)),
        service=asked if asked != (reply.source, reply.source_port) else None,
    )


def _decided(verdict: Verdict) -> Ruling:
    policy = str(verdict.policies[0]) if verdict.policies else ""
    return Ruling(verdict.direction.value, verdict.reason.value, policy, verdict.rule)
