"""`poplin status`, `check` and `cleanup`, and what the agent answers over HTTP, on a real node."""

import http.client
import json
from contextlib import closing

import pytest

from kernel.nodes import (
    POPLIN,
    cluster,
    kernel_state,
    node_object,
    plant_strangers,
    probe_icmp,
    probe_pairs,
    program,
    wait_for,
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    options = ["--health-address", "127.0.0.1:9099"]
    with cluster(tmp_path_factory.mktemp("cli"), nodes=2, started=False) as c:
        for node in c.nodes:
            node.options = options
        c.start()
        for node in c.nodes:
            node.add_pod()
        yield c


def get(node, path, method="GET"):
    """Ask over TCP from inside the node, as kubelet does: (status, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", 9099, timeout=20)
    connection.sock = node.connect("127.0.0.1", 9099)
    connection.sock.settimeout(20)
    with closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


CONDITIONS = [
    "attachments stored",
    "cluster in sync",
    "configuration valid",
    "network computed",
    "kernel programmed",
    "policy in force",
    "lease published",
    "CNI configuration installed",
]


def test_healthz_and_readyz_of_a_node_that_serves(two):
    node = two.nodes[0]
    assert get(node, "/healthz") == (200, "ok\n")
    assert get(node, "/livez") == (200, "ok\n")
    assert get(node, "/readyz") == (200, "".join(f"[+] {name}\n" for name in CONDITIONS))
    assert get(node, "/nonsense")[0] == 404
    assert get(node, "/healthz", "POST")[0] == 405


def test_the_tcp_port_cannot_make_the_agent_work(two):
    """Whoever reaches the node's loopback may ask how it does, and no more."""
    status, _ = get(two.nodes[0], "/audit", "POST")
    assert status in {403, 404, 405}


def test_readyz_says_why_not_and_healthz_stays(two):
    node = two.nodes[0]
    sound = two.read_state()
    two.write_state([o for o in sound if o["kind"] == "Node"])
    try:
        node.wait_condition("configuration valid", "does not exist", ok=False)
        status, body = get(node, "/readyz")
        assert status == 503
        [reason] = [line for line in body.splitlines() if line.startswith("[-]")]
        assert reason.startswith(
            "[-] configuration valid ConfigMap kube-flannel/kube-flannel-cfg: does not exist"
        )
        assert get(node, "/healthz") == (200, "ok\n")
    finally:
        two.write_state(sound)
        for one in two.nodes:
            one.wait_ready(peers=1)


def test_status_on_one_screen(two):
    node = two.nodes[0]
    answer = node.poplin("status")
    assert (answer.status, answer.errors) == (0, "")
    text = answer.output
    assert text.startswith("node n1: ready, 1 pods\n")
    for name in CONDITIONS:
        assert f"✓ {name}" in text
    for word in ("backend vxlan", "1430", "flannel.1", "10.244.1.0/24", "192.0.2.1", "2001:db8:2::1"):
        assert word in text
    assert len(text.splitlines()) < 24


def test_status_as_json(two):
    node = two.nodes[0]
    answer = node.poplin("status", "-o", "json")
    assert answer.status == 0
    report = answer.json
    assert report["ready"] is True
    assert [c["name"] for c in report["conditions"]] == CONDITIONS
    assert report["network"]["families"][1]["podCIDR"] == "fd00:10:244:1::/64"
    assert report["problems"] == []


def test_check_mends_says_so_and_has_an_exit_status(two):
    node = two.nodes[0]
    node.quiet()
    fine = node.poplin("check")
    assert (fine.status, fine.output, fine.errors) == (0, "node n1: all is as it should be, 1 pods\n", "")
    assert node.poplin("check", "-o", "json").json == {"findings": [], "mended": 0}
    [pod] = node.pods
    # Of parameters in a pod the kernel tells nobody.
    pod.run("sysctl", "-q", "-w", "net.ipv6.conf.eth0.accept_ra=1", "net.ipv6.conf.eth0.accept_dad=1")
    mended = node.poplin("check", "-o", "json")
    assert mended.status == 1
    assert mended.json["findings"] == []
    assert mended.json["mended"] >= 2
    assert probe_pairs(two.pods, two.versions) == []


def test_check_names_what_is_wrong_beyond_mending(two):
    node = two.nodes[0]
    sound = two.read_state()
    bad = node_object(
        "n9",
        {4: "10.244.1.0/25"},
        {4: "192.0.2.9"},
        {
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}',
            "flannel.alpha.coreos.com/public-ip": "192.0.2.9",
        },
    )
    two.write_state([*sound, bad])
    try:
        wait_for(lambda: node.status()["problems"], "the problem is seen")
        answer = node.poplin("check")
        assert answer.status == 1
        assert answer.output.startswith("- node n9: podCIDR 10.244.1.0/25 overlaps 10.244.1.0/24 of node n1")
        # One bad peer does not make this node unready.
        assert node.poplin("status").status == 0
        assert "node n9" in node.poplin("status").output
    finally:
        two.write_state(sound)
        wait_for(lambda: not node.status()["problems"], "the problem is gone")


def cleanup(node):
    return program(
        node.inside(
            str(POPLIN),
            "cleanup",
            *("--state-dir", str(node.state_dir)),
            *("--run-dir", str(node.run_dir)),
            *("--cni-conf-dir", str(node.conflist.parent)),
        )
    )


def test_cleanup_refuses_while_the_agent_runs_and_takes_nothing(two):
    node = two.nodes[0]
    node.quiet()
    before = kernel_state(node)
    refused = cleanup(node)
    assert (refused.status, refused.output) == (1, "")
    assert f"{node.state_dir}: another agent uses this state directory; stop that agent" in refused.errors
    assert kernel_state(node) == before
    assert node.conflist.exists()
    assert node.poplin("status").status == 0


def test_cleanup_removes_everything_of_ours_and_nothing_else(tmp_path):
    with cluster(tmp_path, nodes=2, started=False) as c:
        node = c.nodes[0]
        plant_strangers(node)
        before = kernel_state(node)
        c.start()
        for one in c.nodes:
            one.add_pod()
        node.add_pod()
        probe_icmp(c.pods[0], c.nodes[1].pods[0].addresses[4])
        assert node.stop() == 0
        assert "traceback" not in node.log

        # Others' files in our directories are theirs.
        (node.conflist.parent / "20-other.conflist").write_text("{}")
        (node.state_dir / "mine").write_text("kept")

        done = cleanup(node)
        assert (done.status, done.errors) == (0, "")
        after = kernel_state(node)
        before.pop("forwarding")  # a node may have forwarded before us, and nobody can tell
        after.pop("forwarding")
        assert after == before
        for pod in node.pods:
            assert set(kernel_state(pod)["links"]) == {"lo"}
        assert not node.run_dir.exists()
        assert [path.name for path in node.state_dir.iterdir()] == ["mine"]
        assert [path.name for path in node.conflist.parent.iterdir()] == ["20-other.conflist"]
        for word in ("flannel.1", "flannel-v6.1", "table inet poplin", "10-poplin.conflist", "10.244.1.0/24"):
            assert word in done.output
        again = cleanup(node)
        assert (again.status, again.output, again.errors) == (0, "nothing of Poplin's is here\n", "")

        # And a new agent begins from nothing.
        node.start()
        node.wait_ready(peers=1)
        for pod in list(node.pods):
            node.cni("DEL", pod)
            node.drop(pod)
        node.add_pod()
        assert probe_pairs(c.pods, c.versions) == []


def test_an_agent_that_is_told_to_end_does_so_and_leaves_pods_connected(two):
    node = two.nodes[1]
    node.quiet()
    before = kernel_state(node)
    assert node.stop() == 0
    assert kernel_state(node) == before
    assert probe_pairs(two.pods, two.versions) == []
    node.start()
    node.wait_ready(peers=1)
    assert kernel_state(node) == before


def test_the_installed_conflist_is_what_a_runtime_wants(two):
    node = two.nodes[0]
    text = json.loads(node.conflist.read_text())
    assert (text["cniVersion"], text["name"]) == ("1.0.0", "poplin")
    assert text["plugins"][0]["socket"] == str(node.run_dir / "cni.sock")
    assert node.conflist.stat().st_mode & 0o777 == 0o644
    assert (node.run_dir / "cni.sock").stat().st_mode & 0o777 == 0o600
    assert (node.run_dir / "agent.sock").stat().st_mode & 0o777 == 0o600
    assert node.run_dir.stat().st_mode & 0o777 == 0o700
    assert node.state_dir.stat().st_mode & 0o777 == 0o700


def test_the_shim_is_installed_where_asked(tmp_path):
    binaries = tmp_path / "bin"
    with cluster(tmp_path, nodes=1, options=["--cni-bin-dir", str(binaries)]) as c:
        installed = binaries / "poplin-cni"
        assert installed.stat().st_mode & 0o777 == 0o755
        answer = program([str(installed)], env={"CNI_COMMAND": "VERSION"})
        assert answer.json["supportedVersions"][-1] == "1.1.0"
        assert c.nodes[0].status()["ready"]
