"""Case files, and what their steps do to a cluster's objects."""

from ipaddress import ip_address, ip_network

import pytest

from poplin.lab.conformance.case import ALL, CASES, WORLD, Question, Step, read_given
from poplin.lab.conformance.cluster import (
    addresses_of,
    collect,
    give_addresses,
    pods_of,
    resolve_blocks,
    take_step,
)
from poplin.model.errors import InvalidInputError

NETWORKS = [ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/56")]


def write(directory, text, name="some.yaml"):
    path = directory / name
    path.write_text(text)
    return path


def test_a_case_with_each_is_several(tmp_path):
    path = write(
        tmp_path,
        """
        cases:
          - name: "by $name"
            each:
              - {name: number, port: 80, open: TCP 80}
              - {name: name, port: http, open: "TCP 80, TCP 81"}
            steps:
              - apply: [{policy: x/p, spec: {ingress: [{ports: [{port: $port}]}]}}]
                expect: {$open: "* .", others: "* X"}
        """,
    )
    first, second = read_given([path]).cases
    assert [first.name, second.name] == ["by number", "by name"]
    assert first.where == "case some/by number"
    # A number stays one.
    assert first.steps[0].apply[0]["spec"]["ingress"][0]["ports"] == [{"port": 80}]
    assert second.steps[0].apply[0]["spec"]["ingress"][0]["ports"] == [{"port": "http"}]
    assert second.steps[0].expect == {"TCP 80, TCP 81": "* .", "others": "* X"}


def test_others_are_those_that_are_not_named():
    tables = Step(expect={"TCP 80, SCTP 9": "one", "others": "two"}).tables("here")
    assert tables[Question("TCP", 80)] == tables[Question("SCTP", 9)] == "one"
    assert {one for one, text in tables.items() if text == "two"} == set(ALL) - {Question("TCP", 80)}


@pytest.mark.parametrize("text", ["TCP", "TCP http", "ICMP 8", "QUIC 80", "TCP 0", "TCP 65536", ""])
def test_what_is_no_question_is_told(text):
    with pytest.raises(InvalidInputError, match="expect"):
        Step(expect={text: "* ."}).tables("here")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("cases: [{name: one, steps: [{expect: {}, wait: 1}]}]", "unknown field `wait`"),
        ("cases: [{name: one}]", "missing required field `steps`"),
        ("cases: [{name: one, steps: []}, {name: one, steps: []}]", "there are two of them"),
        ("cases: [{name: one, steps: [], each: [1]}]", "1 is no mapping"),
        ("nonsense: 1", "no apiVersion"),
    ],
)
def test_what_is_no_case_is_told(tmp_path, text, fault):
    with pytest.raises(InvalidInputError, match=fault):
        read_given([write(tmp_path, text)])


def test_objects_beside_cases_are_their_world(tmp_path):
    write(tmp_path, "cases: [{name: one, steps: []}]", "b.yaml")
    write(tmp_path, "{apiVersion: v1, kind: Namespace, metadata: {name: n}}", "a.yaml")
    given = read_given([tmp_path])
    assert [case.name for case in given.cases] == ["one"]
    assert [one["metadata"]["name"] for one in given.objects] == ["n"]


@pytest.fixture
def world():
    return collect(read_given([WORLD]).objects)


def test_a_step_makes_labels_and_deletes(world):
    closed = {"policy": "x/closed", "spec": {"podSelector": {}}}
    labels = {"pod x/a": {"tier": "front", "pod": None}, "namespace y": {"team": "one"}}
    after = take_step(world, Step(expect={}, apply=[closed], label=labels), "here")
    assert after["NetworkPolicy", "x", "closed"]["spec"] == {"podSelector": {}}
    assert after["Pod", "x", "a"]["metadata"]["labels"] == {"tier": "front"}
    assert after["Namespace", "", "y"]["metadata"]["labels"] == {"ns": "y", "team": "one"}
    assert world["Pod", "x", "a"]["metadata"]["labels"] == {"pod": "a"}
    again = take_step(after, Step(expect={}, delete=["policy x/closed", "pod x/a"]), "here")
    assert after.keys() - again.keys() == {("NetworkPolicy", "x", "closed"), ("Pod", "x", "a")}


@pytest.mark.parametrize(
    "step",
    [
        Step(expect={}, delete=["policy x/none"]),
        Step(expect={}, label={"pod w/a": {"a": "b"}}),
        Step(expect={}, apply=[{"policy": "x", "spec": {}}]),
        Step(expect={}, apply=[{"kind": "Pod"}]),
    ],
)
def test_a_step_about_what_is_not_there_is_told(world, step):
    with pytest.raises(InvalidInputError, match="here"):
        take_step(world, step, "here")


def test_words_for_addresses_become_addresses(world):
    placed = give_addresses(world, NETWORKS)
    addresses = addresses_of(placed)
    four, six = addresses["y/b"]
    spec = {
        "podSelector": {},
        "egress": [
            {"to": [{"ipBlock": {"cidr": "pods", "except": ["pod y/b"]}}, {"podSelector": {}}]},
            {"to": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.8/32"]}}]},
            {"ports": [{"port": 80}]},
        ],
    }
    first, second, third = resolve_blocks({"spec": spec}, addresses, NETWORKS, "here")["spec"]["egress"]
    assert first["to"] == [
        {"ipBlock": {"cidr": "10.244.0.0/16", "except": [f"{four}/32"]}},
        {"ipBlock": {"cidr": "fd00:10:244::/56", "except": [f"{six}/128"]}},
        {"podSelector": {}},
    ]
    assert second["to"] == [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.8/32"]}}]
    assert third == {"ports": [{"port": 80}]}
    with pytest.raises(InvalidInputError, match="here"):
        resolve_blocks(
            {"spec": {"ingress": [{"from": [{"ipBlock": {"cidr": "pod w/a"}}]}]}}, addresses, NETWORKS, "here"
        )


def test_pods_keep_their_addresses_when_others_come(world):
    placed = give_addresses(world, NETWORKS)
    newcomer = {"kind": "Pod", "metadata": {"namespace": "a", "name": "first"}, "spec": {}}
    after = give_addresses(placed | collect([newcomer]), NETWORKS)
    addresses = addresses_of(after)
    assert all(addresses[name] == given for name, given in addresses_of(placed).items())
    every = [address for some in addresses.values() for address in some]
    assert len(set(every)) == len(every) == 20
    assert all(any(ip_address(one) in network for network in NETWORKS) for one in every)


def test_the_cases_that_are_carried_along_name_pods_of_the_world(world):
    assert pods_of(world) == [f"{ns}/{pod}" for ns in "xyz" for pod in "abc"]
    given = read_given([CASES])
    assert given.objects == []
    assert all(case.steps and case.says for case in given.cases)
