"""Cases as their files say them: what is done to a cluster, and who then reaches whom.

A file is one YAML document:

    cases:
      - name: closed to all
        says: A policy without rules closes the pods that it selects.
        steps:
          - apply:
              - policy: x/closed                 # or a whole Kubernetes object
                spec: {podSelector: {}}
            expect:
              all: |                             # see `table`
                *  XXX ... ...

A step has `apply` (objects made, or put in the place of those of the same name), `delete` ("policy x/closed",
"pod x/a", "namespace y"), `label` ({"pod x/a": {tier: null}}, null to remove), and `expect`: a table for each
way of asking, "TCP 80", "UDP 81", "SCTP 80" or "ICMP", several with commas, `all` or `others` for those of ALL
that are not named.

Where many cases differ in little they are one with `each`, a list of mappings: a text that is "$key" is replaced
by that key's value, and "$key" within a text by that key's text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from poplin.datastore.documents import flatten, load_documents
from poplin.lab.manifests import list_manifests, read_manifest
from poplin.model.errors import InvalidInputError

Json = dict[str, Any]

CASES: Final = Path(__file__).parent / "cases"
"""The cases that are carried along."""

WORLD: Final = Path(__file__).parent / "world.yaml"
"""Three namespaces of three pods, for cases that bring none of their own."""


@dataclass(frozen=True, slots=True, order=True)
class Question:
    """How a pod is asked: a protocol's name, and a port, 0 for ICMP."""

    protocol: str
    port: int = 0

    def __str__(self) -> str:
        return f"{self.protocol} {self.port}" if self.port else self.protocol


ALL: Final = (
    Question("TCP", 80),
    Question("TCP", 81),
    Question("UDP", 80),
    Question("UDP", 81),
    Question("SCTP", 80),
    Question("ICMP"),
)


class Step(msgspec.Struct, forbid_unknown_fields=True):
    """What is done, in this order, and the text of the tables that then hold, by their questions' text."""

    expect: dict[str, str]
    delete: list[str] = []
    apply: list[Json] = []
    label: dict[str, dict[str, str | None]] = {}

    def tables(self, where: str) -> dict[Question, str]:
        """The text of each question's table. Raises InvalidInputError."""
        tables: dict[Question, str] = {}
        for key, text in self.expect.items():
            if key not in {"all", "others"}:
                tables |= dict.fromkeys((_read_question(one, where) for one in key.split(",")), text)
        for key in ("all", "others"):
            if key in self.expect:
                tables |= {one: self.expect[key] for one in ALL if one not in tables}
        return tables


class Case(msgspec.Struct, forbid_unknown_fields=True):
    """`group` is the name of its file, `says` a sentence on what it shows."""

    name: str
    steps: list[Step]
    says: str = ""
    group: str = ""

    @property
    def where(self) -> str:
        return f"case {self.group}/{self.name}"


@dataclass(frozen=True, slots=True)
class Given:
    """What files hold: cases, and objects, which are the world of the cases where there are any."""

    cases: list[Case]
    objects: list[Json]


def read_given(paths: Iterable[Path]) -> Given:
    """The cases and objects of files, and of the files in directories by name. Raises InvalidInputError."""
    cases: list[Case] = []
    objects: list[Json] = []
    for path in paths:
        for file in list_manifests(path):
            documents = load_documents(read_manifest(file), str(file))
            written = [one for one in documents if isinstance(one, dict) and "cases" in one]
            for one in written:
                cases += _read_cases(one["cases"], file)
            objects += flatten([one for one in documents if one not in written], str(file))
    names = [case.where for case in cases]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInputError("there are two of them", where=name, remedy="give each a name of its own")
    return Given(cases, objects)


def _read_cases(written: Iterable[Json], file: Path) -> list[Case]:
    cases = []
    for whole in (one for some in written for one in _spread(some, str(file))):
        try:
            cases.append(msgspec.convert({**whole, "group": file.stem}, Case))
        except msgspec.ValidationError as error:
            name = whole.get("name", "a case without name")
            raise InvalidInputError(str(error), where=f"{file}, {name}") from error
    return cases


def _spread(written: Json, where: str) -> Sequence[Json]:
    """The cases of one with `each`."""
    if "each" not in written:
        return [written]
    common = {key: value for key, value in written.items() if key != "each"}
    missing = [one for one in written["each"] if not isinstance(one, dict)]
    if missing:
        raise InvalidInputError(f"each: {missing[0]!r} is no mapping", where=where)
    return [_fill(common, one) for one in written["each"]]


def _fill(value: Any, given: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {_fill(key, given): _fill(one, given) for key, one in value.items()}
    if isinstance(value, list):
        return [_fill(one, given) for one in value]
    if isinstance(value, str) and "$" in value:
        if value[0] == "$" and value[1:] in given:
            return given[value[1:]]
        for key, text in given.items():
            value = value.replace(f"${key}", text) if isinstance(text, str) else value
    return value


def _read_question(text: str, where: str) -> Question:
    protocol, _, port = text.strip().partition(" ")
    ported = protocol in {"TCP", "UDP", "SCTP"}
    if not (ported and port.isdecimal() and 0 < int(port) < 1 << 16) and not (
        protocol == "ICMP" and not port
    ):
        raise InvalidInputError(
            f"{text.strip()!r}",
            where=f"{where}, expect",
            remedy='write "TCP 80", "UDP 80", "SCTP 80" or "ICMP"',
        )
    return Question(protocol, int(port or 0))
