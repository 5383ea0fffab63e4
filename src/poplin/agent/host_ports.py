"""Keeps table `inet poplin-hostport` as the attachments want it, for the CNI server and the reconcile pass alike."""

import threading
from collections.abc import Callable, Iterable

from poplin.compile.host_ports import TABLE, compile_host_ports, entries_of, stale_flows
from poplin.dataplane.conntrack import ConntrackSocket
from poplin.dataplane.nftables.owned_table import OwnedTable
from poplin.model.attachment import Attachment
from poplin.model.cluster import TransportProtocol
from poplin.model.nftables import Family, TableKey

KEY = TableKey(Family.INET, TABLE)


class HostPorts:
    """Writes the table in the namespace it was made in; any thread may call. `mapped` gives who has mappings.

    Each call brings the whole table to what all attachments want now, so that it does not matter who comes
    first. Every method raises KernelError.
    """

    def __init__(self, mapped: Callable[[], Iterable[Attachment]]) -> None:
        self._mapped = mapped
        self._table = OwnedTable(KEY)
        self._conntrack = ConntrackSocket()
        self._lock = threading.Lock()
        self.ports = self._table.ports

    def close(self) -> None:
        """Close the sockets; nothing may be asked any more."""
        self._table.close()
        self._conntrack.close()

    def forget(self) -> None:
        """Read the table anew before the next change: somebody else may have changed it."""
        with self._lock:
            self._table.forget()

    def apply(self) -> int:
        """Bring the table to what is wanted. Give the number of operations, 0 where nothing differed."""
        with self._lock:
            return len(self._table.write(compile_host_ports(self._mapped())))

    def publish(self, attachment: Attachment) -> None:
        """Have the attachment's mappings in force, for clients too that have called in vain before."""
        self.apply()
        if _has_udp(attachment):
            flows = stale_flows(self._conntrack.read(), added=entries_of(attachment))
            self._conntrack.delete(flows)

    def withdraw(self, attachment: Attachment) -> None:
        """Have the mappings of an attachment that is no longer among the mapped gone, and their UDP flows."""
        self.apply()
        if _has_udp(attachment):
            flows = stale_flows(self._conntrack.read(), removed=entries_of(attachment))
            self._conntrack.delete(flows)

    def missing(self, attachment: Attachment) -> list[str]:
        """Name the attachment's mappings that the kernel does not hold."""
        wanted = compile_host_ports([attachment])
        if wanted is None:
            return []
        with self._lock:
            standing = self._table.read()
        held = {one.name: one.elements for one in standing.sets} if standing else {}
        short = any(one.elements - held.get(one.name, frozenset()) for one in wanted.sets)
        rules = standing is None or standing.chains != wanted.chains
        return [f"missing: host ports of {attachment.host_link}"] if short or rules else []


def _has_udp(attachment: Attachment) -> bool:
    return any(mapping.protocol is TransportProtocol.UDP for mapping in attachment.port_mappings)
