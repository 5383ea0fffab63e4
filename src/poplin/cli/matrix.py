"""What the demonstration has found, as text for people."""

from collections.abc import Sequence
from statistics import median, quantiles

from rich.console import Console
from rich.markup import escape

from poplin.lab.demo.crossing import Cell, Crossing, latencies_s, tabulate
from poplin.lab.demo.member import Member
from poplin.lab.demo.path import Way
from poplin.lab.demo.restart import RestartReport
from poplin.lab.demo.tour import CniCall, Fact
from poplin.lab.probing import Protocol

WIDEST = 16
"""Of more pods than this the matrix is that of their workloads."""

FAULTS_SHOWN = 10
LETTERS = {Way.SAME_NODE: "s", Way.VXLAN: "v", Way.DIRECT: "d", Way.NONE: "-"}


def print_matrix(console: Console, crossings: Sequence[Crossing]) -> None:
    """The matrix, one line for each kind of probe, one for each path, and what went wrong."""
    members = {member.title: member for one in crossings for member in (one.source, one.target)}
    by_workload = len(members) > WIDEST
    cells = tabulate(crossings, by_workload=by_workload)
    names = sorted({member.workload for member in members.values()} if by_workload else members)
    console.print()
    title = "workload" if by_workload else "pod"
    console.print(f"[bold]Round trip between {title}s, µs[/] [dim](ICMP echo, median; row to column)[/]")
    width = max(map(len, names))
    numbers = "".join(f"{number:>6}" for number in range(1, len(names) + 1))
    console.print(f"    {'':{width}}  {'':8}{numbers}")
    for number, source in enumerate(names, start=1):
        node = "" if by_workload else members[source].node
        row = "".join(_format_cell(cells.get((source, target))) for target in names)
        console.print(f"{number:>3} {source:{width}}  {node:8}{row}")
    used = {crossing.path.way for crossing in crossings}
    keys = ", ".join(f"{LETTERS[way]} {way.value}" for way in Way if way in used)
    console.print(f"    [dim]{keys}: from the route that the kernel of the pod's node takes[/]\n")
    _print_kinds(console, crossings)
    _print_faults(console, crossings)


def _format_cell(cell: Cell | None) -> str:
    if cell is None:
        return f"{'·':>6}"
    if cell.faults:
        return f"[red]{'✗':>6}[/]"
    letters = "".join(LETTERS[way] for way in cell.ways)
    text = f"{cell.latency_s * 1e6:.0f}{letters}" if cell.latency_s is not None else letters
    return f"{text:>6}"


def _print_kinds(console: Console, crossings: Sequence[Crossing]) -> None:
    console.print(
        f"[bold]{'probes':22}{'asked':>7}{'held':>7}{'median':>10}{'99th':>10}[/]  [dim]round trip[/]"
    )
    for version in (4, 6):
        for protocol in Protocol:
            group = [c for c in crossings if c.version == version and c.result.probe.protocol is protocol]
            _print_group(console, f"{protocol} over IPv{version}", group)
    for way in Way:
        group = [c for c in crossings if c.path.way is way]
        _print_group(
            console, f"by {way.value}", [c for c in group if c.result.probe.protocol is Protocol.ICMP]
        )
    console.print()


def _print_group(console: Console, title: str, group: Sequence[Crossing]) -> None:
    if not group:
        return
    held = sum(not crossing.fault for crossing in group)
    measured = latencies_s(group)
    middle = _format_time(median(measured)) if measured else "-"
    worst = _format_time(quantiles(measured, n=100)[-1]) if len(measured) > 1 else "-"
    colour = "green" if held == len(group) else "red"
    console.print(f"{title:22}{len(group):>7}[{colour}]{held:>7}[/]{middle:>10}{worst:>10}")


def _print_faults(console: Console, crossings: Sequence[Crossing]) -> None:
    faults = [crossing for crossing in crossings if crossing.fault]
    for one in faults[:FAULTS_SHOWN]:
        asked = one.result.probe
        port = f" port {asked.port}" if asked.port else ""
        console.print(
            f"[red]✗[/] {one.source.title} to {one.target.title}, "
            f"{asked.protocol} {asked.address}{port}: {escape(one.fault)}"
        )
    if len(faults) > FAULTS_SHOWN:
        console.print(f"  and {len(faults) - FAULTS_SHOWN} more")


def print_restart(console: Console, report: RestartReport, meanwhile: Sequence[Crossing]) -> None:
    """What the pods noticed of an agent that died."""
    console.print(
        f"  process {report.killed_pid} died by SIGKILL; process {report.new_pid} was ready "
        f"{report.down_s:.2f} s later"
    )
    for flow in report.flows:
        mark = "[green]✓[/]" if flow.whole else "[red]✗[/]"
        what = "one connection" if flow.flow.protocol is Protocol.TCP else "datagrams"
        console.print(
            f"  {mark} {flow.flow.protocol} to {flow.flow.address}, {what}: {flow.sent} messages sent, "
            f"{flow.sent - flow.received} lost, longest silence {_format_time(flow.longest_gap_s)}"
            + (f"; {flow.broken}" if flow.broken else "")
        )
    held = sum(not crossing.fault for crossing in meanwhile)
    mark = "[green]✓[/]" if held == len(meanwhile) else "[red]✗[/]"
    console.print(f"  {mark} {held} of {len(meanwhile)} new probes held meanwhile")
    _print_faults(console, meanwhile)


def print_tour(console: Console, pair: tuple[Member, Member], tour: Sequence[Fact], call: CniCall) -> None:
    """The chosen path, object by object, and the CNI call that made its first half."""
    source, target = pair
    console.print(f"\n[bold]How {source.title} reaches {target.title}[/] [dim](read from the kernel)[/]")
    place = ""
    for fact in tour:
        if fact.place != place:
            console.print(f"on {fact.place}:" if not fact.place.startswith("pod ") else f"in {fact.place}:")
            place = fact.place
        console.print(f"  {escape(fact.line)}\n      [dim]{fact.meaning}[/]")
    console.print(f"\n[bold]How CNI was called for {source.title}[/]")
    for key, value in call.environment.items():
        console.print(f"  {key}={escape(value)}")
    console.print(f"  {call.program} read [dim]{escape(call.config)}[/]")
    console.print(f"  and answered [dim]{escape(call.answer)}[/]\n")


def _format_time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"
