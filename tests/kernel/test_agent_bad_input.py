"""Bad input of every kind: one message that says what, where and what to do; and nothing is lost."""

import json
import socket
import sqlite3
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from kernel.nodes import POPLIN, cluster, ip_batch, kernel_state, node_object, probe_pairs, program, wait_for
from poplin.model.attachment import HOST_LINK_PREFIX


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One node, two pods, whose agent lives through all the bad input here."""
    with cluster(tmp_path_factory.mktemp("one"), nodes=1) as c:
        c.nodes[0].add_pod()
        c.nodes[0].add_pod()
        pid = c.nodes[0].process.pid
        yield c
        assert c.nodes[0].process.pid == pid
        assert c.nodes[0].process.poll() is None


@pytest.fixture
def node(one):
    """The node, whose state file and pods are as they were before, in the end."""
    [node] = one.nodes
    kept = list(node.pods)
    yield node
    one.write_state()
    node.wait_ready(peers=0)
    for pod in [p for p in node.pods if p not in kept]:
        node.remove_pod(pod)
    assert probe_pairs(kept, one.versions) == []


CONFIGURATIONS = {
    "not JSON": ("{", ["net-conf.json", "not JSON", "correct the syntax"]),
    "no object": ("[]", ["must be a JSON object, not list"]),
    "no network": ("{}", ["net-conf.json: Network", "missing"]),
    "host bits": ('{"Network": "10.244.0.1/16"}', ["Network", "host bits"]),
    "other family": ('{"Network": "fd00::/48"}', ["Network", "IPv6", "write an IPv4 CIDR"]),
    "unknown backend": (
        '{"Network": "10.244.0.0/16", "Backend": {"Type": "carrier-pigeon"}}',
        ["Backend: Type", "'carrier-pigeon'", "use one of"],
    ),
    "unknown key": (
        '{"Network": "10.244.0.0/16", "Networks": "10.0.0.0/8"}',
        ["unknown key 'Networks'", "use only"],
    ),
    "unknown key of the backend": (
        '{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw", "VNI": 1}}',
        ["Backend", "unknown key 'VNI'"],
    ),
    "number too large": (
        '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 16777216}}',
        ["Backend: VNI", "16777216 is out of range", "1 to 16777215"],
    ),
    "wrong type": (
        '{"Network": "10.244.0.0/16", "EnableIPv6": "yes"}',
        ["EnableIPv6", "must be true or false", "yes"],
    ),
}


@pytest.mark.parametrize(("text", "words"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_wrong_configuration_is_named_and_changes_nothing(one, node, text, words):
    node.quiet()
    before = kernel_state(node)
    config_map, *others = one.objects()
    one.write_state([config_map | {"data": {"net-conf.json": text}}, *others])
    node.wait_condition("configuration valid", "kube-flannel/kube-flannel-cfg", *words, ok=False)
    assert kernel_state(node) == before
    node.add_pod()


CIDRS = {
    "outside": ({4: "10.1.1.0/24", 6: "fd01::/64"}, ["n1", "10.1.1.0/24 lies outside", "10.244.0.0/16"]),
    "none to give": (
        {4: "10.244.1.0/32", 6: "fd00:10:244:1::/128"},
        ["n1", "10.244.1.0/32", "no address for a pod"],
    ),
    "no CIDR": ({4: "10.244.1.0/33"}, ["n1", "10.244.1.0/33"]),
}


@pytest.mark.parametrize(("cidrs", "words"), CIDRS.values(), ids=CIDRS)
def test_a_pod_cidr_that_cannot_be_is_named_and_changes_nothing(one, node, cidrs, words):
    node.quiet()
    before = kernel_state(node)
    config_map, _ = one.objects()
    one.write_state([config_map, node_object("n1", cidrs, node.addresses)])
    node.wait_condition("network computed", *words, ok=False)
    assert kernel_state(node) == before


PEERS = {
    "its CIDR is ours": ({4: "10.244.1.0/24"}, {}, ["node n9", "10.244.1.0/24 overlaps", "node n1"]),
    "its CIDR holds ours": ({4: "10.244.0.0/20"}, {}, ["node n9", "10.244.0.0/20 overlaps 10.244.1.0/24"]),
    "its CIDR is outside": ({4: "10.1.9.0/24"}, {}, ["node n9", "10.1.9.0/24 lies outside"]),
    "other backend": ({4: "10.244.9.0/24"}, {"backend-type": "host-gw"}, ["node n9", "'host-gw'", "'vxlan'"]),
    "no MAC": (
        {4: "10.244.9.0/24"},
        {"backend-data": '{"VNI":1,"VtepMAC":"x"}'},
        ["n9", "backend-data", "'x'"],
    ),
    "data that is no JSON": ({4: "10.244.9.0/24"}, {"backend-data": "{"}, ["n9", "backend-data"]),
    "other VNI": (
        {4: "10.244.9.0/24"},
        {"backend-data": '{"VNI":2,"VtepMAC":"02:00:00:00:00:09"}'},
        ["n9", "VNI 2"],
    ),
    "no address": ({4: "10.244.9.0/24"}, {"public-ip": "192.0.2.999"}, ["n9", "public-ip", "192.0.2.999"]),
    "our address": ({4: "10.244.9.0/24"}, {"public-ip": "192.0.2.1"}, ["n9", "public-ip", "192.0.2.1"]),
    "no CIDR at all": ({4: "10.244.9.0"}, {}, ["n9", "10.244.9.0"]),
}


@pytest.mark.parametrize(("cidrs", "annotations", "words"), PEERS.values(), ids=PEERS)
def test_a_peer_that_cannot_be_is_named_and_the_others_are_served(one, node, cidrs, annotations, words):
    def peer(name, cidrs, index, **changes):
        data = {
            "kube-subnet-manager": "true",
            "backend-type": "vxlan",
            "backend-data": json.dumps({"VNI": 1, "VtepMAC": f"02:00:00:00:01:0{index}"}),
            "public-ip": f"192.0.2.{index}",
        } | changes
        prefixed = {f"flannel.alpha.coreos.com/{key}": value for key, value in data.items()}
        return node_object(name, cidrs, {4: f"192.0.2.{index}"}, prefixed)

    good = peer("n8", {4: "10.244.8.0/24"}, 8)
    bad = peer("n9", cidrs, 9, **annotations)
    one.write_state([*one.objects(), good, bad])

    def told():
        return [p for p in node.status()["problems"] if all(word in p for word in words)]

    wait_for(told, f"the problem is told: {words}")
    wait_for(lambda: "10.244.8.0/24" in str(kernel_state(node)["routes"]), "the good peer is served")
    assert words[-1] in node.poplin("check").output
    node.add_pod()


def test_an_interface_name_that_is_taken_is_left_alone_and_the_address_is_free_again(node):
    pod = node.new_pod()
    ip_batch(pod.name, "link add eth0 type veth peer name eth1", "link set eth0 up")
    before = kernel_state(pod)
    for _ in range(3):
        refused = node.cni("ADD", pod)
        assert (refused.status, refused.json["code"]) == (1, 100)
        assert refused.json["msg"].startswith(f"{pod.path}: the pod has an interface eth0 already; ")
        assert kernel_state(pod) == before
    assert node.status()["pods"] == 2
    with sqlite3.connect(f"file:{node.state_dir}/attachments.db?mode=ro", uri=True) as database:
        used = "SELECT count(*) FROM address WHERE container_id IS NOT NULL"
        assert database.execute(used).fetchone() == (4,)
    database.close()
    ip_batch(pod.name, "link del eth0")
    node.attach(pod)


def test_a_second_add_is_refused_and_the_first_stays(node):
    pod = node.add_pod()
    before = kernel_state(pod)
    refused = node.cni("ADD", pod)
    assert (refused.status, refused.json["code"]) == (1, 100)
    assert refused.json["msg"] == (
        f"container {pod.container_id}: eth0 has been added already; delete the attachment first"
    )
    assert kernel_state(pod) == before


def test_an_exhausted_cidr_is_named_and_serves_again_after_a_deletion(tmp_path):
    with cluster(tmp_path, nodes=1, started=False, versions=(4,)) as c:
        [node] = c.nodes
        config_map, _ = c.objects()
        c.write_state([config_map, node_object("n1", {4: "10.244.1.0/29"}, node.addresses)])
        c.start()
        pods = [node.add_pod() for _ in range(6)]
        assert {pod.addresses[4] for pod in pods} == {f"10.244.1.{i}" for i in range(1, 7)}
        late = node.new_pod()
        refused = node.cni("ADD", late)
        assert (refused.status, refused.json["code"]) == (1, 11)
        assert "10.244.1.0/29: no IPv4 address is free: 6 of 6 are in use; " in refused.json["msg"]
        gone = pods[2].addresses[4]
        node.remove_pod(pods[2])
        node.attach(late)
        assert late.addresses[4] == gone
        assert probe_pairs(node.pods, [4]) == []


GARBAGE = {
    "nothing": b"",
    "text": b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n",
    "zeros": bytes(4096),
    "other version": struct.pack("!4sHHII", b"POPL", 9, 0, 0, 0),
    "huge lengths": struct.pack("!4sHHII", b"POPL", 1, 0, 0xFFFFFFFF, 0xFFFFFFFF),
    "half a request": struct.pack("!4sHHII", b"POPL", 1, 0, 100, 100) + b"CNI_COMMAND=ADD",
    "no such command": struct.pack("!4sHHII", b"POPL", 1, 0, 17, 2) + b"CNI_COMMAND=EVIL\0{}",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("listener", ["cni.sock", "agent.sock"])
def test_garbage_on_a_socket_is_answered_or_dropped(node, listener, garbage):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(node.run_dir / listener))
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while client.recv(65536):
                pass
    node.add_pod()


STDIN = {
    "nothing": (b"", 6),
    "text": (b"hello", 6),
    "half": (b'{"cniVersion": "1.0.0", "name": "poplin"', 6),
    "no name": (b'{"cniVersion": "1.0.0"}', 7),
    "version of the future": (b'{"cniVersion": "9.9.9", "name": "poplin"}', 1),
}


@pytest.mark.parametrize(("stdin", "code"), STDIN.values(), ids=STDIN)
def test_garbage_on_stdin_has_the_codes_of_the_specification(node, stdin, code):
    refused = node.cni("ADD", node.new_pod(), stdin=stdin)
    assert (refused.status, refused.json["code"], refused.errors) == (1, code, "")
    assert refused.json["msg"]


@pytest.mark.parametrize(
    ("runtime_config", "code", "words"),
    [
        ({"ips": ["10.244.2.5"]}, 7, ["10.244.2.5", "10.244.1.0/24"]),
        ({"ips": ["10.244.1.0"]}, 7, ["10.244.1.0", "less first and last"]),
        ({"ips": ["10.244.1"]}, 7, ["runtimeConfig.ips"]),
        ({"mac": "01:00:5e:00:00:01"}, 7, ["01:00:5e:00:00:01", "unicast"]),
    ],
)
def test_wishes_that_cannot_be_granted(node, runtime_config, code, words):
    refused = node.cni("ADD", node.new_pod(), runtimeConfig=runtime_config)
    assert (refused.status, refused.json["code"]) == (1, code)
    assert all(word in refused.json["msg"] for word in words), refused.json


def test_an_address_that_is_taken_is_refused_with_its_owner(node):
    pod = node.pods[0]
    refused = node.cni("ADD", node.new_pod(), runtimeConfig={"ips": [pod.addresses[4]]})
    assert (refused.status, refused.json["code"]) == (1, 11)
    assert f"{pod.addresses[4]}: in use by default/{pod.container_id}" in refused.json["msg"]


# ---- the agent's own start ----


@pytest.fixture
def idle(tmp_path):
    """A node whose agent does not run."""
    with cluster(tmp_path, nodes=1, started=False) as c:
        c.nodes[0].directory.mkdir()
        yield c


def fails(node, *options):
    """Run an agent that must not start; its one line."""
    answer = program(node.command(*options))
    assert answer.status == 1, answer
    assert answer.output == ""
    [line] = [line for line in answer.errors.splitlines() if not line.startswith('{"time"')]
    assert line.startswith("poplin: ")
    return line


@pytest.mark.parametrize("command", ["agent", "cleanup"])
def test_without_root_it_says_so(idle, command):
    # What is kept of root's rights is only that of reading the interpreter's files.
    nobody = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all,+dac_read_search"]
    answer = program([*nobody, "--ambient-caps=+dac_read_search", str(POPLIN), command])
    assert (answer.status, answer.output) == (1, "")
    assert answer.errors == "poplin: needs root; run it with sudo, or as a privileged pod\n"


def test_a_state_directory_that_cannot_be_used_is_named(idle):
    [node] = idle.nodes
    (node.directory / "file").write_text("")
    line = fails(node, "--state-dir", str(node.directory / "file"))
    assert f"{node.directory}/file: cannot use the state directory" in line
    assert "--state-dir" in line
    line = fails(node, "--run-dir", str(node.directory / "file"))
    assert f"{node.directory}/file: cannot make the directory of the sockets" in line
    assert "--run-dir" in line
    line = fails(node, "--state-dir", "/proc/poplin")
    assert "/proc/poplin: cannot use the state directory" in line


def test_a_socket_path_that_is_too_long_is_named(idle):
    [node] = idle.nodes
    line = fails(node, "--run-dir", str(node.directory / ("x" * 120)))
    assert "x" * 120 in line
    assert "--run-dir" in line or "directory" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--health-address", "nonsense"], ["--health-address", "'nonsense' is not host:port"]),
        (["--health-address", "127.0.0.1:99999"], ["--health-address", "99999"]),
        (["--health-address", "203.0.113.7:80"], ["--health-address 203.0.113.7:80", "cannot listen"]),
        (["--public-ip", "192.0.2.1,192.0.2.2"], ["--public-ip", "two addresses of one family"]),
        (["--public-ip", "here"], ["--public-ip", "'here'"]),
        (["--net-conf-map", "nonsense"], ["--net-conf-map", "'nonsense' is not NAMESPACE/NAME"]),
        (["--log-level", "loud"], ["--log-level", "loud"]),
    ],
)
def test_an_option_that_is_wrong_is_named(idle, options, words):
    line = fails(idle.nodes[0], *options)
    assert all(word in line for word in words), line


def test_a_second_agent_on_one_state_is_refused_and_the_first_goes_on(one, node):
    line = fails(node)
    assert f"{node.state_dir}: another agent uses this state directory; " in line
    node.add_pod()
    assert node.poplin("status").status == 0


def test_deletions_while_the_agent_is_down_are_done_by_the_next(tmp_path):
    with cluster(tmp_path, nodes=1) as c:
        [node] = c.nodes
        leaves, stays, late = node.add_pod(), node.add_pod(), node.new_pod()
        node.kill()
        refused = node.cni("ADD", late)
        assert (refused.status, refused.json["code"]) == (1, 11)
        assert str(node.run_dir / "cni.sock") in refused.json["msg"]
        unavailable = node.cni("STATUS", cniVersion="1.1.0")
        assert (unavailable.status, unavailable.json["code"]) == (1, 50)
        link = leaves.host_link
        gone = node.cni("DEL", leaves)
        assert (gone.status, gone.output) == (0, "")
        assert [path.name for path in (node.state_dir / "deleted").iterdir()] == [
            f"{leaves.container_id}:eth0"
        ]
        assert link in kernel_state(node)["links"]
        c.start()
        wait_for(lambda: link not in kernel_state(node)["links"], "what was deleted meanwhile goes")
        assert node.status()["pods"] == 1
        assert list((node.state_dir / "deleted").iterdir()) == []
        node.drop(leaves)
        node.attach(late)
        assert probe_pairs([stays, late], c.versions) == []


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_an_agent_killed_amid_adds_leaves_no_half_made_pod(tmp_path, answers):
    with cluster(tmp_path, nodes=1) as c:
        [node] = c.nodes
        kept = node.add_pod()
        pods = [node.new_pod() for _ in range(8)]
        done = []

        def add(pod):
            answer = node.cni("ADD", pod)
            done.append(pod)
            return pod, answer

        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(add, pod) for pod in pods]
            wait_for(lambda: len(done) >= answers, "some ADDs are done")
            node.kill()
            answered = [future.result() for future in asked]
        for pod, answer in answered:
            if answer.status == 0:
                pod.result = answer.json
                pod.addresses.update(
                    {4 if "." in i["address"] else 6: i["address"].split("/")[0] for i in answer.json["ips"]}
                )
            else:
                assert answer.json["code"] == 11, answer.output
        c.start()
        # A runtime deletes what it could not add, and may then try again.
        for pod, answer in answered:
            if answer.status != 0:
                assert node.cni("DEL", pod).status == 0
        added = [pod for pod in node.pods if pod.result]
        assert kept in added

        def links():
            return {name for name in kernel_state(node)["links"] if name.startswith(HOST_LINK_PREFIX)}

        wait_for(lambda: links() == {pod.host_link for pod in added}, "nothing half-made is left")
        assert node.status()["pods"] == len(added)
        for pod in node.pods:
            if not pod.result:
                wait_for(lambda p=pod: set(kernel_state(p)["links"]) == {"lo"}, "the pod is empty")
                node.attach(pod)
        assert len({pod.addresses[4] for pod in node.pods}) == 9
        assert probe_pairs([kept, *pods[:3]], c.versions) == []


def test_status_of_an_agent_that_does_not_run(tmp_path):
    answer = program([str(POPLIN), "status", "--run-dir", str(tmp_path)])
    assert (answer.status, answer.output) == (1, "")
    assert f"{tmp_path}/agent.sock: no answer from the agent" in answer.errors
    assert "start `poplin agent`" in answer.errors


def test_a_command_line_that_is_wrong_has_its_own_exit_status():
    done = subprocess.run([POPLIN, "agent", "--nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--nonsense" in done.stderr
