"""UDP flows that a Service's endpoints have left behind."""

from collections.abc import Callable, Iterable

from poplin.compile.destination_nat import encode_key, encode_port
from poplin.compile.services.frontend import Frontend
from poplin.model.cluster import TransportProtocol
from poplin.model.connection import Connection
from poplin.model.service import PROTOCOL_NUMBERS

UDP = PROTOCOL_NUMBERS[TransportProtocol.UDP]


def stale_flows(
    connections: Iterable[Connection], frontend_at: Callable[[bytes], Frontend | None]
) -> list[Connection]:
    """Give the flows to a frontend that are answered by nobody who serves it, where somebody does.

    A datagram of a known connection does not meet the maps: it would go on to where an endpoint was, or, where
    the client called before there was a Service, to nowhere. Where nobody serves there is nothing better.
    """
    stale = []
    for one in connections:
        original, reply = one.original, one.reply
        if original.protocol != UDP:
            continue
        frontend = frontend_at(encode_key(original.destination, UDP, original.destination_port))
        if frontend is None or not frontend.targets:
            continue
        target = reply.source.packed + encode_port(reply.source_port)
        if target not in frontend.targets and target not in frontend.serving:
            stale.append(one)
    return stale
