"""NetworkPolicy in a lab, by kubectl: denied, allowed by a label, changed, deleted; and explained as it is."""

import json
import subprocess

import pytest

from e2e.lab_commands import POPLIN, PYTHON, Lab, container, poplin, unique_name, wait_until

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.4).close()
    print("reached")
except TimeoutError:
    print("dropped")
"""
pytestmark = pytest.mark.timeout(300)

ADDRESSES: dict[str, str] = {}
DENY_ALL = {"podSelector": {}, "policyTypes": ["Ingress"]}
BY_LABEL = {
    "podSelector": {"matchLabels": {"app": "server"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}], "ports": [{"port": "api"}]}],
}
BACKWARDS = {
    "podSelector": {"matchLabels": {"app": "server"}},
    "ingress": [{"from": [{"ipBlock": {"cidr": "192.168.9.9/16"}}]}],
}


@pytest.fixture(scope="module")
def lab():
    name = unique_name()
    try:
        poplin("up", "--nodes", "2", "--dns", "none", "--name", name)
        made = Lab(name)
        port = {"name": "api", "containerPort": 8080}
        made.create("server", container(ports=[port]), node="node-1")
        made.create("near", container(ports=[port]), node="node-1")
        made.create("far", container(ports=[port]), node="node-2")
        for pod in ("server", "near", "far"):
            ADDRESSES[pod] = made.wait_ready(pod)[0]
        made.kubectl("label", "pod", "server", "app=server")
        yield made
    finally:
        poplin("down", "--name", name)


def apply(lab, name, spec):
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }
    lab.kubectl("apply", "--validate=false", "-f", "-", given=json.dumps(policy))


def reaches(lab, source, target="server", port=8080):
    return lab.execute(source, PYTHON, "-c", CONNECT, ADDRESSES[target], str(port)).strip() == "reached"


def explain(lab, *arguments):
    done = subprocess.run(
        [POPLIN, "explain", "--kubeconfig", lab.kubeconfig, "-o", "json", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["connections"]


def until(lab, source, allowed, **more):
    wait_until(
        lambda: reaches(lab, source, **more) == allowed, f"{source} {'' if allowed else 'not '}allowed"
    )


def test_policies_come_change_and_go(lab):
    assert reaches(lab, "near")
    assert reaches(lab, "far")
    apply(lab, "deny-all", DENY_ALL)
    until(lab, "near", allowed=False)
    until(lab, "far", allowed=False)
    apply(lab, "by-label", BY_LABEL)
    lab.kubectl("label", "pod", "far", "role=client")
    until(lab, "far", allowed=True)
    assert not reaches(lab, "near")
    assert not reaches(lab, "far", target="near")
    names = ("server", "near", "far")
    said = {
        (source, target): one["allowed"]
        for one in explain(lab, "--all")
        for source, target in [(one["source"].split("/")[1], one["destination"].split("/")[1])]
        if {source, target} <= set(names)  # cluster DNS is there as well
    }
    assert said == {
        (source, target): reaches(lab, source, target=target)
        for source in names
        for target in names
        if source != target
    }
    (denied,) = explain(lab, "near", "server:api")
    ingress = denied["families"][0]["ingress"]
    assert (ingress["reason"], {one["name"] for one in ingress["policies"]}) == (
        "NO_RULE",
        {"by-label", "deny-all"},
    )
    lab.kubectl("label", "pod", "far", "role-")
    until(lab, "far", allowed=False)
    # Probes come from the node: all are ready still.
    for pod in names:
        lab.wait_ready(pod)
    lab.kubectl("delete", "networkpolicy", "--all")
    until(lab, "near", allowed=True)
    until(lab, "far", allowed=True)


def test_what_cannot_be_honoured_is_an_event_of_the_policy(lab):
    apply(lab, "backwards", BACKWARDS)
    wait_until(
        lambda: any("has bits beyond its prefix" in text for text in lab.events("backwards")),
        "an Event about the policy",
    )
    until(lab, "near", allowed=False)
    lab.kubectl("delete", "networkpolicy", "--all")
    until(lab, "near", allowed=True)
