"""Table `inet poplin-services` in the kernel, as the Services want it; and what hangs on it.

Runs in its loop's thread. What the kernel holds is known from what was written: a pass sends what differs,
and reads the table only at an audit, after a failure, or where somebody else has changed it.
"""

import errno
import gc
import logging
import socket
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from poplin.compile.services.endpoints import Place, place_at
from poplin.compile.services.flows import stale_flows
from poplin.compile.services.frontend import Frontend, Kind
from poplin.compile.services.health import HealthCheck
from poplin.compile.services.table import TABLE, Claim, Elements, Name, ServiceTable
from poplin.dataplane.conntrack import ConntrackSocket
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.cluster import Node, TransportProtocol
from poplin.model.errors import PoplinError
from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.nftables import Family, Table, TableKey
from poplin.model.service import PROTOCOL_NUMBERS, EndpointSlice, Service
from poplin.plan.nftables import AddElements, DeleteElements, Operation, plan_table, transactions

log = logging.getLogger(__name__)

KEY: Final = TableKey(Family.INET, TABLE)

MANY: Final = 1000

Wanted = tuple[Service, tuple[EndpointSlice, ...]]


@dataclass(frozen=True, slots=True)
class ServiceInputs:
    """What has changed since the last pass: Services as they are now, None where one is gone.

    `hold` says why nothing can be served yet; then the other fields mean nothing.
    """

    hold: PoplinError | None
    own: Node | None = None
    changed: Mapping[Name, Wanted | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceOutcome:
    """What a pass has done. `problems` are Services' that are not served in full, and why."""

    hold: PoplinError | None = None
    failures: tuple[PoplinError, ...] = ()
    problems: Mapping[Name, str] = field(default_factory=dict)
    checks: tuple[HealthCheck, ...] = ()
    changes: int = 0


class ServiceRules:
    """Writes the table in the network namespace it was made in.

    `service_cidrs`: where clusterIPs are taken from, () where unknown. `node_port_networks` chooses the
    node's addresses that serve node ports; () is its first InternalIP of each family.
    """

    def __init__(
        self, service_cidrs: Iterable[IPNetwork] = (), node_port_networks: Collection[IPNetwork] = ()
    ) -> None:
        self._node_port_networks = node_port_networks
        self._table = ServiceTable(Place(""), service_cidrs)
        self._nft = NftSocket()
        self._conntrack = ConntrackSocket()
        self._route = RouteSocket()
        self._lock = threading.Lock()
        self._structure: Table | None = None
        self._busy_ports: dict[Name, str] = {}
        self.ports = frozenset({self._nft.port})

    def close(self) -> None:
        """Close the sockets; nothing may be asked any more."""
        for one in (self._nft, self._conntrack, self._route):
            one.close()

    def forget(self) -> None:
        """Read the table anew in the next pass."""
        self._structure = None

    def claims(self) -> list[Claim]:
        """Give what is wanted to be served now, for any thread."""
        with self._lock:
            return list(self._table.frontends())

    def run(self, inputs: ServiceInputs, _pods: Collection[str] = ()) -> ServiceOutcome:
        """Take the changes in and bring the table to what is wanted. Never raises for what a kernel can do."""
        if inputs.hold is not None or inputs.own is None:
            return ServiceOutcome(inputs.hold)
        whole = self._structure is None
        try:
            place = self._place(inputs.own)
            with self._lock, _without_collection(len(inputs.changed)):
                self._table.move(place)
                for name, wanted in inputs.changed.items():
                    if wanted is None:
                        self._table.remove(name)
                    else:
                        self._table.put(*wanted)
            count, udp = self._write()
            if udp or whole:
                self._conntrack.delete(stale_flows(self._conntrack.read(), self._table.frontend_at))
        except PoplinError as error:
            self.forget()
            return ServiceOutcome(failures=(error,))
        self._look_at_ports(self._table.names() if whole else inputs.changed)
        problems = self._table.problems()
        for name, text in self._busy_ports.items():
            problems[name] = f"{problems[name]}; {text}" if name in problems else text
        return ServiceOutcome(problems=problems, checks=self._table.health_checks(), changes=count)

    def remove(self) -> None:
        """Have the table gone. Raises KernelError."""
        self._nft.apply(plan_table(None, self._nft.read_table(KEY)))

    def _write(self) -> tuple[int, bool]:
        """Give the number of operations, and whether any was about UDP."""
        structure = self._table.structure()
        if self._structure is not None and _sizes(structure) != _sizes(self._structure):
            self._structure = None  # a set that is made anew wants all its elements
        if self._structure is None:
            actual = self._nft.read_table(KEY)
            operations = plan_table(self._table.table(), actual)
            self._table.take_changes()
            udp = False
        else:
            changes = self._table.take_changes()
            operations = (*plan_table(structure, self._structure), *element_operations(changes))
            udp = any(_is_udp(changed) for changed in changes)
        for transaction in transactions(operations):
            self._nft.apply(transaction)
        if self._structure is None and operations:
            log.info("nftables table written", extra={"table": TABLE, "operations": len(operations)})
        self._structure = structure
        return len(operations), udp

    def _place(self, own: Node) -> Place:
        place = place_at(own)
        if not self._node_port_networks:
            return place
        return replace(place, node_port_addresses=tuple(self._node_port_addresses()))

    def _node_port_addresses(self) -> Iterator[IPAddress]:
        local = {one.interface.ip for one in self._route.addresses()}
        for address in sorted(local, key=lambda ip: (ip.version, int(ip))):
            chosen = any(address in network for network in self._node_port_networks)
            if chosen and not address.is_loopback and not address.is_link_local:
                yield address

    def _look_at_ports(self, names: Iterable[Name]) -> None:
        """Note which of these Services' node ports a process of the node listens on: it is not heard any more."""
        for name in names:
            busy = [f for f in self._table.frontends_of(name) if f.kind is Kind.NODE_PORT and _is_bound(f)]
            if busy:
                ports = ", ".join(f"{one.port.protocol} {one.number} of {one.address}" for one in busy)
                self._busy_ports[name] = f"a process of the node listens on node port {ports} and is cut off"
            else:
                self._busy_ports.pop(name, None)


@contextmanager
def _without_collection(changes: int) -> Iterator[None]:
    """Hold the garbage collector still for many changes: what they make stays, and looking there doubles the time."""
    held = changes > MANY and gc.isenabled()
    if held:
        gc.disable()
    try:
        yield
    finally:
        if held:
            gc.enable()


def _sizes(structure: Table) -> list[int]:
    return [one.size for one in structure.sets]


def element_operations(changes: Collection[Elements]) -> Iterator[Operation]:
    """Give what brings these changes about; a key whose value changes goes first and comes again."""
    yield from (DeleteElements(KEY, one.set, one.gone) for one in changes if one.gone)
    yield from (AddElements(KEY, one.set, one.new) for one in changes if one.new)


def _is_udp(changed: Elements) -> bool:
    """Tell whether an element of a frontend's own sets is of UDP."""
    if not changed.set.name.startswith(("services-", "endpoints-", "sticky-")):
        return False
    place = changed.set.key[0].size_bytes
    udp = PROTOCOL_NUMBERS[TransportProtocol.UDP]
    return any(one.key is not None and one.key[place] == udp for one in changed.gone | changed.new)


_SOCKETS: Final = {
    TransportProtocol.TCP: (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    TransportProtocol.UDP: (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    TransportProtocol.SCTP: (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


def _is_bound(frontend: Frontend) -> bool:
    """Tell whether a process has the port: by trying to."""
    family = socket.AF_INET if frontend.address.version == 4 else socket.AF_INET6
    kind, protocol = _SOCKETS[frontend.port.protocol]
    try:
        with socket.socket(family, kind, protocol) as probe:
            if kind is socket.SOCK_STREAM:  # whose ended connections hold no port from a listener
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((str(frontend.address), frontend.number))
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False
