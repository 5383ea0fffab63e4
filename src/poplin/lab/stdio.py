"""A container's standard streams: what it writes goes into its log, what it reads comes from whoever attaches.

The lab's init holds our ends of them, so that they outlive any kubelet. The log is the only copy of the output:
who attaches follows the file, terminals included.
"""

import fcntl
import os
import pty
import struct
import termios
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

CHUNK_BYTES: Final = 64 << 10
STDOUT: Final = "stdout"
STDERR: Final = "stderr"


@dataclass(frozen=True, slots=True)
class ChildEnds:
    """What the container gets as its descriptors 0, 1 and 2; with `tty` all three are a terminal's."""

    stdin: int
    stdout: int
    stderr: int
    tty: bool = False

    def all(self) -> set[int]:
        return {self.stdin, self.stdout, self.stderr}

    def adopt(self) -> None:
        """In the child, which leads a session: take them as 0, 1 and 2."""
        if self.tty:
            fcntl.ioctl(self.stdin, termios.TIOCSCTTY, 0)
        for source, target in ((self.stdin, 0), (self.stdout, 1), (self.stderr, 2)):
            os.dup2(source, target)
        close(self.all() - {0, 1, 2})


@dataclass(slots=True)
class Console:
    """Our ends. `outputs` says by descriptor which stream it is; `input` is -1 where nothing can be written.

    A terminal's `input` is its `outputs` too.
    """

    log: int
    outputs: dict[int, str]
    input: int = -1

    def take(self, descriptor: int) -> int:
        """Move what has been written, a chunk at most, to the log; its bytes: -1 none now, 0 none ever again."""
        try:
            data = os.read(descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return -1
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if data:
            os.write(self.log, format_records(timestamp(time.time_ns()), self.outputs[descriptor], data))
        return len(data)

    def close_output(self, descriptor: int) -> None:
        """Nobody writes to it any more."""
        del self.outputs[descriptor]
        if descriptor == self.input:
            self.input = -1
        os.close(descriptor)

    def close_input(self) -> None:
        """Let the container read the end of its input. A terminal has no such end."""
        if self.input not in {-1, *self.outputs}:
            os.close(self.input)
            self.input = -1

    def close(self) -> None:
        self.close_input()
        close((self.log, *self.outputs))


def open_console(log: str, *, tty: bool, stdin: bool) -> tuple[ChildEnds, Console]:
    """The streams of a container to be, both sides."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    if tty:
        master, slave = pty.openpty()
        os.set_blocking(master, False)
        return ChildEnds(slave, slave, slave, tty=True), Console(file, {master: STDOUT}, master)
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    for descriptor in (out, err):
        os.set_blocking(descriptor, False)
    source, given = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), -1)
    return ChildEnds(source, out_end, err_end), Console(file, {out: STDOUT, err: STDERR}, given)


def close(descriptors: Iterable[int]) -> None:
    """Close each, as far as it is open."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def resize(terminal: int, columns: int, rows: int) -> None:
    """Set a terminal's size; whoever runs in it is told by SIGWINCH. Either side's descriptor will do."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def timestamp(nanoseconds: int) -> str:
    """A time since 1970 as logs have it: UTC, nine decimals, so that they sort as text."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def format_records(when: str, stream: str, data: bytes) -> bytes:
    """Lines of a log, as the CRI has them, for `data` that came at once. What does not end its line is a part (P).

    https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
    """
    *lines, rest = data.split(b"\n")
    full = f"{when} {stream} F ".encode()
    text = b"".join([full + line + b"\n" for line in lines])
    return text + (f"{when} {stream} P ".encode() + rest + b"\n" if rest else b"")
