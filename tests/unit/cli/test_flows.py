"""Flows as lines of text."""

import pytest

from poplin.cli import flows
from poplin.cli.flows import describe
from poplin.cli.output import Format
from poplin.model.flow import FlowVerdict

BASE = {
    "time": 0,
    "verdict": "denied",
    "source": {"address": "10.0.0.1", "namespace": "x", "name": "a"},
    "destination": {"address": "10.0.0.2", "namespace": "", "name": ""},
    "protocol": "TCP",
    "port": 80,
    "rulings": [
        {"direction": "ingress", "policy": "NetworkPolicy y/p", "rule": None, "reason": "none allows"}
    ],
    "count": 1,
}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "x/a -> 10.0.0.2 TCP 80  ingress by NetworkPolicy y/p: none allows"),
        ({"count": 3}, "none allows [dim](3 times)"),
        ({"protocol": "ICMP", "port": 0}, "10.0.0.2 ICMP  ingress"),
        ({"source": {"address": "192.0.2.1", "namespace": "", "name": "n1"}}, "node/n1 -> 10.0.0.2"),
        ({"service": {"address": "10.96.0.1", "port": 443}}, "TCP 80 (asked for 10.96.0.1 443)"),
        (
            {
                "rulings": [
                    {"direction": "egress", "policy": "", "rule": None, "reason": "not isolated"},
                    {"direction": "ingress", "policy": "NetworkPolicy y/p", "rule": 2, "reason": "a rule"},
                ]
            },
            "egress: not isolated; ingress by NetworkPolicy y/p rule 2: a rule",
        ),
    ],
)
def test_a_flow_is_a_line(change, text):
    assert text in describe(BASE | change)


def test_what_was_lost_is_said():
    assert "at least 12 flows were not told" in describe({"lost": 12})


@pytest.mark.parametrize(
    ("pod", "told"),
    [("", 3), ("x/a", 2), ("10.0.0.2", 3), ("10.0.0.1", 2), ("y/a", 1), ("node/n1", 2)],
)
def test_only_a_pods_flows_are_shown(monkeypatch, capsys, tmp_path, pod, told):
    asked = []
    other = BASE | {"source": {"address": "192.0.2.1", "namespace": "", "name": "n1"}}

    def read_lines(_run_dir, path, *, endless):
        asked.append((path, endless))
        return iter([BASE, other, {"lost": 1}])

    monkeypatch.setattr(flows, "read_lines", read_lines)
    flows.flows([FlowVerdict.DENIED], follow=True, pod=pod, run_dir=tmp_path, output=Format.JSON)
    assert len(capsys.readouterr().out.splitlines()) == told
    assert asked == [("/flows?verdict=denied&follow=true", True)]
