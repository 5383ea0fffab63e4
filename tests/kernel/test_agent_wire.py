"""What flannel makes by hand and what the agent makes are one network: the kernel's state, and real packets."""

import json
import re

import pytest

from kernel.nodes import (
    Pod,
    cluster,
    ip_batch,
    ip_json,
    make_namespace,
    nodad,
    node_object,
    probe_pairs,
    run,
    wait_for,
)

PREFIX = "flannel.alpha.coreos.com/"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """n1 runs our agent; n2 is a node as flanneld and its bridge plugin leave it, made by hand."""
    with cluster(tmp_path_factory.mktemp("mixed"), nodes=2, started=False) as c:
        ours, theirs = c.nodes
        ours.start()
        ours.wait_ready(peers=0)
        ours.add_pod()
        macs = make_vteps(theirs)
        join_flannel(c, macs)
        ours.wait_ready(peers=1)
        learn_peer(theirs, annotations_of(c, "n1"))
        make_bridged_pod(theirs)
        yield c


def make_vteps(node):
    """flanneld's devices; their MACs."""
    node.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    for device, version in (("flannel.1", 4), ("flannel-v6.1", 6)):
        bits = 32 if version == 4 else 128
        vtep = node.pod_cidrs[version].split("/")[0]
        node.ip_do(
            f"link add {device} mtu {1500 - {4: 50, 6: 70}[version]} type vxlan id 1 dev eth0 "
            f"local {node.addresses[version]} dstport 8472 nolearning {'udp6zerocsumrx' if version == 6 else ''}",
            f"link set {device} up",
            f"addr add {vtep}/{bits} dev {device} {nodad(version)}",
        )
    return {
        version: node.ip("link", "show", device)[0]["address"]
        for version, device in ((4, "flannel.1"), (6, "flannel-v6.1"))
    }


def join_flannel(c, macs):
    """What flanneld writes to its Node."""
    theirs = c.nodes[1]
    data = {v: f'{{"VNI":1,"VtepMAC":"{mac}"}}' for v, mac in macs.items()}
    annotations = {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": data[4],
        "backend-v6-data": data[6],
        "public-ip": theirs.addresses[4],
        "public-ipv6": theirs.addresses[6],
    }
    node = node_object(
        "n2", theirs.pod_cidrs, theirs.addresses, {PREFIX + key: value for key, value in annotations.items()}
    )
    c.write_state([*(o for o in c.read_state() if o["metadata"]["name"] != "n2"), node])


def annotations_of(c, name):
    [node] = [o for o in c.read_state() if o["metadata"]["name"] == name]
    return {k.removeprefix(PREFIX): v for k, v in node["metadata"]["annotations"].items()}


def learn_peer(node, annotations):
    """What flanneld does for a lease that it sees: route, ARP or neighbour entry, FDB entry."""
    for device, version, data, public in (
        ("flannel.1", 4, "backend-data", "public-ip"),
        ("flannel-v6.1", 6, "backend-v6-data", "public-ipv6"),
    ):
        # flanneld finds the MAC by splitting this text.
        mac = re.split(r'[":]*VtepMAC":"', annotations[data])[1].rstrip('"}')
        cidr = {4: "10.244.1.0/24", 6: "fd00:10:244:1::/64"}[version]
        vtep = cidr.split("/")[0]
        run(*f"bridge -n {node.name} fdb replace {mac} dev {device} dst {annotations[public]} self".split())
        node.ip_do(
            f"neigh replace {vtep} lladdr {mac} dev {device} nud permanent",
            f"-{version} route replace {cidr} via {vtep} dev {device} onlink",
        )


def make_bridged_pod(node):
    """A pod as flannel's CNI plugin has the bridge plugin make it."""
    pod = Pod(f"{node.name}-cni0", {4: "10.244.2.5", 6: "fd00:10:244:2::5"})
    make_namespace(pod.name)
    node.pods.append(pod)
    node.ip_do(
        "link add cni0 mtu 1430 type bridge",
        "link set cni0 up",
        "addr add 10.244.2.1/24 dev cni0",
        "addr add fd00:10:244:2::1/64 dev cni0 nodad",
        f"link add pod type veth peer name eth0 netns {pod.name}",
        "link set pod mtu 1430 master cni0 up",
    )
    ip_batch(
        pod.name,
        "link set eth0 mtu 1430 up",
        "addr add 10.244.2.5/24 dev eth0",
        "addr add fd00:10:244:2::5/64 dev eth0 nodad",
        "route add default via 10.244.2.1",
        "-6 route add default via fd00:10:244:2::1",
    )


def test_packets_pass_between_our_node_and_flannels_in_both_directions(mixed):
    # The first packets wait for a bridge port that has just come up.
    wait_for(lambda: probe_pairs(mixed.pods, [4]) == [], "IPv4")
    wait_for(lambda: probe_pairs(mixed.pods, [6]) == [], "IPv6")
    assert probe_pairs(mixed.pods, mixed.versions) == []


def test_packets_of_the_pods_mtu_pass_whole(mixed):
    ours, theirs = mixed.pods
    for version, headers in ((4, 28), (6, 48)):
        with theirs.udp(version) as receiver, ours.udp(version) as sender:
            receiver.settimeout(5)
            payload = b"x" * (1430 - headers)
            sender.sendto(payload, receiver.getsockname()[:2])
            assert receiver.recv(2000) == payload


def test_the_annotations_are_flannels(mixed):
    found = annotations_of(mixed, "n1")
    macs = {
        v: mixed.nodes[0].ip("link", "show", d)[0]["address"]
        for v, d in ((4, "flannel.1"), (6, "flannel-v6.1"))
    }
    assert found == {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": f'{{"VNI":1,"VtepMAC":"{macs[4]}"}}',
        "backend-v6-data": f'{{"VNI":1,"VtepMAC":"{macs[6]}"}}',
        "public-ip": "192.0.2.1",
        "public-ipv6": "2001:db8:2::1",
    }


@pytest.mark.parametrize(("device", "version"), [("flannel.1", 4), ("flannel-v6.1", 6)])
def test_the_devices_are_flannels(mixed, device, version):
    ours, theirs = (node.ip("link", "show", device)[0] for node in mixed.nodes)
    assert ours["mtu"] == theirs["mtu"]
    assert "UP" in ours["flags"]
    mine, other = (link["linkinfo"]["info_data"] for link in (ours, theirs))
    local = "local" if version == 4 else "local6"
    assert mine[local] == mixed.nodes[0].addresses[version]
    for key in ("id", "link", "port", "learning", "udp_csum", "udp_zero_csum6_tx"):
        assert mine[key] == other[key], key
    [address] = [a for a in ours_addresses(mixed, device) if a["scope"] == "global"]
    bits = 32 if version == 4 else 128
    assert (address["local"], address["prefixlen"]) == (mixed.nodes[0].pod_cidrs[version].split("/")[0], bits)


def ours_addresses(mixed, device):
    return mixed.nodes[0].ip("addr", "show", "dev", device)[0]["addr_info"]


@pytest.mark.parametrize(("device", "version"), [("flannel.1", 4), ("flannel-v6.1", 6)])
def test_the_entries_for_a_peer_are_flannels(mixed, device, version):
    ours, theirs = mixed.nodes
    vtep = theirs.pod_cidrs[version].split("/")[0]
    mac = theirs.ip("link", "show", device)[0]["address"]
    [route] = ip_json(ours.name, f"-{version}", "route", "show", theirs.pod_cidrs[version])
    assert (route["gateway"], route["dev"], "onlink" in route["flags"]) == (vtep, device, True)
    [neighbour] = [n for n in ours.ip("neigh", "show", "dev", device) if n["dst"] == vtep]
    assert (neighbour["lladdr"], neighbour["state"]) == (mac, ["PERMANENT"])
    [entry] = json.loads(run("bridge", "-n", ours.name, "-j", "fdb", "show", "dev", device))
    assert (entry["mac"], entry["dst"]) == (mac, theirs.addresses[version])
    assert "self" in entry["flags"]
    assert entry["state"] == "permanent"


def test_what_nft_lists_of_ours_nft_reads_back(mixed):
    """An operator saves the ruleset by `nft list ruleset` and loads it at boot."""
    listed = mixed.nodes[0].run("nft", "list", "ruleset")
    mixed.outside.run("nft", "-f", "-", stdin=listed)
    assert "table inet poplin" in mixed.outside.run("nft", "list", "ruleset")
    mixed.outside.run("nft", "flush", "ruleset")
