"""The lab's init as its clients see it: the kubelet, which waits for answers on an event loop, and the command line."""

import asyncio
import itertools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from poplin.lab.container import ContainerSpec
from poplin.lab.message import ANSWER, Answer, ProcessState, Question
from poplin.model.errors import PoplinError, TemporaryError

LINE_BYTES = 16 << 20
TIMEOUT_S = 60.0


class RuntimeFailedError(TemporaryError):
    """The init refused, or a container could not be started: `what` is the reason."""


class Runtime:
    """A connection to the init. `ended` is called with each process that ends."""

    def __init__(self, path: Path, ended: Callable[[ProcessState], None] = lambda _: None) -> None:
        self._path = path
        self._ended = ended
        self._tags = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    async def __aenter__(self) -> Self:
        try:
            reader, self._writer = await asyncio.open_unix_connection(str(self._path), limit=LINE_BYTES)
        except OSError as error:
            raise TemporaryError(
                f"the lab's init is not there: {error.strerror}", where=str(self._path)
            ) from error
        self._reading = asyncio.create_task(self._read(reader), name="answers of the lab's init")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        self._writer.close()

    async def list_processes(self) -> list[ProcessState]:
        """All processes that are known, ended ones until they are forgotten."""
        return (await self._ask(Question(0))).processes

    async def start_container(self, name: str, spec: ContainerSpec) -> ProcessState:
        """Start a container; it runs, or serves its ports, when this returns.

        Raises RuntimeFailedError where it cannot be started.
        """
        return (await self._ask(Question(0, start=name, container=spec))).processes[0]

    async def start_daemon(self, name: str) -> ProcessState:
        """Start a daemon, if it does not run; init starts it again whenever it dies."""
        return (await self._ask(Question(0, start=name))).processes[0]

    async def send_signal(self, name: str, number: int) -> None:
        """Send a signal to a process. One that has ended is success."""
        await self._ask(Question(0, signal=name, number=number))

    async def forget(self, name: str) -> None:
        """Drop what is known of a process that has ended."""
        await self._ask(Question(0, forget=name))

    async def _ask(self, question: Question) -> Answer:
        question.tag = next(self._tags)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[question.tag] = future
        try:
            self._writer.write(msgspec.json.encode(question) + b"\n")
            async with asyncio.timeout(TIMEOUT_S):
                answer = await future
        except (OSError, TimeoutError) as error:
            raise TemporaryError("the lab's init does not answer", where=str(self._path)) from error
        finally:
            del self._waiting[question.tag]
        if answer.error:
            raise RuntimeFailedError(answer.error)
        return answer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            answer = ANSWER.decode(line)
            if answer.tag:
                future = self._waiting.get(answer.tag)
                if future is not None and not future.done():
                    future.set_result(answer)
            else:
                for state in answer.processes:
                    self._ended(state)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(TemporaryError("the lab's init is gone", where=str(self._path)))


def open_input(path: Path, name: str, *, once: bool) -> int:
    """The descriptor that a container's standard input is written to, blocking; the caller closes it.

    With `once` nobody gets it again, and closing it is the end of the input. Raises PoplinError.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(Question(1, input=name, once=once)) + b"\n")
            received = bytearray()
            while True:
                data, descriptors, _, _ = socket.recv_fds(connection, LINE_BYTES, 1)
                if descriptors:
                    return descriptors[0]
                if not data:
                    break
                # News of processes may come before the answer.
                received += data
                for line in received.split(b"\n")[:-1]:
                    answer = ANSWER.decode(line)
                    if answer.tag == 1:
                        raise PoplinError(answer.error, where=name)
                del received[: received.rfind(b"\n") + 1]
    except OSError as error:
        raise TemporaryError(
            f"the lab's init does not answer: {error.strerror or error}", where=name
        ) from error
    raise TemporaryError("the lab's init is gone", where=name)


def ask(path: Path, question: Question) -> list[ProcessState]:
    """Ask one thing, blocking. Raises PoplinError where the init is not there or refuses."""
    try:
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as answers:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            question.tag = 1
            connection.sendall(msgspec.json.encode(question) + b"\n")
            for line in answers:
                answer = ANSWER.decode(line)
                if answer.tag == 1:
                    if answer.error:
                        raise PoplinError(answer.error, where=str(path))
                    return answer.processes
    except OSError as error:
        raise TemporaryError(
            f"the lab's init does not answer: {error.strerror or error}",
            where=str(path),
            remedy="start the lab again with `poplin lab up`",
        ) from error
    raise TemporaryError("the lab's init is gone", where=str(path), remedy="start it with `poplin lab up`")
