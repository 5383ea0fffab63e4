"""`poplin explain` offline: from YAML to what is printed."""

import json
from textwrap import dedent

import pytest
from typer.testing import CliRunner

from poplin.cli.main import command_line
from poplin.compile.policy.question import split_target

CLUSTER = """
    apiVersion: v1
    kind: Node
    metadata: {name: n1}
    status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: web, namespace: shop, labels: {app: web}}
    spec: {nodeName: n1, containers: [{ports: [{containerPort: 80, name: http}]}]}
    status: {phase: Running, podIPs: [{ip: 10.244.1.2}, {ip: "fd00::2"}]}
    ---
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: db, namespace: shop}
    spec:
      template:
        metadata: {labels: {app: db}}
        spec: {containers: [{ports: [{containerPort: 5432, name: sql}, {containerPort: 53, protocol: UDP}]}]}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: over, namespace: shop}
    spec: {}
    status: {phase: Succeeded}
"""
POLICY = """
    apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: db, namespace: shop}
    spec:
      podSelector: {matchLabels: {app: db}}
      ingress:
      - {from: [{podSelector: {matchLabels: {app: db}}}]}
      - {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: sql}]}
"""


@pytest.fixture
def files(tmp_path):
    paths = {"cluster": CLUSTER, "policy": POLICY}
    for name, text in paths.items():
        (tmp_path / name).write_text(dedent(text))
    return {name: str(tmp_path / name) for name in paths}


def run(*arguments):
    return CliRunner().invoke(command_line(["explain"]), ["explain", *arguments], catch_exceptions=False)


def ask(files, *arguments):
    answer = run("-n", "shop", "-f", files["cluster"], "-f", files["policy"], "-o", "json", *arguments)
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


@pytest.mark.parametrize(
    ("source", "destination", "allowed"),
    [
        ("web", "db:5432", True),
        ("web", "shop/db:sql/tcp", True),
        ("web", "db:sql/TCP", True),
        ("web", "db:5433", False),
        ("web", "db:5432/UDP", False),
        ("web", "db:icmp", False),
        ("db", "web:http", True),
        ("10.244.1.2", "db:5432", True),
        ("10.244.1.3", "db:5432", False),
        ("fd00::2", "db:5432", True),
        ("node/n1", "db:5432", False),
        ("node/n1", "web:80", True),
        ("web", "192.0.2.1:6443", True),
        ("web", "[fd00::9]:443", True),
    ],
)
def test_a_question_has_an_answer(files, source, destination, allowed):
    (found,) = ask(files, source, destination)["connections"]
    assert found["allowed"] is allowed


def test_a_verdict_names_policy_rule_and_reason(files):
    (found,) = ask(files, "web", "db:5432")["connections"]
    assert [one["family"] for one in found["families"]] == ["IPv4", "IPv6"]
    policy = {"kind": "NetworkPolicy", "namespace": "shop", "name": "db"}
    for family in found["families"]:
        assert family["ingress"] == {
            "allowed": True,
            "reason": "RULE",
            "message": "a rule decides",
            "tier": "default",
            "policies": [policy],
            "rule": 1,
        }
        assert (family["egress"]["reason"], family["egress"]["policies"]) == ("NOT_ISOLATED", [])
    (denied,) = ask(files, "web", "db:1")["connections"]
    assert denied["families"][0]["ingress"]["reason"] == "NO_RULE"
    assert denied["families"][0]["ingress"]["policies"] == [policy]


def test_without_a_port_every_declared_one_is_asked_for(files):
    found = ask(files, "web", "db")["connections"]
    assert [(one["protocol"], one["port"], one["allowed"]) for one in found] == [
        ("TCP", 5432, True),
        ("UDP", 53, False),
    ]


def test_text_names_the_implicit_deny(files):
    answer = run("-f", files["cluster"], "-f", files["policy"], "shop/web", "shop/db:1")
    assert answer.stdout == (
        "shop/web (10.244.1.2, fd00::2) -> shop/db TCP 1: denied\n"
        "  egress   allowed by default: no policy selects the pod\n"
        "  ingress  denied by NetworkPolicy shop/db (tier default): "
        "policies select the pod, and none of their rules allows this\n"
    )


def test_the_matrix(files):
    answer = run("--all", "-f", files["cluster"], "-f", files["policy"])
    assert answer.stdout.splitlines()[:3] == ["           1 2", "1 shop/db  · ✓", "2 shop/web ~ ·"]


def test_what_a_policy_would_change(files):
    answer = run("--all", "-f", files["cluster"], "--with", files["policy"], "-o", "json")
    (change,) = json.loads(answer.stdout)["changes"]
    assert (change["before"]["allowed"], change["after"]["allowed"]) == (True, False)
    assert (change["after"]["destination"], change["after"]["port"]) == ("shop/db", 53)
    text = run("--all", "-f", files["cluster"], "--with", files["policy"]).stdout
    assert "1 of 3 connections would change" in text
    assert "shop/web -> shop/db UDP 53: allowed, then denied" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shop/web"], "give SRC and DST, or --all"),
        (["shop/web", "shop/db:1", "--all"], "give SRC and DST, or --all"),
        (["shop/webb", "shop/db:1"], "did you mean shop/web?"),
        (["shop/over", "shop/db:1"], "has finished"),
        (["shop/web", "shop/db:0"], "'0' is no port"),
        (["shop/web", "shop/db:htp"], "its named ports: sql"),
        (["shop/web", "shop/db:1/gre"], "'gre' is no protocol with ports"),
        (["192.0.2.1", "[fd00::2]:1"], "no address of one family"),
    ],
)
def test_a_bad_question_is_told_what_is_wrong(files, arguments, words):
    with pytest.raises(Exception, match=words.replace("?", r"\?")):
        run("-f", files["cluster"], *arguments)


def test_problems_of_policies_are_told(files, tmp_path):
    (tmp_path / "policy").write_text(dedent(POLICY).replace("port: sql", "{port: 9, endPort: 3}"[1:-1]))
    answer = run("-f", files["cluster"], "-f", files["policy"], "shop/web", "shop/db:9")
    assert "NetworkPolicy shop/db: spec.ingress[1].ports[0].endPort: 3 is not a port from 9" in answer.stderr


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a/b", ("a/b", "")),
        ("a/b:80", ("a/b", "80")),
        ("a/b:80/UDP", ("a/b", "80/UDP")),
        ("10.0.0.1:80", ("10.0.0.1", "80")),
        ("fd00::1", ("fd00::1", "")),
        ("[fd00::1]", ("fd00::1", "")),
        ("[fd00::1]:80/tcp", ("fd00::1", "80/tcp")),
    ],
)
def test_targets(text, parts):
    assert split_target(text) == parts
