"""`poplin lab demo`: a cluster, an application, every pod probed from every other, and why it works."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from poplin.cli import matrix
from poplin.cli.output import Format, Output
from poplin.cli.progress import Progress
from poplin.cli.root import require_root
from poplin.datastore.client import ApiClient
from poplin.datastore.kubeconfig import find_access
from poplin.lab.addressing import parse_families
from poplin.lab.demo.crossing import Crossing
from poplin.lab.demo.demo import DEFAULT_NAME, EXAMPLE, cross, standing
from poplin.lab.demo.member import Member, find_members
from poplin.lab.demo.restart import RestartReport, choose_flows, restart_agent
from poplin.lab.demo.tour import CniCall, Fact, choose_pair, read_cni_call, walk
from poplin.lab.demo.workload import Workload, wait_for_workloads
from poplin.lab.directory import Directory
from poplin.lab.manifests import apply, read_manifests
from poplin.lab.settings import Backend, Settings, check_name, check_nodes, make_net_conf
from poplin.model.errors import InvalidInputError

TIMEOUT_S = 60.0


def demo(
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 3,
    backend: Annotated[Backend, typer.Option(help="How packets travel between nodes.")] = Backend.VXLAN,
    ip_family: Annotated[str, typer.Option(help="ipv4, ipv6 or dual.")] = "dual",
    manifests: Annotated[
        list[Path] | None,
        typer.Option("--filename", "-f", help="Manifests of your own: a file or a directory; repeatable."),
    ] = None,
    name: Annotated[str, typer.Option(help="The lab's name.")] = DEFAULT_NAME,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab standing.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for the workloads.")
    ] = TIMEOUT_S,
    output: Output = Format.TEXT,
) -> None:
    """Make a lab, run an application in it, probe every pair of pods, kill an agent, and say why it works.

    Everything is gone afterwards. Exit status 0 only where all of it held.

    Example: poplin lab demo --backend host-gw -f app.yaml
    """
    require_root()
    versions = parse_families(ip_family)
    settings = Settings(
        name=check_name(name),
        nodes=check_nodes(nodes),
        versions=versions,
        net_conf=make_net_conf(versions, backend),
    )
    objects = read_manifests(manifests or [EXAMPLE])
    # JSON is for programs: what is for people goes where it is out of the way.
    console = Console(highlight=False, stderr=output is Format.JSON, soft_wrap=True)
    with standing(settings, Progress(console).step, keep=keep) as directory:
        findings = asyncio.run(_Demo(directory, settings, console, timeout_s).run(objects))
    if output is Format.JSON:
        document = findings.document() | {"held": findings.held}
        typer.echo(msgspec.json.format(msgspec.json.encode(document, enc_hook=str)))
    elif keep:
        console.print(f"The lab stands: export KUBECONFIG=$(poplin lab kubeconfig --name {name})")
    sys.exit(0 if findings.held else 1)


@dataclass(slots=True)
class Findings:
    """All that the demonstration has found."""

    workloads: Sequence[Workload]
    members: Sequence[Member]
    crossings: Sequence[Crossing]
    meanwhile: Sequence[Crossing]
    restart: RestartReport | None
    tour: Sequence[Fact]
    cni: CniCall | None

    @property
    def held(self) -> bool:
        """Whether every workload is there, every pod reached every other, and nothing was lost."""
        return (
            all(workload.ready for workload in self.workloads)
            and not any(crossing.fault for crossing in (*self.crossings, *self.meanwhile))
            and (self.restart is None or self.restart.held)
        )

    def document(self) -> dict[str, Any]:
        """For `-o json`."""
        return {
            "workloads": self.workloads,
            "pods": [
                {"name": m.title, "workload": m.workload, "node": m.node, "addresses": m.addresses}
                for m in self.members
            ],
            "probes": [_describe(crossing) for crossing in self.crossings],
            "probesWhileRestarting": [_describe(crossing) for crossing in self.meanwhile],
            "restart": self.restart,
            "path": self.tour,
            "cni": self.cni,
        }


def _describe(crossing: Crossing) -> dict[str, Any]:
    result = crossing.result
    return {
        "source": crossing.source.title,
        "target": crossing.target.title,
        "address": result.probe.address,
        "protocol": result.probe.protocol,
        "port": result.probe.port,
        "outcome": result.outcome,
        "latencySeconds": result.latency_s,
        "way": crossing.path.way,
        "route": crossing.path.route,
        "fault": crossing.fault,
    }


class _Demo:
    """The steps between a lab that stands and one that is taken down."""

    def __init__(self, directory: Directory, settings: Settings, console: Console, timeout_s: float) -> None:
        self._directory = directory
        self._settings = settings
        self._console = console
        self._progress = Progress(console)
        self._timeout_s = timeout_s

    async def run(self, objects: Sequence[dict[str, Any]]) -> Findings:
        access = find_access({}, kubeconfig=self._directory.kubeconfig)
        async with ApiClient(access) as client:
            with self._progress.counted("manifests applied") as tell:
                await apply(client, objects, lambda done: tell(f"{done}/{len(objects)}"))
            workloads, members = await self._deploy(client)
        if len(members) < 2:
            raise InvalidInputError(
                f"{len(members)} pods run, and a pair is two",
                remedy="give manifests with at least two pods",
            )
        crossings = await self._cross(members)
        matrix.print_matrix(self._console, crossings)
        pair = choose_pair(members)
        assert pair is not None  # noqa: S101  - there are two members
        restart, meanwhile = await self._restart(members, pair)
        tour = list(walk(self._directory, *pair, self._settings.versions[0]))
        call = read_cni_call(self._directory, pair[0])
        matrix.print_tour(self._console, pair, tour, call)
        return Findings(workloads, members, crossings, meanwhile, restart, tour, call)

    async def _deploy(self, client: ApiClient) -> tuple[list[Workload], list[Member]]:
        with self._progress.counted("workloads available") as tell:

            def count(workloads: Sequence[Workload]) -> None:
                tell(f"{sum(workload.ready for workload in workloads)}/{len(workloads)}")

            workloads, pods = await wait_for_workloads(client, self._timeout_s, count)
        for workload in workloads:
            if not workload.ready:
                self._console.print(
                    f"[red]✗[/] {workload.kind} {workload.namespace}/{workload.name}: "
                    f"{workload.available} of {workload.wanted}; {workload.reason}"
                )
        return workloads, find_members(self._directory, pods)

    async def _cross(self, members: Sequence[Member]) -> list[Crossing]:
        with self._progress.counted("every pod probed from every other") as tell:
            return await cross(self._directory, members, lambda done: tell(f"{done} probes"))

    async def _restart(
        self, members: Sequence[Member], pair: tuple[Member, Member]
    ) -> tuple[RestartReport, list[Crossing]]:
        source, target = pair
        with self._progress.counted(f"agent of {source.node} killed; the same again meanwhile") as tell:
            report, meanwhile = await restart_agent(
                self._directory,
                source.node,
                choose_flows(source, target),
                lambda: cross(self._directory, members, lambda done: tell(f"{done} probes")),
            )
        matrix.print_restart(self._console, report, meanwhile)
        return report, meanwhile
