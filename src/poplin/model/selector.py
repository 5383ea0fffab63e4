"""Selectors: what a policy says of the pods it means, and the labels that a pod shows to it.

One language for all of them. Kubernetes' LabelSelectors become expressions over the same labels as Calico's
do: a pod's own, those of its namespace under `pcns.` and of its service account under `pcsa.`, and the names
of the two under NAMESPACE and SERVICE_ACCOUNT (Calico, "Selectors" in the NetworkPolicy resource's
reference). So a peer of a podSelector and a namespaceSelector is one expression.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

NAMESPACE: Final = "projectcalico.org/namespace"
"""Label with the name of the pod's namespace; what has no namespace has no such label."""

SERVICE_ACCOUNT: Final = "projectcalico.org/serviceaccount"
NAMESPACE_PREFIX: Final = "pcns."
SERVICE_ACCOUNT_PREFIX: Final = "pcsa."
METADATA_NAME: Final = "kubernetes.io/metadata.name"
"""A namespace's label that is always its name (Kubernetes, "Well-Known Labels")."""


class Labels(NamedTuple):
    """What selectors see of an endpoint. `namespace` and `account` have their keys with prefixes already.

    A pod's own label that looks like an inherited one is never seen: it would let a pod's author choose the
    namespace that policies take it for.
    """

    own: Mapping[str, str]
    namespace: Mapping[str, str] = {}
    account: Mapping[str, str] = {}

    def get(self, key: str) -> str | None:
        return self[scope(key)].get(key)

    def items(self) -> Iterator[tuple[str, str]]:
        for key, value in self.own.items():
            if not scope(key):
                yield key, value
        yield from self.namespace.items()
        yield from self.account.items()


def scope(key: str) -> int:
    """Which of the three mappings of Labels a key belongs to."""
    if key.startswith(NAMESPACE_PREFIX) or key == NAMESPACE:
        return 1
    if key.startswith(SERVICE_ACCOUNT_PREFIX) or key == SERVICE_ACCOUNT:
        return 2
    return 0


def namespace_labels(name: str, labels: Mapping[str, str]) -> dict[str, str]:
    """What every pod of the namespace shows of it. Its name is a label also where nobody has set it."""
    named = {**labels, METADATA_NAME: name}
    return {NAMESPACE: name} | {NAMESPACE_PREFIX + key: value for key, value in named.items()}


def account_labels(name: str, labels: Mapping[str, str]) -> dict[str, str]:
    """What every pod of the service account shows of it; nothing where it has none."""
    if not name:
        return {}
    return {SERVICE_ACCOUNT: name} | {SERVICE_ACCOUNT_PREFIX + key: value for key, value in labels.items()}


class TextOperator(StrEnum):
    CONTAINS = "contains"
    STARTS_WITH = "starts with"
    ENDS_WITH = "ends with"


@dataclass(frozen=True, slots=True)
class Has:
    """The label is there, with whatever value."""

    key: str


@dataclass(frozen=True, slots=True)
class In:
    """The label is there and has one of the values; of no values, none."""

    key: str
    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Compare:
    """The label is there and its value stands so to `text`."""

    key: str
    operator: TextOperator
    text: str


@dataclass(frozen=True, slots=True)
class Global:
    """Of what belongs to no namespace."""


@dataclass(frozen=True, slots=True)
class Not:
    part: "Expression"


@dataclass(frozen=True, slots=True)
class And:
    """All of the parts; of no parts, everything."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of the parts; of no parts, nothing."""

    parts: tuple["Expression", ...]


Expression = Has | In | Compare | Global | Not | And | Or
NOTHING: Final = Not(And(()))
Match = Callable[[Labels], bool]


@dataclass(frozen=True, slots=True)
class Selector:
    """An expression by its canonical text, which is what selectors are compared and kept by.

    The text reads back to the same selector (`model.selector_text`).
    """

    text: str
    expression: Expression = field(compare=False, repr=False)

    def matches(self, labels: Labels) -> bool:
        return matcher(self.expression)(labels)


def select(expression: Expression) -> Selector:
    """The selector of an expression: flattened, ordered, and without what says nothing."""
    plain = _simplify(expression)
    return Selector(text_of(plain), plain)


def all_of(*selectors: Selector) -> Selector:
    return select(And(tuple(one.expression for one in selectors)))


def any_of(*selectors: Selector) -> Selector:
    return select(Or(tuple(one.expression for one in selectors)))


def _simplify(expression: Expression) -> Expression:
    match expression:
        case Not(part):
            inner = _simplify(part)
            return inner.part if isinstance(inner, Not) else Not(inner)
        case And(parts):
            flat = _flatten(And, parts)
            return NOTHING if NOTHING in flat else flat[0] if len(flat) == 1 else And(flat)
        case Or(parts):
            flat = tuple(part for part in _flatten(Or, parts) if part != NOTHING)
            if And(()) in flat:
                return And(())
            return NOTHING if not flat else flat[0] if len(flat) == 1 else Or(flat)
    return expression


def _flatten(kind: type[And | Or], parts: Iterable[Expression]) -> tuple[Expression, ...]:
    flat: dict[str, Expression] = {}
    for part in map(_simplify, parts):
        for one in part.parts if isinstance(part, kind) else (part,):
            flat[text_of(one)] = one
    return tuple(flat[text] for text in sorted(flat))


def text_of(expression: Expression) -> str:
    """The expression in Calico's language."""
    match expression:
        case Has(key):
            return f"has({key})"
        case In(key, values) if len(values) == 1:
            return f"{key} == {_quote(*values)}"
        case In(key, values):
            return f"{key} in {{{', '.join(map(_quote, sorted(values)))}}}"
        case Compare(key, operator, text):
            return f"{key} {operator} {_quote(text)}"
        case Global():
            return "global()"
        case Not(In(key, values)) if len(values) == 1:
            return f"{key} != {_quote(*values)}"
        case Not(In(key, values)):
            return f"{key} not in {{{', '.join(map(_quote, sorted(values)))}}}"
        case Not(part):
            return f"!{text_of(part)}"
        case And(()):
            return "all()"
        case Or(()):
            return "!all()"
        case And(parts):
            return f"({' && '.join(map(text_of, parts))})"
        case Or(parts):
            return f"({' || '.join(map(text_of, parts))})"


def _quote(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


EVERYTHING: Final = select(And(()))


def matcher(expression: Expression) -> Match:
    """A function that tells whether labels match, for where many of them are asked."""
    match expression:
        case Has(key):
            which = scope(key)
            return lambda labels: key in labels[which]
        case In(key, values):
            which = scope(key)
            return lambda labels: labels[which].get(key) in values
        case Compare(key, operator, text):
            return _compare(key, operator, text)
        case Global():
            return lambda labels: NAMESPACE not in labels.namespace
        case Not(part):
            inner = matcher(part)
            return lambda labels: not inner(labels)
        case And(parts):
            every = tuple(map(matcher, parts))
            return lambda labels: all(one(labels) for one in every)
        case Or(parts):
            some = tuple(map(matcher, parts))
            return lambda labels: any(one(labels) for one in some)


def _compare(key: str, operator: TextOperator, text: str) -> Match:
    which = scope(key)
    test = {
        TextOperator.CONTAINS: str.__contains__,
        TextOperator.STARTS_WITH: str.startswith,
        TextOperator.ENDS_WITH: str.endswith,
    }[operator]

    def matches(labels: Labels) -> bool:
        value = labels[which].get(key)
        return value is not None and test(value, text)

    return matches


def keys_of(expression: Expression) -> frozenset[str]:
    """The labels that an expression asks for."""
    match expression:
        case Has(key) | In(key) | Compare(key):
            return frozenset({key})
        case Global():
            return frozenset({NAMESPACE})
        case Not(part):
            return keys_of(part)
        case And(parts) | Or(parts):
            return frozenset[str]().union(*map(keys_of, parts))


Hook = tuple[str, str | None]
"""A label and its value, or None for whatever value: by hooks, labels and selectors find each other."""


def hooks_of(expression: Expression) -> list[frozenset[Hook]]:
    """Sets of hooks of which whatever matches must have one; each set alone finds all that match.

    Empty where labels match by what they lack.
    """
    match expression:
        case Has(key) | Compare(key):
            return [frozenset({(key, None)})]
        case In(key, values):
            return [frozenset((key, value) for value in values)]
        case And(parts):
            return [hooks for part in parts for hooks in hooks_of(part)]
        case Or(parts):
            each = [hooks_of(part) for part in parts]
            if not all(each):
                return []
            return [frozenset[Hook]().union(*(min(found, key=len) for found in each))]
    return []


def hooks_shown(labels: Labels) -> Iterator[Hook]:
    """The hooks that labels have."""
    for key, value in labels.items():
        yield key, value
        yield key, None
