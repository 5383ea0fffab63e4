"""Schemas, compiled from documents into nodes that are quick to walk.

The documents are OpenAPI v3 as Kubernetes writes it ("structural schemas": https://kubernetes.io/docs/tasks/
extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


@dataclass(slots=True)
class Node:
    """What one value may be. `types` empty: anything. `additional` is the schema of unnamed members."""

    types: tuple[str, ...] = ()
    properties: dict[str, "Node"] = field(default_factory=dict)
    defaults: list[tuple[str, Any]] = field(default_factory=list)
    items: "Node | None" = None
    additional: "Node | None" = None
    required: tuple[str, ...] = ()
    preserve: bool = False
    nullable: bool = False
    embedded: bool = False
    structural: bool = False
    enum: tuple[Any, ...] = ()
    pattern: "re.Pattern[str] | None" = None
    format: str = ""
    bounds: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[tuple[str, tuple["Node", ...]], ...] = ()
    merge_key: str = ""
    merge: bool = False
    retain_keys: bool = False
    list_type: str = ""
    atomic: bool = False
    map_keys: tuple[str, ...] = ()
    accepts: tuple[type, ...] = ()
    checked: bool = False


BOUNDS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength",
    "minItems", "maxItems", "minProperties", "maxProperties", "uniqueItems",
)  # fmt: skip


class Compiler:
    """Turns schema documents into nodes. `definitions` are what "#/components/schemas/NAME" means."""

    def __init__(self, definitions: Mapping[str, Mapping[str, Any]]) -> None:
        self._definitions = definitions
        self._known: dict[str, Node] = {}

    def definition(self, name: str) -> Node:
        """The node of one definition; each is compiled once, when it is first asked for."""
        node = self._known.get(name)
        if node is None:
            node = self._known[name] = Node()
            self._fill(node, self._definitions[name])
        return node

    def compile(self, schema: Mapping[str, Any]) -> Node:
        reference = schema.get("$ref") or next(
            (part["$ref"] for part in schema.get("allOf", ()) if "$ref" in part), None
        )
        if reference is None:
            node = Node()
            self._fill(node, schema)
            return node
        target = self.definition(reference.rpartition("/")[2])
        if schema.get("x-kubernetes-patch-strategy") == "retainKeys":
            return replace(target, retain_keys=True)
        if schema.get("x-kubernetes-map-type"):
            return replace(target, atomic=schema["x-kubernetes-map-type"] == "atomic")
        return target

    def _fill(self, node: Node, schema: Mapping[str, Any]) -> None:
        node.types = _types(schema)
        node.accepts = tuple(kind for name in node.types for kind in PYTHON_TYPES[name])
        node.required = tuple(schema.get("required") or ())
        node.preserve = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
        node.nullable = bool(schema.get("nullable"))
        node.structural = bool(schema.get("x-structural"))
        node.embedded = bool(schema.get("x-kubernetes-embedded-resource"))
        node.enum = tuple(schema.get("enum") or ())
        node.pattern = re.compile(schema["pattern"]) if schema.get("pattern") else None
        node.format = schema["format"] if schema.get("format") in FORMATS else ""
        node.bounds = {name: schema[name] for name in BOUNDS if schema.get(name) is not None}
        strategies = schema.get("x-kubernetes-patch-strategy", "").split(",")
        node.merge = "merge" in strategies
        node.retain_keys = "retainKeys" in strategies
        node.merge_key = schema.get("x-kubernetes-patch-merge-key", "")
        node.atomic = schema.get("x-kubernetes-map-type") == "atomic"
        node.list_type = schema.get("x-kubernetes-list-type", "")
        node.map_keys = tuple(schema.get("x-kubernetes-list-map-keys") or ())
        for key, body in (schema.get("properties") or {}).items():
            node.properties[key] = self.compile(body)
            if body.get("default") is not None:
                node.defaults.append((key, body["default"]))
        if isinstance(schema.get("items"), Mapping):
            node.items = self.compile(schema["items"])
        additional = schema.get("additionalProperties")
        if isinstance(additional, Mapping):
            node.additional = self.compile(additional)
        elif additional is True or (node.types == ("object",) and not node.properties and additional is None):
            # A free-form object of the built-in types (RawExtension, FieldsV1) says no more than "object".
            node.preserve = node.preserve or additional is True or not schema.get("x-structural")
        if not node.types and not node.properties:
            node.preserve = True
        if not schema.get("x-kubernetes-int-or-string"):
            node.alternatives = tuple(
                (word, tuple(self.compile(part) for part in schema[word]))
                for word in ("allOf", "anyOf", "oneOf")
                if schema.get(word) and not any("type" in part for part in schema[word])
            )
        node.checked = bool(node.enum or node.pattern or node.format or node.bounds or node.alternatives)


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    if schema.get("x-kubernetes-int-or-string"):
        return ("integer", "string")
    if "type" in schema:
        return (schema["type"],)
    # Quantity and IntOrString are written as a choice of plain types.
    return tuple(part["type"] for part in schema.get("oneOf", ()) if "type" in part)


_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


FORMATS = {
    "date-time": lambda text: bool(_DATE_TIME.fullmatch(text)),
    "byte": lambda text: bool(_BASE64.fullmatch(text.replace("\n", ""))),
}
