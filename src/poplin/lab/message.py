"""What a lab's init is asked and what it says: lines of JSON on a unix socket."""

from typing import Final

import msgspec

from poplin.lab.container import ContainerSpec

SERVER: Final = "server"
"""What the init calls the process of the API, the controllers and the kubelets."""


def agent_name(node: str) -> str:
    """What the init calls a node's agent."""
    return f"agent-{node}"


def containerd_name(node: str) -> str:
    """What the init calls a node's containerd."""
    return f"containerd-{node}"


class Question(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A line from a client. One of `start`, `signal`, `forget`, `input` names a process; none asks for the list.

    `start` starts the daemon of that name, or the container that is given. `forget` drops one that has
    ended. `input` asks for the descriptor that a container's standard input is written to, which comes along
    with the answer; with `once` nobody gets it after that. `tag` comes back with the answer: a container that
    takes its time does not hold up others.
    """

    tag: int
    start: str = ""
    container: ContainerSpec | None = None
    signal: str = ""
    number: int = 0
    forget: str = ""
    input: str = ""
    once: bool = False


class ProcessState(msgspec.Struct, omit_defaults=True):
    """A process: `code` None while it runs, else its exit status, or 128 and the signal that ended it.

    `pid` and `started` are its ProcessIdentity; `since` and `ended` are in seconds since 1970.
    """

    id: str
    pid: int
    started: int
    since: float
    code: int | None = None
    ended: float = 0


class Answer(msgspec.Struct, omit_defaults=True):
    """A line to a client: the answer to the question of that tag, or with tag 0 news of one process.

    `error` says why a question failed. A process that is told of without being asked for has ended.
    """

    tag: int = 0
    error: str = ""
    processes: list[ProcessState] = []


QUESTION: Final = msgspec.json.Decoder(Question)
ANSWER: Final = msgspec.json.Decoder(Answer)
