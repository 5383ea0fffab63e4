"""Pods that run the same whatever runs them: the lab's own processes, or containerd and an image.

What they run is `sh` and `busybox`, which the machine has as well as the image.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from e2e.lab_commands import (
    LABS,
    POPLIN,
    Lab,
    container,
    living,
    poplin,
    status_of,
    traces,
    unique_name,
    wait_until,
)
from poplin.lab.cri.image import Image, busybox_files, find_busybox, make_archive

IDLE = "trap 'exit 3' TERM; while :; do sleep 0.05; done"
CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module", params=["process", "containerd"])
def lab(request):
    with_name = unique_name()
    try:
        poplin("up", "--nodes", "2", "--name", with_name, "--ip-family", "dual", "--runtime", request.param)
        yield Lab(with_name)
    finally:
        poplin("down", "--name", with_name)
    assert leftovers(with_name) == []


def leftovers(name):
    """What is left of a lab, its mounts and cgroups too."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/{name}/" in line]
    cgroups = [str(p) for h in (CGROUPS, *CGROUPS.iterdir()) if (p := h / f"poplin-lab-{name}").exists()]
    return [*traces(name), *mounts, *cgroups]


def busy(script, **fields):
    return container(image="busybox", command=["sh", "-c", script], **fields)


def execute(lab, pod, *command, container="main"):
    return lab.kubectl("exec", pod, "-c", container, "--", *command)


def fetch(lab, pod, url):
    return execute(lab, pod, "busybox", "wget", "-q", "-O", "-", url)


def create(lab, kind, name, **fields):
    document = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **fields}
    lab.kubectl("create", "-f", "-", given=json.dumps(document))


def test_pods_of_two_nodes_reach_each_other_and_containers_of_one_the_other(lab):
    server = {"ports": [{"containerPort": 8080}]}
    lab.create("server", container(image="example.org/none:1", **server), node="node-2")
    lab.create(
        "client", busy(IDLE), {"name": "beside", "image": "example.org/none:1", **server}, node="node-1"
    )
    there, here = lab.wait_ready("server"), lab.wait_ready("client")
    assert len(here) == len(there) == 2
    for mine, theirs in zip(here, there, strict=True):
        bracketed = [f"[{one}]" if ":" in one else one for one in (mine, theirs)]
        answer = fetch(lab, "client", f"http://{bracketed[1]}:8080/path")
        assert answer.startswith(f"pod: server\nclient: {bracketed[0]}:")
        assert "GET /path HTTP/1.1" in answer
    assert fetch(lab, "client", "http://127.0.0.1:8080/").startswith("pod: client\nclient: 127.0.0.1:")


def test_a_container_that_is_restarted_keeps_the_pods_address_and_its_empty_dir(lab):
    script = "echo run >> /data/runs; [ $(wc -l < /data/runs) -ge 2 ] || exit 1; " + IDLE
    mounts = [{"name": "data", "mountPath": "/data"}]
    lab.create("restarted", busy(script, volumeMounts=mounts), volumes=[{"name": "data", "emptyDir": {}}])
    lab.wait_for("restarted", lambda pod: status_of(pod)["restartCount"] == 1, "restarted")
    addresses = lab.wait_ready("restarted")
    shown = execute(lab, "restarted", "busybox", "ip", "addr", "show", "dev", "eth0")
    assert all(f" {address}/" in shown for address in addresses)
    assert execute(lab, "restarted", "cat", "/data/runs") == "run\nrun\n"
    state = status_of(lab.pod("restarted"))
    assert state["lastState"]["terminated"]["exitCode"] == 1


def test_configuration_comes_as_variables_and_as_files(lab):
    create(lab, "ConfigMap", "settings", data={"colour": "blue", "app.conf": "a = 1\n"})
    create(lab, "Secret", "key", data={"password": base64.b64encode(b"s3cret").decode()})
    one = busy(
        IDLE,
        env=[
            {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "key", "key": "password"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        volumeMounts=[
            {"name": "settings", "mountPath": "/etc/settings"},
            {"name": "settings", "mountPath": "/etc/one.conf", "subPath": "app.conf"},
            {"name": "key", "mountPath": "/run/key"},
        ],
    )
    volumes = [
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "key", "secret": {"secretName": "key", "defaultMode": 0o400}},
    ]
    lab.create("configured", one, volumes=volumes)
    lab.wait_ready("configured")
    shown = execute(lab, "configured", "sh", "-c", "echo $COLOUR $PASSWORD $NODE")
    assert shown == "blue s3cret node-1\n"
    assert execute(lab, "configured", "cat", "/etc/settings/app.conf", "/etc/one.conf") == "a = 1\na = 1\n"
    assert execute(lab, "configured", "cat", "/run/key/password") == "s3cret"
    mode = execute(lab, "configured", "busybox", "stat", "-L", "-c", "%a", "/run/key/password")
    assert mode == "400\n"
    refused = execute(lab, "configured", "sh", "-c", "(echo x > /etc/settings/app.conf) 2>&1 || true")
    assert "Read-only file system" in refused


@pytest.mark.slow
def test_files_of_a_running_container_follow_their_config_map(lab):
    create(lab, "ConfigMap", "changing", data={"a": "1"})
    volumes = [{"name": "v", "configMap": {"name": "changing"}}]
    lab.create("follows", busy(IDLE, volumeMounts=[{"name": "v", "mountPath": "/v"}]), volumes=volumes)
    lab.wait_ready("follows")
    lab.kubectl("patch", "configmap", "changing", "-p", '{"data":{"a":"2","b":"3"}}')
    wait_until(lambda: execute(lab, "follows", "sh", "-c", "cat /v/*") == "23", "the files are new")
    assert status_of(lab.pod("follows"))["restartCount"] == 0


def test_what_a_pod_needs_and_is_not_there_is_waited_for(lab):
    volumes = [{"name": "late", "configMap": {"name": "late"}}]
    lab.create("waits", busy(IDLE, volumeMounts=[{"name": "late", "mountPath": "/late"}]), volumes=volumes)
    told = lab.wait_for(
        "waits", lambda pod: status_of(pod)["state"].get("waiting", {}).get("message"), "says why"
    )
    assert 'configmaps "late" not found' in told
    create(lab, "ConfigMap", "late", data={"a": "1"})
    lab.wait_ready("waits")
    assert execute(lab, "waits", "cat", "/late/a") == "1"


def test_a_pod_speaks_to_the_api_by_the_token_of_its_service_account(lab):
    lab.create("account", busy(IDLE))
    lab.wait_ready("account")
    where = "/var/run/secrets/kubernetes.io/serviceaccount"
    token = execute(lab, "account", "cat", f"{where}/token")
    assert execute(lab, "account", "cat", f"{where}/namespace") == "default"
    assert "BEGIN CERTIFICATE" in execute(lab, "account", "cat", f"{where}/ca.crt")
    asked = lab.kubectl("--token", token, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
    assert asked == "system:serviceaccount:default:default"


def test_init_containers_come_first_and_hand_over_by_a_volume(lab):
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    init = {**busy("echo prepared > /shared/file", volumeMounts=mounts), "name": "prepare"}
    lab.create(
        "prepared",
        busy("cat /shared/file; " + IDLE, volumeMounts=mounts),
        initContainers=[init],
        volumes=[{"name": "shared", "emptyDir": {}}],
    )
    lab.wait_ready("prepared")
    wait_until(lambda: lab.kubectl("logs", "prepared", "-c", "main") == "prepared\n", "it has read the file")


def test_logs_exec_and_the_end_of_a_pod(lab):
    lab.create("talks", busy("echo out; echo err >&2; " + IDLE))
    lab.wait_ready("talks")
    assert set(lab.kubectl("logs", "talks").splitlines()) == {"out", "err"}
    assert lab.kubectl("exec", "-i", "talks", "--", "busybox", "wc", "-c", given="x" * 70_000) == "70000\n"
    failed = subprocess.run(
        ["kubectl", f"--kubeconfig={lab.kubeconfig}", "exec", "talks", "--", "sh", "-c", "exit 9"],
        capture_output=True,
        check=False,
    )
    assert failed.returncode == 9
    assert lab.execute("talks", "busybox", "hostname") == "talks\n"
    lab.kubectl("delete", "pod", "talks", "--grace-period=5")
    assert lab.pod("talks") is None


def test_a_port_of_the_node_is_mapped_to_the_pod(lab):
    ports = [{"containerPort": 8080, "hostPort": 18080}]
    lab.create("mapped", container(image="example.org/none:1", ports=ports))
    lab.wait_ready("mapped")
    node = json.loads(lab.kubectl("get", "node", "node-1", "-o", "json"))
    for address in (a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP"):
        host = f"[{address}]" if ":" in address else address
        answer = lab.execute("node/node-2", "busybox", "wget", "-q", "-O", "-", f"http://{host}:18080/")
        assert answer.startswith("pod: mapped\n")


def test_a_port_of_the_pod_is_forwarded(lab):
    lab.create("ported", container(image="example.org/none:1", ports=[{"containerPort": 8080}]))
    lab.wait_ready("ported")
    line = ["kubectl", f"--kubeconfig={lab.kubeconfig}", "port-forward", "pod/ported", ":8080"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as forwarding:
        try:
            port = int(forwarding.stdout.readline().split("->")[0].rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert b"pod: ported\n" in connection.makefile("rb").read()
        finally:
            forwarding.terminate()


def test_who_attaches_talks_to_the_container(lab):
    one = busy("read word; echo got $word; " + IDLE, stdin=True)
    lab.create("attached", one)
    lab.wait_ready("attached")
    line = ["kubectl", f"--kubeconfig={lab.kubeconfig}", "attach", "-i", "-q", "attached"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as attached:
        try:
            attached.stdin.write("hello\n")
            attached.stdin.flush()
            assert attached.stdout.readline() == "got hello\n"
        finally:
            attached.terminate()


def test_a_pod_that_ends_has_ended(lab):
    lab.create("ends", busy("exit 4"), restartPolicy="Never")
    pod = lab.wait_for("ends", lambda pod: pod["status"]["phase"] == "Failed" and pod, "failed")
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 4


def test_a_container_that_fails_its_liveness_probe_is_restarted(lab):
    probe = {"exec": {"command": ["cat", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 1}
    lab.create("probed", busy("touch /tmp/alive; sleep 1.5; rm /tmp/alive; " + IDLE, livenessProbe=probe))
    lab.wait_for("probed", lambda pod: status_of(pod)["restartCount"] >= 1, "restarted")
    assert any("Liveness probe failed" in event for event in lab.events("probed"))


def test_a_kubelet_that_comes_back_finds_its_pods(lab):
    lab.create("kept", busy(IDLE))
    lab.create("left", busy(IDLE))
    address = lab.wait_ready("kept")
    lab.wait_ready("left")
    before = status_of(lab.pod("kept"))
    old = lab.pid("server")
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: lab.status()["ready"] and lab.pid("server") != old, "the server is back")
    lab.kubectl("delete", "pod", "left", "--grace-period=1")
    assert lab.wait_ready("kept") == address
    assert status_of(lab.pod("kept"))["containerID"] == before["containerID"]
    assert status_of(lab.pod("kept"))["restartCount"] == 0
    assert execute(lab, "kept", "echo", "still here") == "still here\n"


@pytest.mark.parametrize("runtime", ["process", "containerd"])
def test_a_lab_whose_init_was_killed_comes_up_again_with_its_pods(runtime):
    name = unique_name()
    try:
        poplin("up", "--nodes", "1", "--name", name, "--runtime", runtime)
        lab = Lab(name)
        lab.create("a", busy(IDLE))
        lab.wait_ready("a")
        pids = lab.pids()
        init = json.loads((LABS / name / "init.pid").read_bytes())["pid"]
        os.kill(init, signal.SIGKILL)
        wait_until(lambda: not living([init, *pids]), "all of it is dead")
        poplin("up", "--nodes", "1", "--name", name, "--runtime", runtime)
        lab.wait_for("a", lambda pod: status_of(pod)["restartCount"] == 1, "started again")
        lab.wait_ready("a")
        assert execute(lab, "a", "echo", "back") == "back\n"
        init = json.loads((LABS / name / "init.pid").read_bytes())["pid"]
        os.kill(init, signal.SIGKILL)
        time.sleep(0.1)
    finally:
        poplin("down", "--name", name)
    assert leftovers(name) == []


ON_NOEXEC = """
set -e
mkdir -p /run/poplin
mount -t tmpfs -o noexec,nosuid,nodev tmpfs /run/poplin
trap '"$0" lab down --name "$1"' EXIT
"$0" lab up --nodes 1 --name "$1" --runtime "$2"
export KUBECONFIG=/run/poplin/labs/$1/kubeconfig
kubectl run a --image=busybox --restart=Never --command -- sh -c 'echo runs'
kubectl wait --timeout=20s --for=jsonpath='{.status.phase}'=Succeeded pod/a
kubectl logs a
"""


@pytest.mark.parametrize("runtime", ["process", "containerd"])
def test_programs_run_though_run_is_mounted_noexec(runtime):
    name = unique_name()
    # Only this script's mount namespace has another /run/poplin.
    line = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", ON_NOEXEC, POPLIN, name, runtime]
    done = subprocess.run(line, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nruns\n" in done.stdout
    assert leftovers(name) == []


def test_a_containerd_that_dies_is_started_again_and_its_pods_live_on():
    name = unique_name()
    try:
        poplin("up", "--nodes", "1", "--name", name, "--runtime", "containerd")
        lab = Lab(name)
        lab.create("old", busy(IDLE))
        address = lab.wait_ready("old")
        dead = lab.pid("containerd-node-1")
        os.kill(dead, signal.SIGKILL)
        lab.create("new", busy(IDLE))
        lab.wait_ready("new")
        assert lab.pid("containerd-node-1") != dead
        assert lab.wait_ready("old") == address
        assert status_of(lab.pod("old"))["restartCount"] == 0
        assert execute(lab, "old", "echo", "alive") == "alive\n"
        lab.kubectl("delete", "pod", "old", "new", "--grace-period=2")
        assert lab.pod("old") is None
    finally:
        poplin("down", "--name", name)
    assert leftovers(name) == []


def test_images_are_loaded_into_all_nodes_or_missed_by_name(tmp_path):
    name = unique_name()
    try:
        poplin("up", "--nodes", "2", "--name", name, "--runtime", "containerd", "--missing-image", "fail")
        lab = Lab(name)
        for node in ("node-1", "node-2"):
            lab.create(f"on-{node}", container(image="registry.test/tool:1"), node=node)
            waits = lab.wait_for(
                f"on-{node}", lambda pod: status_of(pod)["state"].get("waiting", {}), "waits"
            )
            lab.wait_for(
                f"on-{node}",
                lambda pod: status_of(pod)["state"]["waiting"]["reason"] == "ErrImagePull",
                str(waits),
            )
        message = status_of(lab.pod("on-node-1"))["state"]["waiting"]["message"]
        assert "registry.test/tool:1" in message
        assert "poplin lab load" in message
        archive = tmp_path / "tool.tar"
        archive.write_bytes(make_tool())
        poplin("load", "--name", name, str(archive))
        for node in ("node-1", "node-2"):
            lab.wait_ready(f"on-{node}")
            assert "tool runs" in lab.kubectl("logs", f"on-{node}")
        (tmp_path / "bad.tar").write_bytes(b"this is no archive")
        refused = poplin("load", "--name", name, str(tmp_path / "bad.tar"), check=False)
        assert refused.returncode != 0
        assert "cannot import" in refused.stderr
    finally:
        poplin("down", "--name", name)


def make_tool():
    """An image of one's own: busybox, and another command."""
    files = busybox_files(find_busybox().read_bytes(), ["sh", "sleep", "echo"])
    return make_archive(
        [Image(["registry.test/tool:1"], files, ["/bin/sh", "-c", f"echo tool runs; {IDLE}"])]
    )
