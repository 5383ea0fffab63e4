"""Packets that nft's own log rules tell of, and connections that begin and end, in a real kernel."""

import asyncio
import errno
import socket
import struct
from contextlib import closing
from ipaddress import ip_address

import pytest

from kernel.topology import POD_A, POD_B, built
from poplin.dataplane.conntrack import ConntrackSocket
from poplin.dataplane.conntrack_monitor import ConnectionEvent, ConntrackMonitor
from poplin.dataplane.nflog import NflogSocket
from poplin.model.errors import KernelError

GROUP = 112
RULES = """
table inet denials {
  chain forward {
    type filter hook forward priority 0
    ct state established accept
    tcp dport 80 accept
    tcp dport 81 log prefix "deny ingress x/web" group 112 snaplen 128 drop
    udp dport 82 log prefix "deny egress 3 x/dns" group 112 drop
    icmp type echo-request log prefix "ping" group 112 drop
    icmpv6 type echo-request log prefix "ping" group 112 drop
    udp dport 9 log prefix "flood" group 112 drop
  }
}
"""


@pytest.fixture(scope="module")
def world():
    with built() as made:
        made.node.run("nft", "-f", "-", stdin=RULES)
        yield made


@pytest.fixture
async def told(world):
    """The packets told so far, and the socket."""
    packets = []
    with world.node.entered():
        nflog = NflogSocket(GROUP, packets.append)
    with closing(nflog):
        yield packets, nflog
    world.close_sockets()


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  - the test's own list
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("version", [4, 6])
async def test_a_denied_packet_says_who_and_why(world, told, version):
    packets, nflog = told
    tcp = world.a.open(version, socket.SOCK_STREAM)
    tcp.setblocking(False)
    tcp.connect_ex((POD_B[version], 81))
    udp = world.b.udp(version)
    udp.sendto(b"question", (POD_A[version], 82))
    await until(lambda: len(packets) >= 2)
    by_prefix = {packet.prefix: packet for packet in packets}
    denied, dns = by_prefix["deny ingress x/web"], by_prefix["deny egress 3 x/dns"]
    assert (denied.flow.source, denied.flow.destination) == (
        ip_address(POD_A[version]),
        ip_address(POD_B[version]),
    )
    assert (denied.flow.protocol, denied.flow.source_port, denied.flow.destination_port) == (
        socket.IPPROTO_TCP,
        tcp.getsockname()[1],
        81,
    )
    assert (dns.flow.source, dns.flow.source_port, dns.flow.destination_port) == (
        ip_address(POD_B[version]),
        udp.getsockname()[1],
        82,
    )
    links = {name: index for index, name in _links(world.node)}
    assert (denied.in_link, denied.out_link) == (links["poda"], links["podb"])
    assert nflog.lost == 0


@pytest.mark.parametrize("version", [4, 6])
async def test_icmp_is_told_with_its_type(world, told, version):
    packets, _ = told
    kind = 8 if version == 4 else 128
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    ping = world.a.open(version, socket.SOCK_RAW, protocol)
    message = struct.pack("!BBHHH", kind, 0, 0 if version == 6 else (~(kind << 8)) & 0xFFFF, 0, 0)
    ping.sendto(message, (POD_B[version], 0))
    await until(lambda: packets)
    assert (packets[0].flow.protocol, packets[0].icmp) == (protocol, (kind, 0))


async def test_a_flood_is_told_in_part_and_the_rest_is_counted(world, told):
    packets, nflog = told
    udp = world.a.udp(4)
    sent = 30_000
    for number in range(sent):
        udp.sendto(b"x" * 64, (POD_B[4], 9))
        if number % 1000 == 0:
            await asyncio.sleep(0)
    await until(lambda: nflog.overruns)
    # The last packets that fit are read; one more shows how many were lost before it.
    seen = -1
    while seen != len(packets):
        seen = len(packets)
        await asyncio.sleep(0.2)
    udp.sendto(b"last", (POD_B[4], 9))
    await until(lambda: len(packets) + nflog.lost >= sent + 1)
    assert len(packets) + nflog.lost == sent + 1
    assert 0 < len(packets) < sent
    assert nflog.malformed == 0


async def test_a_group_has_one_reader(world, told):
    with world.node.entered(), pytest.raises(KernelError, match="nflog group 112") as refused:
        NflogSocket(GROUP, lambda _: None)
    assert refused.value.errno == errno.EPERM


@pytest.mark.parametrize("version", [4, 6])
async def test_connections_begin_and_end(world, version):
    events = []
    with world.node.entered(), ConntrackSocket() as conntrack:
        monitor = ConntrackMonitor(lambda event, connection: events.append((event, connection)))
        with closing(monitor):
            world.b.listen(version, 80)
            client = world.a.connect(POD_B[version], 80)
            port = client.getsockname()[1]
            await until(lambda: _of(events, port))
            conntrack.delete([connection for _, connection in _of(events, port)])
            await until(lambda: len(_of(events, port)) >= 2)
    world.close_sockets()
    (begun, one), (ended, other) = _of(events, port)[:2]
    assert (begun, ended) == (ConnectionEvent.NEW, ConnectionEvent.DESTROY)
    assert one.original == other.original
    assert (one.original.source, one.original.destination, one.original.destination_port) == (
        ip_address(POD_A[version]),
        ip_address(POD_B[version]),
        80,
    )


async def test_a_denied_connection_never_begins(world):
    events = []
    with world.node.entered():
        monitor = ConntrackMonitor(lambda event, connection: events.append((event, connection)))
    with closing(monitor):
        world.b.listen(4, 80)
        denied = world.a.open(4, socket.SOCK_STREAM)
        denied.setblocking(False)
        denied.connect_ex((POD_B[4], 81))
        allowed = world.a.connect(POD_B[4], 80)
        await until(lambda: _of(events, allowed.getsockname()[1]))
    assert not _of(events, denied.getsockname()[1])
    world.close_sockets()


def _of(events, port):
    return [(event, one) for event, one in events if one.original.source_port == port]


def _links(host):
    for line in host.run("ip", "-o", "link").splitlines():
        index, name = line.split(": ")[:2]
        yield int(index), name.partition("@")[0]
