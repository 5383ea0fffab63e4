"""Pods of a lab: they run, are probed, restarted and deleted as a kubelet does it, and reach each other."""

import tempfile
from pathlib import Path

import pytest

from e2e.lab_commands import (
    LABS,
    NETNS,
    PYTHON,
    Lab,
    condition,
    container,
    poplin,
    shell,
    status_of,
    unique_name,
    wait_until,
)

ASK = """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
for kind, said in ((socket.SOCK_STREAM, b"GET /x HTTP/1.0\\r\\n\\r\\n"), (socket.SOCK_STREAM, b"hello"), (socket.SOCK_DGRAM, b"ping")):
    with socket.socket(family, kind) as one:
        one.settimeout(5)
        one.connect((address, port))
        one.send(said)
        print(one.recv(4096).decode().replace("\\r", "").replace("\\n", "|"))
"""


@pytest.fixture(scope="module")
def lab():
    name = unique_name()
    try:
        poplin("up", "--nodes", "2", "--name", name)
        yield Lab(name)
    finally:
        poplin("down", "--name", name)


@pytest.mark.parametrize(("family", "backend"), [("ipv4", "vxlan"), ("ipv6", "vxlan"), ("dual", "host-gw")])
def test_pods_on_two_nodes_reach_each_other(family, backend):
    name = unique_name()
    try:
        poplin("up", "--nodes", "2", "--name", name, "--ip-family", family, "--backend", backend)
        lab = Lab(name)
        ports = [{"containerPort": 8080}, {"containerPort": 8080, "protocol": "UDP"}]
        lab.create("one", container(ports=ports), node="node-1")
        lab.create("two", container(ports=ports), node="node-2")
        here, there = lab.wait_ready("one"), lab.wait_ready("two")
        assert len(here) == len(there) == (2 if family == "dual" else 1)
        for source, target in zip(here, there, strict=True):
            http, tcp, udp = lab.execute("one", PYTHON, "-c", ASK, target, "8080").splitlines()
            client = f"[{source}]" if ":" in source else source
            assert http.startswith("HTTP/1.1 200 OK")
            assert f"pod: two|client: {client}:" in http
            assert http.endswith("GET /x HTTP/1.0|")
            assert tcp.startswith(f"pod: two|client: {client}:")
            assert tcp.endswith("|hello")
            assert udp.startswith(f"pod: two|client: {client}:")
            assert udp.endswith("|ping")
    finally:
        poplin("down", "--name", name)


def test_an_image_that_is_not_here_is_told_and_its_probes_pass(lab):
    probe = {"periodSeconds": 1}
    lab.create(
        "stands-in",
        container(
            ports=[{"name": "api", "containerPort": 9000}],
            startupProbe={"tcpSocket": {"port": "api"}, **probe},
            livenessProbe={"grpc": {"port": 9000}, **probe},
            readinessProbe={"httpGet": {"port": "api", "path": "/healthz"}, **probe},
        ),
    )
    lab.wait_ready("stands-in")
    wait_until(
        lambda: any(e.startswith("ImageNotHere: ") and "9000/TCP" in e for e in lab.events("stands-in")),
        "an event",
    )
    assert status_of(lab.pod("stands-in"))["restartCount"] == 0


def test_readiness_follows_its_probe(lab):
    probe = {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1}
    lab.create("probed", shell("exec sleep 100", readinessProbe=probe))
    lab.wait_for("probed", lambda pod: "running" in status_of(pod)["state"], "running")
    assert condition(lab.pod("probed"), "Ready") == "False"
    lab.execute("probed", "touch", "/tmp/ready")
    lab.wait_ready("probed")
    assert not Path("/tmp/ready").exists(), "a container wrote to the machine's own file system"
    lab.execute("probed", "rm", "/tmp/ready")
    lab.wait_for("probed", lambda pod: condition(pod, "Ready") == "False", "unready again")


def test_a_container_that_fails_its_liveness_probe_is_restarted(lab):
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    lab.create("ailing", shell("exec sleep 100", livenessProbe=probe))
    status = lab.wait_for(
        "ailing",
        lambda pod: status_of(pod)["restartCount"] >= 1 and status_of(pod),
        "restarted",
    )
    assert status["lastState"]["terminated"]["exitCode"] == 137
    assert any(event.startswith("Killing: ") for event in lab.events("ailing"))


@pytest.mark.parametrize(
    ("policy", "code", "phase"),
    [("OnFailure", 0, "Succeeded"), ("Never", 0, "Succeeded"), ("Never", 3, "Failed")],
)
def test_a_pod_ends_as_its_restart_policy_says(lab, policy, code, phase):
    name = f"ends-{policy.lower()}-{code}"
    lab.create(name, shell(f"exit {code}"), restartPolicy=policy)
    pod = lab.wait_for(name, lambda pod: pod.get("status", {}).get("phase") == phase and pod, phase)
    assert status_of(pod)["state"]["terminated"]["exitCode"] == code
    assert status_of(pod)["restartCount"] == 0
    uid = pod["metadata"]["uid"]
    wait_until(lambda: not list(NETNS.glob(f"*{uid}")), "its namespace is given back")


@pytest.mark.parametrize(("policy", "code"), [("Always", 0), ("OnFailure", 5)])
def test_a_container_that_ends_is_restarted_and_then_waited_with(lab, policy, code):
    name = f"again-{policy.lower()}"
    lab.create(name, shell(f"exit {code}"), restartPolicy=policy)
    lab.wait_for(name, lambda pod: status_of(pod)["restartCount"] == 1, "restarted once")
    lab.wait_for(
        name,
        lambda pod: status_of(pod)["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff",
        "in CrashLoopBackOff",
    )
    assert lab.pod(name)["status"]["phase"] == "Running"


def test_init_containers_run_in_order_and_sidecars_stay(lab):
    lab.create(
        "ordered",
        shell("cat /proc/net/tcp; exec sleep 100", name="main"),
        initContainers=[
            shell("exec sleep 100", name="side", restartPolicy="Always"),
            shell("exit 0", name="first"),
            shell("test $(hostname) = ordered", name="second"),
        ],
    )
    lab.wait_ready("ordered")
    pod = lab.pod("ordered")
    ends = [status_of(pod, name)["state"]["terminated"] for name in ("first", "second")]
    assert [end["exitCode"] for end in ends] == [0, 0]
    assert ends[0]["finishedAt"] <= ends[1]["startedAt"]
    assert "running" in status_of(pod, "side")["state"]


def test_a_failed_init_container_keeps_the_others_from_starting(lab):
    lab.create(
        "uninitialized",
        shell("exit 0"),
        initContainers=[shell("exit 4", name="first")],
        restartPolicy="Never",
    )
    pod = lab.wait_for(
        "uninitialized", lambda pod: pod.get("status", {}).get("phase") == "Failed" and pod, "failed"
    )
    assert "waiting" in status_of(pod)["state"]
    assert condition(pod, "Initialized") == "False"


def test_the_environment_comes_from_the_pod_and_its_configuration(lab):
    lab.kubectl("create", "configmap", "colours", "--from-literal=sky=blue")
    lab.kubectl("create", "secret", "generic", "keys", "--from-literal=door=s3cret")
    lab.create(
        "informed",
        shell(
            'echo "$WHO $WHERE $SKY $KEY $BOTH" > /tmp/told; exec sleep 100',
            env=[
                {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "SKY", "valueFrom": {"configMapKeyRef": {"name": "colours", "key": "sky"}}},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "door"}}},
                {"name": "BOTH", "value": "$(SKY)-$(WHO)"},
            ],
        ),
    )
    (address,) = lab.wait_ready("informed")
    expected = f"informed {address} blue s3cret blue-informed\n"
    wait_until(
        lambda: lab.execute("informed", "cat", "/tmp/told", check=False) == expected, f"told {expected!r}"
    )


def test_containers_of_a_pod_share_its_network_and_nothing_else(lab):
    lab.create(
        "shared",
        container(name="server", ports=[{"containerPort": 8080}]),
        shell("exec sleep 100", name="client"),
    )
    lab.wait_ready("shared")
    run = ("exec", "--name", lab.name, "-c", "client", "shared", "--")
    answer = poplin(*run, PYTHON, "-c", ASK, "127.0.0.1", "8080", check=False).stdout
    assert "pod: shared|" in answer.splitlines()[0]
    assert "echo" not in poplin(*run, "ps", "ax").stdout


def test_a_container_sees_the_machines_files_and_spoils_none(lab):
    lab.create("messy", shell("exec sleep 100"))
    lab.wait_ready("messy")
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as kept:
        made = f"{kept.name}-made"
        script = f"test -e {kept.name} && rm {kept.name} && touch {made} && test -e {made} && ls /dev"
        devices = lab.execute("messy", "sh", "-c", script).split()
        assert Path(kept.name).exists()
        assert not Path(made).exists()
    assert "null" in devices
    assert not {name for name in devices if name.startswith(("sd", "vd", "nvme", "loop"))}


def test_a_pod_of_the_host_network_has_its_nodes_addresses(lab):
    lab.create("hosted", container(ports=[{"containerPort": 7777}]), node="node-2", hostNetwork=True)
    addresses = lab.wait_ready("hosted")
    node = next(node for node in lab.status()["nodes"] if node["name"] == "node-2")
    assert addresses == node["addresses"]
    answer = lab.execute("node/node-1", PYTHON, "-c", ASK, addresses[0], "7777", check=False)
    assert "pod: node-2|" in answer


@pytest.mark.parametrize(
    ("name", "script", "grace_s"),
    [
        ("deaf", "trap '' TERM; while true; do sleep 0.1; done", 2),
        ("polite", "trap 'exit 0' TERM; while true; do sleep 0.1; done", 30),
    ],
)
def test_deletion_waits_for_the_container_as_long_as_its_grace(lab, name, script, grace_s):
    lab.create(name, shell(script), terminationGracePeriodSeconds=grace_s)
    lab.wait_ready(name)
    uid = lab.pod(name)["metadata"]["uid"]
    lab.kubectl("delete", "pod", name, "--wait=false")
    if name == "deaf":
        assert lab.pod(name)["metadata"]["deletionTimestamp"], "gone before its grace was over"
    wait_until(lambda: lab.pod(name) is None, "gone", 15)
    assert not list(NETNS.glob(f"*{uid}"))


def test_pods_deleted_as_soon_as_they_are_made_leave_nothing(lab):
    names = [f"brief-{number}" for number in range(8)]
    uids = []
    for name in names:
        lab.create(name, shell("exec sleep 100"))
        uids.append(lab.pod(name)["metadata"]["uid"])
        lab.kubectl("delete", "pod", name, "--wait=false", "--grace-period=0", "--force")
    sandboxes = LABS / lab.name / "sandboxes"
    wait_until(
        lambda: not [uid for uid in uids if list(NETNS.glob(f"*{uid}")) + list(sandboxes.glob(f"{uid}*"))],
        "no namespace and no sandbox of them is left",
    )
    lab.create("next", container(ports=[{"containerPort": 80}]))
    lab.wait_ready("next")


def test_a_pod_that_cannot_start_says_why_and_can_be_deleted(lab):
    missing = {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "nowhere", "key": "x"}}}
    lab.create("stuck", shell("exit 0", env=[missing]))
    state = lab.wait_for(
        "stuck",
        lambda pod: (
            (waiting := status_of(pod)["state"].get("waiting", {})).get("reason") == "CreateContainerError"
            and waiting
        ),
        "CreateContainerError",
    )
    assert "nowhere" in state["message"]
    lab.kubectl("delete", "pod", "stuck", "--timeout=20s")
