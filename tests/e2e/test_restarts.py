"""Agents and the API server end, come back, or come back empty, while a flow between two nodes loses nothing.

A downgrade, which is a store of one schema newer, is in tests/unit/datastore/test_attachments.py.
"""

import asyncio
import os
import shutil
import signal
import socket
from contextlib import asynccontextmanager

import msgspec
import pytest

from e2e.lab_commands import LABS, Lab, condition, poplin, shell, unique_name, wait_until
from e2e.steady_flow import steady_flow
from kernel.nodes import cluster, ip_batch, kernel_state, wait_for
from poplin.apiserver.server import ApiServer, Settings, serve
from poplin.dataplane.netns import in_namespace, open_netns
from poplin.datastore.client import ApiClient
from poplin.datastore.kubeconfig import read_kubeconfig
from poplin.lab.directory import Directory
from poplin.lab.message import SERVER, Question, agent_name
from poplin.lab.runtime import ask
from poplin.lab.snapshot import NodeNetwork

NODES = ("node-1", "node-2")
API_PORT = 6443
POLICIES = "/apis/networking.k8s.io/v1/namespaces"
POLICY = {
    "metadata": {"name": "pods-only"},
    "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.244.0.0/16"}}]}]},
}


# ---- a lab ----


@pytest.fixture(scope="module")
def lab():
    name = unique_name()
    try:
        poplin("up", "--nodes", "2", "--dns", "none", "--ip-family", "dual", "--name", name)
        made = Lab(name)
        for node in NODES:
            made.create(f"old-{node}", shell("sleep 1000"), node=node)
        for node in NODES:
            made.wait_ready(f"old-{node}")
        yield made
    finally:
        poplin("down", "--name", name)


def flow_between_nodes(lab, version):
    """A flow between the pods that stood when the lab was made."""
    ends = []
    for node in NODES:
        pods = NodeNetwork(Directory(lab.name), node).attachments()
        [pod] = [pod for pod in pods if pod.pod_name == f"old-{node}"]
        [address] = [address for address in pod.addresses if address.version == version]
        ends.append((pod.netns, str(address)))
    return steady_flow(*ends)


def end(lab, process, number):
    ask(Directory(lab.name).socket, Question(0, signal=process, number=number))


def starts(lab, node):
    return (LABS / lab.name / "logs" / f"{agent_name(node)}.log").read_text().count("agent started")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_agents_are_replaced_one_after_another_and_no_packet_is_lost(lab, number):
    with flow_between_nodes(lab, 4 if number == signal.SIGTERM else 6):
        for node in NODES:
            before = starts(lab, node)
            name = f"{number.name.lower()}-{node}"
            end(lab, agent_name(node), number)
            lab.create(name, shell("sleep 1000"), node=node)
            wait_until(lambda node=node, before=before: starts(lab, node) > before, f"{node}: a new agent")
            lab.wait_ready(name)


def test_the_api_server_and_the_agents_die_together_and_no_packet_is_lost(lab):
    before = {node: starts(lab, node) for node in NODES}
    networks = {node: NodeNetwork(Directory(lab.name), node) for node in NODES}
    pods = {node: network.attachments() for node, network in networks.items()}
    stood = {node: network.read(pods[node]) for node, network in networks.items()}
    server = lab.pid(SERVER)
    with flow_between_nodes(lab, 4):
        end(lab, SERVER, signal.SIGKILL)
        for node in NODES:
            end(lab, agent_name(node), signal.SIGKILL)
        wait_until(lambda: all(starts(lab, node) > before[node] for node in NODES), "new agents")
        for node in NODES:
            lab.create(f"after-{node}", shell("sleep 1000"), node=node)
        for node in NODES:
            lab.wait_ready(f"after-{node}")
            lab.wait_for(f"old-{node}", lambda pod: condition(pod, "Ready") == "True", "still ready")
        assert lab.pid(SERVER) != server
    for node, network in networks.items():
        now = network.attachments()
        assert {pod.host_link for pod in pods[node]} < {pod.host_link for pod in now}
        assert {link: network.read(pods[node]).pods[link] for link in stood[node].pods} == stood[node].pods


# ---- an API server of the test's own, which each node reaches in its own namespace ----


@asynccontextmanager
async def api_server(directory, made):
    listeners = []
    for node in made.nodes:
        netns_fd = open_netns(f"/run/netns/{node.name}")
        try:
            listeners.append(in_namespace(netns_fd, lambda: socket.create_server(("127.0.0.1", API_PORT))))
        finally:
            os.close(netns_fd)
    server = ApiServer(Settings(directory / "api"))
    server.write_kubeconfig(directory / "kubeconfig", f"https://127.0.0.1:{API_PORT}")
    with socket.create_server(("127.0.0.1", 0)) as ours:
        server.write_kubeconfig(directory / "ours", f"https://127.0.0.1:{ours.getsockname()[1]}")
        async with (
            server,
            serve(server, [*listeners, ours]),
            ApiClient(read_kubeconfig([directory / "ours"])) as client,
        ):
            yield client


async def create_all(client, objects):
    namespaces = {thing["metadata"].get("namespace") for thing in objects} - {None}
    for name in namespaces:
        await client.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    for thing in objects:
        namespace = thing["metadata"].get("namespace")
        path = f"/api/v1/namespaces/{namespace}/configmaps" if namespace else "/api/v1/nodes"
        await client.request("POST", path, body=thing)


def move_database(source, target):
    target.mkdir()
    for path in source.glob("objects.db*"):
        path.rename(target / path.name)


def check_that_all_is_held(made, stood):
    for node in made.nodes:
        reason = node.wait_condition("network computed", "is not among the cluster's nodes", ok=False)
        code, body = node.get("/readyz")
        assert code == 503
        assert reason in body
        node.wait_condition("policy in force", "is not among the cluster's nodes", ok=False)
    assert [kernel_state(host) for host in made.hosts] == stood
    # Held, not left alone: a pod's route that goes meanwhile comes back. The flow is IPv4's.
    node = made.nodes[0]
    [pod] = node.pods
    ip_batch(node.name, f"-6 route del {pod.addresses[6]}")
    wait_for(lambda: kernel_state(node) == stood[made.hosts.index(node)], "the pod's route is back")
    # Also by an agent that starts with nothing else to go by.
    node.kill()
    node.start()
    node.wait_condition("network computed", "is not among the cluster's nodes", ok=False)
    assert [kernel_state(host) for host in made.hosts] == stood


async def test_an_api_server_that_comes_back_empty_takes_nothing_away(tmp_path):
    with cluster(tmp_path, nodes=2, started=False) as made:
        async with api_server(tmp_path, made) as client:
            await create_all(client, made.objects())
            for node in made.nodes:
                node.kubeconfig = tmp_path / "kubeconfig"
            await asyncio.to_thread(made.start)
            await client.request("POST", f"{POLICIES}/default/networkpolicies", body=POLICY)
            for node in made.nodes:
                pod = node.new_pod()
                body = {
                    "metadata": {"name": pod.container_id},
                    "spec": {
                        "nodeName": node.node_name,
                        "containers": [{"name": "c", "image": "example.org/c"}],
                    },
                }
                await client.request("POST", "/api/v1/namespaces/default/pods", body=body)
                await asyncio.to_thread(node.attach, pod)
                await asyncio.to_thread(node.quiet)
        stood = [kernel_state(host) for host in made.hosts]
        assert all("10.244.0.0/16" in kernel_state(node)["rules"] for node in made.nodes)
        ends = [(pod.path, pod.addresses[4]) for pod in made.pods]
        with steady_flow(*ends):
            move_database(tmp_path / "api", tmp_path / "kept")
            async with api_server(tmp_path, made) as client:
                listed = msgspec.json.decode(await client.request("GET", "/api/v1/nodes"))
                assert listed["items"] == []
                await asyncio.to_thread(check_that_all_is_held, made, stood)
            for path in (tmp_path / "api").glob("objects.db*"):
                path.unlink()
            shutil.copytree(tmp_path / "kept", tmp_path / "api", dirs_exist_ok=True)
            async with api_server(tmp_path, made):
                for node in made.nodes:
                    await asyncio.to_thread(node.wait_ready, 1)
                    await asyncio.to_thread(node.quiet)
                assert [kernel_state(host) for host in made.hosts] == stood
