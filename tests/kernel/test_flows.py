"""Denials and connections as people see them: the compiled table, real packets, the agent's socket, its client."""

import asyncio
import json
import select
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from kernel.topology import POD_A, POD_B, built
from poplin.agent.endpoints import Endpoints
from poplin.agent.flow_stream import flow_routes
from poplin.agent.flows import Flows
from poplin.cli.agent_socket import read_lines
from poplin.compile.policy.compiler import compile_policy
from poplin.compile.policy.denial import NFLOG_GROUP
from poplin.compile.policy.flow import allowed_flow, first_packet, logged_flow
from poplin.compile.policy.world import build_world
from poplin.dataplane.nflog import NflogSocket
from poplin.dataplane.nftables.socket import NftSocket
from poplin.datastore.offline import to_policy_state
from poplin.model.errors import PoplinError
from poplin.model.flow import FlowEnd, LoggedPacket
from poplin.plan.nftables import plan_table

NODE = "n1"
POPLIN = str(Path(sys.executable).parent / "poplin")


def pod(namespace, name, addresses):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"pod": name}},
        "spec": {"nodeName": NODE, "containers": [{"name": "main", "ports": [{"containerPort": 80}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": one} for one in addresses.values()]},
    }


OBJECTS = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}},
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "y"}},
    pod("x", "a", POD_A),
    pod("y", "b", POD_B),
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "y", "name": "web"},
        "spec": {
            "podSelector": {"matchLabels": {"pod": "b"}},
            "ingress": [{"ports": [{"port": 443}]}, {"ports": [{"port": 80}]}],
        },
    },
]
STATE, PROBLEMS = to_policy_state(OBJECTS)


@pytest.fixture(scope="module")
def world():
    assert not PROBLEMS
    with built() as made:
        with made.node.entered(), NftSocket() as nft:
            nft.apply(plan_table(compile_policy(STATE, NODE), None))
        yield made


SERVED = []
"""The flows of the server under test."""


@pytest.fixture
def served(world, tmp_path):
    """The directory of a socket that serves the node's flows, by a thread that is in the node's namespace."""
    ready, stopping = threading.Event(), threading.Event()

    def run():
        with world.node.entered():
            asyncio.run(serve(tmp_path, ready.set, stopping))

    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(run)
        assert ready.wait(10)
        yield tmp_path
        stopping.set()
        serving.result(timeout=10)
    world.close_sockets()


async def serve(directory, ready, stopping):
    known = build_world(STATE)

    def name_of(address):
        endpoint = known.by_address.get(address)
        return FlowEnd(address, endpoint.namespace, endpoint.name) if endpoint else FlowEnd(address)

    async def describe(seen, time_s):
        return [describe_one(one, time_s) for one in seen]

    def describe_one(one, time_s):
        if isinstance(one, LoggedPacket):
            return logged_flow(one, time_s, name_of)
        explanation = known.evaluate(first_packet(one))
        pairs = ((explanation.source, explanation.egress), (explanation.destination, explanation.ingress))
        return allowed_flow(one, time_s, name_of, [verdict for end, verdict in pairs if end is not None])

    flows = Flows(describe)
    SERVED[:] = [flows]
    running = asyncio.create_task(flows.run(), name="flows")
    endpoints = Endpoints(lambda: None, lambda: None, lambda: None, flow_routes(flows))
    await endpoints.open(directory / "agent.sock", "")
    # The task has opened its socket by now: the server's start has waited.
    assert flows.problems == []
    ready()
    while not stopping.is_set():  # noqa: ASYNC110  - another thread's event
        await asyncio.sleep(0.01)
    flows.close()
    await endpoints.close()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def read(directory, query):
    return list(read_lines(directory, f"/flows?{query}", endless=False))


def until(holds):
    deadline_s = time.monotonic() + 10
    while not (found := holds()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return found


def knock(world, version, port):
    """A TCP connection that is not waited for."""
    client = world.a.open(version, socket.SOCK_STREAM)
    client.setblocking(False)
    client.connect_ex((POD_B[version], port))


@pytest.mark.parametrize("version", [4, 6])
def test_a_denied_try_is_told_with_its_policy(world, served, version):
    knock(world, version, 81)
    (flow,) = until(lambda: read(served, "verdict=denied"))
    assert (flow["source"]["namespace"], flow["source"]["name"]) == ("x", "a")
    assert ip_address(flow["source"]["address"]) == ip_address(POD_A[version])
    assert (flow["destination"]["namespace"], flow["destination"]["name"]) == ("y", "b")
    assert (flow["verdict"], flow["protocol"], flow["port"]) == ("denied", "TCP", 81)
    (ruling,) = flow["rulings"]
    assert (ruling["direction"], ruling["policy"], ruling["rule"]) == ("ingress", "NetworkPolicy y/web", None)


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_that_stands_is_told_with_the_rule(world, served, version):
    world.b.listen(version, 80)
    world.a.connect(POD_B[version], 80)
    found = read(served, "verdict=allowed")
    flow = next(one for one in found if one["destination"]["address"] == str(ip_address(POD_B[version])))
    assert [(one["direction"], one["policy"], one["rule"]) for one in flow["rulings"]] == [
        ("egress", "", None),
        ("ingress", "NetworkPolicy y/web", 1),
    ]


def test_followers_hear_both_as_they_come(world, served):
    command = [POPLIN, "flows", "--follow", "-o", "json", "--run-dir", str(served)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            by_verdict = {}
            world.b.listen(4, 80)
            lines = iter(process.stdout.readline, "")
            while len(by_verdict) < 2:
                # Until the follower listens nobody hears of them.
                knock(world, 4, 81)
                world.a.connect(POD_B[4], 80)
                time.sleep(0.1)
                while select.select([process.stdout], [], [], 0.1)[0] and len(by_verdict) < 2:
                    line = json.loads(next(lines))
                    by_verdict[line["verdict"]] = line
        finally:
            process.terminate()
    assert by_verdict["allowed"]["port"] == 80
    assert by_verdict["denied"]["port"] == 81
    # Its end is noticed, and connections are no longer heard of.
    assert until(lambda: not SERVED[0]._followers and SERVED[0]._monitor is None)


def test_nonsense_is_refused(served):
    with pytest.raises(PoplinError, match="the agent refuses"):
        read(served, "verdict=maybe")


async def test_a_group_that_another_reads_is_a_problem_until_it_is_free(world, monkeypatch):
    monkeypatch.setattr("poplin.agent.flows.RETRY_S", 0.01)

    async def describe(seen, time_s):
        return [logged_flow(one, time_s, FlowEnd) for one in seen]

    flows = Flows(describe)
    with world.node.entered():
        other = NflogSocket(NFLOG_GROUP, lambda _: None)
        running = asyncio.create_task(flows.run())
        await asyncio.sleep(0.05)
        (problem,) = flows.problems
        assert "denied packets are not seen: nflog group 112" in problem
        other.close()
        await asyncio.sleep(0.05)
        assert flows.problems == []
        knock(world, 4, 81)
        async with asyncio.timeout(10):
            while not flows.recent():  # noqa: ASYNC110  - what the kernel tells has no event here
                await asyncio.sleep(0.01)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    world.close_sockets()
