"""Patches by example: merge patch (RFC 7386) and Kubernetes' strategic merge patch.

Strategic merge patch: https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/
strategic-merge-patch.md. All functions are pure: they return a new value and leave their arguments alone.
"""

import copy
from collections.abc import Mapping
from typing import Any

from poplin.apiserver.schema import Node

ORDER = "$setElementOrder/"
DELETE = "$deleteFromPrimitiveList/"
RETAIN = "$retainKeys"
DIRECTIVE = "$patch"
ANYTHING = Node()


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
