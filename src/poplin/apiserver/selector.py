"""Label and field selectors as they stand in a query string.

https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Match = Callable[[Mapping[str, str]], bool]
_TOKEN = re.compile(r"\s*(==|!=|=|>|<|!|\(|\)|,|[A-Za-z0-9._/-]+|$)")


class SelectorError(ValueError):
    """The text is not a selector."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term. `operator` is In, NotIn, Exists, DoesNotExist, Gt or Lt."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, values: Mapping[str, str]) -> bool:
        value = values.get(self.key)
        match self.operator:
            case "In":
                return value is not None and value in self.values
            case "NotIn":
                return value is None or value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
        (bound,) = self.values
        try:
            number = int(value or "")
        except ValueError:
            return False
        return number > int(bound) if self.operator == "Gt" else number < int(bound)


@dataclass(frozen=True, slots=True)
class Selector:
    """All of `requirements`; the empty selector matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, values: Mapping[str, str]) -> bool:
        return all(requirement.matches(values) for requirement in self.requirements)

    def exact(self, key: str) -> str | None:
        """The one value that `key` must have, or None where it is not pinned."""
        for requirement in self.requirements:
            if requirement.key == key and requirement.operator == "In" and len(requirement.values) == 1:
                return next(iter(requirement.values))
        return None


def parse_labels(text: str) -> Selector:
    """`app=web,tier in (a,b),!old` and the other forms of a label selector. Raises SelectorError."""
    tokens = _tokenize(text)
    requirements: list[Requirement] = []
    while tokens != [""]:
        requirements.append(_parse_requirement(tokens))
        if tokens[0] == ",":
            tokens.pop(0)
            if tokens == [""]:
                raise SelectorError(f"unable to parse requirement: nothing after the last comma of {text!r}")
        elif tokens != [""]:
            raise SelectorError(f"unable to parse requirement: found {tokens[0]!r}, expected: ',' or 'end'")
    return Selector(tuple(requirements))


def _tokenize(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while not tokens or tokens[-1]:
        found = _TOKEN.match(text, position)
        if found is None:
            raise SelectorError(
                f"unable to parse requirement: unexpected {text[position:].strip()[:1]!r} in {text!r}"
            )
        tokens.append(found[1])
        position = found.end()
    return tokens


def _parse_requirement(tokens: list[str]) -> Requirement:
    negated = tokens[0] == "!"
    if negated:
        tokens.pop(0)
    key = _take_word(tokens)
    if negated:
        return Requirement(key, "DoesNotExist")
    operator = tokens[0]
    if operator in {",", ""}:
        return Requirement(key, "Exists")
    tokens.pop(0)
    match operator:
        case "=" | "==" | "!=":
            value = "" if tokens[0] in {",", ""} else _take_word(tokens)
            return Requirement(key, "NotIn" if operator == "!=" else "In", frozenset({value}))
        case "in" | "notin":
            return Requirement(key, "In" if operator == "in" else "NotIn", _take_set(tokens))
        case ">" | "<":
            bound = _take_word(tokens)
            if not bound.lstrip("-").isdecimal():
                raise SelectorError(f"for 'Gt', 'Lt' operators, the value must be an integer, not {bound!r}")
            return Requirement(key, "Gt" if operator == ">" else "Lt", frozenset({bound}))
    raise SelectorError(
        f"unable to parse requirement: found {operator!r}, expected: in, notin, =, ==, !=, >, <"
    )


def _take_word(tokens: list[str]) -> str:
    word = tokens.pop(0) if tokens[0] else ""
    if not word or not (word[0].isalnum() or word[0] in "._-"):
        raise SelectorError(f"unable to parse requirement: found {word!r}, expected: identifier")
    return word


def _take_set(tokens: list[str]) -> frozenset[str]:
    if tokens[0] != "(":
        raise SelectorError(f"unable to parse requirement: found {tokens[0]!r}, expected: '('")
    tokens.pop(0)
    values: set[str] = set()
    while tokens[0] != ")":
        values.add("" if tokens[0] == "," else _take_word(tokens))
        if tokens[0] == ",":
            tokens.pop(0)
        elif tokens[0] != ")":
            raise SelectorError(f"unable to parse requirement: found {tokens[0]!r}, expected: ',' or ')'")
    tokens.pop(0)
    return frozenset(values)


def parse_fields(text: str, known: Mapping[str, str]) -> Selector:
    """`spec.nodeName=a,status.phase!=Failed`; `known` maps the fields that can be asked for to their paths."""
    requirements: list[Requirement] = []
    for term in filter(None, text.split(",")):
        found = re.fullmatch(r"\s*([^=!\s]+)\s*(==|!=|=)\s*(.*?)\s*", term)
        if found is None:
            raise SelectorError(f"invalid field selector: {term!r}; can't understand it")
        key, operator, value = found.groups()
        if key not in known:
            raise SelectorError(f"field label not supported: {key}")
        requirements.append(
            Requirement(known[key], "NotIn" if operator == "!=" else "In", frozenset({value}))
        )
    return Selector(tuple(requirements))
