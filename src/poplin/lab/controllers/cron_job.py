"""CronJobs: a Job at every time of a schedule (Kubernetes documentation, "CronJob")."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import takewhile
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import Cluster, Controller
from poplin.lab.controllers.job import find_end
from poplin.lab.controllers.object import (
    CRON_JOBS,
    JOBS,
    Json,
    Key,
    Object,
    controller_of,
    find_condition,
    format_time,
    owner_reference,
    parse_time,
)
from poplin.lab.controllers.schedule import Schedule, parse_schedule
from poplin.lab.controllers.write import Agenda, Create, Event, Outcome, Tell, Write, delete, patch_status

SCHEDULED: Final = "batch.kubernetes.io/cronjob-scheduled-timestamp"
OLDEST: Final = timedelta(days=100)
"""No missed time further back than this is looked for."""


def follow(cron_job: Object, jobs: Iterable[Object], now: datetime) -> Outcome:
    """Start the Job of the newest time that has come, if none has; forget old ones. `jobs` are its own."""
    agenda = Agenda()
    mine = sorted(jobs, key=lambda one: (one.created, one.name))
    running = [job for job in mine if find_end(job) is None]
    status: Json = {}
    try:
        schedule = parse_schedule(cron_job.spec["schedule"])
        zone: tzinfo = ZoneInfo(cron_job.spec["timeZone"]) if cron_job.spec.get("timeZone") else UTC
    except (ValueError, ZoneInfoNotFoundError) as error:
        return Outcome(
            (Tell(Event(cron_job, "UnparseableSchedule", f"unparseable schedule: {error}", warning=True)),)
        )
    if not cron_job.spec.get("suspend") and not cron_job.deleting:
        due = find_due(cron_job, schedule, zone, now)
        agenda.wake(next(schedule.times(now, zone), None))
        agenda.writes += _start(cron_job, due, mine, running) if due is not None else ()
        if due is not None and any(job.name == _job_name(cron_job, due) for job in mine):
            status["lastScheduleTime"] = format_time(due)
    agenda.writes += _forget_old(cron_job, mine)
    status["active"] = [_reference(job) for job in running] or None
    succeeded = [end for job in mine if find_condition(job.status, "Complete") and (end := find_end(job))]
    if succeeded:
        before = parse_time(cron_job.status.get("lastSuccessfulTime"))
        status["lastSuccessfulTime"] = format_time(max([*succeeded, *([before] if before else [])]))
    agenda.writes += patch_status(CRON_JOBS, cron_job, status)
    return agenda.outcome()


def find_due(cron_job: Object, schedule: Schedule, zone: tzinfo, now: datetime) -> datetime | None:
    """The newest time of the schedule that has come and not been served; None where there is none.

    One that is later than startingDeadlineSeconds is let go.
    """
    since = max(parse_time(cron_job.status.get("lastScheduleTime")) or cron_job.created, now - OLDEST)
    deadline_s = cron_job.spec.get("startingDeadlineSeconds")
    if deadline_s is not None:
        since = max(since, now - timedelta(seconds=deadline_s))
    newest = None
    for instant in takewhile(lambda instant: instant <= now, schedule.times(since, zone)):
        newest = instant
    return newest


def _start(cron_job: Object, due: datetime, mine: Sequence[Object], running: Sequence[Object]) -> list[Write]:
    """The Job of that time, unless it has been made or the concurrency policy holds it back."""
    policy = cron_job.spec.get("concurrencyPolicy", "Allow")
    if any(job.name == _job_name(cron_job, due) for job in mine) or (running and policy == "Forbid"):
        return []
    replaced = [job for job in running if policy == "Replace" and not job.deleting]
    return [*(delete(JOBS, job) for job in replaced), _make_job(cron_job, due)]


def _job_name(cron_job: Object, due: datetime) -> str:
    """It holds the time, in minutes since 1970, so there cannot be two Jobs of one time."""
    return f"{cron_job.name}-{int(due.timestamp()) // 60}"


def _make_job(cron_job: Object, due: datetime) -> Create:
    template = cron_job.spec["jobTemplate"]
    given = template.get("metadata") or {}
    name = _job_name(cron_job, due)
    metadata = {
        "name": name,
        "namespace": cron_job.namespace,
        "labels": given.get("labels") or {},
        "annotations": {**(given.get("annotations") or {}), SCHEDULED: format_time(due)},
        "ownerReferences": [owner_reference(cron_job)],
    }
    event = Event(cron_job, "SuccessfulCreate", f"Created job {name}")
    return Create(JOBS, cron_job.namespace, {"metadata": metadata, "spec": template["spec"]}, event)


def _forget_old(cron_job: Object, jobs: Sequence[Object]) -> list[Write]:
    """Finished Jobs beyond the history limits, the oldest first."""
    writes: list[Write] = []
    for kind, key, usual in (
        ("Complete", "successfulJobsHistoryLimit", 3),
        ("Failed", "failedJobsHistoryLimit", 1),
    ):
        ended = [job for job in jobs if find_condition(job.status, kind) and not job.deleting]
        surplus = len(ended) - cron_job.spec.get(key, usual)
        for job in ended[: max(0, surplus)]:
            event = Event(cron_job, "SuccessfulDelete", f"Deleted job {job.name}")
            writes.append(delete(JOBS, job, event=event))
    return writes


def _reference(job: Object) -> Json:
    return {
        "apiVersion": job.api_version,
        "kind": job.kind,
        "name": job.name,
        "namespace": job.namespace,
        "uid": job.uid,
    }


def _decide(cluster: Cluster, key: Key, now: datetime) -> Outcome:
    cron_job = cluster[CRON_JOBS].get(key)
    if cron_job is None:
        return Outcome()
    return follow(cron_job, cluster[JOBS].find("owner", cron_job.uid), now)


def _affected(_: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    if resource is CRON_JOBS:
        return (one.key,)
    reference = controller_of(one)
    return ((one.namespace, reference["name"]),) if reference and reference["kind"] == "CronJob" else ()


CRON_JOB: Final = Controller("cronjob-controller", (CRON_JOBS, JOBS), _affected, _decide)
