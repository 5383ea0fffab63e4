"""The scheduler: what fits where, and what comes first."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.lab.controllers.controller import THE_CLUSTER, make_store
from poplin.lab.controllers.object import NODES, PODS
from poplin.lab.controllers.occupancy import measure
from poplin.lab.controllers.placement import sum_requests
from poplin.lab.controllers.quantity import parse_milli
from poplin.lab.controllers.scheduler import make_scheduler, schedule
from poplin.lab.controllers.taint import tolerates
from poplin.lab.controllers.write import Bind
from unit.lab.controllers.objects import (
    NOW,
    ago,
    altered,
    make_node,
    make_pod,
    make_replica_set,
    patches,
    running,
)

SSD = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd", "nvme"]}]}
WEB = {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}
ZONE = {**WEB, "topologyKey": "zone"}


def place(pending, nodes, there=()):
    """Where each pod goes, by name."""
    occupancies = {
        node.name: measure(pod for pod in there if pod.spec["nodeName"] == node.name) for node in nodes
    }
    writes = schedule(pending, nodes, occupancies, NOW)
    return {one.pod.name: one.node for one in writes if isinstance(one, Bind)}


def refusal(pod, nodes, there=()):
    occupancies = {
        node.name: measure(one for one in there if one.spec["nodeName"] == node.name) for node in nodes
    }
    writes = schedule([pod], nodes, occupancies, NOW)
    (told,) = patches(writes, PODS, "status")
    condition = told.body["status"]["conditions"][0]
    assert (condition["type"], condition["status"], condition["reason"]) == (
        "PodScheduled",
        "False",
        "Unschedulable",
    )
    assert told.event.reason == "FailedScheduling"
    return condition["message"]


def node_affinity(*terms):
    return {
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}
            }
        }
    }


def pod_affinity(kind, *terms):
    return {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}}}


def containers(*requests):
    return {
        "containers": [
            {"name": f"c{number}", "resources": {"requests": one}} for number, one in enumerate(requests)
        ]
    }


@pytest.mark.parametrize(
    ("spec", "node", "fits"),
    [
        ({}, make_node("n"), True),
        ({}, make_node("n", spec={"unschedulable": True}), False),
        ({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]},
         make_node("n", spec={"unschedulable": True}), True),
        ({}, make_node("n", spec={"taints": [{"key": "a", "effect": "NoSchedule"}]}), False),
        ({}, make_node("n", spec={"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}), True),
        ({"nodeSelector": {"disk": "ssd"}}, make_node("n"), False),
        ({"nodeSelector": {"disk": "ssd"}}, make_node("n", labels={"disk": "ssd"}), True),
        (node_affinity(SSD), make_node("n", labels={"disk": "nvme"}), True),
        (node_affinity(SSD), make_node("n", labels={"disk": "tape"}), False),
        (node_affinity(SSD, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}), make_node("n"), True),
        (node_affinity({}), make_node("n"), False),
        (node_affinity({"matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["3"]}]}),
         make_node("n", labels={"gen": "4"}), True),
        (node_affinity({"matchExpressions": [{"key": "gen", "operator": "Lt", "values": ["3"]}]}), make_node("n"), False),
        (node_affinity({"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}), make_node("n"), True),
        (node_affinity({"matchExpressions": [{"key": "gpu", "operator": "NotIn", "values": ["a"]}]}), make_node("n"), True),
        (containers({"cpu": "3500m"}, {"cpu": "500m"}), make_node("n"), True),
        (containers({"cpu": "3500m"}, {"cpu": "501m"}), make_node("n"), False),
        (containers({"memory": "8Gi"}), make_node("n"), True),
        (containers({"memory": "8590M"}), make_node("n"), False),
        (containers({"example.org/gpu": "1"}), make_node("n"), False),
        ({}, make_node("n", allocatable={"pods": "0"}), False),
    ],
)  # fmt: skip
def test_what_fits(spec, node, fits):
    assert bool(place([make_pod("a", spec=spec)], [node])) is fits


def test_what_pods_take_is_taken():
    nodes = [make_node("n", allocatable={"cpu": "1", "memory": "1Gi", "pods": "3"})]
    half = containers({"cpu": "500m"})
    there = [running("x", node="n", spec=half), make_pod("ended", node="n", phase="Succeeded", spec=half)]
    placed = place([make_pod("a", spec=half, created=ago(hours=9)), make_pod("b", spec=half)], nodes, there)
    assert placed == {"a": "n"}
    full = [*there, running("y", node="n"), running("z", node="n")]
    assert refusal(make_pod("b"), nodes, full) == "0/1 nodes are available: 1 Too many pods."


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ({"hostPort": 80}, {"hostPort": 80}, True),
        ({"hostPort": 80}, {"hostPort": 81}, False),
        ({"hostPort": 80}, {"hostPort": 80, "protocol": "UDP"}, False),
        ({"hostPort": 80, "hostIP": "10.0.0.1"}, {"hostPort": 80, "hostIP": "10.0.0.2"}, False),
        ({"hostPort": 80, "hostIP": "10.0.0.1"}, {"hostPort": 80}, True),
        ({"hostPort": 80, "hostIP": "::"}, {"hostPort": 80, "hostIP": "10.0.0.2"}, True),
        ({"containerPort": 80}, {"containerPort": 80}, False),
    ],
)
def test_host_ports(one, other, clash):
    def with_port(name, port, **more):
        return make_pod(name, spec={"containers": [{"name": "c", "ports": [port]}]}, **more)

    there = [with_port("there", other, node="n", phase="Running")]
    assert bool(place([with_port("a", one)], [make_node("n")], there)) is not clash


def test_init_containers_count_where_they_need_more():
    spec = {
        "containers": [{"resources": {"requests": {"cpu": "1"}}}],
        "initContainers": [
            {"resources": {"requests": {"cpu": "300m"}}, "restartPolicy": "Always"},
            {"resources": {"requests": {"cpu": "2"}}},
        ],
        "overhead": {"cpu": "100m"},
    }
    assert sum_requests(spec) == {"cpu": 2400, "pods": 1000}


@pytest.mark.parametrize(
    ("text", "milli"),
    [("1", 1000), ("250m", 250), ("1.5", 1500), ("2Ki", 2048000), ("1e3", 1000000), ("1E3", 1000000),
     ("1E", 10**21), ("100n", 1), (".5", 500), (2, 2000), ("3Gi", 3 * 2**30 * 1000)],
)  # fmt: skip
def test_quantities(text, milli):
    assert parse_milli(text) == milli


@pytest.mark.parametrize("text", ["", "x", "1KiB", "1 Gi", "--1"])
def test_nonsense_is_no_quantity(text):
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_milli(text)


@pytest.mark.parametrize(
    ("toleration", "covers"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "k", "operator": "Exists"}, True),
        ({"key": "k", "value": "v"}, True),
        ({"key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute"}, True),
        ({"key": "k", "value": "v", "effect": "NoSchedule"}, False),
        ({"key": "k", "value": "w"}, False),
        ({"key": "other", "operator": "Exists"}, False),
        ({}, False),
    ],
)
def test_tolerations(toleration, covers):
    assert tolerates(toleration, {"key": "k", "value": "v", "effect": "NoExecute"}) is covers


def nodes_in_zones(**zones):
    return [make_node(name, labels={"zone": zone}) for name, zone in zones.items()]


def test_apart():
    spec = pod_affinity("podAntiAffinity", WEB)
    pending = [make_pod(f"p{number}", spec=spec, created=ago(minutes=9 - number)) for number in range(3)]
    assert place(pending, [make_node("a"), make_node("b")]) == {"p0": "a", "p1": "b"}
    zones = [make_pod(f"p{number}", spec=pod_affinity("podAntiAffinity", ZONE)) for number in range(3)]
    assert len(place(zones, nodes_in_zones(a="x", b="x", c="y"))) == 2


def test_those_who_are_there_may_keep_others_away():
    hermit = running("hermit", node="a", labels={"app": "db"}, spec=pod_affinity("podAntiAffinity", WEB))
    assert place([make_pod("p")], [make_node("a"), make_node("b")], [hermit]) == {"p": "b"}
    assert place([make_pod("p", labels={"app": "db"})], [make_node("a")], [hermit]) == {"p": "a"}
    assert place([make_pod("p", namespace="other")], [make_node("a")], [hermit]) == {"p": "a"}


def test_together():
    wish = pod_affinity("podAffinity", ZONE)
    nodes = nodes_in_zones(a="x", b="y", c="y")
    there = [running("there", node="b")]
    assert place([make_pod("p", labels={}, spec=wish)], nodes, there) == {"p": "c"}
    assert refusal(make_pod("p", labels={}, spec=wish), nodes) == (
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    )
    # The first of a group that wants to be together may go anywhere, and the others follow.
    group = [make_pod(f"p{number}", spec=wish, created=ago(minutes=9 - number)) for number in range(3)]
    assert place(group, nodes) == {"p0": "a", "p1": "a", "p2": "a"}


def spread_over(key, skew=1, **more):
    return {"topologySpreadConstraints": [{"maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
                                           "labelSelector": {"matchLabels": {"app": "web"}}, **more}]}  # fmt: skip


def test_spread():
    pending = [
        make_pod(f"p{number}", spec=spread_over("zone"), created=ago(minutes=9 - number))
        for number in range(6)
    ]
    nodes = nodes_in_zones(a="x", b="y", c="y", d="z")
    zones = {node.name: node.labels["zone"] for node in nodes}
    assert Counter(zones[node] for node in place(pending, nodes).values()) == {"x": 2, "y": 2, "z": 2}
    # A full zone holds all others back.
    full = [*nodes[:3], make_node("d", labels={"zone": "z"}, allocatable={"pods": "0"})]
    assert len(place(pending, full)) == 2
    # Nodes that the pods do not want do not count.
    picky = [
        make_pod(f"p{number}", spec=spread_over("zone") | {"nodeSelector": {"zone": "x"}})
        for number in range(3)
    ]
    assert len(place(picky, nodes)) == 3
    # A soft constraint holds nothing back.
    soft = [make_pod(f"p{n}", spec=spread_over("zone", whenUnsatisfiable="ScheduleAnyway")) for n in range(6)]
    assert len(place(soft, full)) == 6


def test_priority_goes_first_then_age():
    nodes = [make_node("n", allocatable={"pods": "2"})]
    pending = [
        make_pod("young", created=ago(minutes=1)),
        make_pod("old", created=ago(minutes=9)),
        make_pod("urgent", created=ago(minutes=1), spec={"priority": 1000}),
    ]
    assert sorted(place(pending, nodes)) == ["old", "urgent"]


def test_replicas_are_spread_then_nodes_filled_evenly():
    owner = make_replica_set()
    nodes = [make_node("a"), make_node("b")]
    there = [running("mine", node="a", owner=owner), running("x", node="b"), running("y", node="b")]
    assert place([make_pod("p", owner=owner)], nodes, there) == {"p": "b"}
    assert place([make_pod("p")], nodes, there) == {"p": "a"}


def test_preferences():
    preferred = {"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}
    spec = {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}}}
    nodes = [make_node("a"), make_node("b", labels={"disk": "ssd"})]
    assert place([make_pod("p", spec=spec)], nodes) == {"p": "b"}
    apart = {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "podAffinityTerm": WEB}]}}}  # fmt: skip
    there = [running("there", node="a"), *(running(f"o{n}", node="b", labels={}) for n in range(5))]
    assert place([make_pod("p", spec=apart)], nodes, there) == {"p": "b"}
    soft = make_node("a", spec={"taints": [{"key": "k", "effect": "PreferNoSchedule"}]})
    assert place([make_pod("p")], [soft, nodes[1]], [running("there", node="b")]) == {"p": "b"}


def test_why_not_is_told_once():
    nodes = [make_node("a", spec={"unschedulable": True}), make_node("b"), make_node("c")]
    pod = make_pod("p", spec=containers({"cpu": "9"}))
    message = refusal(pod, nodes)
    assert message == "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu."
    assert refusal(make_pod("p"), []) == "no nodes available to schedule pods"
    condition = {"type": "PodScheduled", "status": "False", "message": message}
    assert not schedule([altered(pod, status={"conditions": [condition]})], nodes, {}, NOW)


def test_the_row_leaves_alone_what_is_not_its_own():
    pods, nodes = make_store(PODS), make_store(NODES)
    nodes.created(make_node("a"))
    for pod in (
        make_pod("mine"),
        make_pod("others", spec={"schedulerName": "custom"}),
        make_pod("gated", spec={"schedulingGates": [{"name": "wait"}]}),
        make_pod("going", deleting=True),
        make_pod("ended", phase="Failed"),
        running("placed", node="a"),
    ):
        pods.created(pod)
    decide = make_scheduler().decide
    cluster = {PODS: pods, NODES: nodes}
    assert [one.pod.name for one in decide(cluster, THE_CLUSTER, NOW).writes] == ["mine"]
    # The cache follows the pods of a node.
    pods.bound(("default", "mine"), pods.get(("default", "mine")).uid, "a")
    nodes.updated(altered(nodes.get(("", "a")), status={"allocatable": {"pods": "2"}}))
    pods.created(make_pod("next"))
    assert not [one for one in decide(cluster, THE_CLUSTER, NOW).writes if isinstance(one, Bind)]


some_pods = st.lists(
    st.builds(
        lambda number, cpu, priority, apart, port: make_pod(
            f"p{number}", created=ago(minutes=number), uid=f"u{number}", version=1,
            spec={
                "priority": priority, **(pod_affinity("podAntiAffinity", WEB) if apart else {}),
                "containers": [{"resources": {"requests": {"cpu": f"{cpu}m"}}, "ports": [{"hostPort": port}] if port else []}],
            },
        ),
        st.integers(0, 30), st.integers(0, 2000), st.integers(0, 2), st.booleans(), st.sampled_from([0, 0, 80, 81]),
    ),
    max_size=12, unique_by=lambda pod: pod.name,
)  # fmt: skip


@settings(deadline=None)
@given(some_pods, st.integers(1, 4), st.randoms())
def test_nothing_is_overfull_and_the_order_of_seeing_does_not_matter(pods, count, random):
    nodes = [make_node(f"n{number}", uid=f"n{number}", version=1) for number in range(count)]
    placed = place(pods, nodes)
    for node in nodes:
        there = [pod for pod in pods if placed.get(pod.name) == node.name]
        assert measure(there).requests["cpu"] <= 4000
        ports = [port["hostPort"] for pod in there for port in pod.spec["containers"][0]["ports"]]
        assert len(ports) == len(set(ports))
        if any("affinity" in pod.spec for pod in there):
            assert len(there) == 1
    shuffled, turned = list(pods), list(reversed(nodes))
    random.shuffle(shuffled)
    assert place(shuffled, turned) == placed
