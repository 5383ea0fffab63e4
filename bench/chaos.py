"""Chaos: random faults from a seed in a lab that works, how long each repair takes, and what is left at the end.

    python -m bench.chaos [--faults N] [--seed S] [--write]

`--write` puts the figures into docs/reliability.md.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import msgspec

from bench.report import Figure, percentile, print_table, within
from poplin.agent.wiring import read_state
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import entered, open_netns
from poplin.dataplane.nftables.socket import NftSocket
from poplin.datastore.client import ApiClient
from poplin.datastore.kubeconfig import find_access
from poplin.lab.fault import ANY, inflict_some
from poplin.lab.lifecycle import require
from poplin.lab.message import Question, agent_name
from poplin.lab.probing import Probe, Protocol
from poplin.lab.repair import FaultReport
from poplin.lab.report import kubeconfig_path
from poplin.lab.runtime import ask
from poplin.lab.snapshot import TABLES, NodeNetwork
from poplin.lab.traffic import FlowReport, run_flow
from poplin.model.nftables import Family, TableKey
from poplin.model.state import NetworkState
from poplin.plan.network import plan_network
from poplin.plan.nftables import DeleteTable

POPLIN = str(Path(sys.executable).parent / "poplin")
PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
NAME = f"chaos-{os.getpid()}"
NODES, PODS = 3, 6
FAULTS, SEED = 200, 1
MEDIAN_LIMIT_MS, LONGEST_LIMIT_MS = 200.0, 1000.0
PACKETS_S = 1000
RESTARTS = 5
SETTLE_S = 60.0
PORT = 80


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run found. `as_fresh` says whether each node's state is what an agent without memory programs."""

    seed: int
    faults: Sequence[FaultReport]
    as_fresh: bool
    restarts: Sequence[tuple[str, FlowReport]]

    @property
    def repairs_ms(self) -> list[float]:
        """The kernel's state, repaired: without the faults that break nothing but end the agent."""
        return [
            f.repair_s * 1000
            for f in self.faults
            if f.repair_s is not None and not f.kind.startswith("agent-")
        ]


def run() -> list[Figure]:
    """Measure. Needs root; makes one lab and takes it down."""
    return figures_of(asyncio.run(measure(FAULTS, SEED)))


def figures_of(outcome: Outcome) -> list[Figure]:
    """Give the figures with their budgets."""
    times_ms = outcome.repairs_ms
    unrepaired = sum(fault.repair_s is None for fault in outcome.faults)
    lost = sum(report.sent - report.received for _, report in outcome.restarts)
    sent = sum(report.sent for _, report in outcome.restarts)
    return [
        within(
            "repair, median", statistics.median(times_ms), "ms", MEDIAN_LIMIT_MS, f"of {len(times_ms)} faults"
        ),
        Figure("repair, p99", percentile(times_ms, 99), "ms"),
        within("repair, longest", max(times_ms), "ms", LONGEST_LIMIT_MS),
        Figure("faults that were not repaired", unrepaired, ""),
        Figure("state is a fresh agent's at the end", float(outcome.as_fresh), "", note="1: it is"),
        Figure("packets lost in restarts of agents", lost, "", note=f"of {sent} at {PACKETS_S} a second"),
    ]


async def measure(faults: int, seed: int) -> Outcome:
    """Make a lab with pods, strike, compare, restart agents under traffic."""
    with _lab():
        directory, settings = require(NAME)
        networks = [NodeNetwork(directory, node) for node in settings.node_names()]
        await _deploy()
        chance = random.Random(seed)
        reports = [report async for report in inflict_some(networks, ANY, faults, chance)]
        as_fresh = all([await _compare_with_fresh(network) for network in networks])
        return Outcome(seed, reports, as_fresh, await _restart_under_traffic(networks))


async def _compare_with_fresh(network: NodeNetwork) -> bool:
    """Take all that is ours off a node, and tell whether an agent without memory makes it again as it was."""
    attachments = network.attachments()
    before = network.read(attachments)
    name = agent_name(network.node)
    ask(network.directory.socket, Question(0, signal=name, number=signal.SIGSTOP))
    _wipe(network)
    ask(network.directory.socket, Question(0, signal=name, number=signal.SIGKILL))
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if network.read(attachments) == before:
                return True
        await asyncio.sleep(0.05)
    return False


def _wipe(network: NodeNetwork) -> None:
    netns_fd = open_netns(network.path)
    try:
        with entered(netns_fd), RouteSocket() as links, NftSocket() as nft:
            links.apply(plan_network(NetworkState(), read_state(links)))
            for table in TABLES:
                key = TableKey(Family.INET, table)
                if nft.read_table(key) is not None:
                    nft.apply([DeleteTable(key)])
    finally:
        os.close(netns_fd)


async def _restart_under_traffic(networks: Sequence[NodeNetwork]) -> list[tuple[str, FlowReport]]:
    """Agents end, by SIGKILL and SIGTERM in turn, while a flow goes from the first node's pod to the last one's."""
    source, target = networks[0].attachments()[0], networks[-1].attachments()[0]
    found = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        stop = asyncio.Event()
        probe = Probe(source.netns, "", ip_address(str(target.addresses[0])), PORT, Protocol.UDP)
        flow = asyncio.create_task(run_flow(probe, stop, interval_s=1 / PACKETS_S), name="flow")
        for turn in range(RESTARTS):
            await asyncio.sleep(0.5)
            network = networks[(turn % 2) - 1]
            ask(network.directory.socket, Question(0, signal=agent_name(network.node), number=number))
            await _wait_for_restart(network)
        stop.set()
        found.append((signal.Signals(number).name, await flow))
    return found


async def _wait_for_restart(network: NodeNetwork) -> None:
    name, deadline = agent_name(network.node), time.monotonic() + SETTLE_S
    log = network.directory.log(name)
    begun = log.read_text().count("agent started")
    while log.read_text().count("agent started") == begun and time.monotonic() < deadline:  # noqa: ASYNC110  - another process' state has no event
        await asyncio.sleep(0.05)


@contextlib.contextmanager
def _lab() -> Iterator[None]:
    try:
        _poplin("up", "--nodes", str(NODES), "--ip-family", "dual", "--name", NAME)
        yield
    finally:
        _poplin("down", "--name", NAME)


def _poplin(*arguments: str) -> None:
    subprocess.run([POPLIN, "lab", *arguments], check=True, stdout=subprocess.DEVNULL, timeout=120)


async def _deploy() -> None:
    labels = {"app": "web"}
    container = {
        "name": "web",
        "image": "example.org/web:1",
        "ports": [{"containerPort": PORT}, {"containerPort": PORT, "protocol": "UDP"}],
    }
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": PODS, "selector": {"matchLabels": labels}, "template": template},
    }
    path = "/apis/apps/v1/namespaces/default/deployments"
    access = find_access({}, kubeconfig=kubeconfig_path(*require(NAME)))
    async with ApiClient(access) as client, asyncio.timeout(SETTLE_S):
        await client.request("POST", path, body=body)
        ready = 0
        while ready < PODS:
            await asyncio.sleep(0.1)
            found = msgspec.json.decode(await client.request("GET", f"{path}/web"))
            ready = found.get("status", {}).get("readyReplicas") or 0


def write_page(outcome: Outcome) -> str:
    """Give docs/reliability.md."""
    times_ms = outcome.repairs_ms
    kinds = sorted({fault.kind for fault in outcome.faults})
    lines = [
        "# Reliability, measured",
        "",
        "This page is written by `python -m bench.chaos --write`; change it there.",
        "",
        (
            f"A lab of {NODES} nodes, dual stack, vxlan, with {PODS} pods; kernel {os.uname().release}, "
            f"{os.cpu_count()} CPUs. {len(outcome.faults)} faults (`poplin lab fault`), seed {outcome.seed}, one after "
            "another, each on a node and a thing that the seed chooses. A fault is repaired when everything on its node "
            "and in its pods, others' things included, is as before."
        ),
        "",
        (
            f"- repair: median {statistics.median(times_ms):.0f} ms, p99 {percentile(times_ms, 99):.0f} ms, longest "
            f"{max(times_ms):.0f} ms (faults that end an agent apart)"
        ),
        f"- not repaired: {sum(fault.repair_s is None for fault in outcome.faults)}",
        "- at the end all of Poplin's was taken off each node, and an agent without memory started: what it made "
        + ("was what had stood" if outcome.as_fresh else "was NOT what had stood"),
        "",
        "| fault | times | median ms | longest ms |",
        "|---|---:|---:|---:|",
    ]
    for kind in kinds:
        found = [f.repair_s * 1000 for f in outcome.faults if f.kind == kind and f.repair_s is not None]
        if found:
            lines.append(f"| {kind} | {len(found)} | {statistics.median(found):.0f} | {max(found):.0f} |")
    lines += [
        "",
        (
            "`agent-kill` and `agent-stop` end the agent itself; their time is mostly the wait of 0.2 to 5 s after which "
            "the lab starts an agent again that died young. Nothing of the network is gone meanwhile."
        ),
        "",
        f"## Restarts under traffic: a UDP flow of {PACKETS_S} packets a second between two nodes",
        "",
        f"| the agents of both nodes end {RESTARTS} times by | sent | answered | lost |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {report.sent} | {report.received} | {report.sent - report.received} |"
        for name, report in outcome.restarts
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, print, and write the page where asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos")
    parser.add_argument("--faults", type=int, default=FAULTS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    outcome = asyncio.run(measure(options.faults, options.seed))
    print_table("Chaos", figures_of(outcome))
    if options.write:
        PAGE.write_text(write_page(outcome))
    sound = outcome.as_fresh and all(fault.repair_s is not None for fault in outcome.faults)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
