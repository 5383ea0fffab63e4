"""Nodes that fall silent, taints, and pods that must leave; pods of nodes that are gone."""

from datetime import timedelta

import pytest

from poplin.lab.controllers.node_lifecycle import (
    GRACE,
    eviction_time,
    find_taints,
    last_heartbeat,
    watch_over,
)
from poplin.lab.controllers.object import LEASES, NODES, PODS
from poplin.lab.controllers.pod_garbage import collect
from poplin.lab.controllers.write import Delete
from unit.lab.controllers.objects import NOW, ago, deletes, make, make_node, make_pod, patches, running

UNREACHABLE = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": ago(seconds=100)}
FIVE_MINUTES = {
    "key": "node.kubernetes.io/unreachable",
    "operator": "Exists",
    "effect": "NoExecute",
    "tolerationSeconds": 300,
}


def lease(renewed):
    return make(LEASES, "node-1", namespace="kube-node-lease", spec={"renewTime": renewed})


def taints(outcome):
    (patched,) = patches(outcome, NODES)
    return [
        (one["key"].removeprefix("node.kubernetes.io/"), one["effect"])
        for one in patched.body["spec"]["taints"]
    ]


def test_any_sign_of_life_counts():
    node = make_node("node-1", heartbeat=ago(minutes=5))
    assert last_heartbeat(node, lease(ago(seconds=3))) == NOW - timedelta(seconds=3)
    assert last_heartbeat(node, None) == NOW - timedelta(minutes=5)
    assert last_heartbeat(make_node("new", ready="", created=ago(seconds=1)), None) == NOW - timedelta(
        seconds=1
    )


def test_a_node_that_lives_is_looked_at_again_when_it_would_be_late():
    outcome = watch_over(make_node("node-1", heartbeat=ago(seconds=5)), None, [running("a")], NOW)
    assert outcome.writes == ()
    assert outcome.again == NOW + GRACE - timedelta(seconds=5)


def test_a_silent_node():
    node = make_node("node-1", heartbeat=ago(seconds=40))
    outcome = watch_over(node, lease(ago(seconds=41)), [running("a")], NOW)
    (status,) = patches(outcome, NODES, "status")
    conditions = status.body["status"]["conditions"]
    assert {one["type"]: one["status"] for one in conditions} == dict.fromkeys(
        ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure"), "Unknown"
    )
    assert conditions[0]["reason"] == "NodeStatusUnknown"
    assert taints(outcome) == [("unreachable", "NoSchedule"), ("unreachable", "NoExecute")]
    (pod,) = patches(outcome, PODS, "status")
    assert pod.body["status"]["conditions"][0] | {"lastTransitionTime": ""} == {
        "type": "Ready", "status": "False", "reason": "NodeNotReady", "lastTransitionTime": "",
    }  # fmt: skip


def test_the_taints_are_written_only_over_the_node_as_it_was_seen():
    node = make_node("node-1", heartbeat=ago(hours=1), version=77)
    (patched,) = patches(watch_over(node, None, [], NOW), NODES)
    assert patched.document["metadata"] == {"uid": node.uid, "resourceVersion": "77"}


OTHER = {"key": "dedicated", "value": "db", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("ready", "spec", "conditions", "wanted"),
    [
        ("True", {}, [], []),
        ("False", {}, [], [("not-ready", "NoSchedule"), ("not-ready", "NoExecute")]),
        ("Unknown", {}, [], [("unreachable", "NoSchedule"), ("unreachable", "NoExecute")]),
        ("True", {"unschedulable": True}, [], [("unschedulable", "NoSchedule")]),
        ("True", {}, ["NetworkUnavailable", "MemoryPressure"],
         [("memory-pressure", "NoSchedule"), ("network-unavailable", "NoSchedule")]),
        ("True", {"taints": [OTHER, UNREACHABLE]}, [], [("dedicated", "NoSchedule")]),
    ],
)  # fmt: skip
def test_taints_follow_conditions_and_leave_others_alone(ready, spec, conditions, wanted):
    node = make_node("node-1", spec=spec)
    states = [{"type": "Ready", "status": ready}] + [{"type": kind, "status": "True"} for kind in conditions]
    found = find_taints(node, states, NOW)
    assert [(one["key"].removeprefix("node.kubernetes.io/"), one["effect"]) for one in found] == wanted


def test_a_taint_keeps_the_time_when_it_was_added():
    node = make_node("node-1", ready="Unknown", spec={"taints": [UNREACHABLE]})
    found = find_taints(node, node.status["conditions"], NOW)
    assert UNREACHABLE in found
    assert len(found) == 2


@pytest.mark.parametrize(
    ("tolerations", "after_s"),
    [
        ([], 0),
        ([{"operator": "Exists"}], None),
        ([FIVE_MINUTES], 200),
        ([FIVE_MINUTES, {**FIVE_MINUTES, "tolerationSeconds": 30}], -70),
        ([FIVE_MINUTES, {"operator": "Exists"}], 200),
        ([{**FIVE_MINUTES, "tolerationSeconds": 0}], -100),
        ([{"key": "other", "operator": "Exists"}], 0),
    ],
)
def test_patience(tolerations, after_s):
    pod = make_pod("a", node="node-1", spec={"tolerations": tolerations})
    due = eviction_time(pod, [UNREACHABLE, OTHER], NOW)
    assert due == (None if after_s is None else NOW + timedelta(seconds=after_s))


def test_evictions():
    node = make_node("node-1", ready="Unknown", heartbeat=ago(seconds=10), spec={"taints": [
        {**UNREACHABLE, "effect": "NoSchedule"}, UNREACHABLE,
    ]})  # fmt: skip
    pods = [
        make_pod("now", node="node-1"),
        make_pod("later", node="node-1", spec={"tolerations": [{**FIVE_MINUTES, "tolerationSeconds": 120}]}),
        make_pod("never", node="node-1", spec={"tolerations": [{"operator": "Exists"}]}),
        make_pod("ended", node="node-1", phase="Succeeded"),
        make_pod("going", node="node-1", deleting=True),
    ]
    outcome = watch_over(node, None, pods, NOW)
    assert deletes(outcome) == ["now"]
    assert outcome.again == NOW + timedelta(seconds=20)


def test_pods_of_a_node_that_is_gone():
    (write,) = collect("node-9", [running("a", node="node-9")])
    assert isinstance(write, Delete)
    assert (write.key, write.grace_period_s, write.unless) == (("default", "a"), 0, (NODES, ("", "node-9")))
