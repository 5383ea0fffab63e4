"""`poplin lab fault`: each kind of damage is done, seen, and gone again, with everything of others as it was."""

import asyncio
import json
import random

import pytest

from e2e.lab_commands import Lab, container, poplin, unique_name, wait_until
from poplin.lab.directory import Directory
from poplin.lab.fault import FAULTS, inflict
from poplin.lab.probing import Probe, Protocol
from poplin.lab.repair import wait_for_rest
from poplin.lab.snapshot import NodeNetwork
from poplin.lab.traffic import run_flow

PORT = 80


@pytest.fixture(scope="module")
def lab():
    name = unique_name()
    poplin("up", "--nodes", "2", "--ip-family", "dual", "--dns", "none", "--name", name)
    try:
        made = Lab(name)
        for node in ("node-1", "node-2"):
            made.create(f"pod-{node}", container(ports=[{"containerPort": PORT}]), node=node)
            made.wait_for(f"pod-{node}", lambda pod: pod["status"].get("podIPs"), "it has addresses")
        # What others plant is neither ours to mend nor to remove.
        poplin("exec", "--name", name, "node/node-1", "--", "ip", "link", "add", "other0", "type", "bridge")
        poplin(
            "exec", "--name", name, "node/node-1", "--", "ip", "route", "add", "198.51.100.0/24", "via", "172.18.0.1"
        )  # fmt: skip
        nodes = [NodeNetwork(Directory(name), node) for node in ("node-1", "node-2")]
        asyncio.run(wait_for_rest(nodes))
        yield made
    finally:
        poplin("down", "--name", name)


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_is_repaired(lab, kind):
    network = NodeNetwork(Directory(lab.name), "node-1")
    report = asyncio.run(inflict(network, kind, random.Random(kind)))
    assert report is not None
    assert (report.kind, report.node) == (kind, "node-1")
    assert report.repair_s is not None


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["uplink", "backend", "node-address"])
def test_a_connection_outlives_what_its_packets_travel_by(lab, kind, version):
    near, far = (NodeNetwork(Directory(lab.name), node) for node in ("node-1", "node-2"))
    source, target = near.attachments()[0], far.attachments()[0]
    address = next(a for a in target.addresses if a.version == version)

    async def strike():
        stop = asyncio.Event()
        probe = Probe(source.netns, "", address, PORT, Protocol.TCP)
        flow = asyncio.create_task(run_flow(probe, stop, interval_s=0.01), name="flow")
        await asyncio.sleep(0.3)
        report = await inflict(near, kind, random.Random(1))
        # What was sent meanwhile comes with TCP's next retransmission: each is after twice the time.
        await asyncio.sleep(1 + 2 * (report.repair_s if report and report.repair_s else 0))
        stop.set()
        return report, await flow

    report, flow = asyncio.run(strike())
    assert report is not None
    assert report.repair_s is not None
    assert flow.whole, (report, flow)


def test_a_fault_whose_repair_is_not_seen_is_told(lab):
    """An agent that stands still repairs nothing."""
    directory = Directory(lab.name)
    network = NodeNetwork(directory, "node-1")
    before = network.read(network.attachments())
    pid = lab.pid("agent-node-1")
    poplin("exec", "--name", lab.name, "node/node-1", "--", "kill", "-STOP", str(pid))
    try:
        poplin(
            "exec", "--name", lab.name, "node/node-1", "--", "ip", "link", "set", "flannel.1", "mtu", "1300"
        )
        assert network.read(network.attachments()) != before
    finally:
        poplin("exec", "--name", lab.name, "node/node-1", "--", "kill", "-CONT", str(pid))
    wait_until(lambda: network.read(network.attachments()) == before, "it is repaired")


def test_one_seed_strikes_the_same_things(lab):
    def strike():
        arguments = (
            "fault",
            "--node",
            "node-2",
            "--name",
            lab.name,
            "--seed",
            "11",
            "--count",
            "3",
            "-o",
            "json",
        )
        return [(f["kind"], f["what"]) for f in json.loads(poplin(*arguments).stdout)["faults"]]

    assert strike() == strike()


def test_what_is_no_fault_is_refused(lab):
    done = poplin("fault", "gremlin", "--name", lab.name, check=False)
    assert done.returncode == 1
    assert "gremlin: no such fault; choose random or one of address, " in done.stderr
    done = poplin("fault", "--node", "node-9", "--name", lab.name, check=False)
    assert "node-9: no such node" in done.stderr
