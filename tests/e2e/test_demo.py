"""`poplin lab demo` as a user runs it: it holds, it tells when it does not, and it leaves nothing."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from e2e.lab_commands import POPLIN, Lab, poplin, traces, unique_name, wait_until
from poplin.lab.demo.demo import EXAMPLE
from poplin.lab.directory import Directory
from poplin.lab.kubelet.sandbox import read_sandboxes
from poplin.lab.probing import Probe, Protocol, probe

USERS = [
    path
    for directory in filter(None, [os.environ.get("POPLIN_MANIFESTS")])
    for path in sorted(Path(directory).glob("*.yaml"))
    if "containers:" in path.read_text()
]
"""Applications of the user's own, in a directory, to be tried as well."""

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: example.org/web:1
        ports: [{containerPort: 8080}, {containerPort: 5353, protocol: UDP}]
"""
GADGET = """
apiVersion: example.org/v1
kind: Gadget
metadata: {name: one}
spec: {size: 3}
---
apiVersion: v1
kind: Pod
metadata: {name: beside, namespace: later}
spec:
  containers: [{name: main, image: example.org/beside:1, ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Namespace
metadata: {name: later}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: gadgets, kind: Gadget}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"""
NEVER_READY = """
apiVersion: v1
kind: Pod
metadata: {name: never}
spec:
  containers:
  - name: main
    image: example.org/never:1
    ports: [{containerPort: 80}]
    readinessProbe: {tcpSocket: {port: 81}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec:
  containers: [{name: main, image: example.org/other:1, ports: [{containerPort: 80}]}]
"""


@pytest.fixture
def name():
    name = unique_name()
    try:
        yield name
    finally:
        poplin("down", "--name", name)


def demo(name, *arguments, check=True):
    return poplin("demo", "--name", name, *arguments, check=check)


def test_the_default_demo_holds_and_teaches(name):
    done = demo(name)
    for line in (
        "540 probes",
        "by same node",
        "by vxlan",
        "540 of 540 new probes held meanwhile",
        "via 169.254.1.1 dev eth0",
        "type vxlan mtu 1450 id 1 dstport 8472",
        "CNI_COMMAND=ADD",
    ):
        assert line in done.stdout
    assert "✗" not in done.stdout
    assert traces(name) == []


@pytest.mark.parametrize(
    ("backend", "family", "ways"),
    [("vxlan", "ipv6", {"same node", "vxlan"}), ("host-gw", "dual", {"same node", "direct"}),
     ("host-gw", "ipv6", {"same node", "direct"}), ("vxlan", "ipv4", {"same node", "vxlan"})],
)  # fmt: skip
def test_every_backend_and_family_holds(name, backend, family, ways):
    found = json.loads(demo(name, "--backend", backend, "--ip-family", family, "-o", "json").stdout)
    assert found["held"]
    families = 2 if family == "dual" else 1
    kinds = Counter(one["protocol"] for one in found["probes"])
    assert kinds == dict.fromkeys(("TCP", "UDP", "ICMP"), 10 * 9 * families)
    assert {one["way"] for one in found["probes"]} == ways
    assert all(len(pod["addresses"]) == families for pod in found["pods"])
    flows = found["restart"]["flows"]
    assert {flow["flow"]["protocol"] for flow in flows} == {"TCP", "UDP"}
    assert all(flow["sent"] == flow["received"] >= 50 for flow in flows)
    assert found["restart"]["new_pid"] != found["restart"]["killed_pid"]
    assert len(found["probesWhileRestarting"]) == len(found["probes"])
    assert found["cni"]["environment"]["CNI_COMMAND"] == "ADD"
    assert traces(name) == []


def test_manifests_of_ones_own_in_any_order(name, tmp_path):
    (tmp_path / "gadget.yaml").write_text(GADGET)
    web = tmp_path / "web.yaml"
    web.write_text(WEB.replace("REPLICAS", "2"))
    found = json.loads(demo(name, "-f", str(tmp_path), "--keep", "-o", "json").stdout)
    assert [pod["workload"] for pod in found["pods"]] == ["default/web", "default/web", "later/beside"]
    lab = Lab(name)
    assert lab.kubectl("get", "gadgets", "one", "-o", "jsonpath={.spec.size}") == "3"
    # On the lab that stands the objects are merged, and it stays.
    web.write_text(WEB.replace("REPLICAS", "3"))
    found = json.loads(demo(name, "-f", str(tmp_path), "-o", "json").stdout)
    assert len(found["pods"]) == 4
    assert lab.status()["ready"]


def test_what_is_not_available_is_told_and_fails(name, tmp_path):
    (tmp_path / "pods.yaml").write_text(NEVER_READY)
    done = demo(name, "-f", str(tmp_path), "--timeout", "3", check=False)
    assert done.returncode == 1
    assert "Pod default/never: 0 of 1; never: container main is not ready" in done.stdout
    assert traces(name) == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("kind: Pod", "no apiVersion"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: []}}", "containers"),
        ("{apiVersion: example.org/v1, kind: Nothing, metadata: {name: x}}", "does not serve Nothing"),
    ],
)
def test_manifests_that_are_no_good_are_refused_by_name(name, tmp_path, text, word):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    done = demo(name, "-f", str(path), check=False)
    assert done.returncode == 1
    assert word in done.stderr
    assert traces(name) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("line", ["processes", "workloads available", "every pod probed"])
def test_an_interrupt_at_any_time_leaves_nothing(name, number, line):
    command = [POPLIN, "lab", "demo", "--name", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        for text in running.stdout:
            if line in text:
                break
        time.sleep(0.05)
        running.send_signal(number)
        rest = running.stdout.read()
    assert running.returncode != 0
    assert "How CNI was called" not in rest
    assert traces(name) == []


@pytest.mark.parametrize("manifests", [EXAMPLE, *USERS], ids=lambda path: path.name)
def test_pods_of_whole_applications_run_and_have_addresses(name, manifests):
    done = demo(name, "-f", str(manifests), "-o", "json", "--timeout", "60", check=False)
    found = json.loads(done.stdout)
    assert len(found["pods"]) >= 2
    assert all(len(pod["addresses"]) == 2 for pod in found["pods"])


def test_ten_replicas_on_five_nodes_reach_each_other_over_both_families(name):
    poplin("up", "--nodes", "5", "--ip-family", "dual", "--name", name, "--dns", "none")
    lab = Lab(name)
    lab.kubectl("apply", "-f", "-", given=WEB.replace("REPLICAS", "10"))
    wait_until(lambda: [pod["ready"] for pod in lab.status()["pods"]] == ["1/1"] * 10, "10 pods ready")
    pods = read_sandboxes(Directory(name)).values()
    assert len({pod.node for pod in pods}) == 5
    probes = [
        Probe(source.netns, source.name, address, port, protocol)
        for source in pods
        for target in pods
        if target is not source
        for address in target.addresses()
        for protocol, port in ((Protocol.TCP, 8080), (Protocol.UDP, 5353))
    ]
    assert len(probes) == 10 * 9 * 2 * 2
    names = {address: pod.name for pod in pods for address in pod.addresses()}
    for result in probe(probes):
        assert result.name == names[result.probe.address], result
        assert names[result.client] == result.probe.source, result
