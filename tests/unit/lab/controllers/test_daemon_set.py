"""DaemonSets: one on each node that fits, and updates node by node."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.lab.controllers.daemon_set import spread, target_of
from poplin.lab.controllers.object import DAEMON_SETS, REVISIONS
from poplin.lab.controllers.revision import HASH
from unit.lab.controllers.objects import (
    NOW,
    SELECTOR,
    TEMPLATE,
    ago,
    altered,
    creates,
    deletes,
    make,
    make_node,
    make_pod,
    patches,
    running,
    status_of,
)


def make_daemon_set(*, rolling=None, strategy="RollingUpdate", template=TEMPLATE, **more):
    update = {"type": strategy}
    if strategy == "RollingUpdate":
        update["rollingUpdate"] = {"maxSurge": 0, "maxUnavailable": 1} | (rolling or {})
    spec = {"selector": SELECTOR, "template": template, "updateStrategy": update, "revisionHistoryLimit": 10}
    return make(DAEMON_SETS, "web", spec=spec | more.pop("spec", {}), **more)


def revision_of(daemon_set):
    (made,) = creates(spread(daemon_set, [], [], [], NOW), REVISIONS)
    metadata = made.body["metadata"]
    return make(
        REVISIONS, metadata["name"], labels=metadata["labels"], owner=daemon_set,
        data=made.body["data"], revision=made.body["revision"],
    )  # fmt: skip


def places(outcome):
    return [
        one.body["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ][0]["matchFields"][0]["values"][0]
        for one in creates(outcome)
    ]


def daemon(owner, node, digest, **more):
    return running(
        f"on-{node}{more.pop('suffix', '')}",
        node=node,
        owner=owner,
        labels={"app": "web", HASH: digest},
        **more,
    )


def test_a_pod_for_each_node():
    owner = make_daemon_set()
    outcome = spread(owner, [make_node("b"), make_node("a")], [], [revision_of(owner)], NOW)
    assert places(outcome) == ["a", "b"]
    keys = {(one["key"], one["effect"]) for one in creates(outcome)[0].body["spec"]["tolerations"]}
    assert keys == {
        ("node.kubernetes.io/not-ready", "NoExecute"), ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"), ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"), ("node.kubernetes.io/unschedulable", "NoSchedule"),
    }  # fmt: skip


TAINT = {"key": "dedicated", "value": "db", "effect": "NoSchedule"}
EVICTING = {**TAINT, "effect": "NoExecute"}


@pytest.mark.parametrize(
    ("node", "over", "runs", "stays"),
    [
        (make_node("n"), {}, True, True),
        (make_node("n", spec={"unschedulable": True}), {}, True, True),
        (make_node("n", spec={"taints": [TAINT]}), {}, False, True),
        (make_node("n", spec={"taints": [EVICTING]}), {}, False, False),
        (make_node("n", spec={"taints": [EVICTING]}), {"tolerations": [{"operator": "Exists"}]}, True, True),
        (make_node("n"), {"nodeSelector": {"disk": "ssd"}}, False, False),
        (make_node("n", labels={"disk": "ssd"}), {"nodeSelector": {"disk": "ssd"}}, True, True),
        (make_node("n"), {"nodeName": "m"}, False, False),
    ],
)
def test_which_nodes_fit(node, over, runs, stays):
    owner = make_daemon_set(template={**TEMPLATE, "spec": {**TEMPLATE["spec"], **over}})
    revision = revision_of(owner)
    assert bool(creates(spread(owner, [node], [], [revision], NOW))) is runs
    pod = daemon(owner, "n", revision.labels[HASH])
    outcome = spread(owner, [node], [pod], [revision], NOW)
    assert deletes(outcome) == ([] if stays else ["on-n"])
    assert status_of(outcome, DAEMON_SETS)["numberMisscheduled"] == (not runs)


def test_a_pod_that_waits_for_its_node_counts():
    owner = make_daemon_set()
    revision = revision_of(owner)
    (made,) = creates(spread(owner, [make_node("a")], [], [revision], NOW))
    pod = make_pod("new", owner=owner, labels=made.body["metadata"]["labels"], spec=made.body["spec"])
    assert target_of(pod) == "a"
    outcome = spread(owner, [make_node("a")], [pod], [revision], NOW)
    assert not creates(outcome)
    assert not deletes(outcome)


def test_one_on_its_way_out_is_waited_for():
    owner = make_daemon_set()
    revision = revision_of(owner)
    pod = daemon(owner, "a", revision.labels[HASH], deleting=True)
    assert not creates(spread(owner, [make_node("a")], [pod], [revision], NOW))


def test_a_failed_pod_is_replaced_after_a_rest():
    owner = make_daemon_set()
    revision = revision_of(owner)
    labels = {"app": "web", HASH: revision.labels[HASH]}
    failed = make_pod("f", node="a", phase="Failed", owner=owner, labels=labels, created=ago(seconds=4))
    outcome = spread(owner, [make_node("a")], [failed], [revision], NOW)
    assert not deletes(outcome)
    assert (outcome.again - NOW).total_seconds() == 6
    failed = make_pod("f", node="a", phase="Failed", owner=owner, labels=labels, created=ago(seconds=10))
    assert deletes(spread(owner, [make_node("a")], [failed], [revision], NOW)) == ["f"]


def test_of_two_on_a_node_the_elder_stays():
    owner = make_daemon_set()
    revision = revision_of(owner)
    pods = [
        daemon(owner, "a", revision.labels[HASH], suffix="-young", created=ago(minutes=1)),
        daemon(owner, "a", revision.labels[HASH], suffix="-old", created=ago(minutes=9)),
    ]
    assert deletes(spread(owner, [make_node("a")], pods, [revision], NOW)) == ["on-a-young"]


def nodes(count):
    return [make_node(f"n{number}") for number in range(count)]


def test_an_update_takes_as_many_as_may_be_unavailable():
    owner = make_daemon_set(rolling={"maxUnavailable": 2})
    revision = revision_of(owner)
    old = [daemon(owner, f"n{number}", "older") for number in range(4)]
    assert deletes(spread(owner, nodes(4), old, [revision], NOW)) == ["on-n0", "on-n1"]
    # One node has none: that is one of the two.
    assert deletes(spread(owner, nodes(4), old[1:], [revision], NOW)) == ["on-n1"]


def test_an_old_pod_that_does_not_serve_is_no_loss():
    owner = make_daemon_set()
    broken = make_pod(
        "broken", node="n1", phase="Running", ready=False, owner=owner, labels={"app": "web", HASH: "older"}
    )
    pods = [daemon(owner, "n0", "older"), broken]
    assert deletes(spread(owner, nodes(2), pods, [revision_of(owner)], NOW)) == ["broken"]


def test_a_surge_makes_the_new_one_first():
    owner = make_daemon_set(rolling={"maxSurge": 1, "maxUnavailable": 0})
    revision = revision_of(owner)
    digest = revision.labels[HASH]
    old = [daemon(owner, f"n{number}", "older") for number in range(2)]
    outcome = spread(owner, nodes(2), old, [revision], NOW)
    assert (places(outcome), deletes(outcome)) == (["n0"], [])
    fresh = make_pod(
        "fresh", node="n0", phase="Running", ready=False, owner=owner, labels={"app": "web", HASH: digest}
    )
    outcome = spread(owner, nodes(2), [*old, fresh], [revision], NOW)
    assert (places(outcome), deletes(outcome)) == ([], [])
    outcome = spread(owner, nodes(2), [*old, daemon(owner, "n0", digest, suffix="-new")], [revision], NOW)
    assert deletes(outcome) == ["on-n0"]


def test_on_delete_leaves_old_pods_alone():
    owner = make_daemon_set(strategy="OnDelete")
    outcome = spread(owner, nodes(1), [daemon(owner, "n0", "older")], [revision_of(owner)], NOW)
    assert not deletes(outcome)
    assert "updatedNumberScheduled" not in status_of(outcome, DAEMON_SETS)


def test_the_status():
    owner = make_daemon_set(generation=3)
    revision = revision_of(owner)
    pods = [daemon(owner, "n0", revision.labels[HASH]), daemon(owner, "n1", "older")]
    assert status_of(spread(owner, nodes(3), pods, [revision], NOW), DAEMON_SETS) == {
        "currentNumberScheduled": 2, "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 2,
        "numberAvailable": 2, "numberUnavailable": 1, "updatedNumberScheduled": 1, "observedGeneration": 3,
    }  # fmt: skip


def test_an_undo_takes_the_old_revision_to_the_front():
    owner = make_daemon_set()
    first = revision_of(owner)
    owner = altered(owner, spec={"template": {**TEMPLATE, "metadata": {"labels": {"app": "web", "v": "2"}}}})
    (second,) = creates(spread(owner, [], [], [first], NOW), REVISIONS)
    assert second.body["revision"] == 2
    newer = make(REVISIONS, "web-2", owner=owner, labels={"app": "web"}, data=second.body["data"], revision=2)
    owner = altered(owner, spec={"template": TEMPLATE})
    outcome = spread(owner, [], [], [first, newer], NOW)
    assert not creates(outcome, REVISIONS)
    assert patches(outcome, REVISIONS)[0].body == {"revision": 3}


OWNER = make_daemon_set(rolling={"maxUnavailable": 2}, uid="owner")
REVISION = revision_of(OWNER)
any_pod = st.builds(
    lambda number, node, phase, ready, new, deleting: make_pod(
        f"p{number}", node=f"n{node}", phase=phase, ready=ready, owner=OWNER, deleting=deleting,
        labels={"app": "web", HASH: REVISION.labels[HASH] if new else "older"}, created=ago(minutes=number),
    ),
    st.integers(0, 50), st.integers(0, 4), st.sampled_from(["Running", "Pending", "Failed"]), st.booleans(),
    st.booleans(), st.booleans(),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(any_pod, max_size=8, unique_by=lambda pod: pod.name), st.integers(1, 5), st.randoms())
def test_never_two_for_a_node_and_the_same_in_any_order(pods, count, random):
    outcome = spread(OWNER, nodes(count), pods, [REVISION], NOW)
    shuffled = list(pods)
    random.shuffle(shuffled)
    again = spread(OWNER, nodes(count), shuffled, [REVISION], NOW)
    assert [type(one) for one in again.writes] == [type(one) for one in outcome.writes]
    assert (places(again), deletes(again)) == (places(outcome), deletes(outcome))
    gone = set(deletes(outcome))
    staying = [
        pod for pod in pods if pod.name not in gone and not pod.deleting and pod.status["phase"] != "Failed"
    ]
    held = [
        pod.spec["nodeName"] for pod in staying if pod.spec["nodeName"] in {f"n{i}" for i in range(count)}
    ]
    both = held + places(outcome)
    # What is old and not to be counted as a double of the new only surges do, and this one does not surge.
    assert len(places(outcome)) == len(set(places(outcome)))
    assert not set(places(outcome)) & set(held)
    per_template = [
        (pod.spec["nodeName"], pod.labels[HASH]) for pod in staying if pod.spec["nodeName"] in both
    ]
    assert len(per_template) == len(set(per_template))
