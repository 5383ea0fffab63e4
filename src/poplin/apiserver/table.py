"""Server-side tables: rows under the columns of data/resources.toml and of custom resources."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from poplin.apiserver.cells import CELLS, NONE, format_age
from poplin.apiserver.collection import Object
from poplin.apiserver.resource import Column, Resource, lookup


def make_table(resource: Resource, rows: Sequence[Object], metadata: Mapping[str, Any]) -> Object:
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": dict(metadata),
        "columnDefinitions": [_define(column) for column in resource.columns or DEFAULT_COLUMNS],
        "rows": list(rows),
    }


def _define(column: Column) -> Object:
    return {
        "name": column.name,
        "type": column.type,
        "format": column.format,
        "description": column.description or column.name,
        "priority": column.priority,
    }


def make_row(resource: Resource, document: Object) -> Object:
    return {"cells": [_cell(column, document) for column in resource.columns or DEFAULT_COLUMNS]}


def _cell(column: Column, document: Object) -> Any:
    if not column.cell.startswith((".", "{")):
        return CELLS[column.cell](document)
    value = evaluate(column.cell, document)
    if column.type == "date" and resource_column(column):
        return value and format_age(value)
    if value is None:
        # Custom resources show nothing where there is nothing.
        return None if resource_column(column) else ABSENT.get(column.type, NONE)
    if column.type == "string" and not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return value


ABSENT: Final[Mapping[str, Any]] = {"integer": 0, "boolean": False}
"""What built-in columns show where there is nothing."""


def resource_column(column: Column) -> bool:
    """Whether a column comes from a custom resource's definition."""
    return column.cell.startswith("{")


_STEP: Final = re.compile(
    r"\.((?:\\.|[^.\[\\])+)|\[(\d+|\*)\]|\['([^']+)'\]|\[\?\(@\.([\w.]+)\s*==\s*[\"']([^\"']*)[\"']\)\]"
)
"""A step of a path: .member (dots escaped), [index], ['member'] or [?(@.key=="value")]."""


def evaluate(path: str, document: Any) -> Any:
    """The value of the JSONPath subset that printer columns use: members, indices, [*] and equality filters.

    The first of several values; None where there is none.
    """
    values, position = [document], 0
    text = path.strip("{}")
    while position < len(text):
        step = _STEP.match(text, position)
        if step is None:
            return None
        position = step.end()
        values = [found for value in values for found in _descend(value, step)]
    return values[0] if values else None


def _descend(value: Any, step: "re.Match[str]") -> list[Any]:
    member, index, quoted, key, wanted = step.groups()
    if key is not None:
        items = value if isinstance(value, list) else []
        return [item for item in items if str(lookup(item, key)) == wanted]
    if index is not None or member == "*":
        items = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
        if index in {None, "*"}:
            return list(items)
        return [items[int(index)]] if int(index) < len(items) else []
    name = quoted or re.sub(r"\\(.)", r"\1", member)
    return [value[name]] if isinstance(value, dict) and value.get(name) is not None else []


DEFAULT_COLUMNS: Final = (
    Column("Name", "string", ".metadata.name", format="name"),
    Column("Age", "string", "age"),
)
