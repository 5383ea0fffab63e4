"""Connections that begin and end, as the kernel tells of them (ctnetlink's multicast groups).

The kernel keeps no events while nobody listens, so this costs nothing until one is made.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

from poplin.dataplane.conntrack import CT_DELETE, CT_NEW, decode_connection
from poplin.dataplane.event_socket import EventSocket
from poplin.dataplane.netlink import uapi
from poplin.dataplane.netlink.frame import Message
from poplin.dataplane.nfnetlink import decode_body
from poplin.model.connection import Connection

NFNLGRP_CONNTRACK_NEW: Final = 1
NFNLGRP_CONNTRACK_DESTROY: Final = 3
DATAGRAMS: Final = 16
"""One connection each: 800 a second at most."""

BUFFER_BYTES: Final = 512 * 1024


class ConnectionEvent(StrEnum):
    """NEW: its first packet has passed every rule. DESTROY: the kernel has forgotten it."""

    NEW = "new"
    DESTROY = "destroy"


class ConntrackMonitor(EventSocket):
    """Tells `taken` of every connection of the namespace that begins, and of those that end."""

    def __init__(self, taken: Callable[[ConnectionEvent, Connection], None]) -> None:
        super().__init__(DATAGRAMS, BUFFER_BYTES)
        self._taken = taken
        for group in (NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_DESTROY):
            self._socket.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_ADD_MEMBERSHIP, group)
        self.start()

    def _take(self, message: Message) -> None:
        event = _EVENTS.get(message.kind)
        if event is None:
            return
        connection = decode_connection(decode_body(message)[1])
        if connection is not None:
            self._taken(event, connection)


_EVENTS: Final = {CT_NEW: ConnectionEvent.NEW, CT_DELETE: ConnectionEvent.DESTROY}
