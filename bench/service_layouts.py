"""The same Services in three layouts: ours, a chain for each, and one long chain.

The second is how kube-proxy's nftables mode does it, the third its iptables mode. The peers are generated, in the shape that those modes give a ClusterIP with two endpoints, and without what
they do beside (masquerade marks, comments, counters): each packet does at most the work it does there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

from poplin.compile.destination_nat import DSTNAT, encode_key, encode_port, translate
from poplin.compile.nft_rule import DPORT, IPV4, L4PROTO, equals, loads, random_below, rule
from poplin.compile.services.endpoints import Place
from poplin.compile.services.table import ServiceTable
from poplin.model.cluster import TransportProtocol
from poplin.model.nftables import (
    BaseChain,
    Chain,
    ChainType,
    Element,
    Hook,
    Immediate,
    KeyType,
    Lookup,
    Set,
    Table,
    Verdict,
    goto,
    jump,
)
from poplin.model.service import (
    PROTOCOL_NUMBERS,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Service,
    ServicePort,
)

FIRST_ADDRESS = int(IPv4Address("10.96.0.1"))
PROTOCOL = TransportProtocol.UDP
NUMBER = PROTOCOL_NUMBERS[PROTOCOL]
PORT = 80
TARGET_PORT = 8080
FRONTEND = (KeyType.IPV4_ADDR, KeyType.INET_PROTO, KeyType.INET_SERVICE)


@dataclass(frozen=True, slots=True)
class Given:
    """One Service and its endpoints."""

    address: IPv4Address
    endpoints: tuple[IPv4Address, ...]

    @property
    def name(self) -> str:
        return f"s-{int(self.address):x}"

    @property
    def key(self) -> bytes:
        return encode_key(self.address, NUMBER, PORT)


def given_services(count: int, endpoints: Sequence[IPv4Address]) -> list[Given]:
    """`count` Services that all lead to the same endpoints."""
    return [Given(IPv4Address(FIRST_ADDRESS + number), tuple(endpoints)) for number in range(count)]


def as_objects(
    one: Given, protocols: Sequence[TransportProtocol] = (PROTOCOL,)
) -> tuple[Service, list[EndpointSlice]]:
    """The Service and its slice, as watches give them."""
    service = Service(
        "bench",
        one.name,
        ports=tuple(ServicePort(p, p, PORT) for p in protocols),
        cluster_ips=(ip_address(one.address),),
    )
    ports = tuple(EndpointPort(p, p, TARGET_PORT) for p in protocols)
    endpoints = tuple(Endpoint(address, node_name="n") for address in one.endpoints)
    return service, [EndpointSlice("bench", one.name, one.name, ports, endpoints)]


def our_table(services: Sequence[Given]) -> ServiceTable:
    """Ours, with TCP for the throughput's sake at the first."""
    table = ServiceTable(Place("n"))
    for number, one in enumerate(services):
        both = (TransportProtocol.TCP, PROTOCOL)
        table.put(*as_objects(one, both if number == 0 else (PROTOCOL,)))
    return table


def chain_each(services: Sequence[Given]) -> Table:
    """A verdict map from frontends to a chain for each, there a draw, and a chain for each endpoint."""
    ways = Set(
        "service-ips",
        FRONTEND,
        (KeyType.VERDICT,),
        elements=frozenset(Element(one.key, goto(one.name)) for one in services),
    )
    find = rule(IPV4.only, loads([IPV4.daddr, L4PROTO, DPORT]), Lookup(0, ways.name, verdict=True))
    chains = [chain for one in services for chain in chains_of(one)]
    return Table("kube-proxy", (_base(jump("services")), Chain("services", (find,)), *chains), (ways,))


def chains_of(one: Given) -> Iterator[Chain]:
    """One Service's chains, the last first: what is led to stands before what leads there."""
    count = len(one.endpoints)
    for place, address in enumerate(one.endpoints):
        to = rule(Immediate(0, address.packed), Immediate(1, encode_port(TARGET_PORT)[:2]), translate(IPV4))
        yield Chain(f"endpoint-{one.name}-{place}", (to,))
    draws = [
        rule(equals(random_below(count - place), 0), goto(f"endpoint-{one.name}-{place}"))
        for place in range(count)
    ]
    yield Chain(one.name, tuple(draws))


def long_chain(services: Sequence[Given]) -> Table:
    """A rule for each Service, one after the other; their endpoints' chains are shared, which costs it nothing."""
    found: Verdict = goto(services[0].name)
    rules = tuple(
        rule(
            IPV4.only,
            equals(IPV4.daddr, one.address),
            equals(L4PROTO, NUMBER),
            equals(DPORT, PORT),
            found,
        )
        for one in services
    )
    return Table("iptables", (_base(jump("services")), Chain("services", rules), *chains_of(services[0])))


def _base(verdict: Verdict) -> Chain:
    return Chain("prerouting", (rule(verdict),), BaseChain(ChainType.NAT, Hook.PREROUTING, DSTNAT))
