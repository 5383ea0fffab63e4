"""`poplin lab conformance`: who reaches whom under NetworkPolicies, by the evaluator and by real packets."""

import asyncio
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from poplin.cli.output import Format, Output
from poplin.cli.progress import Progress
from poplin.cli.root import require_root
from poplin.datastore.client import ApiClient
from poplin.datastore.kubeconfig import find_access
from poplin.lab.addressing import PODS, parse_families
from poplin.lab.conformance.application import Trial, try_all
from poplin.lab.conformance.case import CASES, WORLD, Case, Given, Json, read_given
from poplin.lab.conformance.evaluation import judge
from poplin.lab.conformance.packets import PacketResult, PacketRunner, run_all
from poplin.lab.conformance.report import CaseReport, write_page
from poplin.lab.demo.demo import standing
from poplin.lab.demo.member import find_members
from poplin.lab.demo.workload import wait_for_workloads
from poplin.lab.directory import Directory
from poplin.lab.manifests import apply
from poplin.lab.settings import Backend, Settings, check_name, check_nodes, make_net_conf
from poplin.model.errors import InvalidInputError

READY_S = 120.0
FAULTS_SHOWN = 5


def conformance(
    given: Annotated[
        list[Path] | None,
        typer.Option(
            "--filename",
            "-f",
            help="Cases, or an application and its policies: a file or a directory; repeatable.",
        ),
    ] = None,
    case: Annotated[
        str, typer.Option(help="Only cases whose GROUP/NAME is like this; * stands for anything.")
    ] = "*",
    evaluator: Annotated[
        bool, typer.Option("--evaluator", help="Ask the evaluator alone; needs no root.")
    ] = False,
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 3,
    backend: Annotated[Backend, typer.Option(help="How packets travel between nodes.")] = Backend.VXLAN,
    ip_family: Annotated[str, typer.Option(help="ipv4, ipv6 or dual.")] = "dual",
    name: Annotated[str, typer.Option(help="The lab's name.")] = "conformance",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab standing.")] = False,
    page: Annotated[
        Path | None, typer.Option("--write", help="Write the results as a page of Markdown here.")
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Try NetworkPolicy case by case, with the cases that are carried along or with yours.

    Files without cases are an application: it is deployed, every pair of its pods is probed, and the outcome is
    held against what `poplin explain` says. Exit status 0 only where all held.

    Example: poplin lab conformance --case "ports/*"
    """
    versions = parse_families(ip_family)
    read = read_given(given or [CASES])
    chosen = [one for one in read.cases if fnmatch(f"{one.group}/{one.name}", case)]
    if read.cases and not chosen:
        raise InvalidInputError("no case is like this", where=f"--case {case!r}")
    console = Console(highlight=False, stderr=output is Format.JSON, soft_wrap=True)
    settings = Settings(
        name=check_name(name),
        nodes=check_nodes(nodes),
        versions=versions,
        net_conf=make_net_conf(versions, backend),
    )
    if not read.cases:
        sys.exit(_run_application(read, settings, console, output, keep=keep))
    world = read.objects or read_given([WORLD]).objects
    reports = _run_cases(chosen, world, settings, console, packets=not evaluator, keep=keep)
    _print_cases(console, reports)
    if page is not None:
        command = "make conformance" if given is None else f"poplin lab conformance -f {given[0]}"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(write_page(reports, versions, command))
    if output is Format.JSON:
        _print_json([_describe_case(report, versions) for report in reports])
    sys.exit(0 if all(report.held for report in reports) else 1)


def _run_cases(
    cases: Sequence[Case],
    world: Sequence[Json],
    settings: Settings,
    console: Console,
    *,
    packets: bool,
    keep: bool,
) -> list[CaseReport]:
    progress = Progress(console)
    networks = [PODS[version] for version in settings.versions]
    with progress.counted(f"evaluator, {len(cases)} cases") as tell:
        said = []
        for case in cases:
            said.append(judge(case, world, networks))
            tell(f"{len(said)}/{len(cases)}")
    if not packets:
        return [CaseReport(case, faults, None) for case, faults in zip(cases, said, strict=True)]
    require_root()
    with standing(settings, progress.step, keep=keep) as directory:
        results = asyncio.run(_send_packets(directory, settings, cases, world, progress))
    return [
        CaseReport(case, faults, result) for case, faults, result in zip(cases, said, results, strict=True)
    ]


async def _send_packets(
    directory: Directory,
    settings: Settings,
    cases: Sequence[Case],
    world: Sequence[Json],
    progress: Progress,
) -> list[PacketResult]:
    async with ApiClient(find_access({}, kubeconfig=directory.kubeconfig)) as client:
        with progress.counted(f"packets, {len(cases)} cases") as tell:
            done: list[PacketResult] = []

            def count(result: PacketResult) -> None:
                done.append(result)
                failed = sum(bool(one.faults) for one in done)
                tell(f"{len(done)}/{len(cases)}, {failed} failed, {sum(one.probes for one in done)} probes")

            return await run_all(PacketRunner(directory, settings, client, world), cases, count)


def _print_cases(console: Console, reports: Sequence[CaseReport]) -> None:
    for report in reports:
        if report.held:
            continue
        console.print(f"[red]✗[/] {escape(f'{report.case.group}/{report.case.name}')}")
        faults = report.faults()
        for fault in faults[:FAULTS_SHOWN]:
            console.print(f"    {escape(fault)}")
        if len(faults) > FAULTS_SHOWN:
            console.print(f"    and {len(faults) - FAULTS_SHOWN} more")
    held = sum(report.held for report in reports)
    packets = [report.packets for report in reports if report.packets]
    late, policy_late = sum(one.late for one in packets), sum(one.policy_late for one in packets)
    again = f"; {late} steps only when asked again, {policy_late} of them as policy came late" if late else ""
    colour = "green" if held == len(reports) else "red"
    console.print(f"[{colour}]{held} of {len(reports)} cases hold[/]{again}")


def _describe_case(report: CaseReport, versions: Sequence[int]) -> dict[str, Any]:
    packets = report.packets
    return {
        "group": report.case.group,
        "name": report.case.name,
        "says": report.case.says,
        "evaluator": not report.evaluator,
        "packets": {f"IPv{v}": packets.holds(v) for v in versions} if packets else None,
        "probes": packets.probes if packets else 0,
        "askedAgain": packets.late if packets else 0,
        "policyLate": packets.policy_late if packets else 0,
        "faults": report.faults(),
    }


def _run_application(read: Given, settings: Settings, console: Console, output: Format, *, keep: bool) -> int:
    require_root()
    progress = Progress(console)
    with standing(settings, progress.step, keep=keep) as directory:
        trials = asyncio.run(_try_application(directory, read.objects, console))
    faults = [trial for trial in trials if trial.fault]
    for trial in faults[: FAULTS_SHOWN * 2]:
        probe = trial.result.probe
        port = f" {probe.port}" if probe.port else ""
        console.print(
            f"[red]✗[/] {trial.source.title} to {trial.target.title}, {probe.protocol}{port} "
            f"over IPv{probe.address.version}: {escape(trial.fault)}"
        )
    allowed = sum(trial.explanation.allowed for trial in trials)
    colour = "red" if faults else "green"
    console.print(
        f"[{colour}]{len(trials) - len(faults)} of {len(trials)} probes hold[/]: "
        f"{allowed} are to be allowed, {len(trials) - allowed} denied"
    )
    if output is Format.JSON:
        _print_json([_describe_trial(trial) for trial in trials])
    return 1 if faults else 0


async def _try_application(directory: Directory, objects: Sequence[Json], console: Console) -> list[Trial]:
    progress = Progress(console)
    async with ApiClient(find_access({}, kubeconfig=directory.kubeconfig)) as client:
        with progress.step("manifests applied"):
            await apply(client, objects)
        with progress.step("workloads available"):
            workloads, pods = await wait_for_workloads(client, READY_S)
        for one in workloads:
            if not one.ready:
                # Its pods may be there all the same, and policy is for them as for others.
                console.print(
                    f"[yellow]![/] {one.namespace}/{one.name} is not available: {escape(one.reason)}"
                )
        with progress.step("every pod asked by every other"):
            return await try_all(client, find_members(directory, pods))


def _describe_trial(trial: Trial) -> dict[str, Any]:
    probe, explained = trial.result.probe, trial.explanation
    return {
        "source": trial.source.title,
        "target": trial.target.title,
        "address": str(probe.address),
        "protocol": probe.protocol.value,
        "port": probe.port,
        "outcome": trial.result.outcome.value,
        "allowed": {"egress": explained.egress.allowed, "ingress": explained.ingress.allowed},
        "fault": trial.fault,
    }


def _print_json(document: Any) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(document)))
