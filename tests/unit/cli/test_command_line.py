"""The command line finds its commands, and imports no more than the one that is given."""

import json
import socket
import subprocess
import sys
import threading
from importlib import import_module

import pytest

from poplin.cli.agent_socket import ask
from poplin.cli.main import COMMANDS, Group, command_line
from poplin.model.errors import PoplinError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_by_its_name(name):
    app = command_line([name])
    found = [one.name for one in app.registered_commands] + [one.name for one in app.registered_groups]
    assert found == [name]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["no-such-command"], ["--version", "status"]])
def test_without_a_command_all_are_offered(arguments):
    app = command_line(arguments)
    found = {one.name for one in app.registered_commands} | {one.name for one in app.registered_groups}
    assert found == set(COMMANDS)


def test_what_is_named_exists():
    for one in COMMANDS.values():
        for command in one.commands.values() if isinstance(one, Group) else [one]:
            assert hasattr(import_module(f"poplin.cli.{command.module}"), command.function)


@pytest.mark.parametrize(
    ("command", "foreign"),
    [
        ("lab exec", {"poplin.agent.agent", "poplin.apiserver.server", "poplin.lab.demo"}),
        ("status", {"aiohttp", "asyncio", "poplin.agent", "poplin.lab", "poplin.apiserver"}),
        ("agent", {"rich", "poplin.lab", "poplin.apiserver"}),
    ],
)
def test_a_command_imports_nothing_of_others(command, foreign):
    program = f"""
import sys
from poplin.cli.main import command_line
command_line({command.split()!r})
print(*sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert foreign.isdisjoint(answer.stdout.split())


def test_the_agent_is_asked_over_its_socket(tmp_path):
    requests = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()

        def answer():
            connection, _ = listener.accept()
            with connection:
                requests.append(connection.recv(4096).split(b"\r\n")[0])
                body = json.dumps({"node": "n1"}).encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        thread = threading.Thread(target=answer)
        thread.start()
        report = ask(tmp_path, "POST", "/audit")
        thread.join()
    assert report == {"node": "n1"}
    assert requests == [b"POST /audit HTTP/1.1"]


def test_no_agent_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(PoplinError, match="start `poplin agent`"):
        ask(tmp_path, "GET", "/status")
