"""What an agent does that cannot know what should be: it holds what stands, says why, and still serves pods."""

import json

import pytest

from kernel.nodes import cluster, kernel_state, probe_pairs, wait_for


@pytest.fixture
def pair(tmp_path):
    with cluster(tmp_path, nodes=2) as c:
        for node in c.nodes:
            node.add_pod()
        yield c


def absent(c):
    c.state_file.rename(c.state_file.with_name("away"))


def rubbish(c):
    c.state_file.write_text(c.state_file.read_text() + "---\nkind: [Node\n---\n")


def without_own_node(c):
    c.write_state([o for o in c.read_state() if o["metadata"]["name"] != "n1"])


def nothing_at_all(c):
    c.write_state([])


def without_configuration(c):
    c.write_state([o for o in c.read_state() if o["kind"] != "ConfigMap"])


def own_node_unreadable(c):
    objects = c.read_state()
    for thing in objects:
        if thing["metadata"]["name"] == "n1":
            thing["spec"] = {"podCIDR": "10.244.1.300/24", "podCIDRs": ["10.244.1.300/24"]}
    c.write_state(objects)


def own_node_without_cidr(c):
    objects = c.read_state()
    for thing in objects:
        if thing["metadata"]["name"] == "n1":
            thing["spec"] = {}
    c.write_state(objects)


DOUBTS = {
    "no file": (absent, "cluster in sync", ["state.yaml", "No such file"]),
    "rubbish": (rubbish, "cluster in sync", ["state.yaml:7", ":1: not YAML"]),
    "no Node of ours": (
        without_own_node,
        "network computed",
        ["node n1", "is not among the cluster's nodes"],
    ),
    "empty file": (nothing_at_all, "network computed", ["node n1"]),
    "no configuration": (
        without_configuration,
        "configuration valid",
        ["kube-flannel/kube-flannel-cfg", "does not exist"],
    ),
    "unreadable Node of ours": (
        own_node_unreadable,
        "network computed",
        ["n1", "podCIDR", "10.244.1.300/24"],
    ),
    "no podCIDR": (own_node_without_cidr, "network computed", ["node n1", "has no IPv4 podCIDR"]),
}


@pytest.mark.parametrize(("spoil", "condition", "words"), DOUBTS.values(), ids=DOUBTS)
def test_what_stands_is_held_and_said_why(pair, spoil, condition, words):
    node, peer = pair.nodes
    with peer.stopped():  # the file is the peer's too, which may well take its conclusions from it
        hold(pair, node, spoil, condition, words)
    for one in pair.nodes:
        one.wait_ready(peers=1)
    node.add_pod()
    assert probe_pairs([pod for pod in pair.pods if pod.addresses], pair.versions) == []


def hold(pair, node, spoil, condition, words):
    [pod] = node.pods
    node.quiet()
    before = kernel_state(node)
    sound = pair.read_state()
    spoil(pair)

    # First the agent that runs.
    node.wait_condition(condition, *words, ok=False)
    assert kernel_state(node) == before
    assert probe_pairs(pair.pods, pair.versions) == []
    shown = node.poplin("status", "-o", "json")
    assert shown.status == 1
    [reason] = [c["reason"] for c in shown.json["conditions"] if c["name"] == condition]
    assert all(word in reason for word in words)

    # Then one without any memory.
    node.kill()
    node.start()
    node.wait_serving()
    node.wait_condition(condition, *words, ok=False)
    node.wait_condition("network computed", *words, ok=False)
    refused = node.cni("ADD", node.new_pod())
    assert (refused.status, refused.json["code"]) == (1, 11)
    assert all(word in refused.json["msg"] for word in words), refused.output
    node.get("/audit", "POST")
    assert kernel_state(node) == before

    # A pod's own wiring is kept up all the same, and a pod can go.
    with node.stopped():
        node.ip_do(f"route del {pod.addresses[4]}", f"-6 neigh del {pod.addresses[6]} dev {pod.host_link}")
        assert kernel_state(node) != before
    wait_for(lambda: kernel_state(node) == before, "the pod's wiring is back", 5)
    node.remove_pod(pod)
    assert node.status()["pods"] == 0
    pair.write_state(sound)


def test_a_configuration_that_goes_wrong_leaves_the_last_good_one_in_force(pair):
    node = pair.nodes[0]
    node.quiet()
    before = kernel_state(node)
    sound = pair.read_state()
    broken = [o for o in sound if o["kind"] == "Node"]
    config_map = dict(pair.objects()[0])
    config_map["data"] = {"net-conf.json": '{"Network": "10.244.0.0/16",'}
    pair.write_state([config_map, *broken])
    where = "kube-flannel/kube-flannel-cfg: net-conf.json"
    node.wait_condition("configuration valid", where, "not JSON", ok=False)
    assert kernel_state(node) == before
    node.add_pod()
    assert probe_pairs(pair.pods, pair.versions) == []
    pair.write_state(sound)
    assert node.wait_condition("configuration valid", ok=True) == ""


@pytest.mark.parametrize("how", ["file", "map"])
def test_a_configuration_that_comes_back_as_it_was_is_no_problem_any_more(tmp_path, how):
    path = tmp_path / "net-conf.json"
    options = ["--net-conf", str(path)] if how == "file" else []
    with cluster(tmp_path, nodes=1, options=options, started=False) as c:
        path.write_text(json.dumps(c.conf))
        c.start()
        node = c.nodes[0]
        sound = c.read_state()
        for _ in range(2):
            if how == "file":
                path.rename(tmp_path / "away")
            else:
                c.write_state([o for o in sound if o["kind"] == "Node"])
            node.wait_condition("configuration valid", ok=False)
            if how == "file":
                (tmp_path / "away").rename(path)
            else:
                c.write_state(sound)
            node.wait_condition("configuration valid", ok=True)
            node.wait_ready()
