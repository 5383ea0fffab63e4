"""When a workload is available, and what is said of one that is not."""

import pytest

from poplin.lab.controllers.object import Object, ObjectMetadata
from poplin.lab.demo.workload import explain_pod, read_workload, workload_of


def make(kind, *, spec=None, status=None, generation=1, **metadata):
    one = Object(ObjectMetadata(name="x", namespace="ns", generation=generation, **metadata))
    one.kind, one.spec, one.status = kind, spec or {}, status or {}
    return one


READY = {"conditions": [{"type": "Ready", "status": "True"}]}


@pytest.mark.parametrize(
    ("kind", "spec", "status", "expected"),
    [
        ("Deployment", {"replicas": 2}, {"observedGeneration": 1, "availableReplicas": 2, "updatedReplicas": 2}, (2, 2)),
        ("Deployment", {"replicas": 2}, {"observedGeneration": 1, "availableReplicas": 2, "updatedReplicas": 1}, (2, 1)),
        ("Deployment", {"replicas": 2}, {"observedGeneration": 0, "availableReplicas": 2, "updatedReplicas": 2}, (2, 0)),
        ("Deployment", {"replicas": 0}, {"observedGeneration": 1, "availableReplicas": None}, (0, 0)),
        ("StatefulSet", {"replicas": 2}, {"observedGeneration": 1, "availableReplicas": 1}, (2, 1)),
        ("DaemonSet", {}, {"observedGeneration": 1, "desiredNumberScheduled": 3, "numberAvailable": 3,
                           "updatedNumberScheduled": 3}, (3, 3)),
        ("DaemonSet", {}, {}, (1, 0)),
        ("Job", {"completions": 2}, {"succeeded": 1}, (2, 1)),
        ("Job", {}, {"succeeded": 1}, (1, 1)),
        ("Pod", {}, READY, (1, 1)),
        ("Pod", {}, {"phase": "Succeeded"}, (1, 1)),
        ("Pod", {}, {"phase": "Running"}, (1, 0)),
    ],
)  # fmt: skip
def test_available_of_wanted(kind, spec, status, expected):
    workload = read_workload(make(kind, spec=spec, status=status))
    assert (workload.wanted, workload.available) == expected
    assert workload.ready == (expected[0] <= expected[1])


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({}, ""),
        (
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
                ]
            },
            "0/3 nodes are available",
        ),
        (
            {"initContainerStatuses": [{"name": "wait", "ready": False, "state": {"running": {}}}]},
            "init container wait has not ended",
        ),
        (
            {"containerStatuses": [{"name": "web", "ready": False, "state": {"running": {}}}]},
            "container web is not ready",
        ),
        (
            {"containerStatuses": [{"name": "web", "state": {"waiting": {"message": "back-off 10s"}}}]},
            "container web: back-off 10s",
        ),
    ],
)
def test_a_pod_that_is_not_ready_says_why(status, reason):
    assert explain_pod(make("Pod", status=status)) == reason


@pytest.mark.parametrize(
    ("owner", "labels", "name"),
    [
        (None, {}, "x"),
        (("ReplicaSet", "web-5d9c"), {"pod-template-hash": "5d9c"}, "web"),
        (("ReplicaSet", "lonely"), {}, "lonely"),
        (("DaemonSet", "clerk"), {"pod-template-hash": "clerk"}, "clerk"),
    ],
)
def test_a_pod_belongs_to_what_people_made(owner, labels, name):
    references = [{"kind": owner[0], "name": owner[1], "controller": True}] if owner else None
    assert workload_of(make("Pod", labels=labels, owner_references=references)) == name
