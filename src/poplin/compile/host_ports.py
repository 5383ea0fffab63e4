"""Table `inet poplin-hostport`: ports of the node that lead to pods (hostPort, CNI's `portMappings`).

A mapping is an element of a data map, in each family that it serves; the rules are the same for any number.
The client's address is kept, but where the pod could not answer it: a pod that reaches itself, and the node's
127.0.0.0/8, get the node's address.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from poplin.compile.destination_nat import (
    DSTNAT,
    MASQUERADE_BIT,
    encode_key,
    encode_port,
    mark_hairpin,
    translate,
)
from poplin.compile.nft_rule import (
    CT_MARK,
    DADDR_TYPE,
    DPORT,
    IIFGROUP,
    IPV4,
    IPV6,
    L4PROTO,
    OIFGROUP,
    RTN_LOCAL,
    Network,
    equals,
    has_any,
    look_up,
    rule,
    within,
)
from poplin.compile.node_table import RAW, SRCNAT
from poplin.model.attachment import Attachment, PortMapping
from poplin.model.cluster import TransportProtocol
from poplin.model.connection import Connection, ConnectionStatus
from poplin.model.kernel import POD_LINK_GROUP, IPAddress
from poplin.model.nftables import (
    DROP,
    RETURN,
    BaseChain,
    Chain,
    ChainType,
    Counter,
    Element,
    Hook,
    KeyType,
    Masquerade,
    NatFlag,
    Rule,
    Set,
    Table,
    jump,
)
from poplin.model.service import PROTOCOL_NUMBERS

TABLE: Final = "poplin-hostport"

LOOPBACK_4: Final = ip_network("127.0.0.0/8")
LOOPBACK_6: Final = ip_address("::1")

_NETWORKS: Final = {4: IPV4, 6: IPV6}
_DISPATCH: Final = "mapping"


@dataclass(frozen=True, slots=True)
class Entry:
    """One mapping in one family: `host_address` None is any of the node's of that family."""

    protocol: TransportProtocol
    host_address: IPAddress | None
    host_port: int
    address: IPAddress
    container_port: int


def entries_of(attachment: Attachment) -> Iterator[Entry]:
    """Give an attachment's mappings, each once for every address of the pod that it leads to."""
    for mapping in attachment.port_mappings:
        wanted = mapping.host_address
        for address in attachment.addresses:
            if wanted is None or wanted.version == address.version:
                host = None if wanted is None or wanted.is_unspecified else wanted
                yield Entry(mapping.protocol, host, mapping.host_port, address, mapping.container_port)


def clashes(one: PortMapping, other: PortMapping) -> bool:
    """Tell whether two mappings would take one port of one address, as two sockets could not be bound to both."""
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    mine, others = one.host_address, other.host_address
    if mine is None or others is None:
        return True
    return mine.version == others.version and (mine == others or mine.is_unspecified or others.is_unspecified)


def compile_host_ports(attachments: Iterable[Attachment]) -> Table | None:
    """Give the table of all mappings, None where there is none."""
    elements: dict[str, set[Element]] = {name: set() for name in _SETS}
    for attachment in attachments:
        for entry in entries_of(attachment):
            elements[_set_name(entry.address.version, addressed=entry.host_address is not None)].add(
                _element(entry)
            )
    if not any(elements.values()):
        return None
    dispatch = rule(equals(DADDR_TYPE, RTN_LOCAL), jump(_DISPATCH), comment="to an address of this node")
    return Table(
        TABLE,
        chains=(
            _base("loopback", ChainType.FILTER, Hook.PREROUTING, RAW, _guard_loopback()),
            _base("prerouting", ChainType.NAT, Hook.PREROUTING, DSTNAT, dispatch),
            _base("output", ChainType.NAT, Hook.OUTPUT, DSTNAT, dispatch),
            Chain(_DISPATCH, tuple(_translations())),
            _base("hairpin", ChainType.FILTER, Hook.FORWARD, 0, mark_hairpin()),
            _base("postrouting", ChainType.NAT, Hook.POSTROUTING, SRCNAT, *_masquerades()),
        ),
        sets=tuple(
            Set(name, key, data, elements=frozenset(elements[name])) for name, (key, data) in _SETS.items()
        ),
    )


def stale_flows(
    connections: Iterable[Connection], *, added: Iterable[Entry] = (), removed: Iterable[Entry] = ()
) -> list[Connection]:
    """Give the UDP connections that mappings' coming and going leave with a wrong end.

    A datagram of a known connection does not meet the maps. So what led to a mapping that is `removed` would
    go on to whoever has the pod's address next; and a client that has sent to a port before it was mapped,
    and had no answer, would never reach the pod.
    """
    ends = {
        (e.address, e.container_port, e.host_port) for e in removed if e.protocol == TransportProtocol.UDP
    }
    ports: set[tuple[int, IPAddress | None, int]] = {
        (e.address.version, e.host_address, e.host_port) for e in added if e.protocol == TransportProtocol.UDP
    }
    return [one for one in connections if _is_udp(one) and (_leads_to(one, ends) or _unheard(one, ports))]


def _is_udp(one: Connection) -> bool:
    return one.original.protocol == PROTOCOL_NUMBERS[TransportProtocol.UDP]


def _leads_to(one: Connection, ends: set[tuple[IPAddress, int, int]]) -> bool:
    return (one.reply.source, one.reply.source_port, one.original.destination_port) in ends


def _unheard(one: Connection, ports: set[tuple[int, IPAddress | None, int]]) -> bool:
    """Tell whether a connection to one of the ports was never answered and never translated."""
    if one.status & (ConnectionStatus.SEEN_REPLY | ConnectionStatus.DESTINATION_NAT):
        return False
    to = one.original.destination
    port = one.original.destination_port
    return (to.version, None, port) in ports or (to.version, to, port) in ports


def _base(name: str, kind: ChainType, hook: Hook, priority: int, *rules: Rule) -> Chain:
    return Chain(name, rules, BaseChain(kind, hook, priority))


def _translations() -> Iterator[Rule]:
    """A mapping of one address goes before those of any.

    IPv6 has no `route_localnet`: what is sent to ::1 cannot leave by a pod's link, and stays the node's own.
    """
    yield rule(IPV6.only, equals(IPV6.daddr, LOOPBACK_6), RETURN)
    for version, net in _NETWORKS.items():
        for addressed in (True, False):
            key = [*([net.daddr] if addressed else []), L4PROTO, DPORT]
            yield rule(
                net.only,
                look_up(key, _set_name(version, addressed=addressed)),
                translate(net),
            )


def _guard_loopback() -> Rule:
    """Keep pods off the node's loopback, which `route_localnet` on their links would let them reach.

    An answer to a loopback client still has the node's own address here, before connection tracking.
    """
    return rule(
        IPV4.only,
        equals(IIFGROUP, POD_LINK_GROUP),
        within(IPV4.daddr, LOOPBACK_4),
        Counter(),
        DROP,
        comment="from a pod to the node's loopback",
    )


def _masquerades() -> Iterator[Rule]:
    yield rule(
        has_any(CT_MARK, MASQUERADE_BIT), Masquerade(NatFlag.FULLY_RANDOM), comment="from a pod to itself"
    )
    yield rule(
        IPV4.only,
        equals(OIFGROUP, POD_LINK_GROUP),
        within(IPV4.saddr, LOOPBACK_4),
        Masquerade(NatFlag.FULLY_RANDOM),
        comment="from the node's loopback to a pod",
    )


def _set_name(version: int, *, addressed: bool) -> str:
    return f"address-port-{version}" if addressed else f"port-{version}"


def _types(net: Network, *, addressed: bool) -> tuple[tuple[KeyType, ...], tuple[KeyType, ...]]:
    key = (KeyType.INET_PROTO, KeyType.INET_SERVICE)
    return ((net.address, *key) if addressed else key), (net.address, KeyType.INET_SERVICE)


_SETS: Final = {
    _set_name(version, addressed=addressed): _types(net, addressed=addressed)
    for version, net in _NETWORKS.items()
    for addressed in (True, False)
}


def decode_entries(table: Table) -> Iterator[tuple[IPAddress, PortMapping]]:
    """Give what a table of ours maps: the pod's address, and the mapping of that family alone."""
    protocols = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}
    for one in table.sets:
        if one.name not in _SETS:
            continue
        size = 4 if one.name.endswith("4") else 16
        for element in one.elements:
            if element.key is None or not isinstance(element.data, bytes):
                continue
            host, key = element.key[:-8], element.key[-8:]
            wanted = ip_address(host or bytes(size))
            yield (
                ip_address(element.data[:size]),
                PortMapping(
                    protocols[key[0]],
                    int.from_bytes(key[4:6]),
                    int.from_bytes(element.data[size : size + 2]),
                    wanted,
                ),
            )


def _element(entry: Entry) -> Element:
    return Element(
        encode_key(entry.host_address, PROTOCOL_NUMBERS[entry.protocol], entry.host_port),
        entry.address.packed + encode_port(entry.container_port),
    )
