"""Questions to the node's agent, over its unix socket."""

import socket
from contextlib import closing
from http.client import HTTPConnection, HTTPException
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
    agent = run_dir / STATUS_SOCKET
    try:
        with closing(_AgentConnection(agent)) as connection:
            connection.request(method, path)
            answer: dict[str, Any] = msgspec.json.decode(connection.getresponse().read())
    except (HTTPException, OSError, msgspec.DecodeError) as error:
        raise PoplinError(
            f"no answer from the agent: {getattr(error, 'strerror', None) or error or 'it hangs'}",
            where=str(agent),
            remedy="start `poplin agent` on this node, or give its --run-dir",
        ) from error
    if "error" in answer:
        raise PoplinError(answer["error"])
    return answer
