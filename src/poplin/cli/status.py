"""`poplin status` and `poplin check`: what the node's agent says of itself."""

import socket
import sys
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from poplin.cli.options import RunDir
from poplin.cli.output import Format, Output
from poplin.model.errors import PoplinError

STATUS_SOCKET = "agent.sock"
TIMEOUT_S = 30.0


def status(run_dir: RunDir = Path("/run/poplin"), output: Output = Format.TEXT) -> None:
    """Show this node's network on one screen. Exit status 1 where it is not ready.

    Example: poplin status -o json
    """
    report = _ask(run_dir, "GET", "/status")
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
    report = _ask(run_dir, "POST", "/audit")
    findings = [f"{c['name']}: {c['reason']}" for c in report["conditions"] if not c["ok"]]
    findings += [p for p in report["problems"] if not any(p in finding for finding in findings)]
    mended = report["lastChanges"]
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


class _AgentConnection(HTTPConnection):
    """HTTP over the agent's unix socket, by what the standard library has: aiohttp takes 0.2 s to import."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _ask(run_dir: Path, method: str, path: str) -> dict[str, Any]:
    agent = run_dir / STATUS_SOCKET
    try:
        with closing(_AgentConnection(agent)) as connection:
            connection.request(method, path)
            report: dict[str, Any] = msgspec.json.decode(connection.getresponse().read())
    except (HTTPException, OSError, msgspec.DecodeError) as error:
        raise PoplinError(
            f"no answer from the agent: {getattr(error, 'strerror', None) or error or 'it hangs'}",
            where=str(agent),
            remedy="start `poplin agent` on this node, or give its --run-dir",
        ) from error
    return report


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
