"""Patches: JSON Patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch.

Strategic merge patch: https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/
strategic-merge-patch.md. All functions are pure: they return a new value and leave their arguments alone.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from poplin.apiserver.schema import Node

ORDER = "$setElementOrder/"
DELETE = "$deleteFromPrimitiveList/"
RETAIN = "$retainKeys"
DIRECTIVE = "$patch"
ANYTHING = Node()
END = "-"
"""The position after an array's last element, in a JSON Pointer."""


class PatchError(ValueError):
    """The patch cannot be applied; `unprocessable` where it is well formed but does not fit the object."""

    def __init__(self, message: str, *, unprocessable: bool = False) -> None:
        super().__init__(message)
        self.unprocessable = unprocessable


def apply_merge(target: Any, patch: Any) -> Any:
    """RFC 7386: members of `patch` replace those of `target`; null removes."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = apply_merge(result.get(key), value)
    return result


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


def apply_strategic(target: Any, patch: Any, node: Node) -> Any:
    """Strategic merge of `patch` into `target`, whose merge keys and strategies `node` tells."""
    if not isinstance(patch, dict):
        raise PatchError("a strategic merge patch is an object")
    return _merge_object(target if isinstance(target, dict) else {}, patch, node)


def _merge_object(target: Mapping[str, Any], patch: Mapping[str, Any], node: Node) -> dict[str, Any]:
    directive = patch.get(DIRECTIVE)
    if directive == "delete":
        return {}
    if directive == "replace":
        return _strip_object({key: value for key, value in patch.items() if key != DIRECTIVE})
    if directive not in {None, "merge"}:
        raise PatchError(f"unknown $patch directive {directive!r}")
    result = dict(target)
    if RETAIN in patch:
        result = {key: value for key, value in result.items() if key in patch[RETAIN]}
    for key, values in patch.items():
        if key.startswith(DELETE):
            name = key.removeprefix(DELETE)
            if isinstance(result.get(name), list):
                result[name] = [item for item in result[name] if item not in values]
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        child = node.properties.get(key) or node.additional or ANYTHING
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            before = result.get(key)
            result[key] = _merge_object(before if isinstance(before, dict) else {}, value, child)
        elif isinstance(value, list):
            result[key] = _merge_list(result.get(key), value, child)
        else:
            result[key] = value
    for key, order in patch.items():
        if key.startswith(ORDER):
            name = key.removeprefix(ORDER)
            child = node.properties.get(name) or ANYTHING
            if isinstance(result.get(name), list):
                before = target.get(name)
                result[name] = _reorder(
                    result[name], order, before if isinstance(before, list) else [], child.merge_key
                )
    return result


def _merge_list(target: Any, patch: list[Any], node: Node) -> list[Any]:
    before = target if isinstance(target, list) else []
    directives = [item.get(DIRECTIVE) for item in patch if isinstance(item, dict)]
    if "replace" in directives or not node.merge:
        return [_strip(item) for item in patch if not (isinstance(item, dict) and item.get(DIRECTIVE))]
    if not node.merge_key:
        return before + [
            item for index, item in enumerate(patch) if item not in before and item not in patch[:index]
        ]
    key, result = node.merge_key, list(before)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise PatchError(f"map: {item} does not contain declared merge key: {key}")
        found = next(
            (at for at, old in enumerate(result) if isinstance(old, dict) and old.get(key) == item[key]), None
        )
        if item.get(DIRECTIVE) == "delete":
            result = [old for old in result if not (isinstance(old, dict) and old.get(key) == item[key])]
        elif found is None:
            result.append(_merge_object({}, item, node.items or ANYTHING))
        else:
            result[found] = _merge_object(result[found], item, node.items or ANYTHING)
    return result


def _reorder(merged: list[Any], order: Any, before: list[Any], key: str) -> list[Any]:
    """`merged` in the order the patch asks for; what only the server knows keeps its old neighbours."""

    def name(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    if not isinstance(order, list):
        raise PatchError("$setElementOrder is an array")
    wanted = [name(item) for item in order]
    old = [name(item) for item in before]
    ours = sorted(
        (item for item in merged if name(item) in wanted), key=lambda item: wanted.index(name(item))
    )
    theirs = [item for item in merged if name(item) not in wanted]
    result: list[Any] = []
    while ours and theirs:
        left, right = name(ours[0]), name(theirs[0])
        later = left in old and right in old and old.index(left) > old.index(right)
        result.append(theirs.pop(0) if later else ours.pop(0))
    return result + ours + theirs


def _strip_object(value: dict[str, Any]) -> dict[str, Any]:
    return {key: _strip(item) for key, item in value.items() if item is not None and not key.startswith("$")}


def _strip(value: Any) -> Any:
    """`value` without directives and without nulls: what a patch means where there is nothing to merge with."""
    if isinstance(value, dict):
        return {
            key: _strip(item) for key, item in value.items() if item is not None and not key.startswith("$")
        }
    if isinstance(value, list):
        return [_strip(item) for item in value]
    return value
