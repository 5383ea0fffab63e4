"""`poplin explain` of a Service, offline: who may be drawn from where, why, and what policy says of each."""

import json
from textwrap import dedent

import pytest
from typer.testing import CliRunner

from poplin.cli.main import command_line

CLUSTER = """
    apiVersion: v1
    kind: Node
    metadata: {name: n1}
    status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
    ---
    apiVersion: v1
    kind: Node
    metadata: {name: n2}
    status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: web, namespace: shop}
    spec: {nodeName: n1, containers: [{}]}
    status: {phase: Running, podIPs: [{ip: 10.244.1.2}]}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: api-1, namespace: shop, labels: {app: api}}
    spec: {nodeName: n1, containers: [{ports: [{containerPort: 8080, name: http}]}]}
    status: {phase: Running, podIPs: [{ip: 10.244.1.3}]}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: api-2, namespace: shop, labels: {app: api, closed: "yes"}}
    spec: {nodeName: n2, containers: [{ports: [{containerPort: 8080, name: http}]}]}
    status: {phase: Running, podIPs: [{ip: 10.244.2.3}], conditions: [{type: Ready, status: "True"}]}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: api-3, namespace: shop, labels: {app: api}}
    spec: {nodeName: n2, containers: [{ports: [{containerPort: 8080, name: http}]}]}
    status: {phase: Running, podIPs: [{ip: 10.244.2.4}], conditions: [{type: Ready, status: "False"}]}
    ---
    apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: closed, namespace: shop}
    spec: {podSelector: {matchLabels: {closed: "yes"}}}
"""
SLICE = """
    apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {name: api-x, namespace: shop, labels: {kubernetes.io/service-name: api}}
    addressType: IPv4
    ports: [{name: http, port: 9090}]
    endpoints: [{addresses: [10.244.2.4], nodeName: n2, conditions: {ready: true}}]
"""
SPEC = {
    "type": "NodePort",
    "clusterIP": "10.96.0.80",
    "selector": {"app": "api"},
    "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}],
}
OUTSIDER = "203.0.113.9"


@pytest.fixture
def ask(tmp_path):
    def run(source, destination, *more, text=False, extra="", **spec):
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "api", "namespace": "shop"},
            "spec": {key: value for key, value in (SPEC | spec).items() if value is not None},
        }
        path = tmp_path / "cluster.yaml"
        path.write_text("\n---\n".join([dedent(CLUSTER), json.dumps(service), dedent(extra)]))
        arguments = [
            "explain",
            "-f",
            str(path),
            *(() if text else ("-o", "json")),
            source,
            destination,
            *more,
        ]
        answer = CliRunner().invoke(command_line(["explain"]), arguments, catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        return answer.stdout if text else json.loads(answer.stdout)["services"]

    return run


def reasons(passage):
    return {one["destination"].removeprefix("shop/"): one["reason"] for one in passage["endpoints"]}


def test_a_service_is_followed_to_its_endpoints_and_their_policies(ask):
    (found,) = ask("shop/web", "shop/api:80")
    assert (found["outcome"], found["verdict"], found["node"]) == ("partly allowed", "serve", "n1")
    assert (found["kind"], found["address"], found["endpoints_derived"]) == ("ClusterIP", "10.96.0.80", True)
    assert reasons(found) == {"api-1": "READY", "api-2": "READY", "api-3": "NOT_READY"}
    assert [one["allowed"] for one in found["endpoints"]] == [True, False, None]
    assert {one["port"] for one in found["endpoints"]} == {8080}


@pytest.mark.parametrize(
    "destination",
    ["shop/api", "shop/api:http", "shop/api:80/tcp", "svc/shop/api:80", "service/shop/api", "10.96.0.80:80"],
)
def test_ways_to_name_it(ask, destination):
    assert ask("shop/web", destination) == ask("shop/web", "shop/api:80")


def test_slices_of_the_files_count_as_they_are(ask):
    (found,) = ask("shop/web", "shop/api", extra=SLICE)
    assert not found["endpoints_derived"]
    assert reasons(found) == {"api-3": "READY"}
    assert [one["port"] for one in found["endpoints"]] == [9090]


def test_internal_traffic_policy_local(ask):
    (found,) = ask("shop/web", "shop/api", internalTrafficPolicy="Local")
    assert (found["outcome"], found["traffic_policy"]) == ("allowed", "Local")
    assert reasons(found) == {"api-1": "READY", "api-2": "ELSEWHERE", "api-3": "NOT_READY"}
    (found,) = ask("shop/web", "shop/api", internalTrafficPolicy="Local", extra=SLICE)
    assert (found["outcome"], reasons(found)) == ("dropped", {"api-3": "ELSEWHERE"})


def test_without_endpoints_it_is_rejected(ask):
    (found,) = ask("shop/web", "shop/api", selector={"app": "none"})
    assert (found["outcome"], found["endpoints"]) == ("rejected", [])


def test_from_outside_each_node_answers_for_itself(ask):
    one, two = ask(OUTSIDER, "shop/api", externalTrafficPolicy="Local")
    assert [one["address"], two["address"]] == ["192.0.2.1", "192.0.2.2"]
    assert [one["outcome"], two["outcome"]] == ["allowed", "denied"]
    assert (one["masquerade"], reasons(one)["api-2"]) == (False, "ELSEWHERE")
    (found,) = ask(OUTSIDER, "192.0.2.2:30080")
    assert (found["node"], found["masquerade"], found["outcome"]) == ("n2", True, "allowed")
    # A pod of the node is inside, and its node's port serves it by Cluster.
    (found,) = ask("shop/web", "192.0.2.1:30080", externalTrafficPolicy="Local")
    assert (found["traffic_policy"], reasons(found)["api-2"]) == ("Cluster", "READY")


def test_source_ranges(ask):
    spec = {"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"]}
    ip = "203.0.113.80"
    balancer = f"""
        apiVersion: v1
        kind: Service
        metadata: {{name: api, namespace: shop}}
        spec: {json.dumps(SPEC | spec)}
        status: {{loadBalancer: {{ingress: [{{ip: {ip}}}]}}}}
    """
    for source, admitted in ((OUTSIDER, False), ("198.51.100.7", True)):
        for found in ask(source, f"{ip}:80", extra=balancer):
            assert (found["admitted"], found["outcome"] != "dropped") == (admitted, admitted)


def test_a_service_not_applied_yet_has_no_address_and_is_followed(ask):
    (found,) = ask("shop/web", "shop/api", clusterIP=None)
    assert found["outcome"] == "partly allowed"
    text = ask("shop/web", "shop/api", clusterIP=None, sessionAffinity="ClientIP", text=True)
    assert text.splitlines()[:6] == [
        "shop/web (10.244.1.2) -> Service shop/api (ClusterIP TCP 80): partly allowed",
        "  no EndpointSlice: endpoints are derived from the selector and the pods",
        "  session affinity: for 10800 s a client goes where it went before, while that serves",
        "  shop/api-1 (10.244.1.3) 8080 on n1 drawn (ready): allowed",
        "    egress   allowed by default: no policy selects the pod",
        "    ingress  allowed by default: no policy selects the pod",
    ]
    assert text.splitlines()[-1] == "  shop/api-3 (10.244.2.4) 8080 on n2 not drawn (not ready)"


def test_a_service_that_a_change_brings(ask, tmp_path):
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "new", "namespace": "shop"}}
    (tmp_path / "new.yaml").write_text(json.dumps(service | {"spec": SPEC | {"clusterIP": None}}))
    arguments = ["explain", "-f", str(tmp_path / "cluster.yaml"), "--with", str(tmp_path / "new.yaml")]
    ask("shop/web", "shop/api")
    answer = CliRunner().invoke(command_line(["explain"]), [*arguments, "-o", "json", "shop/web", "shop/new"])
    found = json.loads(answer.stdout)
    assert (found["connections"], found["services_after"][0]["outcome"]) == ([], "partly allowed")
    assert [one["before"] for one in found["changes"]] == [None, None]


@pytest.mark.parametrize(
    ("destination", "spec", "words"),
    [
        ("shop/api:81", {}, "'81' is none of its ports: such packets are rejected; its ports: 80/TCP"),
        ("10.96.0.80:81", {}, "'81' is none of its ports"),
        ("svc/shop/apii", {}, "did you mean svc/shop/api"),
        ("shop/api", {"clusterIP": "None"}, "without an address of its own"),
        ("shop/api", {"type": "ExternalName"}, "not served here"),
    ],
)
def test_a_bad_question_is_told_what_is_wrong(ask, destination, spec, words):
    with pytest.raises(Exception, match=words):
        ask("shop/web", destination, **spec)
