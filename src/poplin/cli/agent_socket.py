"""Questions to the node's agent, over its unix socket."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import msgspec

from poplin.model.errors import PoplinError

STATUS_SOCKET = "agent.sock"
TIMEOUT_S = 30.0


class _AgentConnection(HTTPConnection):
    """HTTP over the agent's unix socket, by what the standard library has: aiohttp takes 0.2 s to import."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(run_dir: Path, method: str, path: str) -> dict[str, Any]:
    """Give what the agent answers. Raises PoplinError where it does not, or answers with an error."""
    with _answered(run_dir, method, path) as response:
        answer: dict[str, Any] = msgspec.json.decode(response.read())
    if "error" in answer:
        raise PoplinError(answer["error"])
    return answer


def read_lines(run_dir: Path, path: str, *, endless: bool) -> Iterator[dict[str, Any]]:
    """Give the JSON objects of an answer, one of each line; where it is `endless`, as they come.

    Raises PoplinError where there is no agent, or it refuses.
    """
    with _answered(run_dir, "GET", path, endless=endless) as response:
        if response.status != 200:
            raise PoplinError(f"the agent refuses: {response.read().decode()}", where=path)
        for line in response:
            yield msgspec.json.decode(line)
    if endless:
        raise PoplinError("the agent has ended", where=str(run_dir / STATUS_SOCKET), remedy="ask again")


@contextmanager
def _answered(run_dir: Path, method: str, path: str, *, endless: bool = False) -> Iterator[HTTPResponse]:
    agent = run_dir / STATUS_SOCKET
    try:
        with closing(_AgentConnection(agent)) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            if endless:
                # A flow may be hours away.
                connection.sock.settimeout(None)
            yield response
    except (HTTPException, OSError, msgspec.DecodeError) as error:
        raise PoplinError(
            f"no answer from the agent: {getattr(error, 'strerror', None) or error or 'it hangs'}",
            where=str(agent),
            remedy="start `poplin agent` on this node, or give its --run-dir",
        ) from error
