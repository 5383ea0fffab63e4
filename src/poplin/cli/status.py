"""`poplin status` and `poplin check`: what the node's agent says of itself."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from poplin.cli.agent_socket import ask
from poplin.cli.options import RunDir
from poplin.cli.output import Format, Output


def status(run_dir: RunDir = Path("/run/poplin"), output: Output = Format.TEXT) -> None:
    """Show this node's network on one screen. Exit status 1 where it is not ready.

    Example: poplin status -o json
    """
    report = ask(run_dir, "GET", "/status")
    if output is Format.JSON:
        typer.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        _print(report)
    sys.exit(0 if report["ready"] else 1)


def check(run_dir: RunDir = Path("/run/poplin"), output: Output = Format.TEXT) -> None:
    """Compare all that should be with what the kernel holds, mend it, and say what is wrong and what to do.

    Exit status 0 only where nothing was wrong.

    Example: poplin check
    """
    report = ask(run_dir, "POST", "/audit")
    findings = [f"{c['name']}: {c['reason']}" for c in report["conditions"] if not c["ok"]]
    findings += [p for p in report["problems"] if not any(p in finding for finding in findings)]
    mended = report["mended"]
    if output is Format.JSON:
        typer.echo(msgspec.json.format(msgspec.json.encode({"findings": findings, "mended": mended})))
    else:
        for finding in findings:
            typer.echo(f"- {finding}")
        if mended:
            typer.echo(f"- the kernel differed in {mended} places from what it should hold; mended")
        if not findings and not mended:
            typer.echo(f"node {report['node']}: all is as it should be, {report['pods']} pods")
    sys.exit(1 if findings or mended else 0)


def _print(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    ready = "[green]ready[/]" if report["ready"] else "[red]not ready[/]"
    console.print(f"node {report['node']}: {ready}, {report['pods']} pods")
    for condition in report["conditions"]:
        mark = "[green]✓[/]" if condition["ok"] else "[red]✗[/]"
        console.print(f"  {mark} {condition['name']} {condition['reason']}".rstrip())
    network = report["network"]
    if network:
        table = Table("pod CIDR", "address to peers", "VTEP", box=None, padding=(0, 2))
        for family in network["families"]:
            table.add_row(family["podCIDR"], family["publicIP"], family["vtepMAC"] or "-")
        console.print(
            f"backend {network['backend']}, pods' MTU {network['podMTU']}, "
            f"{network['routes']} routes, devices: {', '.join(network['links']) or 'none'}"
        )
        console.print(table)
    for problem in report["problems"]:
        console.print(f"  [yellow]![/] {problem}", soft_wrap=True)
