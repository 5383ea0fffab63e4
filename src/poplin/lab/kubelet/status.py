"""What is known of a pod's containers -> its status in the API. Pure.

Source: Kubernetes documentation, "Pod Lifecycle"; the phase is decided as kubelet's getPhase does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from poplin.lab.controllers.object import Json, find_condition, format_time, put_condition
from poplin.lab.kubelet.document import Pod
from poplin.model.kernel import IPAddress


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not running, for a reason in one word."""

    reason: str = "ContainerCreating"
    message: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """Running since `since` (seconds since 1970)."""

    since: float


@dataclass(frozen=True, slots=True)
class Terminated:
    """Ended with `code`, 128 and more for a signal."""

    code: int
    since: float
    ended: float
    message: str = ""


State = Waiting | Running | Terminated


@dataclass(frozen=True, slots=True)
class ContainerView:
    """One container. `last` is how it ended before; `started` whether its startup probe has passed.

    `process` is its latest process as the API has it ("NAME://ID"), "" before the first. `sidecar` is an init container that goes on running.
    """

    name: str
    image: str = ""
    state: State = Waiting()
    last: Terminated | None = None
    restarts: int = 0
    ready: bool = False
    started: bool = False
    process: str = ""
    sidecar: bool = False

    @property
    def initialized(self) -> bool:
        """As an init container: whether the next one may start."""
        if self.sidecar:
            return self.started
        return isinstance(self.state, Terminated) and self.state.code == 0


def decide_phase(restart_policy: str, init: Sequence[ContainerView], main: Sequence[ContainerView]) -> str:
    """Pending, Running, Succeeded or Failed."""
    if not all(view.initialized for view in init):
        failed = any(isinstance(v.state, Terminated) and v.state.code != 0 and not v.sidecar for v in init)
        return "Failed" if failed and restart_policy == "Never" else "Pending"
    if any(isinstance(view.state, Waiting) and view.last is None for view in main):
        return "Pending"
    if any(isinstance(view.state, Running) for view in main) or restart_policy == "Always":
        return "Running"
    if all(isinstance(view.state, Terminated) and view.state.code == 0 for view in main):
        return "Succeeded"
    return "Failed" if restart_policy == "Never" else "Running"


def make_status(
    pod: Pod,
    init: Sequence[ContainerView],
    main: Sequence[ContainerView],
    *,
    attached: bool,
    addresses: Sequence[IPAddress],
    host_addresses: Sequence[IPAddress],
    now: datetime,
) -> Json:
    """The status; `addresses` are the pod's, none before it has any. Conditions that stay keep their times."""
    phase = decide_phase(pod.restart_policy, init, main)
    status: Json = {
        "phase": phase,
        "conditions": _conditions(pod, phase, init, main, attached=attached, now=now),
        "hostIP": str(host_addresses[0]),
        "hostIPs": [{"ip": str(address)} for address in host_addresses],
        "startTime": pod.status.get("startTime") or format_time(now),
        "qosClass": pod.status.get("qosClass") or "BestEffort",
        "containerStatuses": [describe_container(view) for view in main],
    }
    if init:
        status["initContainerStatuses"] = [describe_container(view) for view in init]
    if addresses:
        status["podIP"] = str(addresses[0])
        status["podIPs"] = [{"ip": str(address)} for address in addresses]
    return status


def _conditions(
    pod: Pod,
    phase: str,
    init: Sequence[ContainerView],
    main: Sequence[ContainerView],
    *,
    attached: bool,
    now: datetime,
) -> list[Json]:
    unready = [view.name for view in main if not view.ready]
    uninitialized = [view.name for view in init if not view.initialized]
    gates = [gate["conditionType"] for gate in pod.spec.get("readinessGates") or ()]
    closed = [gate for gate in gates if (find_condition(pod.status, gate) or {}).get("status") != "True"]
    done = "PodCompleted" if phase == "Succeeded" else "PodFailed" if phase == "Failed" else ""
    names = f"containers with unready status: [{' '.join(unready)}]"
    told: list[tuple[str, bool, str, str]] = [
        ("PodReadyToStartContainers", attached, "", ""),
        (
            "Initialized",
            not uninitialized,
            "ContainersNotInitialized",
            f"containers with incomplete status: [{' '.join(uninitialized)}]",
        ),
        ("ContainersReady", not unready, done or "ContainersNotReady", "" if done else names),
        (
            "Ready",
            not unready and not closed,
            done or ("ContainersNotReady" if unready else "ReadinessGatesNotReady"),
            "" if done else names if unready else f"conditions that are not True: {' '.join(closed)}",
        ),
        ("PodScheduled", True, "", ""),
    ]
    conditions: list[Json] = list(pod.status.get("conditions") or ())
    for kind, holds, reason, message in told:
        conditions = put_condition(conditions, _condition(kind, holds, reason, message, now))
    return conditions


def _condition(kind: str, holds: bool, reason: str, message: str, now: datetime) -> Json:
    condition: Json = {
        "type": kind,
        "status": "True" if holds else "False",
        "lastTransitionTime": format_time(now),
    }
    if not holds and reason:
        condition |= {"reason": reason, "message": message}
    return condition


def describe_container(view: ContainerView) -> Json:
    """A ContainerStatus (API reference, "PodStatus")."""
    described: Json = {
        "name": view.name,
        "image": view.image,
        "imageID": "",
        "ready": view.ready,
        "started": view.started,
        "restartCount": view.restarts,
        "state": _describe_state(view.state),
        "lastState": _describe_state(view.last) if view.last else {},
    }
    if view.process:
        described["containerID"] = view.process
    return described


def _describe_state(state: State) -> Json:
    match state:
        case Waiting(reason, message):
            return {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        case Running(since):
            return {"running": {"startedAt": _instant(since)}}
        case Terminated(code, since, ended, message):
            ending: Json = {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "startedAt": _instant(since),
                "finishedAt": _instant(ended),
            }
            return {"terminated": ending | ({"message": message} if message else {})}


def read_terminated(described: Mapping[str, Any]) -> Terminated | None:
    """The `terminated` of a state that `describe_container` wrote, None for another state."""
    ending = described.get("terminated")
    if not ending:
        return None
    since, ended = (datetime.fromisoformat(ending[key]).timestamp() for key in ("startedAt", "finishedAt"))
    return Terminated(int(ending["exitCode"]), since, ended, ending.get("message", ""))


def _instant(seconds: float) -> str:
    return format_time(datetime.fromtimestamp(seconds, UTC))
