"""What containers have written: log files in the form that the CRI gives them, read from their end or followed.

A line is "2006-01-02T15:04:05.999999999Z stdout F text"; F ends a line of the program's, P is a part of one.
https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

CHUNK_BYTES: Final = 256 << 10
FASTEST_S: Final = 0.01
SLOWEST_S: Final = 0.1
"""How long until a file that is followed is looked at again: soon after it grew, seldom while it stands."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Which lines (API reference, "PodLogOptions"). None: no bound. `stream` "" is both.

    `since` is compared with the lines' times.
    """

    follow: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: datetime | None = None
    stream: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the file. `data` ends with a newline where `complete`."""

    time: bytes
    stream: bytes
    complete: bool
    data: bytes


def parse_record(line: bytes) -> Record | None:
    """A line without its newline; None for one that is no record."""
    parts = line.split(b" ", 3)
    if len(parts) < 4:
        return None
    time, stream, tags, data = parts
    complete = not tags.startswith(b"P")
    return Record(time, stream, complete, data + b"\n" if complete else data)


def find_tail(data: bytes, count: int) -> int:
    """Where in `data` the last `count` lines of the program's begin; an unfinished one counts."""
    lines = data.splitlines(keepends=True)
    seen, start = 0, len(data)
    for index in range(len(lines) - 1, -1, -1):
        record = parse_record(lines[index])
        if index == len(lines) - 1 or record is None or record.complete:
            if seen == count:
                return start
            seen += 1
        start -= len(lines[index])
    return 0


@dataclass(slots=True)
class Selector:
    """Chooses and renders records, one after another."""

    options: LogOptions
    _since: bytes = field(init=False)
    _fresh: dict[bytes, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        since = self.options.since
        self._since = b"" if since is None else since.strftime("%Y-%m-%dT%H:%M:%S.%f").encode()

    def render(self, line: bytes) -> bytes:
        """What the client gets of a line of the file, nothing where it is not chosen."""
        record = parse_record(line)
        if record is None or (self.options.stream and record.stream != self.options.stream.encode()):
            return b""
        # As text times are in order too, all being UTC.
        if record.time < self._since:
            return b""
        begins = self._fresh.get(record.stream, True)
        self._fresh[record.stream] = record.complete
        return record.time + b" " + record.data if self.options.timestamps and begins else record.data


class LogFile:
    """The file of one run of a container. `ended` says whether anybody writes to it still."""

    def __init__(self, path: Path, ended: Callable[[], bool]) -> None:
        self._path = path
        self._ended = ended

    async def read(self, options: LogOptions, *, from_end: bool = False) -> AsyncIterator[bytes]:
        """Pieces of the log; with `follow` until the container has ended, without until the file's end.

        `from_end`: only what is written from now on. Raises FileNotFoundError.
        """
        selector, left = Selector(options), options.limit_bytes
        with self._path.open("rb") as file:
            if from_end:
                file.seek(0, os.SEEK_END)
            elif options.tail_lines is not None:
                seek_tail(file, options.tail_lines)
            rest, wait_s = b"", FASTEST_S
            while True:
                # Asked before reading: what was written until the end is in what is read then.
                over = not options.follow or self._ended()
                chunk = file.read(CHUNK_BYTES)
                *lines, rest = (rest + chunk).split(b"\n")
                text = b"".join(map(selector.render, lines))
                if left is not None:
                    text, left = text[:left], left - len(text[:left])
                if text:
                    yield text
                if left == 0 or (over and not chunk):
                    return
                wait_s = FASTEST_S if chunk else min(wait_s * 1.5, SLOWEST_S)
                await asyncio.sleep(0 if chunk else wait_s)


def seek_tail(file: BinaryIO, count: int) -> None:
    """Go to the last `count` lines, reading no more than those."""
    position = file.seek(0, os.SEEK_END)
    data = b""
    while position > 0:
        step = min(CHUNK_BYTES, position)
        position -= step
        file.seek(position)
        data = file.read(step) + data
        # The first line of what was read may have lost its head.
        if start := find_tail(data, count):
            position += start
            break
    file.seek(position)
