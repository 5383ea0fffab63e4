"""`poplin services`: what the node's kernel serves, as it is there and not as it should be."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from poplin.cli.agent_socket import ask
from poplin.cli.options import RunDir
from poplin.cli.output import Format, Output
from poplin.model.errors import InvalidInputError


def services(
    service: Annotated[str, typer.Argument(help="NAMESPACE/NAME of one Service. [default: all]")] = "",
    run_dir: RunDir = Path("/run/poplin"),
    output: Output = Format.TEXT,
) -> None:
    """List the addresses that this node serves, with their endpoints and how often each was used.

    Hits are new connections to an endpoint since it took its place. An endpoint is marked "in" where only pods of this node and the node itself are sent there,
    "out" where only others are (the external traffic policy Local).

    Example: poplin services shop/frontend
    """
    listing = ask(run_dir, "GET", "/services")
    frontends = [one for one in listing["frontends"] if service in {"", f"{one['namespace']}/{one['name']}"}]
    if service and not frontends:
        raise InvalidInputError(
            "this node serves no such Service",
            where=service,
            remedy="write NAMESPACE/NAME; without one `poplin services` lists all",
        )
    if output is Format.JSON:
        typer.echo(msgspec.json.format(msgspec.json.encode({**listing, "frontends": frontends})))
    else:
        _print(frontends)


def _print(frontends: list[dict[str, Any]]) -> None:
    rows = [("SERVICE", "KIND", "ADDRESS", "HITS", "ENDPOINTS")]
    for one in frontends:
        sticky = f"sticky {one['affinity_timeout_s']}s: " if one["affinity_timeout_s"] else ""
        ends = ", ".join(_endpoint(end) for end in one["endpoints"])
        rows.append(
            (
                f"{one['namespace']}/{one['name']}" if one["name"] else "-",
                one["kind"] or "-",
                f"{_joined(one)}/{one['protocol']}",
                str(one["hits"]),
                f"{sticky}{ends}" if one["verdict"] == "serve" else one["verdict"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[4]]))


def _endpoint(end: dict[str, Any]) -> str:
    way = "" if end["inside"] == end["outside"] else " in" if end["inside"] else " out"
    return f"{_joined(end)} ({end['hits']}{way})"


def _joined(one: dict[str, Any]) -> str:
    return f"[{one['address']}]:{one['port']}" if ":" in one["address"] else f"{one['address']}:{one['port']}"
