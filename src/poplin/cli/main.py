"""`poplin`: the command line. A command's module is imported when that command runs: --help is quick."""

import sys
from typing import Annotated

import typer

from poplin import __version__
from poplin.cli import agent, apiserver, lab, status
from poplin.model.errors import PoplinError

app = typer.Typer(
    name="poplin",
    help="A Kubernetes pod network: CNI plugin, node agent, overlay and routed backends.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poplin {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("agent")(agent.agent)
app.command("status")(status.status)
app.command("check")(status.check)
app.command("cleanup")(agent.cleanup)
app.command("apiserver")(apiserver.run)
app.add_typer(lab.app, name="lab")


def main() -> None:
    """Run the command line. Exit status 0 is success, 1 a failure, 2 a command line that is wrong."""
    try:
        app()
    except PoplinError as error:
        typer.echo(f"poplin: {error}", err=True)
        sys.exit(1)
