"""Jobs: until enough have succeeded, or too many have failed."""

import pytest

from poplin.lab.controllers.job import INDEX, format_indexes, work
from poplin.lab.controllers.object import JOBS, find_condition
from unit.lab.controllers.objects import (
    NOW,
    TEMPLATE,
    ago,
    altered,
    creates,
    deletes,
    make,
    make_pod,
    status_of,
)

POLICY = {**TEMPLATE, "spec": {**TEMPLATE["spec"], "restartPolicy": "Never"}}


def make_job(*, completions=1, parallelism=1, **more):
    spec = {
        "completions": completions, "parallelism": parallelism, "backoffLimit": 6,
        "selector": {"matchLabels": {"app": "web"}}, "template": POLICY, **more.pop("spec", {}),
    }  # fmt: skip
    status = {"startTime": ago(minutes=1), **more.pop("status", {})}
    return make(JOBS, "sum", spec=spec, status=status, **more)


def pods_of(owner, *phases, **more):
    return [
        make_pod(f"sum-{number}", node="n", phase=phase, owner=owner, created=ago(hours=1), **more)
        for number, phase in enumerate(phases)
    ]


def condition(outcome, kind):
    found = find_condition(status_of(outcome, JOBS), kind)
    return found and (found["status"], found["reason"])


@pytest.mark.parametrize(
    ("completions", "parallelism", "phases", "made", "ended"),
    [
        (1, 1, [], 1, 0),
        (5, 2, ["Succeeded", "Running"], 1, 0),
        (5, 2, ["Succeeded"] * 4, 1, 0),  # no more than are still to succeed
        (5, 4, ["Succeeded"] * 3 + ["Running"] * 3, 0, 1),
        (5, 2, ["Running"] * 3, 0, 1),
        (None, 3, ["Running"], 2, 0),
        (None, 3, ["Running", "Running", "Succeeded"], 0, 0),  # a work queue that runs dry
        (2, 0, ["Running"], 0, 1),
    ],
)
def test_how_many_run(completions, parallelism, phases, made, ended):
    owner = make_job(completions=completions, parallelism=parallelism)
    outcome = work(owner, pods_of(owner, *phases), NOW)
    assert (len(creates(outcome)), len(deletes(outcome))) == (made, ended)


def test_complete():
    owner = make_job(completions=2)
    outcome = work(owner, pods_of(owner, "Succeeded", "Succeeded"), NOW)
    assert condition(outcome, "Complete") == ("True", "CompletionsReached")
    status = status_of(outcome, JOBS)
    assert (status["succeeded"], status["completionTime"]) == (2, ago())
    assert not creates(outcome)
    # What is over is over, whatever becomes of the pods.
    assert not work(altered(owner, status=status), [], NOW).writes


def test_a_work_queue_ends_with_its_last_pod():
    owner = make_job(completions=None, parallelism=2)
    assert condition(work(owner, pods_of(owner, "Succeeded", "Running"), NOW), "Complete") is None
    assert condition(work(owner, pods_of(owner, "Succeeded", "Failed"), NOW), "Complete")


def test_failures_are_tried_again_later_and_later():
    owner = make_job()
    end = {"containerStatuses": [{"state": {"terminated": {"finishedAt": ago(seconds=15)}}}]}
    assert len(creates(work(owner, pods_of(owner, "Failed", status=end), NOW))) == 1
    outcome = work(owner, pods_of(owner, "Failed", "Failed", status=end), NOW)
    assert not creates(outcome)
    assert (outcome.again - NOW).total_seconds() == 5


def test_too_many_failures():
    owner = make_job(spec={"backoffLimit": 1})
    outcome = work(owner, pods_of(owner, "Failed", "Failed", "Running"), NOW)
    assert condition(outcome, "Failed") == ("True", "BackoffLimitExceeded")
    assert deletes(outcome) == ["sum-2"]


def test_restarts_count_where_containers_are_restarted():
    template = {**TEMPLATE, "spec": {**TEMPLATE["spec"], "restartPolicy": "OnFailure"}}
    owner = make_job(spec={"backoffLimit": 2, "template": template})
    once = pods_of(owner, "Running", status={"containerStatuses": [{"restartCount": 1}]})
    assert condition(work(owner, once, NOW), "Failed") is None
    twice = pods_of(owner, "Running", status={"containerStatuses": [{"restartCount": 2}]})
    assert condition(work(owner, twice, NOW), "Failed") == ("True", "BackoffLimitExceeded")


def test_the_deadline():
    owner = make_job(spec={"activeDeadlineSeconds": 90})
    outcome = work(owner, pods_of(owner, "Running"), NOW)
    assert (outcome.again - NOW).total_seconds() == 30
    owner = make_job(spec={"activeDeadlineSeconds": 60})
    assert condition(work(owner, pods_of(owner, "Running"), NOW), "Failed") == ("True", "DeadlineExceeded")


def test_suspended_and_resumed():
    owner = make_job(spec={"suspend": True})
    outcome = work(owner, pods_of(owner, "Running"), NOW)
    assert deletes(outcome) == ["sum-0"]
    assert condition(outcome, "Suspended") == ("True", "JobSuspended")
    assert status_of(outcome, JOBS)["startTime"] is None
    owner = altered(owner, spec={"suspend": False}, status=status_of(outcome, JOBS))
    outcome = work(owner, [], NOW)
    assert condition(outcome, "Suspended") == ("False", "JobResumed")
    assert len(creates(outcome)) == 1
    assert status_of(outcome, JOBS)["startTime"] == ago()


def test_a_finished_job_goes_at_the_end_of_its_time_to_live():
    ended = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": ago(seconds=10)}]}
    owner = make_job(
        spec={"ttlSecondsAfterFinished": 30}, status={**ended, "completionTime": ago(seconds=10)}
    )
    outcome = work(owner, [], NOW)
    assert (outcome.writes, (outcome.again - NOW).total_seconds()) == ((), 20)
    owner = make_job(spec={"ttlSecondsAfterFinished": 10}, status=ended)
    assert deletes(work(owner, [], NOW), JOBS) == ["sum"]


def test_indexed():
    owner = make_job(completions=4, parallelism=3, spec={"completionMode": "Indexed"})
    done = make_pod("a", node="n", phase="Succeeded", owner=owner, annotations={INDEX: "0"})
    twice = make_pod("b", node="n", phase="Succeeded", owner=owner, annotations={INDEX: "0"})
    busy = make_pod("c", node="n", phase="Running", owner=owner, annotations={INDEX: "2"})
    outcome = work(owner, [done, twice, busy], NOW)
    bodies = [one.body for one in creates(outcome)]
    assert [body["metadata"]["annotations"][INDEX] for body in bodies] == ["1", "3"]
    assert bodies[0]["metadata"]["generateName"] == "sum-1-"
    assert bodies[0]["spec"]["hostname"] == "sum-1"
    assert bodies[0]["spec"]["containers"][0]["env"][0]["name"] == "JOB_COMPLETION_INDEX"
    status = status_of(outcome, JOBS)
    assert (status["succeeded"], status["completedIndexes"]) == (1, "0")


@pytest.mark.parametrize(("indexes", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 4, 6, 7], "0-2,4,6-7")])
def test_indexes_as_ranges(indexes, text):
    assert format_indexes(indexes) == text
