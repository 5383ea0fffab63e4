"""`poplin lab fault`: break something of a lab, and see how long its repair takes."""

import asyncio
import random
import statistics
import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from poplin.cli.output import Format, Output
from poplin.cli.root import require_root
from poplin.lab.fault import ANY, FAULTS, check_kind, inflict_some
from poplin.lab.lifecycle import require
from poplin.lab.repair import FaultReport
from poplin.lab.settings import DEFAULT_NAME, check_name
from poplin.lab.snapshot import NodeNetwork
from poplin.model.errors import InvalidInputError


def fault(
    kind: Annotated[str, typer.Argument(help=f"{ANY}, or one of {', '.join(sorted(FAULTS))}.")] = ANY,
    node: Annotated[str, typer.Option(help="On which node. [default: any]")] = "",
    count: Annotated[int, typer.Option(min=1, help="How many, one after another.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The same seed strikes the same things.")] = None,
    name: Annotated[str, typer.Option(help="Which lab.")] = DEFAULT_NAME,
    output: Output = Format.TEXT,
) -> None:
    """Damage something of Poplin's in a lab and wait until all stands as before. Exit status 1 where it never does.

    What a seed chooses is of the node's network or of a pod's own side ("pod-..."). Things of others are looked at,
    too: a repair that touches them is none.

    Example: poplin lab fault route --node node-1
    """
    require_root()
    directory, settings = require(check_name(name))
    nodes = [node] if node else settings.node_names()
    if node and node not in settings.node_names():
        raise InvalidInputError("no such node", where=node, remedy="see `poplin lab status`")
    seed = random.randrange(10**6) if seed is None else seed  # noqa: S311  - no secret
    networks = [NodeNetwork(directory, one) for one in nodes]
    reports = asyncio.run(_strike(networks, check_kind(kind), count, seed, output))
    if not reports:
        raise InvalidInputError("there is nothing of that kind", where=kind, remedy="start a pod first")
    if output is Format.JSON:
        document = {"seed": seed, "faults": [msgspec.to_builtins(report) for report in reports]}
        typer.echo(msgspec.json.format(msgspec.json.encode(document)))
    elif len(reports) > 1:
        times_ms = [report.repair_s * 1000 for report in reports if report.repair_s is not None]
        if times_ms:
            typer.echo(
                f"repair: median {statistics.median(times_ms):.0f} ms, longest {max(times_ms):.0f} ms (seed {seed})"
            )
    sys.exit(0 if all(report.repair_s is not None for report in reports) else 1)


async def _strike(
    networks: Sequence[NodeNetwork], kind: str, count: int, seed: int, output: Format
) -> list[FaultReport]:
    reports = []
    chance = random.Random(seed)  # noqa: S311  - no secret
    async for report in inflict_some(networks, kind, count, chance):
        reports.append(report)
        if output is Format.TEXT:
            word = (
                "NOT REPAIRED" if report.repair_s is None else f"repaired in {report.repair_s * 1000:.0f} ms"
            )
            typer.echo(f"{report.node}: {report.kind}: {report.what}: {word}")
    return reports
