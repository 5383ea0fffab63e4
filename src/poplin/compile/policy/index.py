"""Which selectors match these labels, and which labels match this selector, without asking them all.

Whatever matches `app == "web"` shows the hook (app, web), so a selector is filed under one set of hooks that
a match must have, of those it offers the one that is shared least. Selectors that match by what labels lack
are few, and asked each time.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

from poplin.model.selector import (
    Expression,
    Hook,
    Labels,
    Match,
    Selector,
    hooks_of,
    hooks_shown,
    matcher,
)

K = TypeVar("K", bound=Hashable)


class SelectorIndex:
    """Selectors by their text, to be found by labels."""

    def __init__(self) -> None:
        self._matches: dict[str, Match] = {}
        self._filed: dict[str, frozenset[Hook]] = {}
        self._by_hook: dict[Hook, set[str]] = {}
        self._unfiled: set[str] = set()

    def __contains__(self, text: str) -> bool:
        return text in self._matches

    def add(self, selector: Selector) -> None:
        if selector.text in self._matches:
            return
        self._matches[selector.text] = matcher(selector.expression)
        choices = hooks_of(selector.expression)
        if not choices:
            self._unfiled.add(selector.text)
            return
        hooks = min(choices, key=lambda some: sum(len(self._by_hook.get(hook, ())) + 1 for hook in some))
        self._filed[selector.text] = hooks
        for hook in hooks:
            self._by_hook.setdefault(hook, set()).add(selector.text)

    def remove(self, text: str) -> None:
        if self._matches.pop(text, None) is None:
            return
        self._unfiled.discard(text)
        for hook in self._filed.pop(text, ()):
            of_hook = self._by_hook[hook]
            of_hook.discard(text)
            if not of_hook:
                del self._by_hook[hook]

    def matching(self, labels: Labels) -> set[str]:
        """The texts of the selectors that match."""
        candidates = set(self._unfiled)
        if self._by_hook:
            for hook in hooks_shown(labels):
                candidates |= self._by_hook.get(hook, _NONE)
        return {text for text in candidates if self._matches[text](labels)}


_NONE: frozenset[str] = frozenset()


class LabelIndex(Generic[K]):
    """Labels by a key of the caller's, to be found by selectors.

    A label is indexed from when a selector first asks for it: most labels are never asked for.
    """

    def __init__(self) -> None:
        self._labels: dict[K, Labels] = {}
        self._by_label: dict[str, dict[str, set[K]]] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def put(self, key: K, labels: Labels) -> None:
        """Add labels, or replace those that the key had."""
        self.remove(key)
        self._labels[key] = labels
        for label, by_value in self._by_label.items():
            value = labels.get(label)
            if value is not None:
                by_value.setdefault(value, set()).add(key)

    def remove(self, key: K) -> None:
        labels = self._labels.pop(key, None)
        if labels is None:
            return
        for label, by_value in self._by_label.items():
            value = labels.get(label)
            if value is not None:
                by_value[value].discard(key)
                if not by_value[value]:
                    del by_value[value]

    def matching(self, expression: Expression) -> list[K]:
        """The keys of the labels that match."""
        matches = matcher(expression)
        choices = hooks_of(expression)
        if not choices:
            return [key for key, labels in self._labels.items() if matches(labels)]
        buckets = min(
            (self._buckets(hooks) for hooks in choices), key=lambda some: sum(len(one) for one in some)
        )
        candidates: set[K] = set().union(*buckets)
        return [key for key in candidates if matches(self._labels[key])]

    def _buckets(self, hooks: frozenset[Hook]) -> list[set[K]]:
        found: list[set[K]] = []
        for label, value in hooks:
            by_value = self._of_label(label)
            found += by_value.values() if value is None else [by_value.get(value, set())]
        return found

    def _of_label(self, label: str) -> dict[str, set[K]]:
        by_value = self._by_label.get(label)
        if by_value is None:
            by_value = self._by_label[label] = {}
            for key, labels in self._labels.items():
                value = labels.get(label)
                if value is not None:
                    by_value.setdefault(value, set()).add(key)
        return by_value
