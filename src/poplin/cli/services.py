"""`poplin services`: what the node's kernel serves, as it is there and not as it should be."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from poplin.cli.agent_socket import ask
from poplin.cli.options import RunDir
from poplin.cli.output import Format, Output


def services(
    service: Annotated[str, typer.Argument(help="NAMESPACE/NAME of one Service. [default: all]")] = "",
    run_dir: RunDir = Path("/run/poplin"),
    output: Output = Format.TEXT,
) -> None:
    """List the addresses that this node serves, with their endpoints and how often each was used.

    Hits are new connections: of an address since its number of endpoints last changed, of an endpoint since it
    took its place. An endpoint is marked "in" where only pods of this node and the node itself are sent there,
    "out" where only others are (the external traffic policy Local).

    Example: poplin services shop/frontend
    """
    listing = ask(run_dir, "GET", "/services")
    frontends = [one for one in listing["frontends"] if service in {"", f"{one['namespace']}/{one['name']}"}]
    if output is Format.JSON:
        typer.echo(msgspec.json.format(msgspec.json.encode({**listing, "frontends": frontends})))
    else:
        _print(frontends)


def _print(frontends: list[dict[str, Any]]) -> None:
    table = Table("SERVICE", "KIND", "ADDRESS", "HITS", "ENDPOINTS", box=None, padding=(0, 2))
    for one in frontends:
        address = f"{_joined(one)}/{one['protocol']}"
        sticky = f"sticky {one['affinity_timeout_s']}s: " if one["affinity_timeout_s"] else ""
        ends = ", ".join(_endpoint(end) for end in one["endpoints"])
        what = f"{sticky}{ends}" if one["verdict"] == "serve" else one["verdict"]
        name = f"{one['namespace']}/{one['name']}" if one["name"] else "-"
        table.add_row(name, one["kind"], address, str(one["hits"]), what)
    Console(highlight=False, soft_wrap=True).print(table)


def _endpoint(end: dict[str, Any]) -> str:
    way = "" if end["inside"] == end["outside"] else " in" if end["inside"] else " out"
    return f"{_joined(end)} ({end['hits']}{way})"


def _joined(one: dict[str, Any]) -> str:
    return f"[{one['address']}]:{one['port']}" if ":" in one["address"] else f"{one['address']}:{one['port']}"
