"""`poplin flows`: what policy denies on this node, and what it lets pass."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from poplin.cli.agent_socket import read_lines
from poplin.cli.options import RunDir
from poplin.cli.output import Format, Output
from poplin.model.flow import FlowVerdict

COLOURS = {FlowVerdict.DENIED: "red", FlowVerdict.ALLOWED: "green", FlowVerdict.LOGGED: "yellow"}


def flows(
    verdict: Annotated[
        list[FlowVerdict] | None, typer.Option(help="denied, allowed or logged; repeatable. [default: all]")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what comes from now on, until Ctrl-C.")
    ] = False,
    pod: Annotated[
        str, typer.Option(help="Only what comes from or goes to this NAMESPACE/POD, or this address.")
    ] = "",
    run_dir: RunDir = Path("/run/poplin"),
    output: Output = Format.TEXT,
) -> None:
    """Show which pods talk through this node, which were denied, and which policy and rule says so.

    Without --follow: what was denied of late, and the connections that stand. JSON is one object a line.

    Example: poplin flows --verdict denied --follow --pod shop/cart
    """
    query = "&".join(
        [*(f"verdict={one.value}" for one in verdict or ()), *(["follow=true"] if follow else [])]
    )
    every = read_lines(run_dir, f"/flows?{query}", endless=follow)
    lines = (line for line in every if not pod or "lost" in line or pod in _names(line))
    with suppress(KeyboardInterrupt):
        if output is Format.JSON:
            for line in lines:
                sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
                sys.stdout.flush()
        else:
            _print(lines)


def _print(lines: Iterable[dict[str, Any]]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(describe(line))


def describe(line: dict[str, Any]) -> str:
    """A flow as a line of text, with marks of colour."""
    if "lost" in line:
        return f"[yellow]! at least {line['lost']} flows were not told: there are more than can be[/]"
    verdict = FlowVerdict(line["verdict"])
    time = datetime.fromtimestamp(line["time"]).astimezone().strftime("%H:%M:%S")
    port = f" {line['port']}" if line["port"] else ""
    service = line.get("service")
    asked = f" (asked for {service['address']} {service['port']})" if service else ""
    rulings = "; ".join(_describe_ruling(one) for one in line["rulings"])
    times = f" [dim]({line['count']} times)[/]" if line["count"] > 1 else ""
    return (
        f"{time} [{COLOURS[verdict]}]{verdict.value:7}[/] {_name(line['source'])} -> {_name(line['destination'])} "
        f"{line['protocol']}{port}{asked}  {escape(rulings)}{times}"
    )


def _names(line: dict[str, Any]) -> set[str]:
    return {text for end in (line["source"], line["destination"]) for text in (_name(end), end["address"])}


def _name(end: dict[str, str]) -> str:
    if not end["name"]:
        return end["address"]
    return f"{end['namespace'] or 'node'}/{end['name']}"


def _describe_ruling(one: dict[str, Any]) -> str:
    rule = "" if one["rule"] is None else f" rule {one['rule']}"
    policy = f" by {one['policy']}{rule}" if one["policy"] else ""
    return f"{one['direction']}{policy}: {one['reason']}"
