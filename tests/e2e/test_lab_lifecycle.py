"""A lab comes, survives the death of its parts, and goes without a trace."""

import json
import os
import signal
import subprocess
import sys
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
    shell,
    status_of,
    traces,
    unique_name,
    wait_until,
)


@pytest.fixture
def name():
    name = unique_name()
    try:
        yield name
    finally:
        poplin("down", "--name", name)
        assert traces(name) == []


def init_pid(name):
    return json.loads((LABS / name / "init.pid").read_text())["pid"]


def machine_links():
    return json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)


def test_a_lab_leaves_nothing_behind_and_nothing_of_it_is_on_the_machine(name):
    links = [link["ifname"] for link in machine_links()]
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True).stdout
    out = poplin("up", "--nodes", "2", "--name", name, "--dns", "none").stdout
    assert f"lab {name} is ready" in out
    lab = Lab(name)
    lab.create("a", container(ports=[{"containerPort": 80}]))
    lab.create("b", shell("sleep 1000 & exec sleep 1000"), node="node-2")
    lab.wait_ready("a")
    lab.wait_ready("b")
    assert Path(lab.kubeconfig).stat().st_mode & 0o077 == 0
    assert [link["ifname"] for link in machine_links()] == links
    assert subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True).stdout == rules
    pids = [*lab.pids(), init_pid(name)]
    assert len(living(pids)) == 4
    status = lab.status()
    assert status["ready"]
    assert [(pod["name"], pod["node"], pod["ready"]) for pod in status["pods"]] == [
        ("a", "node-1", "1/1"),
        ("b", "node-2", "1/1"),
    ]
    poplin("down", "--name", name)
    assert traces(name) == []
    assert living(pids) == []
    assert "there is no lab" in poplin("down", "--name", name).stdout
    assert poplin("status", "--name", name, check=False).returncode == 1


def test_up_on_a_lab_that_stands_changes_nothing(name):
    poplin("up", "--nodes", "1", "--name", name)
    pids = Lab(name).pids()
    assert "stands" in poplin("up", "--nodes", "1", "--name", name).stdout
    assert Lab(name).pids() == pids
    other = poplin("up", "--nodes", "2", "--name", name, check=False)
    assert other.returncode == 1
    assert "other options" in other.stderr
    assert Lab(name).pids() == pids


def test_labs_stand_side_by_side(name):
    other = unique_name()
    try:
        for one in (name, other):
            poplin("up", "--nodes", "2", "--dns", "none", "--name", one)
            Lab(one).create("pod", container(ports=[{"containerPort": 80}]))
        addresses = [Lab(one).wait_ready("pod") for one in (name, other)]
        assert addresses[0] == addresses[1]
        poplin("down", "--name", other)
        assert Lab(name).status()["ready"]
        assert Lab(name).wait_ready("pod") == addresses[0]
    finally:
        poplin("down", "--name", other)
    assert traces(other) == []


def test_pods_outlive_the_server(name):
    poplin("up", "--nodes", "1", "--name", name)
    lab = Lab(name)
    lab.create("stays", shell("exec sleep 1000"))
    lab.create("goes", shell("exec sleep 1000"))
    lab.create(
        "going", shell("trap '' TERM; while true; do sleep 0.1; done"), terminationGracePeriodSeconds=3
    )
    lab.create("ends", shell("exec sleep 2"), restartPolicy="Never")
    address = lab.wait_ready("stays")
    lab.wait_ready("goes")
    before = lab.execute("stays", "stat", "-c", "%i %Z", "/proc/1/ns/net")
    lab.wait_ready("going")
    lab.kubectl("delete", "pod", "going", "--wait=false")
    server = lab.pid("server")
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: lab.status()["ready"] and lab.pid("server") != server, "the server is back")
    assert lab.wait_ready("stays") == address
    assert status_of(lab.pod("stays"))["restartCount"] == 0
    assert lab.execute("stays", "stat", "-c", "%i %Z", "/proc/1/ns/net") == before
    lab.kubectl("delete", "pod", "goes", "--timeout=20s")
    wait_until(lambda: lab.pod("going") is None, "its deletion goes on")
    ended = lab.wait_for("ends", lambda pod: pod["status"]["phase"] == "Succeeded" and pod, "ended")
    assert status_of(ended)["state"]["terminated"]["exitCode"] == 0


def test_an_agent_that_dies_is_started_again(name):
    poplin("up", "--nodes", "1", "--name", name)
    lab = Lab(name)
    agent = lab.pid("agent-node-1")
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: lab.pid("agent-node-1") != agent and lab.status()["ready"], "the agent is back")
    lab.create("after", container(ports=[{"containerPort": 80}]))
    lab.wait_ready("after")


def test_all_of_a_lab_dies_with_its_init_and_up_brings_it_back(name):
    poplin("up", "--nodes", "2", "--name", name)
    lab = Lab(name)
    lab.create("pod", shell("exec sleep 1000"))
    address = lab.wait_ready("pod")
    pids = lab.pids()
    os.kill(init_pid(name), signal.SIGKILL)
    wait_until(lambda: not living(pids), "all dead", 5)
    assert poplin("status", "--name", name, check=False).returncode == 1
    poplin("up", "--nodes", "2", "--name", name)
    lab.wait_for("pod", lambda pod: status_of(pod)["restartCount"] == 1, "restarted")
    assert lab.wait_ready("pod") == address
    assert Lab(name).kubeconfig == lab.kubeconfig


def test_down_works_after_the_init_was_killed(name):
    poplin("up", "--nodes", "2", "--name", name)
    lab = Lab(name)
    lab.create("pod", shell("exec sleep 1000"))
    lab.wait_ready("pod")
    pids = lab.pids()
    os.kill(init_pid(name), signal.SIGKILL)
    poplin("down", "--name", name)
    assert traces(name) == []
    assert living(pids) == []


def test_up_that_fails_leaves_nothing(name, tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        """
        clusters: [{name: x, cluster: {server: "https://127.0.0.1:1"}}]
        users: [{name: x, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: plugin}}}]
        contexts: [{name: x, context: {cluster: x, user: x}}]
        current-context: x
        """
    )
    failed = poplin("up", "--nodes", "2", "--name", name, "--kubeconfig", str(kubeconfig), check=False)
    assert failed.returncode == 1
    assert "credential plugin" in failed.stderr
    assert traces(name) == []


@pytest.mark.parametrize("after_s", [0.6, 0.8, 1.0, 1.2])
def test_down_removes_what_a_killed_up_has_made(name, after_s):
    with subprocess.Popen(
        [POPLIN, "lab", "up", "--nodes", "12", "--name", name], stdout=subprocess.PIPE
    ) as up:
        time.sleep(after_s)
        up.kill()
    poplin("down", "--name", name)
    assert traces(name) == []


def test_an_api_server_of_ones_own_is_reached_through_the_relay(name, tmp_path):
    command = [
        sys.executable,
        "-c",
        "from poplin.cli.apiserver import app; app()",
        "--data-dir",
        str(tmp_path),
        "--listen",
        "127.0.0.1:0",
    ]
    kubeconfig = tmp_path / "kubeconfig"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: kubeconfig.exists() and kubeconfig.stat().st_size, "the API server")
            poplin("up", "--nodes", "2", "--name", name, "--kubeconfig", str(kubeconfig))
            lab = Lab(name)
            assert lab.kubeconfig == str(kubeconfig)
            lab.create("pod", container(ports=[{"containerPort": 80}]), node="node-2")
            lab.wait_ready("pod")
            poplin("down", "--name", name)
        finally:
            server.terminate()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["up", "--nodes", "0"], "--nodes"),
        (["up", "--name", "A_b"], "--name"),
        (["up", "--ip-family", "ipx"], "--ip-family"),
        (["kubeconfig", "--name", "nosuchlab"], "no such lab"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(arguments, word):
    done = poplin(*arguments, check=False)
    assert done.returncode == 1
    assert word in done.stderr
