"""What a lab is like now: its nodes, pods and processes, from the API and from its init."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from poplin.datastore.client import ApiClient
from poplin.datastore.kubeconfig import find_access
from poplin.lab.controllers.object import NODES, PODS, Json, Object, find_condition
from poplin.lab.directory import Directory
from poplin.lab.message import ProcessState, Question
from poplin.lab.runtime import ask
from poplin.lab.settings import Settings
from poplin.model.errors import PoplinError, TemporaryError

POLL_S = 0.03


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A node; `reason` says why it is not ready, "" where it is."""

    name: str
    ready: bool
    reason: str
    addresses: Sequence[str]
    pod_cidrs: Sequence[str]


@dataclass(frozen=True, slots=True)
class PodReport:
    """A pod on a node of the lab. `ready` counts containers."""

    namespace: str
    name: str
    node: str
    phase: str
    ready: str
    addresses: Sequence[str]


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """A daemon of the lab; `running` False where it is about to be started again."""

    name: str
    pid: int
    running: bool


@dataclass(frozen=True, slots=True)
class LabReport:
    """A lab. `problem` says why part of it is not known, "" where all is."""

    name: str
    kubeconfig: str
    nodes: Sequence[NodeReport]
    pods: Sequence[PodReport]
    processes: Sequence[ProcessReport]
    problem: str = ""

    @property
    def ready(self) -> bool:
        """Whether all that should run does."""
        processes = all(process.running for process in self.processes)
        return not self.problem and processes and all(node.ready for node in self.nodes)


class ObjectList(msgspec.Struct):
    """A List of anything."""

    items: list[Object]


def kubeconfig_path(directory: Directory, settings: Settings) -> Path:
    """The kubeconfig that people use."""
    return Path(settings.kubeconfig) if settings.kubeconfig else directory.kubeconfig


def report_lab(directory: Directory, settings: Settings) -> LabReport:
    """The lab as it is now; what cannot be asked is told as its problem."""
    problems: list[str] = []
    processes: list[ProcessState] = []
    nodes: list[Object] = []
    pods: list[Object] = []
    try:
        processes = ask(directory.socket, Question(0))
        nodes, pods = asyncio.run(_read(kubeconfig_path(directory, settings)))
    except PoplinError as error:
        problems.append(str(error))
    names = settings.node_names()
    known = {node.name: node for node in nodes}
    return LabReport(
        name=settings.name,
        kubeconfig=str(kubeconfig_path(directory, settings)),
        nodes=[_report_node(name, known.get(name)) for name in names] if settings.kubelet else [],
        pods=[_report_pod(pod) for pod in pods if pod.spec.get("nodeName") in names],
        processes=[ProcessReport(s.id, s.pid, s.code is None) for s in processes if "/" not in s.id],
        problem="; ".join(problems),
    )


def wait_until_ready(directory: Directory, settings: Settings, timeout_s: float) -> None:
    """Return when every node is ready. Raises TemporaryError, saying which is not and why."""
    asyncio.run(_wait_until_ready(directory, settings, timeout_s))


async def _wait_until_ready(directory: Directory, settings: Settings, timeout_s: float) -> None:
    names = settings.node_names()
    unready = [_report_node(name, None) for name in names]
    async with ApiClient(find_access({}, kubeconfig=kubeconfig_path(directory, settings))) as client:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while unready:
                    await asyncio.sleep(POLL_S)
                    known = {node.name: node for node in await _list(client, NODES.path())}
                    reports = [_report_node(name, known.get(name)) for name in names]
                    unready = [report for report in reports if not report.ready]
    if unready:
        node = unready[0]
        word = last_line(directory.log(f"agent-{node.name}"))
        raise TemporaryError(
            f"{len(unready)} of {len(names)} nodes are not ready after {timeout_s:g} s; {node.name}: {node.reason}"
            + (f"; its agent's last word: {word}" if word else ""),
            where=f"lab {settings.name}",
        )


def last_line(log: Path) -> str:
    """What a process said last, "" where it said nothing."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def read_pods(directory: Directory, settings: Settings) -> list[Object]:
    """All pods of the cluster. Raises PoplinError."""
    return asyncio.run(_read(kubeconfig_path(directory, settings)))[1]


async def _read(kubeconfig: Path) -> tuple[list[Object], list[Object]]:
    async with ApiClient(find_access({}, kubeconfig=kubeconfig)) as client:
        return await _list(client, NODES.path()), await _list(client, PODS.path())


async def _list(client: ApiClient, path: str) -> list[Object]:
    return msgspec.json.decode(await client.request("GET", path), type=ObjectList).items


def _report_node(name: str, node: Object | None) -> NodeReport:
    if node is None:
        return NodeReport(name, ready=False, reason="not registered", addresses=(), pod_cidrs=())
    condition: Json = find_condition(node.status, "Ready") or {}
    ready = condition.get("status") == "True"
    return NodeReport(
        name,
        ready,
        "" if ready else str(condition.get("message") or "its kubelet has said nothing yet"),
        [a["address"] for a in node.status.get("addresses") or () if a["type"] == "InternalIP"],
        list(node.spec.get("podCIDRs") or ()),
    )


def _report_pod(pod: Object) -> PodReport:
    statuses = pod.status.get("containerStatuses") or []
    ready = sum(bool(status.get("ready")) for status in statuses)
    return PodReport(
        pod.namespace,
        pod.name,
        str(pod.spec.get("nodeName")),
        "Terminating" if pod.deleting else str(pod.status.get("phase") or "Pending"),
        f"{ready}/{len(pod.spec.get('containers') or ())}",
        [one["ip"] for one in pod.status.get("podIPs") or ()],
    )
