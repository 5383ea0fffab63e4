"""ReplicaSets: how many, whose, and which go first."""

from hypothesis import given
from hypothesis import strategies as st

from poplin.lab.controllers.object import PODS, REPLICA_SETS
from poplin.lab.controllers.replica_set import choose_victims, scale
from unit.lab.controllers.objects import (
    NOW,
    ago,
    creates,
    deletes,
    make_pod,
    make_replica_set,
    patches,
    running,
    status_of,
)


def test_missing_pods_are_made_of_the_template():
    owner = make_replica_set(replicas=2)
    first, second = creates(scale(owner, [], {}, NOW))
    assert first.body == second.body
    metadata = first.body["metadata"]
    assert metadata["generateName"] == "web-1-"
    assert metadata["labels"] == {"app": "web"}
    assert metadata["ownerReferences"] == [
        {
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": owner.uid,
            "controller": True, "blockOwnerDeletion": True,
        }
    ]  # fmt: skip
    assert first.body["spec"]["containers"][0]["image"] == "example.org/web:1"


def test_pods_that_ended_or_are_on_their_way_out_are_replaced():
    owner = make_replica_set(replicas=3)
    pods = [
        running("a", owner=owner),
        make_pod("b", owner=owner, node="node-1", phase="Failed"),
        running("c", owner=owner, deleting=True),
    ]
    assert len(creates(scale(owner, pods, {}, NOW))) == 2


def test_an_orphan_that_matches_is_adopted_and_counts():
    owner = make_replica_set(replicas=1)
    outcome = scale(owner, [running("stray")], {}, NOW)
    assert not creates(outcome)
    (adoption,) = patches(outcome, PODS)
    assert adoption.document["metadata"]["ownerReferences"][0]["uid"] == owner.uid
    assert adoption.document["metadata"]["uid"] == adoption.uid


def test_a_pod_that_no_longer_matches_is_released_and_replaced():
    owner = make_replica_set(replicas=1)
    outcome = scale(owner, [running("a", owner=owner, labels={"app": "other"})], {}, NOW)
    assert len(creates(outcome)) == 1
    (release,) = patches(outcome, PODS)
    assert release.body == {"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}}
    assert not deletes(outcome)


def test_pods_of_others_are_left_alone():
    owner, other = make_replica_set(replicas=0), make_replica_set("other")
    outcome = scale(owner, [running("a", owner=other)], {}, NOW)
    assert not deletes(outcome)
    assert not patches(outcome, PODS)


def test_one_on_its_way_out_makes_and_adopts_nothing():
    owner = make_replica_set(replicas=2, deleting=True)
    outcome = scale(owner, [running("stray")], {}, NOW)
    assert not creates(outcome)
    assert not patches(outcome, PODS)


def test_the_status_counts():
    owner = make_replica_set(replicas=3, spec={"minReadySeconds": 60}, generation=4)
    pods = [
        running("old", owner=owner),
        running("fresh", owner=owner, since=ago(seconds=10)),
        make_pod("slow", owner=owner, node="node-1", phase="Running", ready=False),
    ]
    outcome = scale(owner, pods, {}, NOW)
    assert status_of(outcome, REPLICA_SETS) == {
        "replicas": 3, "fullyLabeledReplicas": 3, "readyReplicas": 2, "availableReplicas": 1,
        "observedGeneration": 4,
    }  # fmt: skip
    # The fresh one becomes available by time alone.
    assert (outcome.again - NOW).total_seconds() == 50


def test_a_status_that_is_so_already_is_not_written():
    status = {
        "replicas": 1, "fullyLabeledReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
        "observedGeneration": 1,
    }  # fmt: skip
    owner = make_replica_set(replicas=1, status=status)
    assert not scale(owner, [running("a", owner=owner)], {}, NOW).writes


def test_the_order_in_which_pods_go():
    """Each goes before the one after it, for the reason that it is named after."""
    ordered = [
        make_pod("unassigned"),
        make_pod("pending", node="n1", phase="Pending"),
        make_pod("unready", node="n1", phase="Running", ready=False),
        running("cheap", node="n1", annotations={"controller.kubernetes.io/pod-deletion-cost": "-1"}),
        running("doubled", node="crowded", created=ago(days=9)),
        running("just-ready", node="n1", since=ago(minutes=1), created=ago(days=9)),
        running("restarted", node="n1", created=ago(days=9), status={"containerStatuses": [{"restartCount": 3}]}),
        running("young", node="n1", created=ago(minutes=5)),
        running("old", node="n1", created=ago(days=9)),
        running("dear", node="n1", annotations={"controller.kubernetes.io/pod-deletion-cost": "100"}),
    ]  # fmt: skip
    crowd = {"crowded": 5, "n1": 1}
    assert [pod.name for pod in choose_victims(reversed(ordered), crowd, 10)] == [pod.name for pod in ordered]


owner = make_replica_set(replicas=3)
some_pods = st.lists(
    st.builds(
        lambda name, phase, ready, node, deleting, mine: make_pod(
            f"pod-{name}", node=node, phase=phase, ready=ready, deleting=deleting, owner=owner if mine else None
        ),
        st.integers(0, 99), st.sampled_from(["Pending", "Running", "Failed", "Succeeded"]),
        st.sampled_from([None, True, False]), st.sampled_from(["", "n1", "n2"]), st.booleans(), st.booleans(),
    ),
    max_size=8, unique_by=lambda pod: pod.name,
)  # fmt: skip


@given(some_pods, st.integers(0, 6), st.randoms())
def test_what_is_done_depends_on_the_state_only_and_leaves_as_many_as_wanted(pods, replicas, random):
    wanting = make_replica_set(replicas=replicas, uid=owner.uid, version=1)
    outcome = scale(wanting, pods, {}, NOW)
    shuffled = list(pods)
    random.shuffle(shuffled)
    assert scale(wanting, shuffled, {}, NOW) == outcome
    active = sum(not pod.deleting and pod.status["phase"] in {"Pending", "Running"} for pod in pods)
    assert active + len(creates(outcome)) - len(deletes(outcome)) == replicas
    assert not (creates(outcome) and deletes(outcome))
