"""JSON Patch (RFC 6902) with its pointers (RFC 6901). Pure: arguments are left alone."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from poplin.apiserver.patch import PatchError

END = "-"
"""The position after an array's last element, in a JSON Pointer."""


def apply_json(target: Any, operations: Any) -> Any:
    """RFC 6902: every operation in turn; the first that cannot be done refuses the whole patch."""
    if not isinstance(operations, list):
        raise PatchError("a JSON patch is an array of operations")
    result = copy.deepcopy(target)
    for operation in operations:
        if not isinstance(operation, dict):
            raise PatchError("an operation of a JSON patch is an object")
        result = _apply_operation(result, operation)
    return result


def _apply_operation(document: Any, operation: Mapping[str, Any]) -> Any:
    kind, path = operation.get("op"), _pointer(operation.get("path"))
    if kind in {"add", "replace", "test"} and "value" not in operation:
        raise PatchError(f"operation {kind} needs a value")
    if kind == "add":
        return _add(document, path, copy.deepcopy(operation["value"]))
    if kind == "remove":
        return _remove(document, path)
    if kind == "replace":
        _resolve(document, path)
        return (
            _add(_remove(document, path), path, copy.deepcopy(operation["value"]))
            if path
            else operation["value"]
        )
    if kind == "test":
        if not _equal(_resolve(document, path), operation["value"]):
            raise PatchError(f"testing path {operation['path']} failed", unprocessable=True)
        return document
    if kind in {"move", "copy"}:
        source = _pointer(operation.get("from"))
        value = copy.deepcopy(_resolve(document, source))
        if kind == "move":
            if path[: len(source)] == source and path != source:
                raise PatchError("a value cannot move into itself")
            document = _remove(document, source)
        return _add(document, path, value)
    raise PatchError(f"unknown operation {kind!r} of a JSON patch")


def _equal(one: Any, other: Any) -> bool:
    """JSON equality: 1 and 1.0 are the same number, 1 and true are not."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _pointer(text: Any) -> list[str]:
    """The reference tokens of an RFC 6901 JSON Pointer."""
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise PatchError(f"not a JSON pointer: {text!r}")
    return [token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:]]


def _index(container: Sequence[Any], token: str, *, end: bool) -> int:
    if end and token == END:
        return len(container)
    if not token.isdecimal() or (len(token) > 1 and token.startswith("0")):
        raise PatchError(f"not an array index: {token!r}", unprocessable=True)
    index = int(token)
    if index > len(container) or (index == len(container) and not end):
        raise PatchError(f"array index {index} is out of bounds", unprocessable=True)
    return index


def _resolve(document: Any, path: Sequence[str]) -> Any:
    for token in path:
        if isinstance(document, list):
            document = document[_index(document, token, end=False)]
        elif isinstance(document, dict) and token in document:
            document = document[token]
        else:
            raise PatchError(f"path /{'/'.join(path)} does not exist", unprocessable=True)
    return document


def _add(document: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    container = _resolve(document, path[:-1])
    if isinstance(container, list):
        container.insert(_index(container, path[-1], end=True), value)
    elif isinstance(container, dict):
        container[path[-1]] = value
    else:
        raise PatchError(f"path /{'/'.join(path)} does not exist", unprocessable=True)
    return document


def _remove(document: Any, path: Sequence[str]) -> Any:
    if not path:
        return None
    _resolve(document, path)
    container = _resolve(document, path[:-1])
    if isinstance(container, list):
        del container[_index(container, path[-1], end=False)]
    else:
        del container[path[-1]]
    return document
