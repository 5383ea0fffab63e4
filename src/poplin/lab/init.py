"""A lab's init: process 1 of the lab's PID namespace, the parent of its server, its agents and its containers.

Why a process of its own, and why forks: Python takes 0.4 s to start and import an agent, a fork 5 ms, so
everything is imported once, by a process that never has a second thread or an event loop. Being process 1 it
takes everything along when it dies, however it dies: the kernel sees to that. And it knows its containers'
exit codes while the kubelet, which is in the server, is restarted.
"""

import gc
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

import msgspec

from poplin.lab import stdio
from poplin.lab.container import ContainerSpec, become_container
from poplin.lab.isolation import ProcessIdentity, close_all_but, fork_first_of_pid_namespace, identify
from poplin.lab.message import QUESTION, Answer, ProcessState, Question
from poplin.lab.stdio import Console, open_console
from poplin.model.errors import InvalidInputError, PoplinError

RESTART_S: Final = (0.2, 1.0, 5.0)
"""Waits before a daemon that died is started again; the last one repeats, and a life longer than it is a
fresh start."""

_SIGNALS: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
_GONE: Final = ProcessIdentity(0, 0)
_CHUNK_BYTES: Final = 64 << 10

Daemon = Callable[[], NoReturn]
"""What a child becomes."""


@dataclass(slots=True, eq=False)
class Client:
    """One connection, and the part of a line that has come."""

    connection: socket.socket
    received: bytes = b""


@dataclass(slots=True)
class Life:
    """A daemon that is kept alive: early deaths in a row, and when it is due again, 0 while it runs."""

    failures: int = 0
    due: float = 0


class Init:
    """Serves `listener` until SIGTERM. `daemons` are what clients may start by name; they keep `inherited` open."""

    def __init__(
        self, listener: socket.socket, daemons: Mapping[str, Daemon], inherited: Collection[int] = ()
    ) -> None:
        self._listener = listener
        self._daemons = daemons
        self._inherited = inherited
        self._selector = selectors.DefaultSelector()
        self._clients: list[Client] = []
        self._states: dict[str, ProcessState] = {}
        self._ids: dict[int, str] = {}
        self._lives: dict[str, Life] = {}
        self._consoles: dict[str, Console] = {}
        self._stopping = False

    def run(self) -> None:
        """Serve. Single-threaded on purpose: it forks."""
        wake, woken = socket.socketpair()
        for end in (wake, woken, self._listener):
            end.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._note_signal)
        self._selector.register(wake, selectors.EVENT_READ, lambda: wake.recv(_CHUNK_BYTES))
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        # Children's collections then leave the pages alone that they share with us.
        gc.freeze()
        while not self._stopping:
            for key, _ in self._selector.select(self._wait_s()):
                key.data()
            self._reap()
            self._revive()

    def _note_signal(self, number: int, _: object) -> None:
        self._stopping |= number != signal.SIGCHLD

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        # Blocking writes: a client that does not read its answers is one of ours that is broken or stopped.
        connection.settimeout(5)
        client = Client(connection)
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(client))

    def _drop(self, client: Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            self._selector.unregister(client.connection)
            client.connection.close()

    def _read(self, client: Client) -> None:
        try:
            data = client.connection.recv(_CHUNK_BYTES)
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        *lines, client.received = (client.received + data).split(b"\n")
        for line in lines:
            try:
                question = QUESTION.decode(line)
            except msgspec.DecodeError:
                self._drop(client)
                return
            try:
                self._answer(client, question)
            except (PoplinError, OSError) as error:
                self._send(client, Answer(question.tag, str(error)))

    def _send(self, client: Client, answer: Answer) -> None:
        try:
            client.connection.sendall(msgspec.json.encode(answer) + b"\n")
        except OSError:
            self._drop(client)

    def _answer(self, client: Client, question: Question) -> None:
        match question:
            case Question(start=name, container=ContainerSpec() as spec) if name:
                self._start_container(client, question.tag, name, spec)
                return
            case Question(start=name) if name:
                self._start_daemon(name)
            case Question(signal=name) if name:
                self._signal(name, question.number)
            case Question(input=name) if name:
                self._give_input(client, question)
                return
            case Question(forget=name) if name:
                if name in self._states and self._states[name].code is not None:
                    del self._states[name]
        chosen = question.start or question.signal or question.forget
        states = [s for s in self._states.values() if chosen in {"", s.id}]
        self._send(client, Answer(question.tag, processes=states))

    def _signal(self, name: str, number: int) -> None:
        state = self._states.get(name)
        pid = next((pid for pid, found in self._ids.items() if found == name), 0)
        # A child that has ended keeps its number until it is reaped, so this cannot hit another process.
        if state is not None and state.code is None and pid:
            os.kill(pid, number)

    def _start_daemon(self, name: str) -> None:
        become = self._daemons.get(name)
        if become is None:
            raise InvalidInputError("no such daemon", where=name)
        state = self._states.get(name)
        if state is not None and state.code is None:
            return
        pid = os.fork()
        if pid == 0:
            with no_return():
                self._leave(self._inherited)
                become()
        self._lives.setdefault(name, Life()).due = 0
        self._record(name, pid)

    def _start_container(self, client: Client, tag: int, name: str, spec: ContainerSpec) -> None:
        if name in self._states:
            raise InvalidInputError("a container of this name is known already", where=name)
        streams, console = open_console(spec.log, tty=spec.tty, stdin=spec.stdin)
        told, ready = os.pipe2(os.O_CLOEXEC)
        pid = fork_first_of_pid_namespace()
        if pid == 0:
            with no_return():
                self._leave({ready, *streams.all()})
                become_container(spec, ready, streams)
        os.close(ready)
        stdio.close(streams.all())
        state = self._record(name, pid)
        self._consoles[name] = console
        for descriptor in console.outputs:
            self._selector.register(
                descriptor, selectors.EVENT_READ, partial(self._take_output, console, descriptor)
            )
        reason = bytearray()

        def hear() -> None:
            data = os.read(told, _CHUNK_BYTES)
            reason.extend(data)
            if data:
                return
            self._selector.unregister(told)
            os.close(told)
            if reason:
                self._states.pop(name, None)
            self._send(client, Answer(tag, reason.decode(errors="replace"), [state]))

        self._selector.register(told, selectors.EVENT_READ, hear)

    def _take_output(self, console: Console, descriptor: int) -> bool:
        """Log a chunk of what a container writes; tell whether there was any."""
        taken = console.take(descriptor)
        if taken == 0:
            self._selector.unregister(descriptor)
            console.close_output(descriptor)
        return taken > 0

    def _give_input(self, client: Client, question: Question) -> None:
        console = self._consoles.get(question.input)
        if console is None or console.input < 0:
            raise InvalidInputError("its standard input is closed", where=question.input)
        answer = msgspec.json.encode(Answer(question.tag)) + b"\n"
        socket.send_fds(client.connection, [answer], [console.input])
        if question.once:
            console.close_input()

    def _finish_output(self, name: str) -> None:
        """Log the last that a container has written: who hears of its end finds it there."""
        console = self._consoles.pop(name, None)
        if console is not None:
            for descriptor in list(console.outputs):
                while self._take_output(console, descriptor):
                    pass
            for descriptor in console.outputs:
                self._selector.unregister(descriptor)
            console.close()

    def _record(self, name: str, pid: int) -> ProcessState:
        identity = identify(pid) or _GONE
        self._ids[pid] = name
        state = ProcessState(name, identity.pid, identity.started, time.time())
        self._states[name] = state
        return state

    def _leave(self, keep: Collection[int]) -> None:
        """In a child: let go of everything that is the parent's."""
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        close_all_but(keep)

    def _reap(self) -> None:
        """Take in the ends of children, and of orphans that became ours."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._end(self._ids.pop(pid, ""), os.waitstatus_to_exitcode(status))

    def _end(self, name: str, code: int) -> None:
        self._finish_output(name)
        state = self._states.get(name)
        if state is None:
            return
        state.code, state.ended = code if code >= 0 else 128 - code, time.time()
        life = self._lives.get(name)
        if life is not None:
            lived_s = state.ended - state.since
            life.failures = 0 if lived_s > RESTART_S[-1] else life.failures + 1
            wait_s = RESTART_S[min(life.failures, len(RESTART_S)) - 1] if life.failures else RESTART_S[0]
            life.due = time.monotonic() + wait_s
        for client in list(self._clients):
            self._send(client, Answer(processes=[state]))

    def _wait_s(self) -> float | None:
        due = [life.due for life in self._lives.values() if life.due]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _revive(self) -> None:
        for name, life in self._lives.items():
            if life.due and life.due <= time.monotonic():
                self._start_daemon(name)


@contextmanager
def no_return() -> Iterator[None]:
    """A child ends in here: were it to go on, there would be two of its parent."""
    try:
        yield
    except BaseException:  # noqa: BLE001  - the log is the only place left to say it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)
