"""Jobs: pods until enough of them have succeeded.

Source: Kubernetes documentation, "Jobs" and "Automatic Cleanup for Finished Jobs". Successes and failures are
counted among the pods that exist, so finished pods that someone deletes are run again. Pod failure policies,
success policies and backoff limits by index are not looked at.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import Cluster, Controller
from poplin.lab.controllers.object import (
    JOBS,
    PODS,
    Json,
    Key,
    Object,
    find_condition,
    format_time,
    parse_time,
    put_condition,
)
from poplin.lab.controllers.ownership import candidates, claim, owners
from poplin.lab.controllers.pod import is_active, is_ready, make_pod, restarts
from poplin.lab.controllers.write import Agenda, Event, Outcome, Write, delete, patch_status

INDEX: Final = "batch.kubernetes.io/job-completion-index"
FIRST_BACKOFF: Final = timedelta(seconds=10)
LONGEST_BACKOFF: Final = timedelta(minutes=6)


@dataclass(slots=True)
class Tally:
    """A job's pods, by what has become of them. With an index only one success of each counts."""

    active: list[Object] = field(default_factory=list)
    failed: list[Object] = field(default_factory=list)
    succeeded: int = 0
    done: set[int] = field(default_factory=set)


def work(job: Object, pods: Iterable[Object], now: datetime) -> Outcome:
    """Run what is missing, end what must end, and tell the state. `pods` are its own and those without a controller."""
    agenda = Agenda()
    ended = find_end(job)
    if ended is not None:
        return _clean_up(job, ended, now)
    mine, agenda.writes = claim(job, PODS, pods, fits=is_active)
    tally = count(job, mine)
    status: dict[str, Any] = {"startTime": job.status.get("startTime") or format_time(now)}
    conditions: list[Json] = list(job.status.get("conditions") or ())
    if _is_complete(job, tally):
        conditions = _put(
            conditions, "Complete", "CompletionsReached", "Reached expected number of succeeded pods", now
        )
        status["completionTime"] = format_time(now)
        agenda.writes += _stop(job, tally.active)
    elif failure := _find_failure(job, tally, agenda, status["startTime"], now):
        conditions = _put(conditions, "Failed", *failure, now)
        agenda.writes += _stop(job, tally.active)
    elif job.spec.get("suspend"):
        status["startTime"] = None
        conditions = _put(conditions, "Suspended", "JobSuspended", "Job suspended", now)
        agenda.writes += _stop(job, tally.active)
    else:
        if find_condition(job.status, "Suspended"):
            conditions = _put(conditions, "Suspended", "JobResumed", "Job resumed", now, status="False")
        agenda.writes += _run(job, tally, agenda, now)
    ended_now = any(one["type"] in {"Complete", "Failed"} for one in conditions)
    status |= {
        "active": None if ended_now else len(tally.active) or None,
        "ready": 0 if ended_now else sum(map(is_ready, tally.active)),
        "succeeded": tally.succeeded or None,
        "failed": len(tally.failed) or None,
        "conditions": conditions or None,
    }
    if _is_indexed(job):
        status["completedIndexes"] = format_indexes(tally.done)
    agenda.writes += patch_status(JOBS, job, status)
    return agenda.outcome()


def find_end(job: Object) -> datetime | None:
    """When the job completed or failed; None while it has not."""
    for kind in ("Complete", "Failed"):
        condition = find_condition(job.status, kind)
        if condition is not None and condition["status"] == "True":
            return parse_time(job.status.get("completionTime") or condition["lastTransitionTime"])
    return None


def count(job: Object, mine: Iterable[Object]) -> Tally:
    """Sort the job's pods by their state."""
    tally = Tally()
    for pod in mine:
        phase = pod.status.get("phase")
        if phase == "Succeeded":
            index = index_of(pod)
            if not _is_indexed(job):
                tally.succeeded += 1
            elif index is not None and index < job.spec.get("completions", 0):
                tally.done.add(index)
        elif phase == "Failed":
            tally.failed.append(pod)
        elif not pod.deleting:
            tally.active.append(pod)
    if _is_indexed(job):
        tally.succeeded = len(tally.done)
    return tally


def index_of(pod: Object) -> int | None:
    """The completion index of a pod; None without one."""
    text = pod.annotations.get(INDEX, "")
    return int(text) if text.isdecimal() else None


def format_indexes(indexes: Iterable[int]) -> str:
    """Indexes as ranges: "0-2,4"."""
    ranges: list[list[int]] = []
    for index in sorted(indexes):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _is_indexed(job: Object) -> bool:
    return bool(job.spec.get("completionMode") == "Indexed")


def _is_complete(job: Object, tally: Tally) -> bool:
    completions = job.spec.get("completions")
    if completions is None:
        # A work queue: one success means that there is no more work, once the others have ended too.
        return tally.succeeded > 0 and not tally.active
    return tally.succeeded >= int(completions)


def _find_failure(
    job: Object, tally: Tally, agenda: Agenda, started: str, now: datetime
) -> tuple[str, str] | None:
    """Reason and message, where the job has failed."""
    limit = job.spec.get("backoffLimit", 6)
    retried = sum(map(restarts, tally.active))
    again = (job.spec["template"].get("spec") or {}).get("restartPolicy") == "OnFailure"
    if len(tally.failed) > limit or (again and retried > 0 and retried >= limit):
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    deadline_s = job.spec.get("activeDeadlineSeconds")
    begun = parse_time(started)
    if deadline_s is not None and begun is not None and not job.spec.get("suspend"):
        deadline = begun + timedelta(seconds=deadline_s)
        if deadline <= now:
            return "DeadlineExceeded", "Job was active longer than specified deadline"
        agenda.wake(deadline)
    return None


def _run(job: Object, tally: Tally, agenda: Agenda, now: datetime) -> list[Write]:
    """Pods up to the parallelism, and no more than are still to succeed; after failures, not at once."""
    parallelism, completions = job.spec.get("parallelism", 1), job.spec.get("completions")
    if completions is None:
        wanted = parallelism if not tally.succeeded else min(parallelism, len(tally.active))
    else:
        wanted = min(parallelism, completions - tally.succeeded)
    surplus = len(tally.active) - wanted
    if surplus > 0:
        weakest = sorted(tally.active, key=lambda pod: (is_ready(pod), -pod.created.timestamp(), pod.name))
        return _stop(job, weakest[:surplus])
    due = find_retry(tally.failed)
    if due is not None and due > now:
        agenda.wake(due)
        return []
    missing = -surplus
    if not _is_indexed(job):
        return [make_pod(job, job.spec["template"]) for _ in range(missing)]
    busy = tally.done | {index for pod in tally.active if (index := index_of(pod)) is not None}
    free = [index for index in range(int(completions or 0)) if index not in busy]
    return [_make_indexed(job, index) for index in free[:missing]]


def find_retry(failed: Sequence[Object]) -> datetime | None:
    """When the next pod may start after these failures: 10 s after the last one, then twice that, and so on."""
    if not failed:
        return None
    wait: timedelta = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(len(failed) - 1, 10))
    return max(map(_finished_at, failed)) + wait


def _finished_at(pod: Object) -> datetime:
    ends = [
        parse_time((one.get("state", {}).get("terminated") or {}).get("finishedAt"))
        for one in pod.status.get("containerStatuses") or ()
    ]
    return max((end for end in ends if end is not None), default=pod.created)


def _make_indexed(job: Object, index: int) -> Write:
    """A pod that knows its index: by annotation, label, host name and JOB_COMPLETION_INDEX."""
    template = job.spec["template"]
    spec = template.get("spec") or {}
    path = f"metadata.annotations['{INDEX}']"
    variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"fieldPath": path}}}
    over: dict[str, Any] = {"hostname": f"{job.name}-{index}"}
    for key in ("containers", "initContainers"):
        if key in spec:
            over[key] = [{**one, "env": [*(one.get("env") or ()), variable]} for one in spec[key]]
    mark: Mapping[str, str] = {INDEX: str(index)}
    return make_pod(job, template, labels=mark, annotations=mark, spec=over, prefix=f"{job.name}-{index}-")


def _stop(job: Object, active: Iterable[Object]) -> list[Write]:
    return [
        delete(PODS, pod, event=Event(job, "SuccessfulDelete", f"Deleted pod: {pod.name}")) for pod in active
    ]


def _put(
    conditions: list[Json], kind: str, reason: str, message: str, now: datetime, *, status: str = "True"
) -> list[Json]:
    present = find_condition({"conditions": conditions}, kind)
    if present is not None and present["status"] == status:
        return conditions
    instant = format_time(now)
    condition = {"type": kind, "status": status, "reason": reason, "message": message}
    return put_condition(conditions, condition | {"lastProbeTime": instant, "lastTransitionTime": instant})


def _clean_up(job: Object, ended: datetime, now: datetime) -> Outcome:
    """Delete a finished job at the end of its time to live."""
    lifetime_s = job.spec.get("ttlSecondsAfterFinished")
    if lifetime_s is None or job.deleting:
        return Outcome()
    due = ended + timedelta(seconds=lifetime_s)
    return Outcome((delete(JOBS, job),)) if due <= now else Outcome((), due)


def _decide(cluster: Cluster, key: Key, now: datetime) -> Outcome:
    job = cluster[JOBS].get(key)
    if job is None or job.deleting:
        return Outcome()
    return work(job, candidates(cluster, PODS, job), now)


def _affected(cluster: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    return (one.key,) if resource is JOBS else owners(cluster, JOBS, one)


JOB: Final = Controller("job-controller", (JOBS, PODS), _affected, _decide)
