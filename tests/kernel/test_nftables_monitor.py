"""What others change in our tables is told; what we do, or others do elsewhere, is not."""

import asyncio
from contextlib import contextmanager
from dataclasses import replace

import pytest

from poplin.dataplane.netns import entered
from poplin.dataplane.nftables.monitor import NftMonitor
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.nftables import Chain, Element, Family, KeyType, Set, Table, TableKey
from poplin.plan.nftables import plan_table

OURS = Table(
    "poplin",
    (Chain("one"),),
    (Set("known", (KeyType.IPV4_ADDR,), elements=frozenset({Element(b"\x0a\0\0\1")})),),
)


@contextmanager
def monitor_of(namespace):
    """A monitor, and the socket that it ignores."""
    with entered(namespace.fd):
        nft = NftSocket()
        monitor = NftMonitor(ignored_ports={nft.port, 4_000_000_000})
    with nft, monitor:
        yield monitor, nft


async def told(monitor, within_s=2.0):
    return await asyncio.wait_for(anext(monitor.events()), within_s)


async def nothing_told(monitor):
    with pytest.raises(TimeoutError):
        await told(monitor, 0.2)


async def test_others_changes_are_told(netns):
    namespace = netns()
    with monitor_of(namespace) as (monitor, nft):
        nft.apply(plan_table(OURS, None))
        await nothing_told(monitor)
        for command in (
            "add rule inet poplin one accept",
            "delete element inet poplin known { 10.0.0.1 }",
            "flush ruleset",
        ):
            namespace.run("nft", *command.split())
            assert await told(monitor) == TableKey(Family.INET, "poplin")
        await nothing_told(monitor)


async def test_others_tables_are_not_told(netns):
    namespace = netns()
    with monitor_of(namespace) as (monitor, _):
        namespace.run("nft", "add", "table", "inet", "other")
        namespace.run("nft", "add", "table", "ip", "poplin")
        await nothing_told(monitor)


async def test_a_large_set_of_ours_does_not_overrun(netns):
    namespace = netns()
    many = frozenset(Element((10 << 24 | place).to_bytes(4, "big")) for place in range(45_000))
    with monitor_of(namespace) as (monitor, nft):
        nft.apply(plan_table(replace(OURS, sets=(replace(OURS.sets[0], elements=many),)), None))
        await nothing_told(monitor)


async def test_an_overrun_is_told(netns):
    """Somebody else's large set, with nobody reading meanwhile."""
    namespace = netns()
    many = frozenset(Element((10 << 24 | place).to_bytes(4, "big")) for place in range(200_000))
    with monitor_of(namespace) as (monitor, _):
        with entered(namespace.fd), NftSocket() as other:
            other.apply(plan_table(replace(OURS, sets=(replace(OURS.sets[0], elements=many),)), None))
        assert await told(monitor) is None
