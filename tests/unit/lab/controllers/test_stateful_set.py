"""StatefulSets: names, order, and updates from the top."""

from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.lab.controllers.object import CLAIMS, REVISIONS, STATEFUL_SETS
from poplin.lab.controllers.revision import HASH
from poplin.lab.controllers.stateful_set import order
from unit.lab.controllers.objects import (
    NOW,
    SELECTOR,
    TEMPLATE,
    altered,
    creates,
    deletes,
    make,
    make_pod,
    running,
    status_of,
)


def make_stateful_set(*, replicas=3, policy="OrderedReady", partition=0, **more):
    spec = {
        "replicas": replicas, "selector": SELECTOR, "template": TEMPLATE, "serviceName": "web",
        "podManagementPolicy": policy, "revisionHistoryLimit": 10,
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}},
    }  # fmt: skip
    return make(STATEFUL_SETS, "web", spec=spec | more.pop("spec", {}), **more)


def revision_of(owner, number=1):
    (made,) = creates(order(owner, [], [], [], NOW), REVISIONS)
    metadata = made.body["metadata"]
    return make(
        REVISIONS,
        metadata["name"],
        labels=metadata["labels"],
        owner=owner,
        data=made.body["data"],
        revision=number,
    )


def member(owner, ordinal, revision, *, ready=True, **more):
    labels = {"app": "web", HASH: revision if isinstance(revision, str) else revision.name}
    return make_pod(
        f"web-{ordinal}", node="n", phase="Running", ready=ready, owner=owner, labels=labels, **more
    )


def names(outcome):
    return [one.body["metadata"]["name"] for one in creates(outcome)]


def decide(owner, pods, revisions, claims=()):
    return order(owner, pods, revisions, claims, NOW)


def test_in_order_one_comes_after_the_other_is_ready():
    owner = make_stateful_set()
    revision = revision_of(owner)
    assert names(decide(owner, [], [revision])) == ["web-0"]
    assert names(decide(owner, [member(owner, 0, revision, ready=False)], [revision])) == []
    assert names(decide(owner, [member(owner, 0, revision)], [revision])) == ["web-1"]
    # A gap is closed before anything else.
    pods = [member(owner, 0, revision), member(owner, 2, revision)]
    assert names(decide(owner, pods, [revision])) == ["web-1"]


def test_in_parallel_all_come_at_once():
    owner = make_stateful_set(policy="Parallel")
    assert names(decide(owner, [], [revision_of(owner)])) == ["web-0", "web-1", "web-2"]


def test_ordinals_may_start_elsewhere():
    owner = make_stateful_set(policy="Parallel", replicas=2, spec={"ordinals": {"start": 5}})
    assert names(decide(owner, [], [revision_of(owner)])) == ["web-5", "web-6"]


def test_a_pod_has_its_identity():
    claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
    owner = make_stateful_set(spec={"volumeClaimTemplates": [claim]})
    revision = revision_of(owner)
    outcome = decide(owner, [], [revision])
    body = creates(outcome)[0].body
    assert body["metadata"]["labels"] == {
        "app": "web", "statefulset.kubernetes.io/pod-name": "web-0", "apps.kubernetes.io/pod-index": "0",
        HASH: revision.name,
    }  # fmt: skip
    assert (body["spec"]["hostname"], body["spec"]["subdomain"]) == ("web-0", "web")
    assert body["spec"]["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}}]
    (made,) = creates(outcome, CLAIMS)
    assert made.body["metadata"]["name"] == "data-web-0"
    assert made.body["metadata"]["labels"] == {"app": "web"}
    assert "ownerReferences" not in made.body["metadata"]
    assert not creates(decide(owner, [], [revision], claims=["data-web-0"]), CLAIMS)


def test_the_last_goes_first_and_one_at_a_time():
    owner = make_stateful_set(replicas=1)
    revision = revision_of(owner)
    pods = [member(owner, ordinal, revision) for ordinal in range(3)]
    assert deletes(decide(owner, pods, [revision])) == ["web-2"]
    pods[2] = member(owner, 2, revision, deleting=True)
    assert deletes(decide(owner, pods, [revision])) == []
    parallel = altered(owner, spec={"podManagementPolicy": "Parallel"})
    assert deletes(decide(parallel, pods[:2], [revision])) == ["web-1"]


def test_a_pod_that_ended_is_made_anew():
    owner = make_stateful_set(replicas=1)
    revision = revision_of(owner)
    labels = {"app": "web", HASH: revision.name}
    ended = make_pod("web-0", node="n", phase="Failed", owner=owner, labels=labels)
    outcome = decide(owner, [ended], [revision])
    assert (deletes(outcome), names(outcome)) == (["web-0"], [])


def test_an_update_goes_from_the_top_and_waits():
    owner = make_stateful_set(status={"currentRevision": "web-old"})
    revision = revision_of(owner)
    pods = [member(owner, ordinal, "web-old") for ordinal in range(3)]
    assert deletes(decide(owner, pods, [revision])) == ["web-2"]
    pods[2] = member(owner, 2, revision, ready=False)
    assert deletes(decide(owner, pods, [revision])) == []
    pods[2] = member(owner, 2, revision)
    outcome = decide(owner, pods, [revision])
    assert deletes(outcome) == ["web-1"]
    status = status_of(outcome, STATEFUL_SETS)
    assert (status["updateRevision"], status["updatedReplicas"], status["currentReplicas"]) == (
        revision.name,
        1,
        2,
    )


def test_an_update_ends_with_the_current_revision():
    owner = make_stateful_set(status={"currentRevision": "web-old"})
    revision = revision_of(owner)
    pods = [member(owner, ordinal, revision) for ordinal in range(3)]
    status = status_of(decide(owner, pods, [revision]), STATEFUL_SETS)
    assert (status["currentRevision"], status["currentReplicas"]) == (revision.name, 3)


def test_below_the_partition_the_current_revision_stays():
    owner = make_stateful_set(partition=2)
    old = revision_of(owner)
    changed = {**TEMPLATE, "spec": {"containers": [{"name": "web", "image": "example.org/web:2"}]}}
    owner = altered(owner, spec={"template": changed}, status={"currentRevision": old.name})
    new = revision_of(owner, 2)
    pods = [member(owner, ordinal, old) for ordinal in range(3)]
    assert deletes(decide(owner, pods, [old, new])) == ["web-2"]
    assert deletes(decide(owner, [*pods[:2], member(owner, 2, new)], [old, new])) == []
    (made,) = creates(decide(owner, [pods[0], member(owner, 2, new)], [old, new]))
    assert made.body["metadata"]["labels"][HASH] == old.name
    assert made.body["spec"]["containers"][0]["image"] == "example.org/web:1"


def test_only_pods_with_such_names_are_adopted():
    owner = make_stateful_set(replicas=1)
    outcome = decide(owner, [running("web-0x"), running("other"), running("web-00")], [revision_of(owner)])
    assert [type(one).__name__ for one in outcome.writes] == ["Create", "Patch"]


def test_on_delete_waits_for_someone_to_delete():
    owner = make_stateful_set(replicas=1, spec={"updateStrategy": {"type": "OnDelete"}})
    assert not deletes(decide(owner, [member(owner, 0, "web-old")], [revision_of(owner)]))


def test_the_status():
    owner = make_stateful_set(generation=2)
    revision = revision_of(owner)
    pods = [member(owner, 0, revision), member(owner, 1, revision, ready=False)]
    assert status_of(decide(owner, pods, [revision]), STATEFUL_SETS) == {
        "replicas": 2, "readyReplicas": 1, "availableReplicas": 1, "currentReplicas": 2, "updatedReplicas": 2,
        "currentRevision": revision.name, "updateRevision": revision.name, "observedGeneration": 2,
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), st.integers(0, 4), st.sampled_from(["OrderedReady", "Parallel"]), st.data())
def test_from_any_size_to_any_other_no_name_is_there_twice_and_the_order_holds(first, last, policy, data):
    owner = make_stateful_set(replicas=first, policy=policy)
    revision = revision_of(owner)
    pods = {ordinal: member(owner, ordinal, revision) for ordinal in range(first)}
    owner = altered(owner, spec={"replicas": last})
    for _ in range(60):
        outcome = decide(owner, pods.values(), [revision])
        for name in deletes(outcome):
            ordinal = int(name.removeprefix("web-"))
            assert policy == "Parallel" or ordinal == max(pods)
            del pods[ordinal]
        for name in names(outcome):
            ordinal = int(name.removeprefix("web-"))
            assert ordinal not in pods
            assert policy == "Parallel" or set(pods) >= set(range(ordinal))
            pods[ordinal] = member(owner, ordinal, revision, ready=False)
        waiting = [
            ordinal for ordinal, pod in pods.items() if pod.status["conditions"][0]["status"] == "False"
        ]
        assert policy == "Parallel" or len(waiting) <= 1
        if waiting:
            ordinal = data.draw(st.sampled_from(waiting))
            pods[ordinal] = member(owner, ordinal, revision)
    assert sorted(pods) == list(range(last))
