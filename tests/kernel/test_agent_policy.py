"""NetworkPolicy by real agents, with real packets: in force before it counts, kept, changed, and gone again."""

import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from kernel.nodes import Cluster, Node, Pod, cluster, probe_icmp, wait_for
from poplin.dataplane.nftables.socket import NftSocket
from poplin.datastore.core import POD_IPS
from poplin.model.nftables import Family, TableKey

PORT = 80
both_families = pytest.mark.parametrize("version", [4, 6])


def policy(name, pods=None, **spec):
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": pods or {}}} | spec,
    }


def from_label(**labels):
    return [{"from": [{"podSelector": {"matchLabels": labels}}]}]


@dataclass
class World:
    cluster: Cluster
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Node]:
        return self.cluster.nodes

    def put(self, *objects):
        for one in objects:
            self.objects[one["kind"], one["metadata"]["name"]] = one
        self.write()

    def delete(self, kind, name):
        del self.objects[kind, name]
        self.write()

    def write(self):
        """The nodes as the agents have left them, and our objects as we want them."""
        ours = {kind for kind, _ in self.objects} | {"Pod", "NetworkPolicy"}
        theirs = [one for one in self.cluster.read_state() if one["kind"] not in ours]
        self.cluster.write_state([*theirs, *self.objects.values()])

    def pod(self, node: Node, *, known: bool = True, **labels: str) -> Pod:
        pod = node.new_pod()
        if known:
            self.put(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": pod.container_id, "namespace": "default", "labels": labels},
                    "spec": {"nodeName": node.node_name, "containers": [{}]},
                }
            )
        node.attach(pod)
        wait_for(lambda: pod.ip("-6", "route", "show", "table", "local", pod.addresses[6]), "a local address")
        return pod

    def label(self, pod: Pod, **labels: str):
        metadata = self.objects["Pod", pod.container_id]["metadata"]
        metadata["labels"] = labels
        self.write()

    def publish(self, *pods: Pod):
        """Give pods their status, as kubelet does a moment after they run."""
        for pod in pods:
            ips = [{"ip": address} for address in pod.addresses.values()]
            self.objects["Pod", pod.container_id]["status"] = {"phase": "Running", "podIPs": ips}
        self.write()

    def clear(self):
        for node in self.nodes:
            for pod in list(node.pods):
                node.remove_pod(pod)
        self.objects.clear()
        self.write()
        for node in self.nodes:
            wait_for(lambda one=node: not table(one), "no table without policies")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("policy"), nodes=2) as made:
        yield World(made)


@pytest.fixture
def world(running):
    running.clear()
    yield running
    running.cluster.close_sockets()


def table(node):
    done = subprocess.run(
        ["ip", "netns", "exec", node.name, "nft", "list", "table", "inet", "poplin-policy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or "No such file" in done.stderr, done.stderr
    return done.stdout


def reaches(source, target, version, port=PORT):
    with target.listen(version, port):
        try:
            source.connect(target.addresses[version], port).close()
        except TimeoutError:  # denied is dropped, never refused
            return False
    return True


def pings(source, target, version):
    with suppress(TimeoutError, AssertionError, OSError):
        probe_icmp(source, target.addresses[version])
        return True
    return False


def until(source, target, version, allowed):
    wait_for(
        lambda: reaches(source, target, version) == allowed, f"{'allowed' if allowed else 'denied'} in time"
    )


@both_families
def test_deny_all_denies_all_but_the_node(world, version):
    one, two = world.nodes
    server, near, far = world.pod(one, app="db"), world.pod(one, app="web"), world.pod(two, app="web")
    outside = world.cluster.outside
    for client in (near, far, outside, two, one):
        assert reaches(client, server, version)
    world.put(policy("deny-all"))
    until(near, server, version, allowed=False)
    for client in (far, outside, two):
        assert not reaches(client, server, version)
    assert not pings(near, server, version)
    # Its own node's probes pass, and the node's answers; isolation is of ingress alone.
    assert reaches(one, server, version)
    assert reaches(server, one, version)
    assert reaches(server, outside, version)
    world.delete("NetworkPolicy", "deny-all")
    until(near, server, version, allowed=True)
    assert reaches(far, server, version)
    wait_for(lambda: not table(one), "no table without policies")


@both_families
def test_egress_is_denied_at_the_source(world, version):
    one, two = world.nodes
    client, server = world.pod(one, app="web"), world.pod(two, app="db")
    rule = {
        "ports": [{"port": PORT}],
        "to": [{"ipBlock": {"cidr": f"{server.addresses[version]}/{32 if version == 4 else 128}"}}],
    }
    world.put(policy("out", {"app": "web"}, policyTypes=["Egress"], egress=[rule]))
    wait_for(lambda: table(one), "the table")
    until(client, world.cluster.outside, version, allowed=False)
    assert reaches(client, server, version)
    assert not reaches(client, server, version, port=PORT + 1)
    assert not reaches(client, one, version)
    assert reaches(server, client, version)


@both_families
def test_a_label_opens_and_closes(world, version):
    one, two = world.nodes
    server = world.pod(one, app="db")
    near, far = world.pod(one, app="web"), world.pod(two, app="web")
    world.publish(server, near, far)
    world.put(policy("db", {"app": "db"}, ingress=from_label(role="client")))
    until(near, server, version, allowed=False)
    assert not reaches(far, server, version)
    world.label(far, role="client")
    until(far, server, version, allowed=True)
    assert not reaches(near, server, version)
    world.label(near, role="client")
    until(near, server, version, allowed=True)
    world.label(far, role="none")
    until(far, server, version, allowed=False)
    # The policy no longer means a pod that has lost its label.
    world.label(server, app="none")
    until(far, server, version, allowed=True)


def held(node):
    with node.entered(), NftSocket() as nft:
        return nft.read_table(TableKey(Family.INET, "poplin-policy"))


def test_a_label_costs_one_element(world):
    one, _ = world.nodes
    server, client, other = world.pod(one, app="db"), world.pod(one), world.pod(one, role="client")
    world.put(policy("db", {"app": "db"}, ingress=from_label(role="client")))
    until(client, server, 4, allowed=False)
    assert reaches(other, server, 4)
    before = held(one)
    world.label(client, role="client")
    until(client, server, 4, allowed=True)
    after = held(one)
    assert after.chains == before.chains
    changed = {
        new.name: {element.key for element in new.elements ^ old.elements}
        for new, old in zip(after.sets, before.sets, strict=True)
        if new != old
    }
    assert changed == {
        f"identity-{version}": {ip_address(address).packed} for version, address in client.addresses.items()
    }


@both_families
def test_what_stands_is_cut_and_mended(world, version):
    one, two = world.nodes
    server, client = world.pod(one, app="db"), world.pod(two, app="web")
    world.publish(server, client)
    listener = server.listen(version, PORT)
    near = client.connect(server.addresses[version], PORT)
    far, _ = listener.accept()
    server.sockets.append(far)
    far.settimeout(0.4)

    def passes(data):
        near.sendall(data)
        try:
            return data in far.recv(1024)
        except TimeoutError:
            return False

    assert passes(b"before")
    world.put(policy("deny-all"))
    wait_for(lambda: not passes(b"x"), "the connection is cut")
    far.sendall(b"y")
    near.settimeout(0.4)
    with pytest.raises(TimeoutError):
        near.recv(10)
    world.put(policy("db", {"app": "db"}, ingress=from_label(app="web")))
    far.settimeout(5)
    wait_for(lambda: passes(b"again"), "the connection goes on")
    near.settimeout(5)
    assert near.recv(10) == b"y"


@both_families
def test_add_returns_when_the_policy_is_in_force(world, version):
    one, two = world.nodes
    client, good = world.pod(two, app="web"), world.pod(two, role="client")
    world.publish(client, good)
    world.put(policy("db", {"app": "db"}, ingress=from_label(role="client")))
    wait_for(lambda: table(one) and table(two), "the tables")
    for _ in range(5):
        server = world.pod(one, app="db")
        assert not reaches(client, server, version)
        assert reaches(good, server, version)


@both_families
def test_a_new_pod_is_known_elsewhere_before_kubelet_says_its_address(world, version):
    one, two = world.nodes
    server = world.pod(one, app="db")
    world.put(policy("db", {"app": "db"}, ingress=from_label(role="client")))
    wait_for(lambda: table(two), "the table")
    client = world.pod(two, role="client")

    def announced():
        found = [one for one in world.cluster.read_state() if one["metadata"]["name"] == client.container_id]
        return found[0]["metadata"].get("annotations", {}).get(POD_IPS)

    wait_for(announced, "the announcement")
    assert set(announced().split(",")) == set(client.addresses.values())
    until(client, server, version, allowed=True)


def test_a_pod_that_no_api_knows_has_no_labels(world):
    one, _ = world.nodes
    world.put(policy("labelled", {"app": "db"}), policy("other", {"x": "y"}))
    wait_for(lambda: table(one), "the table")
    stranger, client = world.pod(one, known=False), world.pod(one)
    assert reaches(client, stranger, 4)
    world.put(policy("deny-all"))
    until(client, stranger, 4, allowed=False)


def test_a_flushed_table_comes_back(world):
    one, _ = world.nodes
    server, client = world.pod(one, app="db"), world.pod(one, app="web")
    world.put(policy("deny-all"))
    until(client, server, 4, allowed=False)
    before = held(one)
    for command in (["flush", "ruleset"], ["delete", "table", "inet", "poplin-policy"]):
        one.run("nft", *command)
        wait_for(lambda: held(one) == before, "the table is back", timeout_s=5)
        assert not reaches(client, server, 4)


def test_a_restart_changes_nothing(world):
    one, _ = world.nodes
    server, client, other = world.pod(one, app="db"), world.pod(one, role="client"), world.pod(one, app="x")
    world.put(policy("db", {"app": "db"}, ingress=from_label(role="client")), policy("x", {"app": "x"}))
    until(other, server, 4, allowed=False)
    one.run("nft", "add", "counter", "inet", "poplin-policy", "untouched")
    before = table(one)
    assert "untouched" in before
    one.kill()
    assert reaches(client, server, 4)
    assert not reaches(other, server, 4)
    one.start()
    one.wait_ready()
    wait_for(lambda: one.status()["ready"], "ready")
    assert {line for line in table(one).splitlines() if "counter" not in line} == {
        line for line in before.splitlines() if "counter" not in line
    }


def test_a_policy_that_cannot_be_read_closes_its_namespace_and_says_so(world):
    one, _ = world.nodes
    server, client = world.pod(one, app="db"), world.pod(one, app="web")
    broken = policy("broken", {"app": "db"})
    broken["spec"]["ingress"] = [{"ports": [{"port": [80]}]}]
    world.put(broken)
    until(client, server, 4, allowed=False)
    assert any("NetworkPolicy default/broken" in text for text in one.status()["problems"])
    broken["spec"]["ingress"] = [{"ports": [{"port": 90, "endPort": 80}]}, {"ports": [{"port": PORT}]}]
    world.put(broken)
    until(client, server, 4, allowed=True)
    assert any("ingress[0].ports[0].endPort: 80" in text for text in one.status()["problems"])
    assert one.poplin("check").status == 1
    world.delete("NetworkPolicy", "broken")
    wait_for(lambda: not one.status()["problems"], "no problem is left")


def test_cleanup_takes_the_table_away(tmp_path):
    with cluster(tmp_path, nodes=1, versions=(4,)) as made:
        world, (one,) = World(made), made.nodes
        world.put(policy("deny-all"))
        wait_for(lambda: table(one), "the table")
        one.stop()
        assert "poplin-policy" in one.poplin("cleanup").output
        assert not table(one)
