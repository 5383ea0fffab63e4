"""Calico's selector language, from text to selectors.

    expression := term { "||" term }
    term       := factor { "&&" factor }
    factor     := "!" factor | "(" expression ")" | "all()" | "global()" | "has(" label ")" | comparison
    comparison := label ( "==" | "!=" ) string
                | label [ "not" ] "in" "{" [ string { "," string } ] "}"
                | label ( "contains" | "starts with" | "ends with" ) string

A label is up to 512 of `A-Za-z0-9_./-`; a string stands in ' or " and has no escapes; between words there may
be spaces and tabs. Empty text is `all()`.
"""

import re
from typing import Final, NamedTuple

from poplin.model.selector import (
    EVERYTHING,
    And,
    Compare,
    Expression,
    Global,
    Has,
    In,
    Not,
    Or,
    Selector,
    TextOperator,
    select,
)

MAX_LABEL: Final = 512
MAX_DEPTH: Final = 100
"""Of parentheses and `!` within each other: more is nobody's policy, and would exhaust the stack."""

_SPACE: Final = re.compile(r"[ \t]*")
_TOKEN: Final = re.compile(
    r"""(?P<label>[A-Za-z0-9_./-]+)|(?P<string>"[^"]*"|'[^']*')|(?P<sign>==|!=|&&|\|\||[!(){},])"""
)


class SelectorError(ValueError):
    """The text is no selector. `position` counts characters from 0; the message counts columns from 1."""

    def __init__(self, what: str, text: str, position: int) -> None:
        super().__init__(f"selector {text!r}, column {position + 1}: {what}")
        self.position = position


class Token(NamedTuple):
    """`kind` is label, string, sign or end; `text` of a string is without its quotes."""

    kind: str
    text: str
    position: int

    def __str__(self) -> str:
        return "its end" if self.kind == "end" else repr(self.text)


def parse_selector(text: str) -> Selector:
    """Raises SelectorError with the place of what is wrong."""
    reader = _Reader(text)
    if reader.next.kind == "end":
        return EVERYTHING
    expression = reader.expression()
    if reader.next.kind != "end":
        raise reader.error("&&, || or the end")
    return select(expression)


def _tokenize(text: str) -> list[Token]:
    tokens: list[Token] = []
    position = _end_of(_SPACE, text, 0)
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            what = "a string without its end" if text[position] in "'\"" else f"{text[position]!r}"
            raise SelectorError(f"unexpected {what}", text, position)
        kind, word = found.lastgroup or "", found[0]
        if kind == "label" and len(word) > MAX_LABEL:
            raise SelectorError(f"a label of more than {MAX_LABEL} characters", text, position)
        tokens.append(Token(kind, word[1:-1] if kind == "string" else word, position))
        position = _end_of(_SPACE, text, found.end())
    return [*tokens, Token("end", "", len(text))]


def _end_of(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position


class _Reader:
    """Tokens, taken from the front by one method for each line of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokenize(text)
        self._at = 0
        self._depth = 0

    @property
    def next(self) -> Token:
        return self._tokens[self._at]

    def error(self, expected: str) -> SelectorError:
        return SelectorError(f"expected {expected}, found {self.next}", self._text, self.next.position)

    def expression(self) -> Expression:
        parts = [self._term()]
        while self._take("||"):
            parts.append(self._term())
        return Or(tuple(parts))

    def _term(self) -> Expression:
        parts = [self._factor()]
        while self._take("&&"):
            parts.append(self._factor())
        return And(tuple(parts))

    def _factor(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise SelectorError("nested too deeply", self._text, self.next.position)
        try:
            if self._take("!"):
                return Not(self._factor())
            if self._take("("):
                inside = self.expression()
                self._expect(")")
                return inside
        finally:
            self._depth -= 1
        label = self._word("label", "a label, a function or (")
        if label.text in {"all", "global", "has"} and self._take("("):
            return self._function(label.text)
        return self._comparison(label.text)

    def _function(self, name: str) -> Expression:
        inside = Has(self._word("label", "a label").text) if name == "has" else None
        self._expect(")")
        return inside or (Global() if name == "global" else And(()))

    def _comparison(self, key: str) -> Expression:
        if self._take("=="):
            return In(key, frozenset({self._string()}))
        if self._take("!="):
            return Not(In(key, frozenset({self._string()})))
        if self._take("in"):
            return In(key, self._set())
        if self._take("not"):
            self._expect("in")
            return Not(In(key, self._set()))
        for operator in TextOperator:
            first, _, second = operator.partition(" ")
            if self._take(first):
                if second:
                    self._expect(second)
                return Compare(key, operator, self._string())
        raise self.error("==, !=, in, not in, contains, starts with or ends with")

    def _set(self) -> frozenset[str]:
        self._expect("{")
        if self._take("}"):
            return frozenset()
        values = {self._string()}
        while self._take(","):
            values.add(self._string())
        self._expect("}")
        return frozenset(values)

    def _string(self) -> str:
        return self._word("string", "a string in quotes").text

    def _word(self, kind: str, expected: str) -> Token:
        token = self.next
        if token.kind != kind:
            raise self.error(expected)
        self._at += 1
        return token

    def _take(self, text: str) -> bool:
        if self.next.text != text or self.next.kind == "string":
            return False
        self._at += 1
        return True

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self.error(text)
