"""CronJobs: one Job for each time, and no time twice."""

from datetime import timedelta

import pytest

from poplin.lab.controllers.cron_job import SCHEDULED, follow
from poplin.lab.controllers.object import CRON_JOBS, JOBS
from unit.lab.controllers.objects import NOW, TEMPLATE, ago, creates, deletes, make, status_of

ENDED = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": ago(minutes=2)}]}
BROKEN = {"conditions": [{"type": "Failed", "status": "True", "lastTransitionTime": ago(minutes=2)}]}


def make_cron_job(schedule="*/10 * * * *", **more):
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"template": TEMPLATE}}
    spec = {"schedule": schedule, "jobTemplate": template, **more.pop("spec", {})}
    return make(CRON_JOBS, "tick", spec=spec, **more)


def name_at(instant):
    return f"tick-{int(instant.timestamp()) // 60}"


def job(owner, name, *, status=None, **more):
    return make(JOBS, name, owner=owner, status=status, **more)


def test_the_job_of_the_time_that_has_come():
    owner = make_cron_job(status={"lastScheduleTime": ago(minutes=10)})
    outcome = follow(owner, [], NOW + timedelta(seconds=3))
    (made,) = creates(outcome, JOBS)
    metadata = made.body["metadata"]
    assert metadata["name"] == name_at(NOW)
    assert metadata["labels"] == {"a": "b"}
    assert metadata["annotations"] == {SCHEDULED: ago()}
    assert metadata["ownerReferences"][0]["uid"] == owner.uid
    assert made.body["spec"] == {"template": TEMPLATE}
    assert outcome.again == NOW + timedelta(minutes=10)
    # That it has been served is said only once the Job is there.
    assert status_of(outcome, CRON_JOBS) == {}
    later = follow(owner, [job(owner, name_at(NOW))], NOW + timedelta(seconds=3))
    assert not creates(later, JOBS)
    assert status_of(later, CRON_JOBS)["lastScheduleTime"] == ago()
    assert [one["name"] for one in status_of(later, CRON_JOBS)["active"]] == [name_at(NOW)]


def test_of_many_missed_times_the_newest():
    owner = make_cron_job(created=ago(hours=5))
    assert [one.body["metadata"]["name"] for one in creates(follow(owner, [], NOW), JOBS)] == [name_at(NOW)]


@pytest.mark.parametrize(
    ("spec", "late_s", "made"),
    [
        ({"startingDeadlineSeconds": 60}, 30, 1),
        ({"startingDeadlineSeconds": 60}, 90, 0),
        ({"suspend": True}, 1, 0),
        ({"timeZone": "Europe/Berlin"}, 1, 1),
    ],
)
def test_what_keeps_it_from_starting(spec, late_s, made):
    owner = make_cron_job(spec=spec)
    assert len(creates(follow(owner, [], NOW + timedelta(seconds=late_s)), JOBS)) == made


def test_a_zone_shifts_the_hours():
    owner = make_cron_job("0 13 * * *", spec={"timeZone": "Europe/Berlin"}, created=ago(minutes=5))
    assert len(creates(follow(owner, [], NOW), JOBS)) == 1


@pytest.mark.parametrize(
    ("policy", "made", "gone"), [("Allow", 1, []), ("Forbid", 0, []), ("Replace", 1, ["tick-1"])]
)
def test_concurrency(policy, made, gone):
    owner = make_cron_job(spec={"concurrencyPolicy": policy})
    outcome = follow(owner, [job(owner, "tick-1")], NOW)
    assert len(creates(outcome, JOBS)) == made
    assert deletes(outcome, JOBS) == gone


def test_histories_are_kept_to_their_limits():
    owner = make_cron_job(spec={"suspend": True})
    good = [
        job(owner, f"tick-{number}", status=ENDED, created=ago(minutes=90 - number)) for number in range(5)
    ]
    bad = [
        job(owner, f"tick-9{number}", status=BROKEN, created=ago(minutes=90 - number)) for number in range(2)
    ]
    outcome = follow(owner, [*good, *bad], NOW)
    assert deletes(outcome, JOBS) == ["tick-0", "tick-1", "tick-90"]
    assert status_of(outcome, CRON_JOBS)["lastSuccessfulTime"] == ago(minutes=2)


@pytest.mark.parametrize("spec", [{"schedule": "now and then"}, {"timeZone": "Mars/Olympus"}])
def test_nonsense_is_told(spec):
    (told,) = follow(make_cron_job(spec=spec), [], NOW).writes
    assert told.event.reason == "UnparseableSchedule"
