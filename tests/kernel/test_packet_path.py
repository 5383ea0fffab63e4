"""The questions that the packet path was decided by, each asked of the kernel with real packets.

Each docstring says the question and the answer that the test holds the kernel to.
"""

import socket
import struct
import time
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from kernel.topology import GATEWAY, NODE, OUTSIDE, POD_A, POD_B, SERVICE, Topology, built
from poplin.compile.nft_rule import (
    CT_MARK,
    CT_STATE,
    CT_STATUS,
    DADDR_TYPE,
    DPORT,
    IIFGROUP,
    L4PROTO,
    MARK,
    NUMBER,
    REVERSE_PATH,
    RTN_LOCAL,
    WAY_BACK,
    encode_number,
    equals,
    has_any,
    in_set,
    loads,
    look_up,
    look_up_number,
    network,
    random_below,
    rule,
    set_bits,
)
from poplin.compile.node_table import compile_node_table
from poplin.dataplane.conntrack import ConntrackSocket
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.kernel import POD_LINK_GROUP
from poplin.model.nftables import (
    ACCEPT,
    DROP,
    BaseChain,
    Chain,
    ChainType,
    CtState,
    CtStatus,
    Element,
    Hook,
    KeyType,
    Lookup,
    Masquerade,
    MetaKey,
    MetaSet,
    Nat,
    NatKind,
    Reject,
    RejectKind,
    Set,
    Table,
    goto,
    host32,
)
from poplin.plan.nftables import plan_table

CUT = 0x1000_0000
MASQUERADE = 0x2000_0000
ESTABLISHED = has_any(CT_STATE, CtState.ESTABLISHED | CtState.RELATED)
TCP = socket.IPPROTO_TCP
UDP = socket.IPPROTO_UDP

both_families = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def built_topology():
    with built() as made:
        yield made


@pytest.fixture
def world(built_topology):
    yield built_topology
    built_topology.close_sockets()
    built_topology.node.run("nft", "flush", "ruleset")
    with built_topology.node.entered(), ConntrackSocket() as conntrack:
        conntrack.delete(conntrack.read())


def put(world: Topology, table: Table, actual: Table | None = None) -> Table:
    with world.node.entered(), NftSocket() as nft:
        nft.apply(plan_table(table, actual))
        assert nft.read_table(table.key) == table
    return table


def base(hook: Hook, priority: int, *rules, kind=ChainType.FILTER, name="") -> Chain:
    return Chain(name or hook.name.lower(), rules, BaseChain(kind, hook, priority))


def connects(host, address: str, port: int, **kwargs) -> str:
    try:
        host.connect(address, port, **kwargs).close()
    except TimeoutError:
        return "dropped"
    except ConnectionRefusedError:
        return "refused"
    return "open"


def arrives(sender: socket.socket, receiver: socket.socket, data: bytes = b"x") -> bool:
    """Over an established connection."""
    sender.send(data)
    try:
        return receiver.recv(100) == data
    except TimeoutError:
        return False


def peer_of(listener: socket.socket) -> str:
    """Who the next connection comes from, as the server sees it."""
    accepted, peer = listener.accept()
    accepted.close()
    return peer[0]


@contextmanager
def conntrack_of(world: Topology):
    with world.node.entered(), ConntrackSocket() as conntrack:
        yield conntrack


def packed(address: str) -> bytes:
    return ip_address(address).packed


def key(*parts: bytes) -> bytes:
    """A concatenation: every part padded to registers."""
    return b"".join(part.ljust(len(part) + 3 & ~3, b"\0") for part in parts)


def port(number: int) -> bytes:
    return number.to_bytes(2, "big")


# Identities


def identity_table(version: int, *, catch_all: int | None = None, verdicts: bool = False) -> Table:
    """Pod a has the identity 1 and pod b 2; port 80 of 2 is open to 1 and to 9."""
    net = network(version)
    known = {
        Element(packed(POD_A[version]), encode_number(1)),
        Element(packed(POD_B[version]), encode_number(2)),
    }
    if catch_all is not None:
        known.add(Element(None, encode_number(catch_all)))
    openings = [key(host32(source), bytes([TCP]), host32(2), port(80)) for source in (1, 9)]
    identity = Set("identity", (net.address,), NUMBER, elements=frozenset(known))
    opening_type = (KeyType.MARK, KeyType.INET_PROTO, KeyType.MARK, KeyType.INET_SERVICE)
    pair = (
        *look_up_number([net.saddr], "identity", 1),
        *look_up_number([net.daddr], "identity", 3),
        *loads([L4PROTO], 2),
        *loads([DPORT], 4),
    )
    if verdicts:
        elements = frozenset(Element(one, encode_number(77)) for one in openings)
        openings_set = Set("openings", opening_type, NUMBER, elements=elements)
        outcome = Set(
            "outcome",
            (KeyType.MARK,),
            (KeyType.VERDICT,),
            elements=frozenset({Element(host32(77), goto("policy-77"))}),
        )
        match = (*pair, Lookup(1, "openings", 0), Lookup(1, "outcome", verdict=True))
        sets = (identity, openings_set, outcome)
        chains = (Chain("policy-77", (rule(ACCEPT),)),)
    else:
        openings_set = Set("openings", opening_type, elements=frozenset(Element(one) for one in openings))
        match = (*pair, Lookup(1, "openings"), ACCEPT)
        sets, chains = (identity, openings_set), ()
    discovery = rule(equals(L4PROTO, socket.IPPROTO_ICMPV6), ACCEPT)
    forward = base(Hook.FORWARD, 0, rule(ESTABLISHED, ACCEPT), discovery, rule(net.only, match), rule(DROP))
    return Table("poplin", (forward, *chains), sets)


@both_families
@pytest.mark.parametrize("verdicts", [False, True])
def test_identities_in_registers(world, version, verdicts):
    """Can one rule turn both addresses into identities and look the pair up with protocol and port?

    Yes: two look-ups into registers beside each other, protocol and port after them, and the four words are
    the key of one set, or of a data map whose value goes through a small verdict map. An address that the
    map does not know ends the rule, so what follows decides (here a drop).
    """
    put(world, identity_table(version, verdicts=verdicts))
    for number in (80, 81):
        world.b.listen(version, number)
    world.a.listen(version, 80)
    assert connects(world.a, POD_B[version], 80) == "open"
    assert connects(world.a, POD_B[version], 81) == "dropped"
    assert connects(world.b, POD_A[version], 80) == "dropped"
    routed_through_node(world, version)
    assert connects(world.outside, POD_B[version], 80) == "dropped"


@both_families
def test_catch_all_identity(world, version):
    """Can unknown addresses have an identity of their own? Yes: the element `*` of the same map."""
    put(world, identity_table(version, catch_all=9))
    for number in (80, 81):
        world.b.listen(version, number)
    routed_through_node(world, version)
    assert connects(world.a, POD_B[version], 80) == "open"
    assert connects(world.outside, POD_B[version], 80) == "open"
    assert connects(world.outside, POD_B[version], 81) == "dropped"


@both_families
@pytest.mark.parametrize("verdicts", [False, True])
def test_identity_rule_is_listed(world, version, verdicts):
    """Does `nft list` survive a rule that its own grammar has no words for?

    As it comes, no: 1.0.6 aborts, on this table, on `nft list tables` and on the whole ruleset, where a
    look-up's value is the key of another. With the number in the second word of the value, yes: it lists the
    address for the address's identity (of IPv6 no more than the first, whose register is as long as the key).
    """
    put(world, identity_table(version, catch_all=9, verdicts=verdicts))
    listing = world.node.run("nft", "list", "ruleset")
    assert "* : 0x00000000 . 0x00000009" in listing
    address = "ip" if version == 4 else "ip6"
    if verdicts:
        assert "0x00000001 . tcp . 0x00000002 . 80 : 0x00000000 . 0x0000004d" in listing
        assert f"{address} saddr vmap @outcome" in listing
    elif version == 4:
        assert "ip saddr . meta l4proto . ip daddr . th dport @openings accept" in listing
    else:
        assert "ip6 saddr @openings accept" in listing


def test_looked_up_key_aborts_nft(world):
    """Is the detour needed? Yes, for as long as this nft aborts on the plain form."""
    net = network(4)
    known = Set("known", (net.address,), (KeyType.MARK,))
    outcome = Set("outcome", (KeyType.MARK,), (KeyType.VERDICT,))
    plain = rule(net.only, look_up([net.saddr], "known"), Lookup(0, "outcome", verdict=True))
    put(world, Table("poplin", (Chain("chain", (plain,)),), (known, outcome)))
    with pytest.raises(AssertionError, match="consumed > 0"):
        world.node.run("nft", "list", "ruleset")


def routed_through_node(world: Topology, version: int) -> None:
    """The outside host reaches pods and services by way of the node."""
    for address in (POD_A[version], POD_B[version], SERVICE[version]):
        world.outside.run("ip", f"-{version}", "route", "replace", address, "via", NODE[version])


@both_families
def test_packet_mark_stays_where_a_map_has_no_answer(world, version):
    """What is the mark after `meta mark set ip saddr map @identity` for an address the map does not know?

    What it was before: a sender that controls the mark keeps it. So an identity in the packet mark must be
    zeroed first; registers have no such past.
    """
    net = network(version)
    write = MetaSet(0, MetaKey.MARK)
    identity = Set(
        "identity",
        (net.address,),
        (KeyType.MARK,),
        elements=frozenset({Element(packed(POD_B[version]), host32(2))}),
    )
    before = base(Hook.PREROUTING, -170, rule(set_bits(MARK, 0x99)), name="before")
    marking = base(Hook.PREROUTING, -160, rule(net.only, look_up([net.saddr], "identity"), write))
    forward = base(Hook.FORWARD, 0, rule(ESTABLISHED, ACCEPT), rule(equals(MARK, 0x99), ACCEPT), rule(DROP))
    put(world, Table("poplin", (before, marking, forward), (identity,)))
    world.b.listen(version, 80)
    assert connects(world.a, POD_B[version], 80) == "open"


def test_packet_mark_survives_decapsulation(world):
    """Does the inner packet of a vxlan tunnel start with a clean mark? No: it has the outer packet's."""
    for host, inside, peer in (
        (world.node, "198.18.0.1", OUTSIDE[4]),
        (world.outside, "198.18.0.2", NODE[4]),
    ):
        world_link = (
            f"link add vx type vxlan id 7 dstport 4789 dev uplink local {host.addresses[4]} remote {peer}"
        )
        host.run("ip", *world_link.split())
        host.run("ip", "link", "set", "vx", "up")
        host.run("ip", "addr", "add", f"{inside}/24", "dev", "vx")
    try:
        outer = rule(equals(L4PROTO, UDP), equals(DPORT, 4789), set_bits(MARK, 0x77))
        inner = rule(equals(L4PROTO, UDP), equals(DPORT, 5000), equals(MARK, 0x77), ACCEPT)
        clean = rule(equals(L4PROTO, UDP), equals(DPORT, 5000), DROP)
        put(world, Table("poplin", (base(Hook.PREROUTING, -150, outer), base(Hook.INPUT, 0, inner, clean))))
        receiver = world.node.udp(4, 5000, "198.18.0.1")
        sender = world.outside.udp(4, 0, "198.18.0.2")
        sender.connect(("198.18.0.1", 5000))
        assert arrives(sender, receiver)
    finally:
        for host in (world.node, world.outside):
            host.run("ip", "link", "del", "vx")


# Cutting connections


def one_way_table(*, open_new: bool) -> Table:
    """Pod b may always start connections; others may where `open_new`. What is cut goes before all."""
    new = rule(equals(L4PROTO, TCP), equals(DPORT, 80), ACCEPT if open_new else DROP)
    forward = base(
        Hook.FORWARD,
        0,
        rule(has_any(CT_MARK, CUT), DROP),
        rule(ESTABLISHED, ACCEPT),
        new,
    )
    return Table("poplin", (forward,))


@both_families
def test_deleting_the_entry_does_not_cut(world, version):
    """Does a TCP connection end whose conntrack entry is deleted, once policy denies it anew?

    No: the tracker is loose (nf_conntrack_tcp_loose). The next packet of the side that may still open
    connections makes a new entry, and through that entry the other side's packets are replies.
    """
    table = put(world, one_way_table(open_new=True))
    listener = world.b.listen(version, 80)
    client = world.a.connect(POD_B[version], 80)
    server = listener.accept()[0]
    server.settimeout(0.4)
    world.b.sockets.append(server)
    assert arrives(client, server)
    put(world, one_way_table(open_new=False), table)
    with conntrack_of(world) as conntrack:
        conntrack.delete(conntrack.read())
    assert arrives(server, client)
    assert arrives(client, server)


@both_families
def test_a_bit_of_the_connection_mark_cuts(world, version):
    """Does a bit set in the entry's mark, dropped ahead of "established", end the connection? Yes, both ways.

    Other connections go on, other bits of the mark stay, and clearing the bit heals the connection.
    """
    put(world, one_way_table(open_new=True))
    listener = world.b.listen(version, 80)
    pairs = []
    for _ in range(2):
        client = world.a.connect(POD_B[version], 80)
        server = listener.accept()[0]
        server.settimeout(0.4)
        world.b.sockets.append(server)
        pairs.append((client, server))
    (client, server), (other_client, other_server) = pairs
    with conntrack_of(world) as conntrack:
        ours = [one for one in conntrack.read() if one.original.source_port == client.getsockname()[1]]
        assert len(ours) == 1
        conntrack.set_mark(ours, 0x5, 0xF)
        conntrack.set_mark(ours, CUT, CUT)
        assert [one.mark for one in conntrack.read(mark=CUT, mask=CUT)] == [CUT | 0x5]
        assert not arrives(client, server, b"cut")
        assert not arrives(server, client, b"cut")
        assert arrives(other_client, other_server)
        assert connects(world.a, POD_B[version], 80) == "open"
        conntrack.set_mark(ours, 0, CUT)
        assert conntrack.read(mark=CUT, mask=CUT) == []
    server.settimeout(3)
    assert server.recv(100) == b"cut"


@both_families
def test_errors_about_a_cut_connection_are_cut(world, version):
    """Does an ICMP error about a connection pass as "related"? Yes; and once that connection is cut, no.

    The error carries its connection's entry, mark and all, so the one rule covers both.
    """
    put(world, one_way_table(open_new=False))
    routed_through_node(world, version)
    receiver = world.outside.udp(version, 7000)
    client = world.a.udp(version)
    client.connect((OUTSIDE[version], 7000))
    assert arrives(client, receiver)
    send_port_unreachable(world, version, client)
    with pytest.raises(ConnectionRefusedError):
        client.recv(100)
    with conntrack_of(world) as conntrack:
        conntrack.set_mark([one for one in conntrack.read() if one.original.protocol == UDP], CUT, CUT)
    send_port_unreachable(world, version, client)
    with pytest.raises(TimeoutError):
        client.recv(100)


def send_port_unreachable(world: Topology, version: int, client: socket.socket) -> None:
    """What the outside host would say of the client's datagram if nobody listened."""
    datagram = struct.pack("!HHHH", client.getsockname()[1], 7000, 9, 0) + b"x"
    addresses = packed(POD_A[version]) + packed(OUTSIDE[version])
    if version == 4:
        quoted = struct.pack("!BBHHHBBH", 0x45, 0, 29, 0, 0, 64, UDP, 0) + addresses + datagram
        quoted = quoted[:10] + struct.pack("!H", checksum(quoted[:20])) + quoted[12:]
        error = struct.pack("!BBHI", 3, 3, 0, 0) + quoted
        error = error[:2] + struct.pack("!H", checksum(error)) + error[4:]
        protocol = socket.IPPROTO_ICMP
    else:
        quoted = struct.pack("!IHBB", 6 << 28, 9, UDP, 64) + addresses + datagram
        error = struct.pack("!BBHI", 1, 4, 0, 0) + quoted  # the kernel fills in the checksum
        protocol = socket.IPPROTO_ICMPV6
    world.outside.open(version, socket.SOCK_RAW, protocol).sendto(error, (POD_A[version], 0))


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


# Services

FRONTEND = (KeyType.INET_PROTO, KeyType.INET_SERVICE)


def service_sets(version: int, endpoints: list[tuple[str, int]]) -> tuple[Set, Set, Set]:
    """One service, SERVICE:80/TCP, as the three maps that serve any number of them."""
    net = network(version)
    frontend = key(packed(SERVICE[version]), bytes([TCP]), port(80))
    return (
        Set(
            "services",
            (net.address, *FRONTEND),
            NUMBER,
            elements=frozenset({Element(frontend, encode_number(len(endpoints)))}),
        ),
        Set(
            "dispatch",
            (KeyType.MARK,),
            (KeyType.VERDICT,),
            elements=frozenset({Element(host32(len(endpoints)), goto(f"dispatch-{len(endpoints)}"))}),
        ),
        Set(
            "endpoints",
            (net.address, *FRONTEND, KeyType.MARK),
            (net.address, KeyType.INET_SERVICE),
            elements=frozenset(
                Element(key(frontend, host32(place)), key(packed(address), port(number)))
                for place, (address, number) in enumerate(endpoints)
            ),
        ),
    )


def dispatch_chain(version: int, count: int) -> Chain:
    net = network(version)
    address_registers = net.address.size_bytes // 4
    choose = look_up([net.daddr, L4PROTO, DPORT, random_below(count)], "endpoints")
    return Chain(
        f"dispatch-{count}", (rule(net.only, choose, Nat(NatKind.DNAT, net.family, 0, address_registers)),)
    )


def hairpin(version: int) -> tuple:
    """In the forward hook: the destination is reached by the interface that the packet came from."""
    translated = has_any(CT_STATUS, CtStatus.DNAT)
    return (*network(version).only, *translated, *equals(WAY_BACK, 1))


def service_table(version: int, endpoints: list[tuple[str, int]], *, priority=-110, forward=()) -> Table:
    net = network(version)
    serve = rule(
        net.only,
        look_up_number([net.daddr, L4PROTO, DPORT], "services", 1),
        Lookup(1, "dispatch", verdict=True),
    )
    masquerade = rule(has_any(CT_MARK, MASQUERADE), Masquerade())
    return Table(
        "poplin-services",
        (
            base(Hook.PREROUTING, priority, serve, kind=ChainType.NAT),
            base(Hook.OUTPUT, priority, serve, kind=ChainType.NAT),
            base(Hook.FORWARD, 0, *forward, rule(*hairpin(version), *set_bits(CT_MARK, MASQUERADE))),
            base(Hook.POSTROUTING, 100, masquerade, kind=ChainType.NAT),
            dispatch_chain(version, len(endpoints)),
        ),
        service_sets(version, endpoints),
    )


@both_families
def test_service_dispatch(world, version):
    """Can all services share one rule, one chain for each number of endpoints, and three maps? Yes.

    The frontend's number of endpoints comes from a data map into a register and through a small verdict map
    to the chain that draws so many. Every endpoint is drawn, from pods and from the node itself; the endpoint
    sees the client's own address; a port that is no frontend is left alone.
    """
    put(world, service_table(version, [(POD_A[version], 8080), (POD_B[version], 8080)]))
    listeners = {name: host.listen(version, 8080) for name, host in (("a", world.a), ("b", world.b))}
    routed_through_node(world, version)
    for client, address in ((world.outside, OUTSIDE[version]), (world.node, None)):
        seen = set()
        for _ in range(60):
            client.connect(SERVICE[version], 80).close()
            for name, listener in listeners.items():
                listener.settimeout(0)
                try:
                    accepted, peer = listener.accept()
                except BlockingIOError:
                    continue
                accepted.close()
                seen.add(name)
                assert address is None or peer[0] == address
        assert seen == {"a", "b"}
    listing = world.node.run("nft", "list", "chain", "inet", "poplin-services", "dispatch-2")
    family, address = ("ip", "ip daddr") if version == 4 else ("ip6", "ip6 daddr")
    drawn = f"dnat {family} to {address} . meta l4proto . th dport . numgen random mod 2 map @endpoints"
    assert drawn in listing
    listing = world.node.run("nft", "list", "chain", "inet", "poplin-services", "prerouting")
    assert f"{address} vmap @dispatch" in listing


@both_families
def test_hairpin_needs_no_set_of_pods(world, version):
    """Can a pod reach itself through its service, and who else is masqueraded for it? Yes, and nobody.

    In the forward hook, after DNAT, `fib daddr . iif oif exists` is true of just the packets that go back
    where they came from: they get a bit in the connection's mark, and postrouting masquerades by that bit.
    """
    put(world, service_table(version, [(POD_A[version], 8080)]))
    listener = world.a.listen(version, 8080)
    world.a.connect(SERVICE[version], 80)
    assert peer_of(listener) not in {POD_A[version], POD_B[version], GATEWAY[version]}
    world.b.connect(SERVICE[version], 80)
    assert peer_of(listener) == POD_B[version]


@both_families
def test_policy_sees_the_endpoint_and_the_client(world, version):
    """Which addresses does the forward hook see of a service's connection?

    The endpoint's (DNAT is done) and the client's own (masquerade is not), in both the plain case and the
    hairpin. `ct original daddr` still has the service.
    """
    net = network(version)

    def only_from(client: str) -> tuple:
        allowed = rule(
            net.only,
            equals(net.saddr, ip_address(client)),
            equals(net.daddr, ip_address(POD_A[version])),
            equals(DPORT, 8080),
            equals(net.original_daddr, ip_address(SERVICE[version])),
            ACCEPT,
        )
        return (rule(ESTABLISHED, ACCEPT), allowed, rule(equals(L4PROTO, TCP), DROP))

    world.a.listen(version, 8080)
    table = service_table(version, [(POD_A[version], 8080)])
    put(world, table)
    for client, host in ((POD_B[version], world.b), (POD_A[version], world.a)):
        policy = Table("poplin-policy", (base(Hook.FORWARD, 10, *only_from(client)),))
        put(world, policy)
        assert connects(host, SERVICE[version], 80) == "open"
        put_away(world, policy)
    put(world, Table("poplin-policy", (base(Hook.FORWARD, 10, *only_from(OUTSIDE[version])),)))
    assert connects(world.b, SERVICE[version], 80) == "dropped"


@both_families
def test_udp_stays_with_its_endpoint_until_its_entry_goes(world, version):
    """Does a UDP client follow its service to another endpoint? Not while its conntrack entry lives.

    Deleting the entry is enough: the next datagram is a new connection. In the entry `original.destination`
    is the service and `reply.source` the endpoint, so stale entries are found by what they say.
    """
    tables = {}
    for name, address in (("a", POD_A[version]), ("b", POD_B[version])):
        sets = [
            replace(one, elements=frozenset(as_udp(element) for element in one.elements))
            for one in service_sets(version, [(address, 8080)])
        ]
        tables[name] = replace(service_table(version, [(address, 8080)]), sets=tuple(sets))
    put(world, tables["a"])
    routed_through_node(world, version)
    receivers = {"a": world.a.udp(version, 8080), "b": world.b.udp(version, 8080)}
    client = world.outside.udp(version)
    client.connect((SERVICE[version], 80))
    assert arrives(client, receivers["a"], b"first")
    put(world, tables["b"], tables["a"])
    assert arrives(client, receivers["a"], b"stale")
    with conntrack_of(world) as conntrack:
        stale = [
            connection
            for connection in conntrack.read()
            if connection.original.destination == ip_address(SERVICE[version])
            and connection.reply.source == ip_address(POD_A[version])
        ]
        assert len(stale) == 1
        conntrack.delete(stale)
    assert arrives(client, receivers["b"], b"moved")


def as_udp(element: Element) -> Element:
    return element._replace(key=element.key.replace(bytes([TCP, 0, 0, 0]), bytes([UDP, 0, 0, 0])))


def put_away(world: Topology, table: Table) -> None:
    with world.node.entered(), NftSocket() as nft:
        nft.apply(plan_table(None, table))


def foreign_service(version: int, endpoint: str) -> str:
    """A table like kube-proxy's, for the same service, at the usual priority."""
    family = "ip" if version == 4 else "ip6"
    to = f"{endpoint}:8080" if version == 4 else f"[{endpoint}]:8080"
    return (
        f"table {family} other {{ chain services {{ type nat hook prerouting priority dstnat; "
        f"{family} daddr {SERVICE[version]} tcp dport 80 dnat to {to}\n}}\n}}"
    )


@both_families
@pytest.mark.parametrize(("priority", "winner"), [(-110, "a"), (-90, "b")])
def test_two_tables_translate_the_same_service(world, version, priority, winner):
    """Who wins where another table translates the same service in the same hook? The lower priority, alone.

    The connection gets one destination: the first chain that translates ends the matter for that hook. So at
    dstnat - 10 ours goes before kube-proxy's (dstnat), and what ours does not know is still theirs.
    """
    world.node.run("nft", "-f", "-", stdin=foreign_service(version, POD_B[version]))
    put(world, service_table(version, [(POD_A[version], 8080)], priority=priority))
    routed_through_node(world, version)
    listeners = {"a": world.a.listen(version, 8080), "b": world.b.listen(version, 8080)}
    world.outside.connect(SERVICE[version], 80)
    assert peer_of(listeners[winner]) == OUTSIDE[version]
    put_away(world, service_table(version, [(POD_A[version], 8080)]))
    world.outside.connect(SERVICE[version], 80)
    assert peer_of(listeners["b"]) == OUTSIDE[version]


@both_families
def test_node_port(world, version):
    """Do node ports need the node's addresses in a set? No: `fib daddr type local` tells them, in prerouting.

    Also: a bit of the connection's mark set there reaches postrouting, which masquerades by it, whatever
    another table writes to the packet mark in between.
    """
    net = network(version)
    ports = Set(
        "node-ports",
        FRONTEND,
        (net.address, KeyType.INET_SERVICE),
        elements=frozenset(
            {Element(key(bytes([TCP]), port(30080)), key(packed(POD_B[version]), port(8080)))}
        ),
    )
    serve = rule(
        net.only,
        equals(DADDR_TYPE, RTN_LOCAL),
        set_bits(CT_MARK, MASQUERADE),
        look_up([L4PROTO, DPORT], "node-ports"),
        Nat(NatKind.DNAT, net.family, 0, net.address.size_bytes // 4),
    )
    masquerade = rule(has_any(CT_MARK, MASQUERADE), Masquerade())
    chains = (
        base(Hook.PREROUTING, -110, serve, kind=ChainType.NAT),
        base(Hook.POSTROUTING, 100, masquerade, kind=ChainType.NAT),
    )
    put(world, Table("poplin-services", chains, (ports,)))
    world.node.run(
        *("nft", "-f", "-"),
        stdin="table inet other { chain f { type filter hook forward priority 0; meta mark set 0;\n}\n}",
    )
    listener = world.b.listen(version, 8080)
    world.outside.connect(NODE[version], 30080)
    assert peer_of(listener) not in {OUTSIDE[version], POD_A[version], POD_B[version]}
    assert connects(world.outside, NODE[version], 30081) == "refused"


@both_families
def test_packet_mark_is_everybodys(world, version):
    """Does a packet mark set in prerouting reach postrouting? Only where no table in between writes its own.

    So "needs masquerade" lives in the connection's mark (test_node_port is the same with that).
    """
    mark = base(Hook.PREROUTING, -110, rule(set_bits(MARK, MASQUERADE)))
    masquerade = rule(has_any(MARK, MASQUERADE), Masquerade())
    put(world, Table("poplin", (mark, base(Hook.POSTROUTING, 100, masquerade, kind=ChainType.NAT))))
    world.node.run(
        *("nft", "-f", "-"),
        stdin="table inet other { chain f { type filter hook forward priority 0; meta mark set 0;\n}\n}",
    )
    listener = world.b.listen(version, 80)
    world.a.connect(POD_B[version], 80)
    assert peer_of(listener) == POD_A[version]


@both_families
def test_reject_in_prerouting(world, version):
    """Can a service without endpoints be refused before routing? Yes, from kernel 5.9: TCP by a reset, UDP by ICMP.

    (Not TCP by ICMP: the error comes back while the client's own connect still holds the socket, which then
    takes it for a soft one, and waits for its retransmission a second later.)
    """
    net = network(version)
    refused = Set(
        "refused",
        (net.address, *FRONTEND),
        elements=frozenset(
            Element(key(packed(SERVICE[version]), bytes([protocol]), port(80))) for protocol in (TCP, UDP)
        ),
    )
    listed = in_set([net.daddr, L4PROTO, DPORT], "refused")
    reset = rule(net.only, listed, equals(L4PROTO, TCP), Reject(RejectKind.TCP_RESET, 0))
    put(
        world,
        Table(
            "poplin-services",
            (base(Hook.PREROUTING, -110, reset, rule(net.only, listed, Reject())),),
            (refused,),
        ),
    )
    assert connects(world.a, SERVICE[version], 80) == "refused"
    client = world.a.udp(version)
    client.connect((SERVICE[version], 80))
    client.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        client.recv(100)


# Anti-spoofing


@both_families
def test_reverse_path_binds_a_pod_to_its_addresses(world, version):
    """Does a strict reverse path on pods' links drop every foreign source, without an element for each pod?

    Yes, both families, at raw priority, before conntrack: `iifgroup pods fib saddr . iif oif missing drop`.
    Another pod's, the node's, an outside and an unassigned address are dropped; the pod's own passes. That packets
    remember what a pod may say (the table as it is compiled) lets it say nothing else.
    """
    spoofed = {
        4: [POD_B[4], NODE[4], "198.51.100.7", "10.244.1.99"],
        6: [POD_B[6], NODE[6], "2001:db8:ffff::7", "fd00:10:244:1::99"],
    }[version]
    receiver = world.outside.udp(version, 7000)
    bits = 32 if version == 4 else 128
    guard = rule(equals(IIFGROUP, POD_LINK_GROUP), equals(REVERSE_PATH, 0), DROP)
    alone = Table("poplin", (base(Hook.PREROUTING, -300, guard),))
    passed, standing = {}, None
    for guarded, table in (("not", None), ("alone", alone), ("remembered", compile_node_table(None))):
        if table is not None:
            standing = put(world, table, standing)
        for source in (POD_A[version], *spoofed):
            if source != POD_A[version]:
                world.a.run(
                    "ip", "addr", "add", f"{source}/{bits}", "dev", "lo", *(["nodad"] * (version == 6))
                )
            try:
                sender = world.a.udp(version, 0, source)
                sender.connect((OUTSIDE[version], 7000))
                passed[guarded, source] = arrives(sender, receiver, source.encode())
                sender.close()
            finally:
                if source != POD_A[version]:
                    world.a.run("ip", "addr", "del", f"{source}/{bits}", "dev", "lo")
    assert all(passed["not", source] for source in (POD_A[version], *spoofed) if source != NODE[version])
    for guarded in ("alone", "remembered"):
        assert [source for source in (POD_A[version], *spoofed) if passed[guarded, source]] == [
            POD_A[version]
        ]


@both_families
def test_what_a_pod_may_say_is_remembered_for_a_while_only(world, version):
    """Until then its packets cost no route look-up; after it a source that is the pod's no more is dropped."""
    table = compile_node_table(None)
    put(world, replace(table, sets=tuple(replace(one, timeout_ms=1000) for one in table.sets)))
    receiver = world.outside.udp(version, 7000)
    sender = world.a.udp(version, 0, POD_A[version])
    sender.connect((OUTSIDE[version], 7000))
    assert arrives(sender, receiver, b"first")
    bits = 32 if version == 4 else 128
    route = (f"-{version}", "route", "del", f"{POD_A[version]}/{bits}", "dev", "poda")
    world.node.run("ip", *route)
    try:
        assert arrives(sender, receiver, b"remembered")
        time.sleep(1)
        assert not arrives(sender, receiver, b"forgotten")
    finally:
        world.node.run("ip", *route[:2], "add", *route[3:])


def test_reverse_path_lets_neighbour_discovery_pass(world):
    """Does the strict reverse path stop a pod's link-local traffic? No: the link's own route answers for it."""
    put(world, compile_node_table(None))
    world.a.run("ip", "neigh", "del", GATEWAY[6], "dev", "eth0")
    try:
        world.a.run("ping", "-6", "-c", "1", "-W", "1", f"{GATEWAY[6]}%eth0")
        assert "lladdr ee:ee:ee:ee:ee:ee" in world.a.run("ip", "neigh", "show", GATEWAY[6], "dev", "eth0")
    finally:
        world.a.run("ip", "neigh", "replace", GATEWAY[6], "lladdr", "ee:ee:ee:ee:ee:ee", "dev", "eth0")
        world.a.run("ip", "neigh", "change", GATEWAY[6], "dev", "eth0", "nud", "permanent")
