"""A value brought into the form of its schema: pruned, defaults filled in, and what is wrong told by path.

One walk serves built-in types and custom resources. CEL rules are not evaluated.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from poplin.apiserver import status
from poplin.apiserver.schema import FORMATS, PYTHON_TYPES, Node
from poplin.apiserver.status import Cause

Path = tuple[Any, ...] | None
"""A path as linked pairs (parent, key), so that walking costs no string."""


def render_path(path: Path) -> str:
    """The path as Kubernetes writes it: spec.ports[0].port."""
    parts: list[str] = []
    while path is not None:
        path, key = path
        parts.append(f"[{key}]" if isinstance(key, int) else f".{key}" if key.isidentifier() else f"[{key}]")
    return "".join(reversed(parts)).removeprefix(".")


@dataclass(slots=True)
class Findings:
    """What a walk met: `unknown` paths (pruned), `mistyped` values and other `faults`."""

    unknown: list[str] = field(default_factory=list)
    mistyped: list[Cause] = field(default_factory=list)
    faults: list[Cause] = field(default_factory=list)


def admit(value: Any, node: Node, findings: Findings, path: Path = None) -> Any:
    """`value` brought into the schema's form, in place where it is an object or array.

    Unknown members are dropped, nulls dropped where they are not allowed, defaults filled in; every
    departure is added to `findings`.
    """
    if node.accepts and (not isinstance(value, node.accepts) or _is_stray_boolean(value, node)):
        if isinstance(value, float) and value.is_integer() and "integer" in node.types:
            value = int(value)
        elif not (value is None and node.nullable):
            findings.mistyped.append(_mistyped(value, node, path))
            return value
    if isinstance(value, dict):
        _admit_object(value, node, findings, path)
    elif isinstance(value, list):
        if node.items is not None:
            for index, item in enumerate(value):
                value[index] = admit(item, node.items, findings, (path, index))
        if node.list_type in {"set", "map"}:
            _check_unique(value, node, findings, path)
    if node.checked and not _conforms(value, node):
        _explain(value, node, findings, path)
    return value


def _admit_object(value: dict[str, Any], node: Node, findings: Findings, path: Path) -> None:
    properties = node.properties
    for key, default in node.defaults:
        if value.get(key) is None and not (key in value and properties[key].nullable):
            value[key] = copy.deepcopy(default)
    for key, item in list(value.items()):
        child = properties.get(key) or node.additional
        if child is None:
            if not node.preserve and not (node.embedded and key in {"apiVersion", "kind", "metadata"}):
                findings.unknown.append(render_path((path, key)))
                del value[key]
        elif item is None and not child.nullable and child.types:
            del value[key]
        else:
            value[key] = admit(item, child, findings, (path, key))
    for key in node.required:
        if key not in value:
            findings.faults.append(Cause(render_path((path, key)), "Required value", "FieldValueRequired"))


def check_types(value: Any, node: Node) -> None:
    """For bodies that are not objects of a stored type. Raises StatusError where a value has another type than `node` says."""
    findings = Findings()
    admit(value, node, findings)
    if findings.mistyped:
        raise status.bad_request("; ".join(cause.message for cause in findings.mistyped))


def _is_stray_boolean(value: Any, node: Node) -> bool:
    return isinstance(value, bool) and bool not in node.accepts


def type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return next((name for name, kinds in PYTHON_TYPES.items() if isinstance(value, kinds)), "null")


def _mistyped(value: Any, node: Node, path: Path) -> Cause:
    name, wanted = type_name(value), " or ".join(node.types)
    where = render_path(path)
    message = f'Invalid value: "{name}": {where} in body must be of type {wanted}: "{name}"'
    return Cause(where, message, "FieldValueTypeInvalid")


def _check_unique(value: list[Any], node: Node, findings: Findings, path: Path) -> None:
    seen: set[str] = set()
    for index, item in enumerate(value):
        if node.list_type == "map":
            if not isinstance(item, dict):
                continue
            # Keys with a default that the item leaves out (a container port's protocol) are filled in by now.
            shown = ", ".join(f"{key}={item.get(key)!r}" for key in node.map_keys)
        else:
            shown = repr(item)
        if shown in seen:
            where = render_path((path, index))
            findings.faults.append(Cause(where, f"Duplicate value: {shown}", "FieldValueDuplicate"))
        seen.add(shown)


def _conforms(value: Any, node: Node) -> bool:
    """Whether a value of the right type is fine: nearly always, so nothing is rendered for it."""
    if node.enum and value not in node.enum:
        return False
    if isinstance(value, str):
        if node.pattern and not node.pattern.search(value):
            return False
        if node.format and not FORMATS[node.format](value):
            return False
    if node.bounds and any(_broken_bounds(value, node.bounds)):
        return False
    return all(_satisfied(value, word, choices) for word, choices in node.alternatives)


def _explain(value: Any, node: Node, findings: Findings, path: Path) -> None:
    where = render_path(path)
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    if node.enum and value not in node.enum:
        choices = ", ".join(f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in node.enum)
        message = f"Unsupported value: {shown}: supported values: {choices}"
        findings.faults.append(Cause(where, message, "FieldValueNotSupported"))
    if node.pattern and isinstance(value, str) and not node.pattern.search(value):
        message = f"Invalid value: {shown}: {where} in body should match '{node.pattern.pattern}'"
        findings.faults.append(Cause(where, message))
    if node.format and isinstance(value, str) and not FORMATS[node.format](value):
        message = f"Invalid value: {shown}: {where} in body must be of type {node.format}: {shown}"
        findings.mistyped.append(Cause(where, message))
    if broken := list(_broken_bounds(value, node.bounds)):
        if not node.structural and {"minimum", "maximum"} <= node.bounds.keys():
            # How the built-in types say it.
            broken = [f"must be between {node.bounds['minimum']} and {node.bounds['maximum']}, inclusive"]
        elif not node.structural:
            broken = [rule.replace("should be", "must be") for rule in broken]
        subject = f"{where} in body " if node.structural else ""
        findings.faults.extend(Cause(where, f"Invalid value: {shown}: {subject}{rule}") for rule in broken)
    for word, choices_ in node.alternatives:
        if not _satisfied(value, word, choices_):
            message = f"Invalid value: {shown}: {where} in body must validate {WORDS[word]} schema ({word})"
            findings.faults.append(Cause(where, message))


WORDS = {"allOf": "every", "anyOf": "at least one", "oneOf": "one and only one"}


def _satisfied(value: Any, word: str, choices: Iterable[Node]) -> bool:
    """Whether `value` meets a choice of schemas, which only check and never prune or default."""
    results = []
    for choice in choices:
        findings = Findings()
        admit(copy.deepcopy(value), replace(choice, preserve=True), findings)
        results.append(not findings.faults and not findings.mistyped)
    return {"allOf": all(results), "anyOf": any(results), "oneOf": results.count(True) == 1}[word]


def _broken_bounds(value: Any, bounds: Mapping[str, Any]) -> Iterable[str]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = bounds.get("minimum"), bounds.get("maximum")
        strict_low, strict_high = bounds.get("exclusiveMinimum"), bounds.get("exclusiveMaximum")
        if low is not None and (value < low or (strict_low and value == low)):
            yield f"should be greater than {'' if strict_low else 'or equal to '}{low}"
        if high is not None and (value > high or (strict_high and value == high)):
            yield f"should be less than {'' if strict_high else 'or equal to '}{high}"
        if (step := bounds.get("multipleOf")) and value % step:
            yield f"should be a multiple of {step}"
        return
    for kind, suffix, noun in SIZES:
        if isinstance(value, kind):
            size = len(value)  # type: ignore[arg-type]  # all of them have one
            if (least := bounds.get(f"min{suffix}")) is not None and size < least:
                yield f"should have at least {least} {noun}"
            if (most := bounds.get(f"max{suffix}")) is not None and size > most:
                yield f"may not have more than {most} {noun}"
    if (
        isinstance(value, list)
        and bounds.get("uniqueItems")
        and len({repr(item) for item in value}) < len(value)
    ):
        yield "shouldn't contain duplicates"


SIZES: tuple[tuple[type, str, str], ...] = (
    (str, "Length", "chars long"),
    (list, "Items", "items"),
    (dict, "Properties", "properties"),
)
