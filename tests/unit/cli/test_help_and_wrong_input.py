"""The command line as a whole: every command's help has an example that is right; wrong input is told in one line."""

import re
import shlex
import sys

import pytest
import typer

from poplin.cli import main
from poplin.cli.main import command_line


def commands(group, path=()):
    """Every command that is no group, by its path."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(command_line([]))))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_has_an_example_and_its_options_are_real(path):
    command = COMMANDS[path]
    example = re.search(r"Example: (.*)", command.help or "")
    assert example, f"poplin {' '.join(path)} --help has no example"
    words = shlex.split(re.split(r" && | \| |\)| > ", example[1].replace("$(", " "))[0])
    begin = words.index("poplin")
    assert tuple(words[begin + 1 : begin + 1 + len(path)]) == path
    command.make_context("poplin", words[begin + 1 + len(path) :])


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_prints_what_is_written(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["poplin", *path, "--help"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    words = "".join(capsys.readouterr().out.split())
    for parameter in COMMANDS[path].params:
        assert "".join((parameter.help or "").split()) in words


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "status --run-dir /nowhere",
            "/nowhere/agent.sock: no answer from the agent: No such file or directory",
        ),
        ("apiserver --data-dir /dev/null", "--data-dir /dev/null: cannot keep objects there: File exists"),
        (
            "apiserver --data-dir DIR --listen here",
            "here: not an address and port; write it as 127.0.0.1:6443",
        ),
        ("apiserver --data-dir DIR --listen 127.0.0.1:99999", "127.0.0.1:99999: not an address and port"),
        ("apiserver --data-dir DIR --fd 999", "--fd 999: is no socket"),
        (
            "apiserver --data-dir DIR --listen 127.0.0.1:0 --token-file /nowhere",
            "/nowhere: cannot read: No such file or directory",
        ),
        (
            "apiserver --data-dir DIR --listen 127.0.0.1:0 --token-file TOKENS",
            "TOKENS, line 2: has fewer than three fields; write token,user,uid[,groups]",
        ),
    ],
)
def test_wrong_input_is_told_in_one_line(arguments, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "tokens").write_text("abc,jane,1\nabc,jane\n")
    places = {"DIR": str(tmp_path / "data"), "TOKENS": str(tmp_path / "tokens")}
    for word, place in places.items():
        arguments, told = arguments.replace(word, place), told.replace(word, place)
    monkeypatch.setattr(sys, "argv", ["poplin", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("poplin: ")
    assert error.count("\n") == 1
