"""Every CNI command through the real stack: the compiled plugin, the agent, the kernel; alone and in a chain."""

import json
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import pytest

from kernel.nodes import Answer, cluster, ip_batch, kernel_state, probe_icmp, probe_pairs, probe_tcp, wait_for
from poplin.agent.install import shim_path

VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
GATEWAY = {4: "169.254.1.1", 6: "fe80::1"}
DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
HOST_MAC = "ee:ee:ee:ee:ee:ee"
PLUGINS = Path("/usr/lib/cni")


@pytest.fixture(scope="module", params=[(4, 6), (4,), (6,)], ids=["dual", "ipv4", "ipv6"])
def one(request, tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("cni"), nodes=1, versions=request.param) as c:
        yield c


@pytest.fixture
def node(one):
    [node] = one.nodes
    yield node
    for pod in list(node.pods):
        node.remove_pod(pod)
    assert node.status()["pods"] == 0
    # Also those that a namespace has taken with it.
    wait_for(lambda: not any(link.startswith("pop") for link in node.links()), "all links go")


@pytest.mark.parametrize("version", VERSIONS)
def test_add_answers_what_stands_in_the_version_it_was_asked_in(one, node, version):
    pod = node.add_pod(cniVersion=version)
    host_link = pod.result["interfaces"][0]["name"]
    mac = pod.ip("link", "show", "eth0")[0]["address"]
    mtu = {"mtu": node.status()["network"]["podMTU"]} if version == "1.1.0" else {}
    old = version in {"0.3.1", "0.4.0"}
    assert pod.result == {
        "cniVersion": version,
        "interfaces": [
            {"name": host_link, "mac": HOST_MAC, **mtu},
            {"name": "eth0", "mac": mac, "sandbox": pod.path, **mtu},
        ],
        "ips": [
            {"address": f"{pod.addresses[v]}/{32 if v == 4 else 128}", "gateway": GATEWAY[v], "interface": 1}
            | ({"version": str(v)} if old else {})
            for v in one.versions
        ],
        "routes": [{"dst": DEFAULT[v], "gw": GATEWAY[v]} for v in one.versions],
        "dns": {},
    }
    [eth0] = pod.ip("addr", "show", "dev", "eth0")
    standing = {a["local"] for a in eth0["addr_info"] if a["scope"] == "global"}
    assert standing == set(pod.addresses.values())
    assert eth0["mtu"] == node.status()["network"]["podMTU"]
    for address in pod.addresses.values():
        probe_icmp(node, address)


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_check_is_content_with_what_stands_and_names_what_does_not(one, node, version):
    pod = node.add_pod(cniVersion=version)

    def check():
        return node.cni("CHECK", pod, cniVersion=version, prevResult=pod.result)

    assert check().output == ""
    damages = {4: f"addr del {pod.addresses.get(4)}/32 dev eth0", 6: "-6 route del default"}

    def damaged():
        # The look that follows an ADD may come in between and mend it.
        ip_batch(pod.name, damages[one.versions[0]])
        found = check()
        return found if found.status else None

    failed = wait_for(damaged, "CHECK finds the damage")
    assert (failed.status, failed.json["code"]) == (1, 100)
    assert "eth0 is not as it was made" in failed.json["msg"]
    assert "missing: " in failed.json["details"]
    node.get("/audit", "POST")
    assert check().output == ""
    wrong = {4: "10.244.1.99/32", 6: "fd00:10:244:1::99/128"}
    [first, *others] = pod.result["ips"]
    told = pod.result | {"ips": [first | {"address": wrong[one.versions[0]]}, *others]}
    refused = node.cni("CHECK", pod, cniVersion=version, prevResult=told)
    assert (refused.status, refused.json["code"]) == (1, 100)
    assert f"not in prevResult: {pod.addresses[one.versions[0]]}" in refused.json["details"]
    assert f"only in prevResult: {wrong[one.versions[0]].split('/')[0]}" in refused.json["details"]
    stranger = node.new_pod()
    unknown = node.cni("CHECK", stranger, cniVersion=version, prevResult=pod.result)
    assert (unknown.status, unknown.json["code"]) == (1, 3)
    node.drop(stranger)


@pytest.mark.parametrize("version", VERSIONS)
def test_del_takes_all_away_and_may_be_repeated(node, version):
    before = kernel_state(node)
    pod = node.add_pod(cniVersion=version)
    for _ in range(2):
        gone = node.cni("DEL", pod, cniVersion=version, prevResult=pod.result)
        assert (gone.status, gone.output) == (0, "")
    wait_for(lambda: kernel_state(node) == before, "nothing is left on the node")
    wait_for(lambda: set(kernel_state(pod)["links"]) == {"lo"}, "nothing is left in the pod")
    # Runtimes delete also when the namespace is gone, with and without its path.
    for netns in ("/run/netns/gone", ""):
        assert node.cni("DEL", pod, cniVersion=version, env={"CNI_NETNS": netns}).status == 0
    pod.result = {}
    node.attach(pod, cniVersion=version)


def test_del_of_a_pod_whose_namespace_is_gone(node):
    pod = node.add_pod()
    subprocess.run(["ip", "netns", "del", pod.name], check=True)
    assert node.cni("DEL", pod).status == 0
    assert node.status()["pods"] == 0
    node.pods.remove(pod)


def test_del_in_another_pods_namespace_leaves_that_pod_alone(one, node):
    """A path such as /proc/PID/ns/net may be another pod's by the time of the DEL."""
    pod, other = node.add_pod(), node.add_pod()
    before = kernel_state(other)
    assert node.cni("DEL", pod, env={"CNI_NETNS": other.path}).status == 0
    wait_for(lambda: pod.host_link not in node.links(), "the pod's link goes")
    assert kernel_state(other) == before
    for version in one.versions:
        probe_icmp(node, other.addresses[version])


def test_version_and_status(node):
    for version in VERSIONS:
        answer = node.cni("VERSION", cniVersion=version)
        assert answer.json == {"cniVersion": version, "supportedVersions": VERSIONS}
    assert (node.cni("STATUS", cniVersion="1.1.0").status, node.cni("STATUS", cniVersion="1.1.0").output) == (
        0,
        "",
    )


def test_gc_takes_what_is_not_named_and_nothing_else(node):
    kept, gone = node.add_pod(), [node.add_pod(), node.add_pod()]
    valid = [{"containerID": kept.container_id, "ifname": "eth0"}]
    answer = node.cni("GC", cniVersion="1.1.0", **{"cni.dev/valid-attachments": valid})
    assert (answer.status, answer.output) == (0, "")
    assert node.status()["pods"] == 1
    for pod in gone:
        wait_for(lambda p=pod: p.host_link not in node.links(), "the link goes")
        node.drop(pod)
    assert kept.host_link in node.links()
    refused = node.cni("GC", cniVersion="1.1.0")
    assert (refused.status, refused.json["code"]) == (1, 7)
    assert node.status()["pods"] == 1
    empty = node.cni("GC", cniVersion="1.1.0", **{"cni.dev/valid-attachments": []})
    assert empty.status == 0
    assert node.status()["pods"] == 0


def test_a_pod_may_have_the_addresses_and_the_mac_it_asks_for(one, node):
    wanted = {4: "10.244.1.77", 6: "fd00:10:244:1::77"}
    asked = [f"{wanted[v]}/{32 if v == 4 else 128}" for v in one.versions]
    pod = node.add_pod(runtimeConfig={"ips": asked, "mac": "02:00:5E:10:00:01"})
    assert pod.addresses == {v: wanted[v] for v in one.versions}
    assert pod.result["interfaces"][1]["mac"] == "02:00:5e:10:00:01"
    assert pod.ip("link", "show", "eth0")[0]["address"] == "02:00:5e:10:00:01"
    other = node.add_pod()
    assert probe_pairs([pod, other], one.versions) == []


def test_a_pod_may_have_an_address_of_the_ranges_it_asks_for(one, node):
    """As large as a cluster's whole range may be: what counts is what this node has of it."""
    ranges = [
        [{"subnet": "10.244.0.0/16", "rangeStart": "10.244.1.200", "rangeEnd": "10.244.1.201"}],
        [{"subnet": "fd00:10:244::/48", "rangeEnd": "fd00:10:244:1::1"}],
    ]
    asked = {"runtimeConfig": {"ipRanges": [ranges[{4: 0, 6: 1}[v]] for v in one.versions]}}
    pod, other = node.add_pod(**asked), node.new_pod()
    wanted = {4: ("10.244.1.200", "10.244.1.201"), 6: ("fd00:10:244:1::1",)}
    assert all(pod.addresses[version] in wanted[version] for version in one.versions)
    elsewhere = {"ipRanges": [[{"subnet": "10.9.0.0/24"}]]}
    refused = node.cni("ADD", other, runtimeConfig=elsewhere)
    assert refused.status == 1
    assert refused.json["msg"].startswith("10.9.0.0")
    node.attach(other)
    assert probe_pairs([pod, other], one.versions) == []


def test_many_pods_at_once(one, node):
    pods = [node.new_pod() for _ in range(12)]
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(node.attach, pods))
    for version in one.versions:
        assert len({pod.addresses[version] for pod in pods}) == 12
        for pod in pods:
            probe_icmp(node, pod.addresses[version])
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda pod: node.cni("DEL", pod), pods))
    assert {(answer.status, answer.output) for answer in answers} == {(0, "")}
    assert node.status()["pods"] == 0
    wait_for(lambda: not any(link.startswith("pop") for link in node.links()), "all links go")
    for pod in pods:
        node.drop(pod)


def test_a_second_interface_leaves_the_first_as_it_is_and_serves_who_names_it(one, node):
    pod = node.add_pod()
    second = node.cni("ADD", pod, cniVersion="1.1.0", env={"CNI_IFNAME": "net1"})
    assert second.status == 0, second.output
    assert {route["priority"] for route in second.json["routes"]} == {10_001}
    assert node.status()["pods"] == 2
    addresses = {4 if "." in ip["address"] else 6: ip["address"].split("/")[0] for ip in second.json["ips"]}
    assert not set(addresses.values()) & set(pod.addresses.values())
    for version in one.versions:
        assert probe_tcp(node, pod, version)
        with pod.udp(version, 0, addresses[version]) as far, node.open(version, socket.SOCK_DGRAM) as near:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"net1")
            near.settimeout(5)
            far.settimeout(5)
            near.sendto(b"there", (addresses[version], far.getsockname()[1]))
            data, peer = far.recvfrom(64)
            far.sendto(data, peer)
            assert near.recvfrom(64)[1][0] == addresses[version]
    node.quiet()
    checked = node.cni("CHECK", pod, cniVersion="1.1.0", env={"CNI_IFNAME": "net1"}, prevResult=second.json)
    assert checked.output == ""
    # A third of the same name is refused, and the ones there stay.
    refused = node.cni("ADD", pod, env={"CNI_IFNAME": "net1"})
    assert (refused.status, "added already" in refused.json["msg"]) == (1, True)
    assert node.cni("DEL", pod, env={"CNI_IFNAME": "net1"}).status == 0
    wait_for(lambda: set(pod_links(pod)) == {"lo", "eth0"}, "the second goes")
    for version in one.versions:
        assert probe_tcp(node, pod, version)


def pod_links(pod):
    return [link["ifname"] for link in pod.ip("link", "show")]


# ---- a chain, run as libcni runs it (SPEC.md, sections 3 and 4) ----


def run_plugin(node, plugin, command, pod, config, ifname="eth0"):
    done = subprocess.run(
        [shim_path() if plugin == "poplin-cni" else PLUGINS / plugin],
        input=json.dumps(config).encode(),
        env={
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.container_id,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": ifname,
            "CNI_PATH": str(PLUGINS),
        },
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_chain(node, conflist, command, pod, result=None, runtime=None):
    """Run all plugins of a list in the order of the command; what the last ADD printed."""
    plugins = conflist["plugins"] if command != "DEL" else conflist["plugins"][::-1]
    for plugin in plugins:
        config = plugin | {"cniVersion": conflist["cniVersion"], "name": conflist["name"]}
        declared = config.pop("capabilities", {})
        config["runtimeConfig"] = {k: v for k, v in (runtime or {}).items() if declared.get(k)}
        if result is not None:
            config["prevResult"] = result
        answer = run_plugin(node, plugin["type"], command, pod, config)
        assert answer.status == 0, (plugin["type"], answer)
        if command == "ADD":
            result = answer.json
    return result


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_a_chain_with_others_plugins(one, node, version):
    """The conflist that the agent has installed, with `tuning` behind it; `loopback` before, as containerd does."""
    conflist = json.loads(node.conflist.read_text())
    conflist["cniVersion"] = version
    sysctls = {f"net.ipv{v}.conf.eth0.forwarding": "1" for v in one.versions}
    tuning = {"type": "tuning", "capabilities": {"mac": True}, "sysctl": sysctls}
    conflist["plugins"].append(tuning)
    pod, other = node.new_pod(), node.add_pod()
    loopback = {"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"}
    assert run_plugin(node, "loopback", "ADD", pod, loopback, "lo").status == 0
    result = run_chain(node, conflist, "ADD", pod, runtime={"mac": "02:00:5e:10:00:02"})
    pod.result = result
    for one_ip in result["ips"]:
        address = ip_address(one_ip["address"].split("/")[0])
        pod.addresses[address.version] = str(address)
    assert result["interfaces"][1]["mac"] == "02:00:5e:10:00:02"
    assert pod.run("sysctl", "-n", *sysctls).split() == ["1"] * len(sysctls)
    # With the MAC, also where it is set to what it is, the kernel drops the pod's permanent neighbours.
    wait_for(lambda: len(pod.ip("neigh", "show", "nud", "permanent")) == len(one.versions), "mended", 5)
    assert probe_pairs([pod, other], one.versions) == []
    for address in pod.addresses.values():
        probe_icmp(pod, address)
    run_chain(node, conflist, "CHECK", pod, result)
    node.quiet()
    # What the other plugin has set is its own: no pass takes it away.
    run_chain(node, conflist, "CHECK", pod, result)
    run_chain(node, conflist, "DEL", pod, result)
    assert run_plugin(node, "loopback", "DEL", pod, loopback, "lo").status == 0
    assert node.status()["pods"] == 1


def test_behind_another_plugin_its_result_comes_first(one, node):
    """A plugin before ours may have made an interface of its own."""
    pod = node.new_pod()
    previous = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net7", "mac": "02:00:00:00:00:07", "sandbox": pod.path}],
        "ips": [{"address": "203.0.113.7/24", "interface": 0}],
        "routes": [{"dst": "203.0.113.0/24"}],
        "dns": {"nameservers": ["203.0.113.53"]},
    }
    answer = node.cni("ADD", pod, prevResult=previous)
    assert answer.status == 0, answer.output
    result = answer.json
    assert result["interfaces"][0] == previous["interfaces"][0]
    assert [i["name"] for i in result["interfaces"]][2] == "eth0"
    assert result["ips"][0] == previous["ips"][0]
    assert {i["interface"] for i in result["ips"][1:]} == {2}
    assert result["routes"][0] == previous["routes"][0]
    assert result["dns"] == previous["dns"]
    assert node.cni("CHECK", pod, prevResult=result).output == ""
    pod.result = {"interfaces": result["interfaces"][1:]}
