import pytest

from poplin.apiserver.admission import Findings, admit, render_path
from poplin.apiserver.customresource import compile_schema
from poplin.apiserver.resource import builtin_compiler, builtin_resources, builtin_schemas


def check(schema: dict, value: object) -> tuple[object, Findings]:
    """The value after admission as the member `x` of an object with that schema."""
    findings = Findings()
    node = compile_schema({"type": "object", "properties": {"x": schema}})
    return admit({"x": value}, node, findings).get("x"), findings


def test_every_built_in_type_has_a_schema_with_metadata():
    resources = list(builtin_resources())
    assert len({(one.group, one.version, one.plural) for one in resources}) == len(resources) > 45
    for resource in resources:
        assert "metadata" in resource.schema.properties, resource.plural


def test_the_schemas_carry_merge_keys_defaults_and_choices():
    spec = builtin_compiler().definition("io.k8s.api.core.v1.PodSpec")
    assert (spec.properties["containers"].merge, spec.properties["containers"].merge_key) == (True, "name")
    assert ("restartPolicy", "Always") in spec.defaults
    assert builtin_schemas()["io.k8s.api.core.v1.ServiceSpec"]["properties"]["type"]["default"] == "ClusterIP"
    strategy = builtin_compiler().definition("io.k8s.api.apps.v1.DeploymentSpec").properties["strategy"]
    assert strategy.retain_keys


GOOD = [
    ({"type": "string"}, "a"),
    ({"type": "integer"}, 1),
    ({"type": "number"}, 1),
    ({"type": "number"}, 1.5),
    ({"type": "boolean"}, False),
    ({"type": "array", "items": {"type": "string"}}, ["a"]),
    ({"x-kubernetes-int-or-string": True}, 1),
    ({"x-kubernetes-int-or-string": True}, "1"),
    ({"type": "string", "nullable": True}, None),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, {"any": 1}),
    ({"type": "object", "x-kubernetes-preserve-unknown-fields": True}, {"any": {"thing": None}}),
    ({"x-kubernetes-preserve-unknown-fields": True}, [1, "a"]),
    ({"type": "string", "enum": ["a", "b"]}, "b"),
    ({"type": "string", "pattern": "^a+$"}, "aa"),
    ({"type": "integer", "minimum": 1, "maximum": 3}, 3),
    ({"type": "string", "format": "date-time"}, "2026-01-01T00:00:00Z"),
    ({"type": "string", "format": "byte"}, "aGk="),
    ({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}}, [1, 2]),
    ({"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 1}]}, 0),
]


@pytest.mark.parametrize(("schema", "value"), GOOD)
def test_what_fits_passes_unchanged(schema, value):
    admitted, findings = check(schema, value)
    assert (admitted, findings) == (value, Findings())


BAD = [
    ({"type": "string"}, 1, "FieldValueTypeInvalid"),
    ({"type": "integer"}, "1", "FieldValueTypeInvalid"),
    ({"type": "integer"}, True, "FieldValueTypeInvalid"),
    ({"type": "integer"}, 1.5, "FieldValueTypeInvalid"),
    ({"type": "array", "items": {"type": "string"}}, {}, "FieldValueTypeInvalid"),
    ({"type": "object"}, [], "FieldValueTypeInvalid"),
    ({"x-kubernetes-int-or-string": True}, [], "FieldValueTypeInvalid"),
    ({"type": "string", "enum": ["a", "b"]}, "c", "FieldValueNotSupported"),
    ({"type": "string", "pattern": "^a+$"}, "b", "FieldValueInvalid"),
    ({"type": "integer", "minimum": 1}, 0, "FieldValueInvalid"),
    ({"type": "integer", "maximum": 3, "exclusiveMaximum": True}, 3, "FieldValueInvalid"),
    ({"type": "integer", "multipleOf": 2}, 3, "FieldValueInvalid"),
    ({"type": "string", "maxLength": 1}, "ab", "FieldValueInvalid"),
    ({"type": "array", "minItems": 1, "items": {"type": "string"}}, [], "FieldValueInvalid"),
    (
        {"type": "object", "maxProperties": 0, "additionalProperties": {"type": "string"}},
        {"a": "b"},
        "FieldValueInvalid",
    ),
    ({"type": "string", "format": "date-time"}, "yesterday", "FieldValueInvalid"),
    ({"type": "string", "format": "byte"}, "a", "FieldValueInvalid"),
    (
        {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}},
        [1, 1],
        "FieldValueDuplicate",
    ),
    ({"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 1}]}, 3, "FieldValueInvalid"),
    ({"type": "integer", "oneOf": [{"minimum": 1}, {"minimum": 2}]}, 3, "FieldValueInvalid"),
]


@pytest.mark.parametrize(("schema", "value", "reason"), BAD)
def test_what_does_not_fit_is_told_with_path_and_reason(schema, value, reason):
    _, findings = check(schema, value)
    (cause,) = findings.mistyped + findings.faults
    assert (cause.field.partition("[")[0], cause.reason) == ("x", reason)


def test_unknown_members_are_pruned_and_named():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {}}}},
    }
    admitted, findings = check(schema, {"a": [{"b": 1}], "c": 2})
    assert admitted == {"a": [{}]}
    assert findings.unknown == ["x.a[0].b", "x.c"]


def test_defaults_fill_in_at_every_depth_and_are_not_shared():
    inner = {"type": "object", "properties": {"n": {"type": "integer", "default": 1}}}
    schema = {
        "type": "object",
        "properties": {"o": {**inner, "default": {}}, "l": {"type": "array", "items": inner}},
    }
    first, _ = check(schema, {"l": [{}, {"n": 2}]})
    second, _ = check(schema, {})
    assert (first, second) == ({"l": [{"n": 1}, {"n": 2}], "o": {"n": 1}}, {"o": {"n": 1}})
    assert first["o"] is not second["o"]


def test_null_means_absent_where_it_is_not_allowed():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "default": "d"}, "b": {"type": "string"}},
    }
    assert check(schema, {"a": None, "b": None})[0] == {"a": "d"}


def test_a_required_member_is_asked_for():
    _, findings = check({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}, {})
    assert [(cause.field, cause.reason) for cause in findings.faults] == [("x.a", "FieldValueRequired")]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (None, ""),
        ((None, "spec"), "spec"),
        ((((None, "spec"), "ports"), 0), "spec.ports[0]"),
        (((None, "labels"), "a.b/c"), "labels[a.b/c]"),
    ],
)
def test_paths_are_written_as_kubernetes_does(path, expected):
    assert render_path(path) == expected
