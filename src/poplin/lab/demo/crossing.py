"""Every pod to every other: what was asked, what came of it, and which way it went."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from poplin.lab.demo.member import Member
from poplin.lab.demo.path import Path, Way
from poplin.lab.probing import Outcome, Protocol, Result


@dataclass(frozen=True, slots=True)
class Crossing:
    """One probe from one pod to another. `fault` says what is wrong with it, "" where nothing is."""

    source: Member
    target: Member
    result: Result
    path: Path
    fault: str

    @property
    def version(self) -> int:
        """The IP version."""
        return self.result.probe.address.version


def judge(source: Member, target: Member, result: Result, path: Path) -> str:
    """What is wrong with a probe from pod to pod, "" where nothing is.

    Kubernetes' network model asks that every pod reach every other, and that each see the other's own
    address (Kubernetes documentation, "The Kubernetes network model").
    """
    if not result.reached:
        return f"{result.outcome.value}{': ' if result.reason else ''}{result.reason}"
    if path.route is None:
        return f"it was reached, and its node has no route: {path.reason}"
    if (path.way is Way.SAME_NODE) != (source.node == target.node):
        return f"from {source.node} to {target.node} by {path.way.value}"
    if result.outcome is Outcome.ANSWERED and result.probe.protocol is not Protocol.ICMP:
        if result.name != target.hostname:
            return f"{result.name or 'something else'} answered in its place"
        if result.client not in source.addresses:
            return f"it sees {result.client}, which is not the pod's address"
    return ""


@dataclass(frozen=True, slots=True)
class Cell:
    """All probes from one pod, or workload, to another. `latency_s` is the median of the ICMP round trips."""

    asked: int
    faults: int
    latency_s: float | None
    ways: Sequence[Way]


def summarise(crossings: Iterable[Crossing]) -> Cell:
    """Many probes as one cell."""
    every = list(crossings)
    latencies = latencies_s(c for c in every if c.result.probe.protocol is Protocol.ICMP)
    return Cell(
        asked=len(every),
        faults=sum(bool(crossing.fault) for crossing in every),
        latency_s=median(latencies) if latencies else None,
        ways=[way for way in Way if any(crossing.path.way is way for crossing in every)],
    )


def latencies_s(crossings: Iterable[Crossing]) -> list[float]:
    """The round trips that were measured."""
    return [c.result.latency_s for c in crossings if c.result.latency_s is not None]


def tabulate(crossings: Iterable[Crossing], *, by_workload: bool) -> Mapping[tuple[str, str], Cell]:
    """The matrix: a cell for each (source, target), by the names of pods or of workloads."""
    groups: dict[tuple[str, str], list[Crossing]] = {}
    for crossing in crossings:
        pair = (crossing.source, crossing.target)
        key = tuple(member.workload if by_workload else member.title for member in pair)
        groups.setdefault((key[0], key[1]), []).append(crossing)
    return {key: summarise(group) for key, group in groups.items()}
