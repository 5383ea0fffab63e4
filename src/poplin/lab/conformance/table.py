"""Truth tables as text: which pod reaches which.

    *    XXX ... ...
    x/b  ... ... ...

Each line is for the sources that its pattern means (`*` for all, `x/*`, `*/a`), and what a later line says of
a source stands. The marks are for the destinations in the order of their names, `.` reached and `X` not; spaces
between them are for the eye. A pod always reaches itself, whatever its mark.
"""

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final

from poplin.model.errors import InvalidInputError

REACHED: Final = "."
DENIED: Final = "X"

Pair = tuple[str, str]
"""Source and destination, each "namespace/name"."""

Table = dict[Pair, bool]
"""Whether the first reaches the second."""


def read_table(text: str, pods: Sequence[str], where: str) -> Table:
    """The table of these pods, which are in order. Raises InvalidInputError."""
    table: Table = {}
    for line in text.splitlines():
        pattern, *groups = line.split()
        marks = "".join(groups)
        if len(marks) != len(pods) or not set(marks) <= {REACHED, DENIED}:
            raise InvalidInputError(
                f"{line.strip()!r} is no line for {len(pods)} pods",
                where=where,
                remedy="write one . or X for each",
            )
        sources = [pod for pod in pods if fnmatchcase(pod, pattern)]
        if not sources:
            raise InvalidInputError(
                f"{pattern!r} means no pod", where=where, remedy="write NAMESPACE/POD or *"
            )
        for source in sources:
            for destination, mark in zip(pods, marks, strict=True):
                table[source, destination] = mark == REACHED or source == destination
    missing = [pod for pod in pods if (pod, pod) not in table]
    if missing:
        raise InvalidInputError(f"no line for {missing[0]}", where=where, remedy="begin with a line for *")
    return table


def write_table(table: Table, pods: Sequence[str]) -> str:
    """The table with a line for each source."""
    width = max(map(len, pods), default=0)
    lines = []
    for source in pods:
        marks, before = "", ""
        for destination in pods:
            namespace = destination.partition("/")[0]
            gap = " " if before and namespace != before else ""
            marks += gap + (REACHED if table[source, destination] else DENIED)
            before = namespace
        lines.append(f"{source:{width}}  {marks}")
    return "\n".join(lines)


def differing(expected: Table, found: Table) -> list[Pair]:
    """The cells in which the two are not the same."""
    return [pair for pair, reached in expected.items() if found.get(pair) != reached]


def count(table: Table) -> tuple[int, int]:
    """How many cells are reached, and how many there are."""
    return sum(table.values()), len(table)


def in_order(pods: Iterable[str]) -> Collection[str]:
    return sorted(pods, key=lambda pod: tuple(pod.split("/")))
