"""Which fields an object has, as paths; and what server-side apply does with them: flatten, merge, remove. Pure.

A path is a tuple of elements in the form of FieldsV1: "f:spec", 'k:{"name":"web"}' for an item of a list that is a
map, "v:..." for one of a list that is a set. Whatever is atomic is one field.
https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from poplin.apiserver.schema import Node

Path = tuple[str, ...]
FieldSet = frozenset[Path]

NONE: Final[FieldSet] = frozenset()
CONTAINER: Final = object()
"""Stands for the value of a field that has fields of its own."""
ANYTHING: Final = Node(preserve=True)


class FieldError(ValueError):
    """A list that cannot be merged: an item without its key, or two with the same."""


def flatten(value: Any, node: Node, *, strict: bool = False) -> dict[Path, Any]:
    """Every field of `value` with what it holds, CONTAINER where that is fields of its own.

    With `strict` a list that cannot be merged raises FieldError; otherwise the last item of a key counts.
    """
    found: dict[Path, Any] = {}
    _flatten((), value, node, found, strict=strict)
    found.pop((), None)
    return found


def _flatten(path: Path, value: Any, node: Node, found: dict[Path, Any], *, strict: bool) -> None:
    if isinstance(value, dict) and not node.atomic and (value or not path):
        for key, item in value.items():
            child, below = _member(node, key), (*path, f"f:{key}")
            _flatten(below, item, child, found, strict=strict)
            if key not in node.properties:
                found.setdefault(below, CONTAINER)
    elif isinstance(value, list) and node.list_type in {"set", "map"}:
        for element, item in _index(value, node, path, strict=strict).items():
            below = (*path, element)
            _flatten(below, item, node.items or ANYTHING, found, strict=strict)
            # A value of a set is its own path; an item of a map is there whatever it holds.
            found[below] = CONTAINER
    else:
        found[path] = value


def _member(node: Node, key: str) -> Node:
    return node.properties.get(key) or node.additional or ANYTHING


def _index(items: list[Any], node: Node, path: Path, *, strict: bool) -> dict[str, Any]:
    """The items of a list that is a map or a set, by path element."""
    found: dict[str, Any] = {}
    for item in items:
        element = _element(item, node, path, strict=strict)
        if element in found and strict:
            raise FieldError(f"{render((*path, element))}: duplicate entries for key")
        found[element] = item
    return found


def _element(item: Any, node: Node, path: Path, *, strict: bool) -> str:
    if node.list_type == "set":
        return f"v:{msgspec.json.encode(item).decode()}"
    fields = item if isinstance(item, dict) else {}
    defaults = dict(node.items.defaults) if node.items else {}
    key: dict[str, Any] = {}
    for name in sorted(node.map_keys):
        if (value := fields.get(name, defaults.get(name))) is not None:
            key[name] = value
    if not key and strict:
        raise FieldError(f"{render(path)}: an item has no {' or '.join(node.map_keys)}")
    return f"k:{msgspec.json.encode(key).decode()}"


def merge(live: Any, applied: Any, node: Node) -> Any:
    """`live` with everything that `applied` says; lists in the order that `applied` gives them."""
    if isinstance(live, dict) and isinstance(applied, dict) and not node.atomic:
        merged = {key: merge(live.get(key), value, _member(node, key)) for key, value in applied.items()}
        return {**live, **merged}
    if isinstance(live, list) and isinstance(applied, list) and node.list_type in {"set", "map"}:
        return _merge_list(live, applied, node)
    return copy.deepcopy(applied)


def _merge_list(live: list[Any], applied: list[Any], node: Node) -> list[Any]:
    """Items that only `live` has stay before the item of both that they stood before."""
    old = _index(live, node, (), strict=False)
    new = _index(applied, node, (), strict=True)
    result: list[Any] = []
    waiting = iter(old.items())
    for element, item in new.items():
        if element in old:
            for passed, kept in waiting:
                if passed == element:
                    break
                if passed not in new:
                    result.append(kept)
        result.append(merge(old.get(element), item, node.items or ANYTHING))
    result.extend(kept for passed, kept in waiting if passed not in new)
    return result


def remove(value: Any, path: Path, node: Node) -> Any:
    """`value` without the field at `path`; as it is where it has no such field."""
    first, rest = path[0], path[1:]
    if first.startswith("f:") and isinstance(value, dict) and first[2:] in value:
        key = first[2:]
        if not rest:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: remove(value[key], rest, _member(node, key))}
    if isinstance(value, list) and node.list_type in {"set", "map"}:
        items = _index(value, node, (), strict=False)
        if first in items:
            if not rest:
                del items[first]
            else:
                items[first] = remove(items[first], rest, node.items or ANYTHING)
            return list(items.values())
    return value


def is_key(path: Path) -> bool:
    """Whether a field is what the item that it is of is known by."""
    item = path[-2] if len(path) > 1 else ""
    return item.startswith("k:") and path[-1].removeprefix("f:") in msgspec.json.decode(item[2:])


def encode(fields: Iterable[Path]) -> dict[str, Any]:
    """FieldsV1: a tree of path elements, "." where a field that has fields below it is in the set itself."""
    tree: dict[str, Any] = {}
    paths = sorted(fields)
    for number, path in enumerate(paths):
        place = tree
        for element in path:
            place = place.setdefault(element, {})
        follower = paths[number + 1] if number + 1 < len(paths) else ()
        if follower[: len(path)] == path:
            place["."] = {}
    return tree


def decode(tree: Mapping[str, Any]) -> FieldSet:
    """The set that FieldsV1 describes."""
    return frozenset(_decode((), tree))


def _decode(path: Path, tree: Mapping[str, Any]) -> Iterator[Path]:
    if path and (not tree or "." in tree):
        yield path
    for element, below in tree.items():
        if element != ".":
            yield from _decode((*path, element), below)


def render(path: Path) -> str:
    """A path as people read it: .spec.containers[name="web"].image."""
    return "".join(map(_render, path)) or "."


def _render(element: str) -> str:
    kind, text = element[:2], element[2:]
    if kind == "f:":
        return f".{text}"
    if kind == "k:":
        key = msgspec.json.decode(text, type=dict[str, Any])
        return "[" + ",".join(f"{name}={msgspec.json.encode(v).decode()}" for name, v in key.items()) + "]"
    return f"[={text}]"
