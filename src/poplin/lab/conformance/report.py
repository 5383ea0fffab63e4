"""What a run has found, case by case, as a page of the documentation."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from poplin.lab.conformance.case import Case
from poplin.lab.conformance.packets import PacketResult

PASSED = "✓"
FAILED = "✗"
NOT_TRIED = "-"


@dataclass(frozen=True, slots=True)
class CaseReport:
    """A case on both levels: what the evaluator says wrongly, and the packets, None where none were sent."""

    case: Case
    evaluator: Sequence[str]
    packets: PacketResult | None

    @property
    def held(self) -> bool:
        return not self.evaluator and not (self.packets and self.packets.faults)

    def faults(self) -> list[str]:
        """A line for each, with its level."""
        packets = self.packets.faults if self.packets else ()
        return [f"evaluator: {one}" for one in self.evaluator] + [f"packets: {one}" for one in packets]

    def marks(self, versions: Sequence[int]) -> list[str]:
        """Of the evaluator and of the packets of each family."""
        marks = [FAILED if self.evaluator else PASSED]
        for version in versions:
            if self.packets is None:
                marks.append(NOT_TRIED)
            else:
                marks.append(PASSED if self.packets.holds(version) else FAILED)
        return marks


def write_page(reports: Sequence[CaseReport], versions: Sequence[int], command: str) -> str:
    """The page, in Markdown. `command` is what wrote it."""
    held = sum(report.held for report in reports)
    probes = sum(report.packets.probes for report in reports if report.packets)
    columns = ["evaluator", *(f"packets, IPv{version}" for version in versions)]
    lines = [
        "# Conformance",
        "",
        f"Written by `{command}`. The cases are data: `src/poplin/lab/conformance/cases`.",
        "",
        "Each case takes a cluster of three namespaces with three pods through its steps; after each, a truth table",
        "says which pod reaches which, for each port and protocol. The evaluator is asked for every cell of every table; then",
        "pods of a lab send packets. SCTP is asked of the evaluator alone: a kernel without its sockets cannot send it.",
        "",
        f"{held} of {len(reports)} cases pass; {probes:,} probes between pods.",
    ]
    for group, some in groupby(reports, key=lambda report: report.case.group):
        lines += [
            "",
            f"## {group.capitalize()}",
            "",
            f"| case | {' | '.join(columns)} |",
            f"|---|{':-:|' * len(columns)}",
        ]
        for report in some:
            lines.append(f"| {report.case.name} | {' | '.join(report.marks(versions))} |")
    failed = [report for report in reports if not report.held]
    if failed:
        lines += ["", "## What does not pass", ""]
        lines += [f"- {report.case.group}, {report.case.name}: {report.faults()[0]}" for report in failed]
    return "\n".join(lines) + "\n"
