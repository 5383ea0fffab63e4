"""Server-side apply: which fields an object has, who manages them, what an apply changes, takes and refuses."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.apiserver.fieldset import FieldError, decode, encode, flatten, render
from poplin.apiserver.ownership import (
    APPLY,
    LAST_APPLIED,
    UPDATE,
    ConflictError,
    Manager,
    Ownership,
    apply,
    begin,
    read_managed,
    record,
    write_managed,
)
from poplin.apiserver.schema import Compiler

TEXT = {"type": "string"}
ITEM = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "image": TEXT,
        "size": {"type": "integer"},
        "ports": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port", "protocol"],
            "items": {
                "type": "object",
                "properties": {
                    "port": {"type": "integer"},
                    "protocol": {**TEXT, "default": "TCP"},
                    "as": TEXT,
                },
            },
        },
    },
}
NODE = Compiler({}).compile(
    {
        "type": "object",
        "properties": {
            "metadata": {
                "type": "object",
                "properties": {
                    "labels": {"type": "object", "additionalProperties": TEXT},
                    "annotations": {"type": "object", "additionalProperties": TEXT},
                },
            },
            "replicas": {"type": "integer"},
            "selector": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": TEXT},
            "command": {"type": "array", "items": TEXT},
            "tags": {"type": "array", "items": TEXT, "x-kubernetes-list-type": "set"},
            "parts": {
                "type": "array",
                "items": ITEM,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
)
ANNA, BOB = Manager("anna", APPLY, "v1"), Manager("bob", APPLY, "v1")
EDITOR = Manager("editor", UPDATE, "v1")


def fields(value):
    return {render(path) for path in flatten(value, NODE)}


def put(live, managed, manager, applied, *, force=False, now="t1"):
    return apply(copy.deepcopy(live), applied, managed, manager, NODE, force=force, now=now)


def owned(managed, manager):
    return {render(path) for path in managed[manager].fields} if manager in managed else set()


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ({"replicas": 1}, {".replicas"}),
        ({"replicas": None}, {".replicas"}),
        ({"metadata": {"labels": {"a": "1"}}}, {".metadata.labels.a"}),
        ({"metadata": {"labels": {}}}, {".metadata.labels"}),
        ({"metadata": {}}, {".metadata"}),
        ({"selector": {"a": "1", "b": "2"}}, {".selector"}),
        ({"command": ["a", "b"]}, {".command"}),
        ({"tags": ["a"]}, {'.tags[="a"]'}),
        ({"parts": [{"name": "x", "size": 2}]}, {'.parts[name="x"]' + end for end in ("", ".name", ".size")}),
        (
            {"parts": [{"name": "x", "ports": [{"port": 80}]}]},
            {'.parts[name="x"]' + end for end in ("", ".name", '.ports[port=80,protocol="TCP"]', '.ports[port=80,protocol="TCP"].port')},
        ),
        ({"free": {"a": {"b": [1]}}}, {".free.a", ".free.a.b"}),
    ],
)  # fmt: skip
def test_fields(value, paths):
    assert fields(value) == paths


@pytest.mark.parametrize("value", [{"parts": [{"name": "x"}, {"name": "x"}]}, {"parts": [{"size": 1}]}])
def test_lists_that_cannot_be_merged(value):
    with pytest.raises(FieldError, match="parts"):
        put({}, {}, ANNA, value)


def test_a_record_in_the_form_of_the_api():
    _, managed = put(
        {}, {}, ANNA, {"metadata": {"name": "n", "labels": {"a": "1"}}, "parts": [{"name": "x"}]}
    )
    (entry,) = written = write_managed(managed)
    assert entry["fieldsV1"] == {
        "f:metadata": {"f:labels": {"f:a": {}}},
        "f:parts": {'k:{"name":"x"}': {".": {}, "f:name": {}}},
    }
    assert (entry["manager"], entry["operation"], entry["fieldsType"]) == ("anna", "Apply", "FieldsV1")
    assert read_managed({"managedFields": written}) == managed


def test_what_an_applier_drops_goes():
    live, managed = put(
        {}, {}, ANNA, {"replicas": 1, "tags": ["a", "b"], "parts": [{"name": "x"}, {"name": "y"}]}
    )
    live, managed = put(live, managed, ANNA, {"tags": ["b"], "parts": [{"name": "y"}]})
    assert live == {"tags": ["b"], "parts": [{"name": "y"}]}


def test_what_an_applier_drops_stays_where_another_has_it_too():
    live, managed = put({}, {}, ANNA, {"replicas": 1, "parts": [{"name": "x", "image": "i"}]})
    live, managed = put(live, managed, BOB, {"replicas": 1, "parts": [{"name": "x", "size": 2}]})
    live, managed = put(live, managed, ANNA, {})
    assert live == {"replicas": 1, "parts": [{"name": "x", "size": 2}]}
    assert owned(managed, ANNA) == set()


def test_defaults_inside_a_dropped_item_go_with_it():
    live, managed = put({}, {}, ANNA, {"parts": [{"name": "x"}, {"name": "y"}]})
    live["parts"][0]["size"] = 7
    assert put(live, managed, ANNA, {"parts": [{"name": "y"}]})[0] == {"parts": [{"name": "y"}]}


def test_an_item_that_stays_keeps_its_key():
    live, managed = put({}, {}, ANNA, {"parts": [{"name": "x", "size": 1}]})
    after = {"parts": [{"name": "x", "size": 1, "image": "i"}]}
    managed = record(live, after, managed, EDITOR, NODE, now="t2")
    assert put(after, managed, ANNA, {})[0] == {"parts": [{"name": "x", "image": "i"}]}


def test_a_conflict_and_force():
    live, managed = put({}, {}, ANNA, {"replicas": 1, "command": ["a"]})
    with pytest.raises(ConflictError, match=r'with "anna":\n- .command\n- .replicas$') as caught:
        put(live, managed, BOB, {"replicas": 2, "command": ["b"]})
    assert len(caught.value.conflicts) == 2
    with pytest.raises(
        ConflictError, match=r'^Apply failed with 1 conflict: conflict with "anna": \.replicas$'
    ):
        put(live, managed, BOB, {"replicas": 2, "command": ["a"]})
    live, managed = put(live, managed, BOB, {"replicas": 2}, force=True)
    assert (live["replicas"], owned(managed, ANNA), owned(managed, BOB)) == (2, {".command"}, {".replicas"})


def test_the_same_value_is_shared():
    live, managed = put({}, {}, ANNA, {"replicas": 1})
    live, managed = put(live, managed, BOB, {"replicas": 1})
    assert owned(managed, ANNA) == owned(managed, BOB) == {".replicas"}


def test_an_update_takes_what_it_changes():
    live, managed = put({}, {}, ANNA, {"replicas": 1, "tags": ["a"], "command": ["c"]})
    after = {"replicas": 3, "command": ["c"]}
    managed = record(live, after, managed, EDITOR, NODE, now="t2")
    assert owned(managed, EDITOR) == {".replicas"}
    assert owned(managed, ANNA) == {".command"}
    assert record(after, copy.deepcopy(after), managed, EDITOR, NODE, now="t3") is managed
    with pytest.raises(ConflictError, match='"editor" using v1 at t2'):
        put(after, managed, ANNA, {"replicas": 1})


def test_objects_from_before_the_first_apply():
    live = {"metadata": {"creationTimestamp": "t0", "labels": {"a": "1"}}, "replicas": 1}
    managed = begin(live, NODE, "v1", "t1")
    before = Manager("before-first-apply", UPDATE, "v1")
    assert managed == {before: Ownership(managed[before].fields, "t0")}
    assert owned(managed, before) == {".metadata.labels.a", ".replicas"}


def test_kubectl_takes_over_what_its_client_side_apply_has_set():
    note = '{"replicas":1,"metadata":{"name":"n"}}'
    live = {"metadata": {"annotations": {LAST_APPLIED: note}}, "replicas": 1, "command": ["c"]}
    managed = begin(live, NODE, "v1", "t1")
    kubectl = Manager("kubectl", APPLY, "v1")
    assert put(live, managed, kubectl, {"replicas": 5})[0]["replicas"] == 5
    for manager, wish in ((kubectl, {"command": ["d"]}), (ANNA, {"replicas": 5})):
        with pytest.raises(ConflictError):
            put(live, managed, manager, wish)


def test_items_keep_their_place():
    def parts(*names):
        return {"parts": [{"name": name} for name in names]}

    live, managed = put({}, {}, ANNA, parts("a", "b", "c"))
    live, managed = put(live, managed, BOB, parts("c", "new"))
    assert live == parts("a", "b", "c", "new")
    assert put(live, managed, ANNA, parts("c", "b", "a"))[0]["parts"][0] == {"name": "c"}


NAMES = st.sampled_from("abc")
PARTS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES},
        optional={
            "image": st.sampled_from("ij"),
            "size": st.integers(1, 3),
            "ports": st.lists(st.fixed_dictionaries({"port": st.integers(1, 2)}), unique_by=str, max_size=2),
        },
    ),
    unique_by=lambda part: part["name"],
    max_size=3,
)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries({"labels": st.dictionaries(NAMES, NAMES, max_size=3)}),
        "replicas": st.integers(1, 3),
        "selector": st.dictionaries(NAMES, NAMES, max_size=2),
        "command": st.lists(NAMES, max_size=2),
        "tags": st.lists(NAMES, unique=True, max_size=3),
        "parts": PARTS,
        "free": st.dictionaries(NAMES, st.dictionaries(NAMES, NAMES, max_size=2), max_size=2),
    },
)


@given(OBJECTS)
def test_fields_survive_their_encoding(value):
    paths = flatten(value, NODE).keys()
    assert decode(encode(paths)) == paths


@given(OBJECTS, OBJECTS)
def test_applying_twice_is_applying_once(live, wish):
    managed = {EDITOR: Ownership(frozenset(flatten(live, NODE)), "t0")}
    once = put(live, managed, ANNA, wish, force=True, now="t1")
    assert put(*once, ANNA, wish, now="t2") == once


@given(OBJECTS, OBJECTS, OBJECTS)
def test_an_applier_gets_what_it_wants_and_leaves_the_rest(live, first, second):
    managed = {EDITOR: Ownership(frozenset(flatten(live, NODE)), "t0")}
    document, managed = put(live, managed, ANNA, first, force=True)
    document, managed = put(document, managed, ANNA, second, force=True)
    shown = flatten(document, NODE)
    wanted = flatten(second, NODE)
    assert all(shown[path] == value for path, value in wanted.items() if value not in ({}, []))
    for owner, has in managed.items():
        assert has.fields <= shown.keys() or owner == ANNA


@given(st.data(), OBJECTS)
def test_managers_of_different_fields_commute(data, whole):
    members = sorted(whole)
    mine = data.draw(st.sets(st.sampled_from(members)) if members else st.just(set()))
    anna = {key: value for key, value in whole.items() if key in mine}
    bob = {key: value for key, value in whole.items() if key not in mine}
    one = put(*put({}, {}, ANNA, anna), BOB, bob)
    other = put(*put({}, {}, BOB, bob), ANNA, anna)
    assert one == other
    assert one[0] == whole
    # What held the fields that went may stay behind, empty: nobody manages it.
    left = flatten(put(*one, ANNA, {})[0], NODE)
    assert {path for path, value in left.items() if value != {}} == {
        path for path, value in flatten(bob, NODE).items() if value != {}
    }
