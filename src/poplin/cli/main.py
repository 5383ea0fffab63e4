"""`poplin`: the command line. Of the commands' modules only that of the command given is imported."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Final

import typer

from poplin import __version__
from poplin.model.errors import PoplinError


@dataclass(frozen=True, slots=True)
class Command:
    """A function of a module in this package."""

    module: str
    function: str
    context_settings: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Commands behind a word of their own."""

    help: str
    commands: Mapping[str, Command]


COMMANDS: Final[Mapping[str, Command | Group]] = {
    "agent": Command("agent", "agent"),
    "flows": Command("flows", "flows"),
    "status": Command("status", "status"),
    "check": Command("status", "check"),
    "explain": Command("explain", "explain"),
    "services": Command("services", "services"),
    "cleanup": Command("agent", "cleanup"),
    "apiserver": Command("apiserver", "run"),
    "lab": Group(
        "A cluster of network namespaces: real agents, the real CNI plugin, no virtual machine.",
        {
            "up": Command("lab", "up"),
            "down": Command("lab", "down"),
            "status": Command("lab", "status"),
            "kubeconfig": Command("lab", "kubeconfig"),
            "exec": Command("lab", "execute", {"ignore_unknown_options": True}),
            "load": Command("lab", "load"),
            "demo": Command("demo", "demo"),
            "fault": Command("fault", "fault"),
            "conformance": Command("conformance", "conformance"),
        },
    ),
}


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
    _add(app, COMMANDS, arguments)
    return app


def _add(app: typer.Typer, commands: Mapping[str, Command | Group], arguments: Sequence[str]) -> None:
    given = arguments[0] if arguments else ""
    for name in [given] if given in commands else commands:
        command = commands[name]
        if isinstance(command, Group):
            group = typer.Typer(help=command.help, no_args_is_help=True)
            _add(group, command.commands, arguments[1:])
            app.add_typer(group, name=name)
        else:
            function = getattr(import_module(f"poplin.cli.{command.module}"), command.function)
            app.command(name, context_settings=command.context_settings)(function)


def main() -> None:
    """Run the command line. Exit status 0 is success, 1 a failure, 2 a command line that is wrong."""
    try:
        command_line(sys.argv[1:])()
    except PoplinError as error:
        typer.echo(f"poplin: {error}", err=True)
        sys.exit(1)
