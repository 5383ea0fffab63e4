"""Logs of containers: written as records, read back whole, from their end, since a time, followed."""

import asyncio
import io
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.lab.kubelet.stream.log import LogFile, LogOptions, find_tail, parse_record, seek_tail
from poplin.lab.stdio import format_records, timestamp

NINE = "2026-11-23T09:00:00.000000000Z"
TEN = "2026-11-23T10:00:00.500000000Z"


async def read(path, **options):
    return b"".join([piece async for piece in LogFile(path, lambda: True).read(LogOptions(**options))])


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "0.log"
    path.write_bytes(
        format_records(NINE, "stdout", b"one\ntwo\n")
        + format_records(NINE, "stderr", b"oh\n")
        + format_records(TEN, "stdout", b"thr")
        + format_records(TEN, "stdout", b"ee\nfour\n")
    )
    return path


def test_records():
    assert timestamp(1_795_424_400_000_000_001) == "2026-11-23T09:00:00.000000001Z"
    assert format_records(NINE, "stdout", b"a\n\nb") == (
        f"{NINE} stdout F a\n{NINE} stdout F \n{NINE} stdout P b\n".encode()
    )
    assert parse_record(b"no record") is None


@given(st.lists(st.text("ab \n", max_size=6).map(str.encode), max_size=12))
def test_nothing_is_lost(pieces):
    text = b"".join(format_records(NINE, "stdout", piece) for piece in pieces)
    records = [parse_record(line) for line in text.split(b"\n")[:-1]]
    assert b"".join(record.data for record in records) == b"".join(pieces)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, b"one\ntwo\noh\nthree\nfour\n"),
        ({"tail_lines": 2}, b"three\nfour\n"),
        ({"tail_lines": 0}, b""),
        ({"tail_lines": 99}, b"one\ntwo\noh\nthree\nfour\n"),
        ({"limit_bytes": 5}, b"one\nt"),
        ({"stream": "stderr"}, b"oh\n"),
        ({"since": datetime(2026, 11, 23, 10, tzinfo=UTC)}, b"three\nfour\n"),
        ({"tail_lines": 2, "timestamps": True}, f"{TEN} three\n{TEN} four\n".encode()),
    ],
)
async def test_which_lines(log, options, text):
    assert await read(log, **options) == text


@given(st.lists(st.text("ab\n", max_size=5).map(str.encode), max_size=10), st.integers(0, 6))
def test_the_tail_is_the_last_lines(pieces, count):
    data = b"".join(format_records(NINE, "stdout", piece) for piece in pieces)
    text = b"".join(pieces)
    lines = text.splitlines(keepends=True)
    shown = b"".join(parse_record(line).data for line in data[find_tail(data, count) :].split(b"\n")[:-1])
    assert shown == b"".join(lines[max(0, len(lines) - count) :])


def test_the_tail_of_a_long_log_is_found_in_pieces(monkeypatch):
    monkeypatch.setattr("poplin.lab.kubelet.stream.log.CHUNK_BYTES", 7)
    file = io.BytesIO(b"".join(format_records(NINE, "stdout", b"line %d\n" % n) for n in range(50)))
    seek_tail(file, 3)
    assert [line.split()[-1] for line in file.read().splitlines()] == [b"47", b"48", b"49"]


async def test_following_ends_with_the_container_and_its_last_word(log):
    over = False
    pieces = []

    async def follow():
        followed = LogFile(log, lambda: over).read(LogOptions(follow=True), from_end=True)
        pieces.extend([piece async for piece in followed])

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        for word in (b"more\n", b"last"):
            await asyncio.sleep(0.02)
            with log.open("ab") as file:
                file.write(format_records(TEN, "stdout", word))
        over = True
    assert b"".join(pieces) == b"more\nlast"
