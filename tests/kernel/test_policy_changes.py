"""Policies take turns under packets that never stop, written as an agent writes them: what all deny never passes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from kernel.topology import POD_A, POD_B, built
from poplin.agent.enforcer import KEY
from poplin.compile.policy.compiler import PolicyCompiler
from poplin.compile.policy.network_policy import translate
from poplin.dataplane.nftables.owned_table import OwnedTable
from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.datastore.parse import convert_object
from poplin.model.cluster import Namespace, Pod, PodPhase

TURNS = 150
PORT = 80


def pod(name, addresses, **labels):
    ips = tuple(map(ip_address, addresses.values()))
    return Pod("default", name, labels=labels, node_name="here", phase=PodPhase.RUNNING, addresses=ips)


def policy(name, ports, **labels):
    """Pods with these labels are reached at these ports only, from anywhere."""
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": labels},
            "ingress": [{"ports": [{"protocol": "UDP", "port": one} for one in ports]}],
        },
    }
    return translate(convert_object(NETWORK_POLICIES, document).value)


@pytest.mark.parametrize("version", [4, 6])
def test_no_denied_packet_passes_while_policies_change(version):
    compiler = PolicyCompiler("here")
    compiler.put_namespace(Namespace("default"))
    compiler.put_pod(pod("a", POD_A))
    with built() as world:
        with world.node.entered():
            table = OwnedTable(KEY)
        receiver, sender = world.b.udp(version, PORT), world.a.udp(version)
        receiver.setblocking(False)

        def enforce(number):
            """Of each kind of change one: the pod's identity, the chain of its policies, both."""
            compiler.put_policy(policy("first", [1000 + number // 3 % 2], app="one"))
            compiler.put_policy(policy("second", [2000], app="two"))
            compiler.put_pod(pod("b", POD_B, app=("one", "two", "one")[number % 3]))
            table.write(compiler.table())

        def change():
            nonlocal turns
            while not done.is_set():
                turns += 1
                enforce(turns)

        done, turns = threading.Event(), 0
        enforce(0)
        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit(change)
            try:
                while not changing.done() and turns < TURNS:
                    sender.sendto(b"denied", (POD_B[version], PORT))
                    with pytest.raises(BlockingIOError):
                        receiver.recv(100)
            finally:
                done.set()
        table.close()
        changing.result()
