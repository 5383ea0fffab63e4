"""`poplin lab conformance` as a user runs it: cases, and an application with its policies, by real packets."""

import json
import subprocess

import pytest

from e2e.lab_commands import LABS, POPLIN, poplin, traces, unique_name

WORLD = """
apiVersion: v1
kind: Namespace
metadata: {name: one, labels: {team: one}}
---
apiVersion: v1
kind: Namespace
metadata: {name: two, labels: {team: two}}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: one, labels: {app: a}}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: x, ports: [{name: http, containerPort: 80}, {containerPort: 80, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: two, labels: {app: b}}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: x, ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}]}]}
"""
CASES = """
cases:
  - name: a door for a team
    says: Closed, opened by a label, moved, and open again.
    steps:
      - apply: [{policy: one/door, spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {friend: "yes"}}}]}]}}]
        expect: {"TCP 80, UDP 80, ICMP": "* X ."}
      - label: {namespace two: {friend: "yes"}}
        expect: {"TCP 80, UDP 80, ICMP": "* . ."}
      - apply: [{policy: one/door, spec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}}]
        expect: {"TCP 80": "* . .", "UDP 80, ICMP": "* X ."}
      - delete: [policy one/door]
        expect: {"TCP 80, UDP 80, ICMP": "* . ."}
"""
WRONG = """
cases:
  - {name: open, steps: [{expect: {"TCP 80": "* . X"}}]}
"""
APPLICATION = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: front}
spec:
  replicas: 2
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: x, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: back}
spec:
  selector: {matchLabels: {app: back}}
  template:
    metadata: {labels: {app: back}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: x, ports: [{name: db, containerPort: 5432}, {containerPort: 9000}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: back}
spec:
  podSelector: {matchLabels: {app: back}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: front}}}], ports: [{port: db}]}]
"""


@pytest.fixture
def lab():
    name = unique_name()
    yield name
    poplin("down", "--name", name)
    assert not traces(name)


def run(lab, *arguments):
    return poplin("conformance", "--name", lab, "--nodes", "2", "-o", "json", *arguments, check=False)


def test_cases_of_ones_own_with_a_world_of_ones_own(lab, tmp_path):
    (tmp_path / "world.yaml").write_text(WORLD)
    (tmp_path / "doors.yaml").write_text(CASES)
    page = tmp_path / "docs" / "page.md"
    done = run(lab, "-f", str(tmp_path), "--write", str(page))
    (case,) = json.loads(done.stdout)
    assert case["faults"] == []
    assert done.returncode == 0
    assert (case["group"], case["evaluator"], case["packets"]) == (
        "doors",
        True,
        {"IPv4": True, "IPv6": True},
    )
    # Four steps of three questions, for two pods each way and in both families.
    assert case["probes"] == 4 * 3 * 4 * 2
    assert "| a door for a team | ✓ | ✓ | ✓ |" in page.read_text()


def test_a_table_that_does_not_hold_is_told(lab, tmp_path):
    (tmp_path / "world.yaml").write_text(WORLD)
    (tmp_path / "doors.yaml").write_text(WRONG)
    done = run(lab, "-f", str(tmp_path), "--ip-family", "ipv4")
    (case,) = json.loads(done.stdout)
    assert done.returncode == 1
    assert (case["evaluator"], case["packets"]) == (False, {"IPv4": False})
    assert "evaluator: step 1, TCP 80, IPv4: one/a to two/b is allowed" in case["faults"]
    assert "packets: step 1, TCP 80, IPv4: one/a to two/b is to be denied, and was allowed" in case["faults"]


def test_an_application_does_what_the_evaluator_says(lab, tmp_path):
    manifest = tmp_path / "app.yaml"
    manifest.write_text(APPLICATION)
    done = run(lab, "-f", str(manifest))
    every = json.loads(done.stdout)
    assert [trial for trial in every if trial["fault"]] == []
    assert done.returncode == 0
    trials = [
        one for one in every if one["source"].startswith("default/") and one["target"].startswith("default/")
    ]
    # Three pods to each other: by ICMP and one port to two of them, by ICMP and two ports to the third; twice.
    assert len(trials) == 2 * (2 * 2 * 2 + 2 * 3)
    outcomes = {
        (one["source"].split("-")[0], one["target"].split("-")[0], one["port"]): one["outcome"]
        for one in trials
    }
    assert outcomes["default/front", "default/back", 5432] == "answered"
    assert outcomes["default/front", "default/back", 9000] == "timed out"
    assert outcomes["default/back", "default/front", 8080] == "timed out"
    assert outcomes["default/front", "default/front", 8080] == "answered"


def test_what_was_denied_is_told_by_the_node_that_denied_it(lab, tmp_path):
    (tmp_path / "world.yaml").write_text(WORLD)
    (tmp_path / "doors.yaml").write_text(CASES)
    assert run(lab, "-f", str(tmp_path), "--keep").returncode == 0
    # Pods go to the nodes in the order of their names: one/a to the first.
    denied = flows(lab, "node-1", "--verdict", "denied")
    assert {(one["source"]["namespace"], one["destination"]["namespace"]) for one in denied} == {
        ("two", "one")
    }
    assert {(one["protocol"], one["port"]) for one in denied} == {
        ("TCP", 80),
        ("UDP", 80),
        ("ICMP", 0),
        ("ICMPv6", 0),
    }
    rulings = [ruling for one in denied for ruling in one["rulings"]]
    assert {(one["direction"], one["policy"], one["rule"]) for one in rulings} == {
        ("ingress", "NetworkPolicy one/door", None)
    }
    assert flows(lab, "node-2", "--verdict", "denied") == []
    standing = flows(lab, "node-2", "--verdict", "allowed")
    assert {"one", "two"} & {one["source"]["namespace"] for one in standing}


def flows(lab, node, *arguments):
    directory = LABS / lab / "nodes" / node / "run"
    done = subprocess.run(
        [POPLIN, "flows", "--run-dir", str(directory), "-o", "json", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


RECREATED = """
cases:
  - name: 1 a pod of the same name
    steps:
      - delete: [pod one/a]
        expect: {"TCP 80": "* ."}
      - apply:
          - apiVersion: v1
            kind: Pod
            metadata: {name: a, namespace: one}
            spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: x, ports: [{containerPort: 80}]}]}
        expect: {"TCP 80": "* . ."}
  - name: 2 the pod of the world
    steps:
      - apply: [{policy: one/web, spec: {podSelector: {matchLabels: {app: a}}, ingress: [{ports: [{port: http}]}]}}]
        expect: {"TCP 80": "* . .", "UDP 80": "* X ."}
"""


def test_each_case_begins_with_the_same_world(lab, tmp_path):
    (tmp_path / "world.yaml").write_text(WORLD)
    (tmp_path / "again.yaml").write_text(RECREATED)
    done = run(lab, "-f", str(tmp_path))
    assert [case["faults"] for case in json.loads(done.stdout)] == [[], []]
    assert done.returncode == 0
