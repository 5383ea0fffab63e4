"""Deployments: ReplicaSets from templates, rollouts, rollbacks, history and what the status says."""

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.lab.controllers.deployment import DESIRED, HASH, HISTORY, MOST, REVISION, deploy, find_bounds
from poplin.lab.controllers.object import (
    DEPLOYMENTS,
    REPLICA_SETS,
    controller_of,
    find_condition,
    format_time,
)
from unit.lab.controllers.objects import (
    NOW,
    SELECTOR,
    TEMPLATE,
    ago,
    altered,
    creates,
    deletes,
    make,
    make_deployment,
    patches,
    status_of,
)

RECREATE = {"type": "Recreate"}


def template(version):
    container = {"name": "web", "image": f"example.org/web:{version}"}
    return {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}


def replica_set(owner, number, *, replicas, available=None, revision=None, **more):
    body = template(number)
    body["metadata"] = {"labels": {"app": "web", HASH: f"h{number}"}}
    annotations = {DESIRED: str(owner.spec["replicas"]), MOST: str(owner.spec["replicas"] + 1)}
    annotations[REVISION] = str(number if revision is None else revision)
    count = replicas if available is None else available
    return make(
        REPLICA_SETS, f"web-h{number}", owner=owner, labels={"app": "web"},
        spec={"replicas": replicas, "selector": SELECTOR, "template": body},
        status={"replicas": replicas, "readyReplicas": count, "availableReplicas": count, "observedGeneration": 1},
        annotations=annotations | more.pop("annotations", {}), created=ago(hours=10 - number), **more,
    )  # fmt: skip


def decide(owner, *replica_sets, old_pods=None, taken=(), now=NOW):
    return deploy(owner, replica_sets, old_pods or {}, taken, now)


def sizes(outcome):
    """The changes of size, by name."""
    return {
        one.key[1]: one.body["spec"]["replicas"]
        for one in patches(outcome, REPLICA_SETS)
        if "replicas" in one.body.get("spec", {})
    }


def progress(outcome):
    condition = find_condition(status_of(outcome, DEPLOYMENTS), "Progressing")
    return condition and (condition["status"], condition["reason"])


def test_the_first_replica_set():
    owner = make_deployment(
        annotations={"note": "kept", "kubectl.kubernetes.io/last-applied-configuration": "{}"}
    )
    outcome = decide(owner)
    (made,) = creates(outcome, REPLICA_SETS)
    body = made.body
    digest = body["metadata"]["labels"][HASH]
    assert body["metadata"]["name"] == f"web-{digest}"
    assert body["metadata"]["labels"] == {"app": "web", HASH: digest}
    assert body["metadata"]["annotations"] == {"note": "kept", REVISION: "1", DESIRED: "3", MOST: "4"}
    assert body["spec"]["replicas"] == 3
    assert body["spec"]["selector"] == {"matchLabels": {"app": "web", HASH: digest}}
    assert body["spec"]["template"]["metadata"]["labels"][HASH] == digest
    assert body["spec"]["template"]["spec"] == TEMPLATE["spec"]
    (annotated,) = patches(outcome, DEPLOYMENTS)
    assert annotated.body == {"metadata": {"annotations": {REVISION: "1"}}}
    assert progress(outcome) == ("True", "NewReplicaSetCreated")
    assert status_of(outcome, DEPLOYMENTS)["observedGeneration"] == 1


def test_a_name_that_is_taken_leads_to_another():
    owner = make_deployment()
    (made,) = creates(decide(owner), REPLICA_SETS)
    name = made.body["metadata"]["name"]
    outcome = decide(owner, taken={name})
    assert not creates(outcome, REPLICA_SETS)
    assert status_of(outcome, DEPLOYMENTS) == {"collisionCount": 1}
    (other,) = creates(decide(altered(owner, status={"collisionCount": 1}), taken={name}), REPLICA_SETS)
    assert other.body["metadata"]["name"] != name


def test_the_replica_set_of_a_template_is_known_by_the_template():
    owner = make_deployment(template=template(1), annotations={REVISION: "1"})
    assert not creates(decide(owner, replica_set(owner, 1, replicas=3)), REPLICA_SETS)


def test_a_rollout_begins():
    owner = make_deployment(template=template(2), replicas=10)
    outcome = decide(owner, replica_set(owner, 1, replicas=10))
    (made,) = creates(outcome, REPLICA_SETS)
    assert made.body["spec"]["replicas"] == 3
    assert made.body["metadata"]["annotations"][REVISION] == "2"
    assert sizes(outcome) == {"web-h1": 8}
    (event,) = [one.event for one in patches(outcome, REPLICA_SETS) if one.event]
    assert event.message == "Scaled down replica set web-h1 from 10 to 8"


def test_a_rollback_takes_the_old_replica_set_under_a_new_revision():
    owner = make_deployment(template=template(1), annotations={REVISION: "2"})
    outcome = decide(owner, replica_set(owner, 1, replicas=0), replica_set(owner, 2, replicas=3))
    assert not creates(outcome, REPLICA_SETS)
    assert sizes(outcome) == {"web-h1": 1}
    (taken,) = [one for one in patches(outcome, REPLICA_SETS) if one.key[1] == "web-h1"]
    annotations = taken.body["metadata"]["annotations"]
    assert (annotations[REVISION], annotations[HISTORY]) == ("3", "1")
    assert patches(outcome, DEPLOYMENTS)[0].body == {"metadata": {"annotations": {REVISION: "3"}}}
    assert progress(outcome) == ("True", "ReplicaSetUpdated")


def test_recreate_waits_for_the_last_old_pod():
    owner = make_deployment(template=template(2), strategy=RECREATE)
    old = replica_set(owner, 1, replicas=3)
    begun = decide(owner, old, old_pods={old.uid: 3})
    assert creates(begun, REPLICA_SETS)[0].body["spec"]["replicas"] == 0
    assert sizes(begun) == {"web-h1": 0}
    old, new = altered(old, spec={"replicas": 0}, status={"replicas": 0}), replica_set(owner, 2, replicas=0)
    assert sizes(decide(owner, old, new, old_pods={old.uid: 1})) == {}
    assert sizes(decide(owner, old, new)) == {"web-h2": 3}


def test_a_paused_one_is_scaled_but_not_rolled_out():
    owner = make_deployment(template=template(2), replicas=5, spec={"paused": True})
    old = replica_set(owner, 1, replicas=3)
    outcome = decide(owner, old)
    assert not creates(outcome, REPLICA_SETS)
    assert sizes(outcome) == {"web-h1": 5}
    assert progress(outcome) == ("Unknown", "DeploymentPaused")


def test_scaling_alone():
    owner = make_deployment(template=template(1), replicas=7)
    held = altered(replica_set(owner, 1, replicas=3))
    held.metadata.annotations.update({DESIRED: "3", MOST: "4"})
    assert sizes(decide(owner, held)) == {"web-h1": 7}


def test_scaling_amid_a_rollout_is_shared():
    owner = make_deployment(
        template=template(2), replicas=15,
        strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}},
    )  # fmt: skip
    before = {DESIRED: "10", MOST: "13"}
    old = replica_set(owner, 1, replicas=8, annotations=before)
    new = replica_set(owner, 2, replicas=5, available=0, annotations=before)
    outcome = decide(owner, old, new)
    assert sizes(outcome) == {"web-h1": 11, "web-h2": 7}
    told = [one.body["metadata"]["annotations"] for one in patches(outcome, REPLICA_SETS)]
    assert all(one[DESIRED] == "15" and one[MOST] == "18" for one in told)


def test_history_beyond_its_limit_goes_once_the_rollout_is_complete():
    owner = make_deployment(template=template(5), spec={"revisionHistoryLimit": 2})
    old = [replica_set(owner, version, replicas=0) for version in (1, 2, 3, 4)]
    complete = decide(owner, *old, replica_set(owner, 5, replicas=3))
    assert deletes(complete, REPLICA_SETS) == ["web-h1", "web-h2"]
    under_way = decide(owner, *old, replica_set(owner, 5, replicas=3, available=2))
    assert deletes(under_way, REPLICA_SETS) == []


def test_the_status_as_kubectl_rollout_status_reads_it():
    owner = make_deployment(template=template(2), generation=7, spec={"minReadySeconds": 0})
    outcome = decide(owner, replica_set(owner, 1, replicas=1), replica_set(owner, 2, replicas=3, available=2))
    status = status_of(outcome, DEPLOYMENTS)
    counts = {key: value for key, value in status.items() if key != "conditions"}
    assert counts == {
        "replicas": 4, "updatedReplicas": 3, "readyReplicas": 3, "availableReplicas": 3,
        "unavailableReplicas": 1, "observedGeneration": 7,
    }  # fmt: skip
    assert find_condition(status, "Available")["reason"] == "MinimumReplicasAvailable"


def test_complete():
    owner = make_deployment(template=template(1))
    outcome = decide(owner, replica_set(owner, 1, replicas=3))
    assert progress(outcome) == ("True", "NewReplicaSetAvailable")
    assert outcome.again is None


def test_without_progress_the_deadline_passes():
    owner = make_deployment(template=template(1), spec={"progressDeadlineSeconds": 60})
    stuck = replica_set(owner, 1, replicas=3, available=0)
    begun = decide(owner, stuck)
    assert begun.again == NOW + timedelta(seconds=60)
    owner = altered(owner, status=status_of(begun, DEPLOYMENTS))
    waiting = decide(owner, stuck, now=NOW + timedelta(seconds=59))
    assert (waiting.again, status_of(waiting, DEPLOYMENTS)) == (NOW + timedelta(seconds=60), {})
    over = decide(owner, stuck, now=NOW + timedelta(seconds=60))
    assert progress(over) == ("False", "ProgressDeadlineExceeded")
    # One more pod is progress, whatever was said before.
    owner = altered(owner, status=status_of(over, DEPLOYMENTS))
    moving = decide(owner, replica_set(owner, 1, replicas=3, available=1), now=NOW + timedelta(seconds=61))
    assert progress(moving) == ("True", "ReplicaSetUpdated")


def test_pods_that_fail_after_the_rollout_are_no_rollout():
    owner = make_deployment(template=template(1))
    owner = altered(owner, status=status_of(decide(owner, replica_set(owner, 1, replicas=3)), DEPLOYMENTS))
    outcome = decide(owner, replica_set(owner, 1, replicas=3, available=1), now=NOW + timedelta(days=1))
    condition = find_condition(status_of(outcome, DEPLOYMENTS), "Progressing")
    assert (condition["status"], condition["reason"]) == ("True", "NewReplicaSetAvailable")
    assert find_condition(status_of(outcome, DEPLOYMENTS), "Available")["status"] == "False"


def test_one_on_its_way_out_does_nothing():
    assert not decide(make_deployment(deleting=True)).writes


class World:
    """A Deployment and its ReplicaSets, which obey at once; their pods become available when told."""

    def __init__(self, owner):
        self.owner = owner
        self.sets = {}
        self.steps = 0

    def step(self):
        self.steps += 1
        outcome = decide(self.owner, *self.sets.values(), taken=set(self.sets))
        for one in creates(outcome, REPLICA_SETS):
            spec, metadata = one.body["spec"], one.body["metadata"]
            self.sets[metadata["name"]] = make(
                REPLICA_SETS, metadata["name"], spec=spec, owner=self.owner, labels=metadata["labels"],
                annotations=metadata["annotations"], status={"observedGeneration": 1},
                created=format_time(NOW - timedelta(hours=1) + timedelta(seconds=self.steps)),
            )  # fmt: skip
        for one in patches(outcome, REPLICA_SETS):
            held = self.sets[one.key[1]]
            held.metadata.annotations.update(one.body.get("metadata", {}).get("annotations", {}))
            self.sets[one.key[1]] = altered(held, spec=one.body.get("spec", {}))
        for name in deletes(outcome, REPLICA_SETS):
            del self.sets[name]
        self.owner = altered(self.owner, status=status_of(outcome, DEPLOYMENTS))
        for one in patches(outcome, DEPLOYMENTS):
            self.owner.metadata.annotations.update(one.body["metadata"]["annotations"])
        for name, one in self.sets.items():
            # What does not serve is deleted first.
            kept = min(one.status.get("availableReplicas", 0), one.spec["replicas"])
            self.sets[name] = altered(
                one, status={"replicas": one.spec["replicas"], "availableReplicas": kept}
            )
        return bool(outcome.writes)

    def serve(self, name, count):
        one = self.sets[name]
        more = min(one.spec["replicas"], one.status.get("availableReplicas", 0) + count)
        self.sets[name] = altered(one, status={"availableReplicas": more, "readyReplicas": more})

    def count(self, key):
        return sum(one.status.get(key, 0) for one in self.sets.values())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.one_of(st.integers(0, 4), st.sampled_from(["25%", "100%"])),
    st.one_of(st.integers(0, 4), st.sampled_from(["25%", "50%"])), st.data(),
)  # fmt: skip
def test_a_rollout_keeps_its_bounds_and_ends(replicas, surge, unavailable, data):
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    world = World(make_deployment(template=template(1), replicas=replicas, strategy=strategy))
    world.step()
    for name in list(world.sets):
        world.serve(name, replicas)
    while world.step():
        pass
    for version in (2, 3):
        world.owner = altered(world.owner, spec={"template": template(version)})
        bounds = find_bounds(world.owner)
        for _ in range(200):
            changed = world.step()
            assert world.count("replicas") <= bounds.most
            assert world.count("availableReplicas") >= bounds.least
            idle = [
                name
                for name, one in world.sets.items()
                if one.spec["replicas"] > one.status["availableReplicas"]
            ]
            # The second change may come at any point of the first rollout.
            if version == 2 and data.draw(st.integers(0, 5)) == 0:
                break
            if idle:
                world.serve(data.draw(st.sampled_from(idle)), data.draw(st.integers(1, 3)))
            elif not changed:
                break
    new = next(one for one in world.sets.values() if one.spec["template"]["spec"] == template(3)["spec"])
    assert new.spec["replicas"] == world.count("replicas") == world.count("availableReplicas") == replicas
    assert find_condition(world.owner.status, "Progressing")["reason"] == "NewReplicaSetAvailable"
    assert not world.step()


@given(st.permutations([1, 2, 3, 4]))
def test_the_order_in_which_replica_sets_are_seen_does_not_matter(order):
    owner = make_deployment(template=template(3), replicas=6, uid="owner", version=1)
    sets = {
        version: replica_set(owner, version, replicas=2, uid=f"set-{version}", version=1) for version in order
    }
    seen = decide(owner, *sets.values())
    assert seen == decide(owner, *(sets[version] for version in (1, 2, 3, 4)))
    assert all(controller_of(one) for one in sets.values())


@pytest.mark.parametrize(
    "given_template", [{**TEMPLATE, "metadata": {**TEMPLATE["metadata"], "creationTimestamp": None}}]
)
def test_a_null_in_a_template_is_nothing(given_template):
    owner = make_deployment(template=given_template)
    held = replica_set(make_deployment(template=TEMPLATE), 1, replicas=3)
    held = msgspec.structs.replace(held, spec={**held.spec, "template": {**TEMPLATE}})
    held.metadata.owner_references[0]["uid"] = owner.uid
    assert not creates(decide(owner, held), REPLICA_SETS)
