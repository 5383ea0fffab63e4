"""Chains with Debian's plugins before and behind ours, run as libcni runs them (SPEC.md of CNI, sections 3 and 4)."""

import json
import subprocess
from ipaddress import ip_interface
from pathlib import Path

import pytest

from kernel.nodes import Answer, cluster, kernel_state, probe_pairs, wait_for
from kernel.test_bandwidth import sent
from kernel.test_host_ports import ask_tcp
from poplin.agent.install import shim_path

PLUGINS = Path("/usr/lib/cni")
MAC = "02:00:5e:10:00:02"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("two"), nodes=2) as c:
        c.nodes[1].add_pod()
        yield c


@pytest.fixture
def node(two):
    [node, _] = two.nodes
    yield node
    two.close_sockets()
    for pod in list(node.pods):
        assert node.cni("DEL", pod).status == 0
        node.drop(pod)


def run_plugin(node, plugin, command, pod, config):
    """Run a plugin in the node's namespace, where the runtime runs it."""
    path = shim_path() if plugin == "poplin-cni" else PLUGINS / plugin
    done = subprocess.run(
        node.inside(str(path)),
        input=json.dumps(config).encode(),
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.container_id,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": pod.ifname,
            "CNI_PATH": str(PLUGINS),
        },
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


class Chain:
    """A list of plugins and one pod; `runtime` is what the runtime passes to who declares the capability."""

    def __init__(self, node, *plugins, **runtime):
        self.node, self.plugins, self.runtime = node, plugins, runtime
        node.quiet()
        self.before = without_rules(node)
        self.pod = node.new_pod()
        self.result = None

    def run(self, command):
        for plugin in self.plugins[:: -1 if command == "DEL" else 1]:
            config = plugin | {"cniVersion": "1.0.0", "name": "chained"}
            declared = config.pop("capabilities", {})
            config["runtimeConfig"] = {k: v for k, v in self.runtime.items() if declared.get(k)}
            if self.result is not None:
                config["prevResult"] = self.result
            if (command, plugin["type"]) == ("CHECK", "portmap"):
                continue  # 1.1.1 looks for the IPv4 rules in ip6tables too, and fails
            answer = run_plugin(self.node, plugin["type"], command, self.pod, config)
            assert answer.status == 0, (command, plugin["type"], answer)
            if command == "ADD":
                self.result = answer.json

    def add(self):
        self.run("ADD")
        self.pod.result = self.result
        found = [ip_interface(one["address"]) for one in self.result["ips"]]
        self.pod.addresses.update({one.version: str(one.ip) for one in found})
        return self.pod

    def check_also_after_an_audit(self):
        """CHECK passes, and no pass of the agent takes away what another plugin has made."""
        self.run("CHECK")
        self.node.quiet()
        self.run("CHECK")

    def remove(self):
        """DEL, after which nothing of the pod is left on the node; the chains of iptables are the others' to keep."""
        self.run("DEL")
        wait_for(lambda: without_rules(self.node) == self.before, "the node is as it was")
        rules = kernel_state(self.node)["rules"]
        assert not [address for address in self.pod.addresses.values() if f"{address} " in rules]


def without_rules(node):
    return {key: value for key, value in kernel_state(node).items() if key != "rules"}


@pytest.fixture
def ours(node):
    """Our plugin as installed, but with no capability: what the runtime is asked for goes to the others."""
    [plugin] = json.loads(node.conflist.read_text())["plugins"]
    return plugin | {"capabilities": {}}


def settled(two, pod):
    wait_for(lambda: probe_pairs([pod, *two.nodes[1].pods], two.versions) == [], "packets pass")


def test_bandwidth_behind_us(two, node, ours):
    limits = {
        "ingressRate": 8_000_000,
        "ingressBurst": 800_000,
        "egressRate": 4_000_000,
        "egressBurst": 400_000,
    }
    chain = Chain(node, ours, {"type": "bandwidth", "capabilities": {"bandwidth": True}}, bandwidth=limits)
    pod, [far, *_] = chain.add(), two.nodes[1].pods
    settled(two, pod)
    chain.check_also_after_an_audit()
    for version in two.versions:
        assert 3e6 < sent(far, pod, version) < 9e6
        assert 1e6 < sent(pod, far, version) < 5e6
    chain.remove()


def test_portmap_behind_us(two, node, ours):
    ports = [{"hostPort": 8090, "containerPort": 90, "protocol": "tcp"}]
    portmap = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
    chain = Chain(node, ours, portmap, portMappings=ports)
    pod = chain.add()
    settled(two, pod)
    chain.check_also_after_an_audit()
    for version in two.versions:
        ask_tcp(two.outside, version, node.addresses[version], 8090, pod, 90)
    chain.remove()
    with pytest.raises(ConnectionRefusedError):
        two.outside.connect(node.addresses[4], 8090)


def test_firewall_behind_us(two, node, ours):
    chain = Chain(node, ours, {"type": "firewall", "backend": "iptables"})
    # Its rules count on a node that forwards nothing else: a pod may begin, and is answered.
    for program in ("iptables", "ip6tables"):
        node.run(program, "-P", "FORWARD", "DROP")
    try:
        pod, [far, *_] = chain.add(), two.nodes[1].pods
        for version in two.versions:
            ask_tcp(pod, version, far.addresses[version], 92, far, 92)
        chain.check_also_after_an_audit()
        with pytest.raises(OSError, match="timed out"):
            ask_tcp(far, 4, pod.addresses[4], 92, pod, 92)
        chain.remove()
    finally:
        for program in ("iptables", "ip6tables"):
            node.run(program, "-P", "FORWARD", "ACCEPT")


def test_all_of_them_behind_us(two, node, ours):
    """As a distribution's conflist may have them."""
    sysctls = {f"net.ipv{version}.conf.eth0.forwarding": "1" for version in two.versions}
    chain = Chain(
        node,
        ours,
        {"type": "tuning", "capabilities": {"mac": True}, "sysctl": sysctls, "mtu": 1380},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
        {"type": "firewall"},
        mac=MAC,
        bandwidth={"ingressRate": 80_000_000, "ingressBurst": 800_000},
        portMappings=[{"hostPort": 8091, "containerPort": 91, "protocol": "tcp"}],
    )
    pod = chain.add()
    settled(two, pod)
    chain.check_also_after_an_audit()
    [link] = pod.ip("link", "show", "eth0")
    assert (link["address"], link["mtu"]) == (MAC, 1380)
    assert pod.run("sysctl", "-n", *sysctls).split() == ["1"] * len(sysctls)
    for version in two.versions:
        ask_tcp(two.outside, version, node.addresses[version], 8091, pod, 91)
    chain.remove()


def test_tuning_before_us(two, node, ours):
    """It sets what is the namespace's; there is no interface of the pod's yet."""
    sysctls = {"net.core.somaxconn": "777", "net.ipv4.conf.lo.forwarding": "1"}
    other = {"cniVersion": "1.0.0", "interfaces": [{"name": "lo", "sandbox": ""}]}
    chain = Chain(node, {"type": "tuning", "sysctl": sysctls}, ours)
    chain.result = other
    pod = chain.add()
    settled(two, pod)
    assert pod.run("sysctl", "-n", *sysctls).split() == ["777", "1"]
    chain.check_also_after_an_audit()
    chain.remove()
