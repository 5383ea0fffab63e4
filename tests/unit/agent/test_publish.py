"""What is written to the Node: only what differs, again after a failure, and nothing twice."""

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from poplin.agent import publish as module
from poplin.agent.publish import NETWORK_UP, Publisher
from poplin.compile.lease import Endpoint, Lease, annotate
from poplin.compile.network import Network
from poplin.model.cluster import ConditionStatus, Node
from poplin.model.errors import TemporaryError
from poplin.model.state import NetworkState
from unit.agent.waiting import until

CIDR = ip_network("10.244.1.0/24")
LEASE = Lease("n1", "vxlan", (Endpoint(ip_address("192.0.2.1"), CIDR, "02:00:00:00:00:01", 1),))
NETWORK = Network(LEASE, (CIDR,), 1450, NetworkState())
WANTED = annotate(LEASE)
BARE = Node("n1", uid="u1")
PUBLISHED = replace(BARE, annotations=WANTED, network_unavailable=ConditionStatus.FALSE)
AWAY = TemporaryError("the API server is away")


class StandInSource:
    def __init__(self):
        self.patches = []
        self.events = []
        self.failures = []

    async def patch_node(self, name, annotations, conditions=()):
        if self.failures:
            raise self.failures.pop(0)
        self.patches.append((name, dict(annotations), list(conditions)))

    async def create_event(self, about, *, reason, message, warning=False):
        if self.failures:
            raise self.failures.pop(0)
        self.events.append((about.name, reason, message, warning))


@pytest.fixture
async def running(monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", (0.001,))
    source, published = StandInSource(), []
    publisher = Publisher(source, "n1", lambda: published.append(1), patience_s=0)
    task = asyncio.create_task(publisher.run())
    yield publisher, source, published
    task.cancel()
    await asyncio.wait([task])


async def rest():
    """Long enough for what should not happen: the publisher waits for nothing but its event."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_network_that_stands_is_published_once(running):
    publisher, source, published = running
    assert publisher.not_published is not None
    publisher.offer(BARE, NETWORK, None)
    await until(lambda: published)
    assert source.patches == [("n1", WANTED, [NETWORK_UP])]
    assert publisher.not_published is None
    # The watch has not shown it yet.
    publisher.offer(BARE, NETWORK, None)
    await until(lambda: len(published) == 2)
    publisher.offer(PUBLISHED, NETWORK, None)
    await until(lambda: len(published) == 3)
    assert len(source.patches) == 1


async def test_what_the_node_shows_already_is_not_written(running):
    publisher, source, published = running
    publisher.offer(PUBLISHED, NETWORK, None)
    await until(lambda: published)
    assert source.patches == []


async def test_only_what_is_missing_is_written(running):
    publisher, source, published = running
    key = "flannel.alpha.coreos.com/public-ip"
    publisher.offer(replace(PUBLISHED, annotations=WANTED | {key: "192.0.2.9"}), NETWORK, None)
    await until(lambda: published)
    assert source.patches == [("n1", {key: "192.0.2.1"}, [NETWORK_UP])]


async def test_what_somebody_removes_is_written_again(running):
    publisher, source, published = running
    publisher.offer(BARE, NETWORK, None)
    await until(lambda: published)
    publisher.offer(PUBLISHED, NETWORK, None)
    # The same value as at first, and another sight of the node.
    publisher.offer(replace(BARE), NETWORK, None)
    await until(lambda: len(source.patches) == 2)


async def test_a_write_that_fails_is_tried_again_and_said(running):
    publisher, source, published = running
    source.failures = [AWAY, AWAY, AWAY]
    publisher.offer(BARE, NETWORK, None)
    await until(lambda: published)
    assert source.failures == []
    assert publisher.not_published is None
    source.failures = [AWAY] * 1000
    publisher.offer(replace(BARE, labels={"new": "yes"}), NETWORK, None)
    await until(lambda: publisher.not_published is AWAY)


async def test_nothing_is_published_before_the_network_stands(running):
    publisher, source, published = running
    publisher.offer(BARE, None, None)
    publisher.offer(None, NETWORK, None)
    await rest()
    assert (source.patches, published) == ([], [])


async def test_what_keeps_a_node_down_is_told_once_for_each_reason(running):
    publisher, source, published = running
    for reason in ("no podCIDR", "no podCIDR", "no address", "no podCIDR"):
        before = len(source.events)
        publisher.offer(BARE, None, TemporaryError(reason))
        await rest()
        assert len(source.events) <= before + 1
    assert source.events == [
        ("n1", "PodNetworkNotReady", reason, True) for reason in ("no podCIDR", "no address", "no podCIDR")
    ]
    assert published == []


async def test_what_passes_soon_is_not_told():
    source = StandInSource()
    publisher = Publisher(source, "n1", lambda: None, patience_s=3600)
    task = asyncio.create_task(publisher.run())
    publisher.offer(BARE, None, TemporaryError("no podCIDR yet"))
    await rest()
    publisher.offer(BARE, None, None)
    await rest()
    task.cancel()
    await asyncio.wait([task])
    assert source.events == []
