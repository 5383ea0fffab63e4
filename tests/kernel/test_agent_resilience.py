"""What must not break a node: second agents, namespaces that are others' by now, plugins behind ours."""

from pathlib import Path

import pytest

from kernel.nodes import POPLIN, cluster, kernel_state, probe_pairs, program, run, wait_for

TUNING = Path("/usr/lib/cni/tuning")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two nodes with a pod each."""
    with cluster(tmp_path_factory.mktemp("two"), nodes=2) as c:
        for node in c.nodes:
            node.add_pod()
        yield c


def test_a_second_agent_in_one_namespace_is_refused_and_the_first_goes_on(two, tmp_path):
    node = two.nodes[0]
    before = kernel_state(node)
    line = [*node.command(), "--state-dir", str(tmp_path / "lib"), "--run-dir", str(tmp_path / "run")]
    second = program(line)
    assert second.status == 1
    assert "another agent runs in this network namespace" in second.errors
    gone = program(node.inside(str(POPLIN), "cleanup", "--state-dir", str(tmp_path / "lib")))
    assert gone.status == 1
    assert "another agent runs in this network namespace" in gone.errors
    assert kernel_state(node) == before
    assert node.status()["ready"]
    assert probe_pairs(two.pods, two.versions) == []


def lead_elsewhere(pod, other):
    """Have a pod's path lead to another namespace, as /proc/PID/ns/net does once the PID is another's."""
    run("ip", "netns", "del", pod.name)
    Path(pod.path).touch()
    run("mount", "--bind", other.path, pod.path)


def test_a_pods_veth_is_never_made_in_another_pods_namespace(two):
    node = two.nodes[0]
    pod, other = node.add_pod(), node.new_pod()
    lead_elsewhere(pod, other)
    wait_for(lambda: pod.host_link not in node.links(), "the kernel takes the link")
    node.quiet()
    assert set(kernel_state(other)["links"]) == {"lo"}
    assert pod.host_link not in node.links()
    assert node.cni("DEL", pod).status == 0
    node.drop(pod)
    node.drop(other)


MAC = "02:00:5e:10:00:09"


def test_a_mac_and_an_mtu_that_tuning_set_behind_us_are_kept_and_the_node_follows(two):
    node, far = two.nodes
    pod = node.add_pod()
    tuning = {"type": "tuning", "mac": MAC, "mtu": 1380, "prevResult": pod.result}
    result = node.cni("ADD", pod, plugin=TUNING, **tuning).json
    assert result["interfaces"][1]["mac"] == MAC

    def follows():
        entries = {n["dst"]: n.get("lladdr") for n in node.ip("neigh", "show")}
        [host] = node.ip("link", "show", pod.host_link)
        return entries.get(pod.addresses[4]) == MAC and host["mtu"] == 1380

    wait_for(follows, "the node's side follows")
    wait_for(lambda: probe_pairs([pod, *far.pods], two.versions) == [], "packets pass")
    node.quiet()
    # Also an agent without memory of it, and beyond the time in which plugins do such things.
    node.kill()
    node.start()
    node.wait_ready(peers=1)
    node.quiet()
    assert follows()
    [inside] = pod.ip("link", "show", "eth0")
    assert (inside["address"], inside["mtu"]) == (MAC, 1380)
    assert node.cni("CHECK", pod, prevResult=result).output == ""
    assert probe_pairs([pod, *far.pods], two.versions) == []
    node.remove_pod(pod)
