"""Network namespaces for tests: made by the test, uniquely named, removed even when it fails."""

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import create_netns, delete_netns, in_namespace, open_netns
from poplin.model.kernel import Link
from poplin.plan.operation import Change


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace with its loopback up. `fd` stays open for the test."""

    name: str
    path: str
    fd: int
    socket: RouteSocket

    def run(self, *command: str) -> str:
        """The output of a program run inside; fails the test where the program fails."""
        inside = ["nsenter", f"--net={self.path}", *command]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


NamespaceFactory = Callable[[], Namespace]


@pytest.fixture(scope="session", autouse=True)
def root():
    if os.geteuid() != 0:
        pytest.exit("tests/kernel makes network namespaces: run it as root", returncode=4)


@pytest.fixture
def netns(root) -> Iterator[NamespaceFactory]:
    """Makes a namespace each time it is called; all are removed when the test ends."""
    with ExitStack() as stack:

        def make() -> Namespace:
            name = f"pt{os.getpid()}-{secrets.token_hex(4)}"
            path = create_netns(name)
            stack.callback(delete_netns, name)
            fd = open_netns(path)
            stack.callback(os.close, fd)
            socket = stack.enter_context(in_namespace(fd, RouteSocket))
            assert socket.apply([Change(Link("lo"))]) == []
            return Namespace(name, str(path), fd, socket)

        yield make
