"""Services of a whole lab by packets: from API objects to the pods that answer, and while these are replaced."""

import json
import subprocess

import pytest

from e2e.lab_commands import LABS, POPLIN, Lab, container, poplin, shell, traces, unique_name, wait_until

PORT = {"name": "http", "containerPort": 8080}
LINGER = "trap 'sleep 2; exit 0' TERM; busybox httpd -f -p 8080 -h / & wait"
"""A server that goes on for two seconds after it was told to end, as a well-behaved one does."""


@pytest.fixture(scope="module")
def lab():
    name = unique_name()
    try:
        poplin("up", "--nodes", "2", "--name", name, "--ip-family", "dual")
        made = Lab(name)
        made.create("client", container(command=["sleep", "10000"]))
        made.wait_ready("client")
        yield made
    finally:
        poplin("down", "--name", name)
        assert traces(name) == []


def apply(lab, *objects):
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    lab.kubectl("apply", "--validate=false", "-f", "-", given=given)


def deployment(name, replicas, *containers):
    pod = {"terminationGracePeriodSeconds": 5, "containers": list(containers)}
    template = {"metadata": {"labels": {"app": name}}, "spec": pod}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def service(name, **spec):
    spec = {
        "selector": {"app": name},
        "ports": [{"port": 80, "targetPort": "http"}],
        "ipFamilyPolicy": "RequireDualStack",
        **spec,
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def served(lab, name, node="node-1"):
    """`poplin services` of one Service on a node."""
    run_dir = LABS / lab.name / "nodes" / node / "run"
    line = [POPLIN, "services", f"default/{name}", "--run-dir", str(run_dir), "-o", "json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=True)
    return json.loads(done.stdout)["frontends"]


def wait_served(lab, name, endpoints):
    for node in ("node-1", "node-2"):
        wait_until(
            lambda node=node: (
                (rows := served(lab, name, node))
                and all(len(row["endpoints"]) == endpoints and row["verdict"] == "serve" for row in rows)
            ),
            f"{node} serves {name} with {endpoints} endpoints",
        )


def url(row):
    address = f"[{row['address']}]" if ":" in row["address"] else row["address"]
    return f"http://{address}:{row['port']}/"


def test_every_address_of_a_load_balancer_is_answered_by_every_pod(lab):
    apply(lab, deployment("web", 2, container(ports=[PORT])), service("web", type="LoadBalancer"))
    wait_until(lambda: len(served(lab, "web")) == 6, "three addresses of each family")
    wait_served(lab, "web", 2)
    rows = served(lab, "web")
    assert sorted(row["kind"] for row in rows) == ["ClusterIP"] * 2 + ["LoadBalancer"] * 2 + ["NodePort"] * 2
    asked = ("for i in $(seq 12); do curl -s -m 5 {} | grep ^pod; done",)
    for row in rows:
        script = asked[0].format(url(row))
        answers = lab.execute("client", "sh", "-c", script).splitlines()
        assert len(answers) == 12
        assert len(set(answers)) == 2, row
        if row["kind"] != "ClusterIP":
            outside = ["ip", "netns", "exec", f"poplin-{lab.name}--fabric", "sh", "-c", script]
            done = subprocess.run(outside, capture_output=True, text=True, timeout=60, check=True)
            assert len(done.stdout.splitlines()) == 12


def test_no_connection_is_lost_while_a_deployment_is_replaced(lab):
    server = shell(LINGER, ports=[PORT], readinessProbe={"tcpSocket": {"port": "http"}, "periodSeconds": 1})
    apply(lab, deployment("rolled", 3, server), service("rolled"))
    wait_served(lab, "rolled", 3)
    address = next(url(row) for row in served(lab, "rolled") if row["address"].startswith("10."))
    script = (
        f"for i in $(seq 1500); do curl -s -m 3 -o /dev/null {address}; e=$?; "
        "[ $e = 0 ] || echo failed $e; sleep 0.005; done; echo done"
    )
    command = ["kubectl", f"--kubeconfig={lab.kubeconfig}", "exec", "client", "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asking:
        lab.kubectl("rollout", "restart", "deployment/rolled")
        lab.kubectl("rollout", "status", "deployment/rolled", "--timeout=50s")
        assert asking.poll() is None, "the load ended before the replacement did"
        output, _ = asking.communicate(timeout=100)
    assert output.splitlines() == ["done"]


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_explain_says_what_the_kernel_draws(lab, policy):
    name = f"told-{policy.lower()}"
    apply(lab, deployment(name, 1, container(ports=[PORT])), service(name, internalTrafficPolicy=policy))
    lab.kubectl("rollout", "status", f"deployment/{name}", "--timeout=60s")

    def drawn(node):
        line = [POPLIN, "explain", "--kubeconfig", lab.kubeconfig, "-o", "json", f"node/{node}", name]
        done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=True)
        return {
            (one["address"], one["verdict"]): {end["address"] for end in one["endpoints"] if end["drawn"]}
            for one in json.loads(done.stdout)["services"]
        }

    def in_kernel(node):
        return {
            (one["address"], one["verdict"]): {end["address"] for end in one["endpoints"] if end["inside"]}
            for one in served(lab, name, node)
        }

    for node in ("node-1", "node-2"):
        wait_until(
            lambda node=node: len(drawn(node)) == 2 and drawn(node) == in_kernel(node), f"{node} agrees"
        )
    found = [bool(ends) for node in ("node-1", "node-2") for ends in drawn(node).values()]
    assert sorted(found) == ([True] * 4 if policy == "Cluster" else [False, False, True, True])
