"""The standard streams of what runs in a container: a command started there, or the container's own process."""

import asyncio
import os
import pty
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from poplin.lab import stdio
from poplin.lab.isolation import enter_options
from poplin.lab.kubelet.processes import Processes
from poplin.lab.kubelet.stream.channel import Channel, Size, make_status
from poplin.lab.kubelet.stream.log import LogFile, LogOptions

CHUNK_BYTES: Final = 32 << 10


class Console(Protocol):
    """What a session carries. `outputs` end when nobody writes to them any more."""

    @property
    def outputs(self) -> Mapping[Channel, AsyncIterator[bytes]]:
        """By the channel they go to."""
        ...

    async def write(self, data: bytes) -> None:
        """Give bytes to the standard input, no bytes for its end. What nobody reads is dropped."""
        ...

    def resize(self, size: Size) -> None:
        """Make the terminal as large as the client's."""
        ...

    async def wait(self) -> dict[str, Any]:
        """The Status to tell once it is over."""
        ...

    def close(self) -> None:
        """The client has gone."""
        ...


class Sink(asyncio.BaseProtocol):
    """Writes to a descriptor, which is its own from now on, no faster than somebody reads."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def open(cls, descriptor: int) -> "Sink":
        file = os.fdopen(descriptor, "wb", buffering=0)
        _, sink = await asyncio.get_running_loop().connect_write_pipe(cls, file)
        return sink

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101  - of a pipe that is written to
        self._transport = transport

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, _: Exception | None) -> None:
        """Nobody reads any more."""
        self._transport = None
        self._writable.set()

    async def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
            await self._writable.wait()

    def close(self) -> None:
        """What has been written is still read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()


async def read_pipe(descriptor: int) -> AsyncIterator[bytes]:
    """What comes out of a descriptor, which is closed at the end."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        # A terminal that nobody has open any more ends in EIO.
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                yield data
    finally:
        transport.close()


class Command:
    """A command run in a container's namespaces. `start` makes one."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        outputs: Mapping[Channel, AsyncIterator[bytes]],
        sink: Sink | None,
        terminal: int,
    ) -> None:
        self._process = process
        self._sink = sink
        self._terminal = terminal
        self.outputs = outputs

    @classmethod
    async def start(
        cls, pid: int, arguments: Sequence[str], environment: Mapping[str, str], *, stdin: bool, tty: bool
    ) -> "Command":
        """Run `arguments` beside the container's process `pid`, with a terminal if `tty`.

        Raises OSError where no process can be started. A program that is not there ends with 127.
        """
        if tty:
            master, slave = pty.openpty()
            streams = stdio.ChildEnds(slave, slave, slave, tty=True)
            ours, given = {Channel.STDOUT: os.dup(master)}, os.dup(master)
            environment = {"TERM": "xterm", **environment}
        else:
            master = -1
            (out, out_end), (err, err_end) = os.pipe(), os.pipe()
            source, given = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), -1)
            streams = stdio.ChildEnds(source, out_end, err_end)
            ours = {Channel.STDOUT: out, Channel.STDERR: err}
        try:
            process = await asyncio.create_subprocess_exec(
                *_enter(pid, tty=tty),
                *arguments,
                env=environment,
                stdin=streams.stdin,
                stdout=streams.stdout,
                stderr=streams.stderr,
            )
        except OSError:
            stdio.close([*ours.values(), given, master])
            raise
        finally:
            stdio.close(streams.all())
        outputs = {channel: read_pipe(descriptor) for channel, descriptor in ours.items()}
        return cls(process, outputs, await Sink.open(given) if given >= 0 else None, master)

    async def write(self, data: bytes) -> None:
        if self._sink is None:
            return
        if data:
            await self._sink.write(data)
        elif self._terminal < 0:
            self._sink.close()

    def resize(self, size: Size) -> None:
        if self._terminal >= 0:
            stdio.resize(self._terminal, size.columns, size.rows)

    async def wait(self) -> dict[str, Any]:
        code = await self._process.wait()
        return make_status(code if code >= 0 else 128 - code)

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()
        stdio.close([self._terminal])
        self._terminal = -1
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)


def _enter(pid: int, *, tty: bool) -> list[str]:
    """A command line that goes on with a command inside; with `tty` in a session that has the terminal.

    The session is made in the container's PID namespace: a shell there shall see its own process group.
    """
    inside = enter_options(pid)
    if not tty:
        return ["nsenter", *inside, "--"]
    last = [option for option in inside if option != "--pid"]
    return ["nsenter", f"--target={pid}", "--pid", "--", "setsid", "--ctty", "nsenter", *last, "--"]


class Attachment:
    """A container's own process, whose output is followed in its log."""

    def __init__(
        self, log: Path, processes: Processes, process: str, sink: Sink | None, *, terminal: int, once: bool
    ) -> None:
        self._processes = processes
        self._process = process
        self._over = False
        self._sink = sink
        self._terminal = terminal
        self._once = once
        file = LogFile(log, lambda: self._over)
        streams = {Channel.STDOUT: stdio.STDOUT, Channel.STDERR: stdio.STDERR}
        self.outputs = {
            channel: file.read(LogOptions(follow=True, stream=stream), from_end=True)
            for channel, stream in streams.items()
        }

    async def write(self, data: bytes) -> None:
        if self._sink is None:
            return
        if data:
            await self._sink.write(data)
        elif self._once:
            self._sink.close()

    def resize(self, size: Size) -> None:
        if self._terminal >= 0:
            stdio.resize(self._terminal, size.columns, size.rows)

    async def wait(self) -> dict[str, Any]:
        await self._processes.wait(self._process)
        self._over = True
        return make_status(0)

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()
        stdio.close([self._terminal])
        self._terminal = -1
