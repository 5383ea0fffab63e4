"""Conntrack entries of real connections, beside what /proc/net/nf_conntrack says of them."""

import errno
import re
import socket
from ipaddress import ip_address

import pytest

from kernel.topology import OUTSIDE, POD_A, POD_B, built
from poplin.dataplane.conntrack import ConntrackSocket
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.connection import ConnectionStatus
from poplin.model.errors import KernelError
from poplin.model.nftables import BaseChain, Chain, ChainType, Ct, CtKey, Hook, Rule, Table
from poplin.plan.nftables import plan_table

TRACKING = Table(
    "poplin",
    (Chain("track", (Rule((Ct(0, CtKey.STATE),)),), BaseChain(ChainType.FILTER, Hook.FORWARD, 0)),),
)


@pytest.fixture(scope="module")
def world():
    with built() as made:
        with made.node.entered(), NftSocket() as nft:
            nft.apply(plan_table(TRACKING, None))
        yield made


@pytest.fixture
def conntrack(world):
    with world.node.entered(), ConntrackSocket() as made:
        made.delete(made.read())
        yield made
    world.close_sockets()


@pytest.mark.parametrize("version", [4, 6])
def test_entries_say_what_proc_says(world, conntrack, version):
    world.b.listen(version, 80)
    tcp = world.a.connect(POD_B[version], 80)
    udp = world.a.udp(version)
    udp.sendto(b"x", (OUTSIDE[version], 7))
    ping = ["ping", f"-{version}", "-c", "1", "-W", "1", POD_B[version]]
    world.a.run(*ping)
    found = {connection.original.protocol: connection for connection in conntrack.read()}
    echo = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    assert found.keys() >= {socket.IPPROTO_TCP, socket.IPPROTO_UDP, echo}
    for protocol, client, address, port in (
        (socket.IPPROTO_TCP, tcp, POD_B[version], 80),
        (socket.IPPROTO_UDP, udp, OUTSIDE[version], 7),
    ):
        original = found[protocol].original
        assert (original.source, original.source_port) == (
            ip_address(POD_A[version]),
            client.getsockname()[1],
        )
        assert (original.destination, original.destination_port) == (ip_address(address), port)
    assert ConnectionStatus.SEEN_REPLY in found[socket.IPPROTO_TCP].status
    assert ConnectionStatus.SEEN_REPLY not in found[socket.IPPROTO_UDP].status
    (line,) = (one for one in proc(world) if f"sport={tcp.getsockname()[1]} " in one)
    destination = re.search(r"dst=(\S+)", line)
    assert ip_address(destination[1]) == found[socket.IPPROTO_TCP].original.destination


@pytest.mark.parametrize("version", [4, 6])
def test_marks_change_by_their_bits(world, conntrack, version):
    world.b.listen(version, 80)
    world.a.connect(POD_B[version], 80)
    world.a.run("ping", f"-{version}", "-c", "1", "-W", "1", POD_B[version])
    every = conntrack.read()
    assert len(every) >= 2
    conntrack.set_mark(every, 0x1000_0001, 0x1000_0001)
    conntrack.set_mark(every, 0, 1)
    assert {connection.mark for connection in conntrack.read()} == {0x1000_0000}
    assert len(conntrack.read(mark=0x1000_0000, mask=0x1000_0000)) == len(every)
    assert conntrack.read(mark=1, mask=1) == []
    assert sum("mark=268435456" in line for line in proc(world)) == len(every)


def test_what_is_gone_is_no_error(world, conntrack):
    world.b.listen(4, 80)
    world.a.connect(POD_B[4], 80)
    (connection,) = conntrack.read()
    conntrack.delete([connection])
    conntrack.delete([connection])
    conntrack.set_mark([connection], 1, 1)
    assert conntrack.read() == []


def test_an_impossible_key_is_refused(world, conntrack):
    world.b.listen(4, 80)
    world.a.connect(POD_B[4], 80)
    (connection,) = conntrack.read()
    broken = type(connection)(connection.original, connection.reply, key=connection.key[:4])
    with pytest.raises(KernelError, match="conntrack entry") as refused:
        conntrack.delete([broken])
    assert refused.value.errno == errno.EINVAL
    assert len(conntrack.read()) == 1


def proc(world) -> list[str]:
    return world.node.run("cat", "/proc/net/nf_conntrack").splitlines()
