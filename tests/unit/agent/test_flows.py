"""What the agent keeps and tells of flows; packets are handed to it, and no socket is open."""

import asyncio
from ipaddress import ip_address

import pytest

from poplin.agent.flows import RECENT, UNTOLD, WAITING, Flows, Lost, encode
from poplin.compile.policy.flow import logged_flow
from poplin.model.connection import FlowTuple
from poplin.model.flow import FlowEnd, FlowVerdict, LoggedPacket, Ruling

NAMES = {"10.244.1.1": ("x", "a"), "10.244.2.1": ("y", "b"), "192.0.2.1": ("", "n1")}
DENIED = "deny ingress - NetworkPolicy y/closed"


class Clock:
    time_s = 1000.0

    def __call__(self):
        return self.time_s


def name_of(address):
    return FlowEnd(address, *NAMES.get(str(address), ("", "")))


def packet(port=80, *, prefix=DENIED, source="10.244.1.1", source_port=4000):
    flow = FlowTuple(ip_address(source), ip_address("10.244.2.1"), 6, source_port, port)
    return LoggedPacket(prefix, flow)


async def describe(seen, time_s):
    return [logged_flow(one, time_s, name_of) for one in seen]


@pytest.fixture
async def clock():
    return Clock()


@pytest.fixture
async def flows(clock):
    made = Flows(describe, now_s=clock)
    telling = asyncio.create_task(made._tell())
    yield made
    telling.cancel()


async def take(flows, *packets):
    for one in packets:
        flows.see(one)
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_denial_says_who_and_why(flows):
    await take(flows, packet())
    (flow,) = flows.recent()
    assert encode(flow) == {
        "time": 1000.0,
        "verdict": "denied",
        "source": {"address": "10.244.1.1", "namespace": "x", "name": "a"},
        "destination": {"address": "10.244.2.1", "namespace": "y", "name": "b"},
        "protocol": "TCP",
        "port": 80,
        "rulings": [
            {
                "direction": "ingress",
                "policy": "NetworkPolicy y/closed",
                "rule": None,
                "reason": "policies select the pod, and none of their rules allows this",
            }
        ],
        "count": 1,
    }


async def test_tries_of_one_client_are_told_as_one(flows, clock):
    for number in range(3):
        await take(flows, packet(source_port=4000 + number))
        await take(flows, packet(81))
        clock.time_s += 1
    await take(flows, packet())
    assert [(flow.port, flow.count, flow.time_s) for flow in flows.recent()] == [
        (81, 3, 1002.0),
        (80, 4, 1003.0),
    ]


async def test_what_another_table_logs_is_not_told(flows):
    await take(flows, packet(prefix="firewall: "))
    assert flows.recent() == []


async def test_a_rule_that_logs_decides_nothing(flows):
    await take(flows, packet(prefix="log ingress 2 NetworkPolicy y/audit"))
    (flow,) = flows.recent()
    assert flow.verdict is FlowVerdict.LOGGED
    assert flow.rulings == (Ruling("ingress", "a rule logs it", "NetworkPolicy y/audit", 2),)


async def test_a_pod_that_nobody_knows_is_told_as_such(flows):
    await take(flows, packet(prefix="deny egress - Pod"))
    (ruling,) = flows.recent()[0].rulings
    assert (ruling.direction, ruling.policy, ruling.rule) == ("egress", "", None)
    assert "labels are not known" in ruling.reason


async def test_only_the_latest_are_kept(flows):
    for port in range(RECENT + 5):
        await take(flows, packet(port))
    assert [flow.port for flow in flows.recent()] == list(range(5, RECENT + 5))


async def test_followers_hear_what_they_asked_for(flows):

    async def read(verdicts, number):
        following = flows.follow(verdicts, 10)
        found = [await anext(following) for _ in range(number)]
        await following.aclose()
        return [flow.port for flow in found]

    async with asyncio.TaskGroup() as tasks:
        denials = tasks.create_task(read({FlowVerdict.DENIED}, 2))
        logged = tasks.create_task(read({FlowVerdict.LOGGED}, 1))
        await asyncio.sleep(0)
        await take(flows, packet(80))
        await take(flows, packet(81, prefix="log ingress 0 NetworkPolicy y/audit"))
        await take(flows, packet(82))
    assert (denials.result(), logged.result()) == ([80, 82], [81])


async def test_a_slow_follower_loses_the_oldest_and_is_told_how_many(flows):
    following = flows.follow({FlowVerdict.DENIED}, 0.001)
    assert await anext(following) is None
    for port in range(WAITING + 7):
        await take(flows, packet(port))
    assert await anext(following) == Lost(7)
    assert encode(Lost(7)) == {"lost": 7}
    assert [(await anext(following)).port for _ in range(WAITING)] == list(range(7, WAITING + 7))
    assert await anext(following) is None
    await following.aclose()


async def test_followers_end_with_the_agent(flows):

    async def read():
        return [flow async for flow in flows.follow({FlowVerdict.DENIED}, 10)]

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read())
        await asyncio.sleep(0)
        flows.close()
    assert reading.result() == []


async def test_what_waits_for_its_names_is_bounded(flows):
    for port in range(UNTOLD + 3):
        flows.see(packet(port))
    await take(flows)
    assert flows.recent()[-1].port == UNTOLD + 2
    assert flows._untold == 3
