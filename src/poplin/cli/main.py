"""`poplin`: the command line. Of the commands' modules only that of the command given is imported."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Final

import typer

from poplin import __version__
from poplin.model.errors import PoplinError

COMMANDS: Final = {
    "agent": ("agent", "agent"),
    "flows": ("flows", "flows"),
    "status": ("status", "status"),
    "check": ("status", "check"),
    "explain": ("explain", "explain"),
    "services": ("services", "services"),
    "cleanup": ("agent", "cleanup"),
    "apiserver": ("apiserver", "run"),
    "lab": ("lab", "app"),
}
"""Each command's module in this package, and what it is in there: a function, or a group of commands."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poplin {__version__}")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def command_line(arguments: Sequence[str]) -> typer.Typer:
    """Give the command line with the command that the arguments begin with; with all where they name none.

    A command brings its own imports: an agent has no use for a lab's, nor `poplin status` for an agent's.
    """
    app = typer.Typer(
        name="poplin",
        help="A Kubernetes pod network: CNI plugin, node agent, overlay and routed backends.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        # Plain text: "[/PROTO]" and "[default: hostname]" are words here, and no markup.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(_options)
    given = arguments[0] if arguments else ""
    for name in [given] if given in COMMANDS else COMMANDS:
        module, attribute = COMMANDS[name]
        command = getattr(import_module(f"poplin.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main() -> None:
    """Run the command line. Exit status 0 is success, 1 a failure, 2 a command line that is wrong."""
    try:
        command_line(sys.argv[1:])()
    except PoplinError as error:
        typer.echo(f"poplin: {error}", err=True)
        sys.exit(1)
