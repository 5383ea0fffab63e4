import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.apiserver.jsonpatch import apply_json
from poplin.apiserver.patch import PatchError, apply_merge, apply_strategic
from poplin.apiserver.resource import builtin_compiler

POD_SPEC = builtin_compiler().definition("io.k8s.api.core.v1.PodSpec")
DEPLOYMENT_SPEC = builtin_compiler().definition("io.k8s.api.apps.v1.DeploymentSpec")
OBJECT_META = builtin_compiler().definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")

# RFC 7386, appendix A.
MERGES = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "expected"), MERGES)
def test_merge_patch(target, patch, expected):
    before = copy.deepcopy((target, patch))
    assert apply_merge(target, patch) == expected
    assert (target, patch) == before


# RFC 6902, appendix A, and RFC 6901's escapes.
JSON_PATCHES = [
    ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
    (
        {"foo": ["bar", "baz"]},
        [{"op": "add", "path": "/foo/1", "value": "qux"}],
        {"foo": ["bar", "qux", "baz"]},
    ),
    ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
    ({"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
    ({"baz": "qux"}, [{"op": "replace", "path": "/baz", "value": "boo"}], {"baz": "boo"}),
    ({"l": [1, 2, 3]}, [{"op": "replace", "path": "/l/1", "value": 9}], {"l": [1, 9, 3]}),
    (
        {"foo": {"a": 1}, "q": {}},
        [{"op": "move", "from": "/foo/a", "path": "/q/b"}],
        {"foo": {}, "q": {"b": 1}},
    ),
    ({"foo": [1, 2, 3, 4]}, [{"op": "move", "from": "/foo/1", "path": "/foo/3"}], {"foo": [1, 3, 4, 2]}),
    ({"a": {"b": [1]}}, [{"op": "copy", "from": "/a/b", "path": "/c"}], {"a": {"b": [1]}, "c": [1]}),
    ({"a": 1}, [{"op": "test", "path": "/a", "value": 1.0}], {"a": 1}),
    (
        {"foo": "bar"},
        [{"op": "add", "path": "/child", "value": {"g": {}}}],
        {"foo": "bar", "child": {"g": {}}},
    ),
    ({"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["x"]}], {"foo": ["bar", ["x"]]}),
    ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    ({"a/b": 1}, [{"op": "remove", "path": "/a~1b"}], {}),
    ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
    ({"a": None}, [{"op": "test", "path": "/a", "value": None}], {"a": None}),
]


@pytest.mark.parametrize(("target", "operations", "expected"), JSON_PATCHES)
def test_json_patch(target, operations, expected):
    before = copy.deepcopy((target, operations))
    assert apply_json(target, operations) == expected
    assert (target, operations) == before


@pytest.mark.parametrize(
    ("operations", "unprocessable"),
    [
        ([{"op": "add", "path": "/no/child", "value": 1}], True),
        ([{"op": "remove", "path": "/none"}], True),
        ([{"op": "replace", "path": "/none", "value": 1}], True),
        ([{"op": "add", "path": "/list/3", "value": 1}], True),
        ([{"op": "remove", "path": "/list/-"}], True),
        ([{"op": "add", "path": "/list/01", "value": 1}], True),
        ([{"op": "test", "path": "/text", "value": "other"}], True),
        ([{"op": "test", "path": "/one", "value": True}], True),
        ([{"op": "move", "from": "/deep", "path": "/deep/er"}], False),
        ([{"op": "add", "path": "/a"}], False),
        ([{"op": "spam", "path": "/a"}], False),
        ([{"op": "add", "path": "a", "value": 1}], False),
        ([1], False),
        ({"op": "add"}, False),
    ],
)
def test_a_json_patch_that_does_not_fit_is_refused_whole(operations, unprocessable):
    target = {"list": [1, 2], "text": "t", "one": 1, "deep": {}}
    with pytest.raises(PatchError) as refused:
        apply_json(target, operations)
    assert refused.value.unprocessable is unprocessable


def container(name: str, **more: object) -> dict:
    return {"name": name, **more}


STRATEGIC = {
    "a list with a merge key is merged element by element": (
        {"containers": [container("a", image="1"), container("b", image="1")]},
        {"containers": [container("b", image="2"), container("c", image="1")]},
        {"containers": [container("a", image="1"), container("b", image="2"), container("c", image="1")]},
    ),
    "nested lists merge by their own keys": (
        {"containers": [container("a", env=[{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}])]},
        {"containers": [container("a", env=[{"name": "Y", "value": "2"}])]},
        {"containers": [container("a", env=[{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}])]},
    ),
    "container ports merge by port": (
        {"containers": [container("a", ports=[{"containerPort": 80, "name": "x"}])]},
        {"containers": [container("a", ports=[{"containerPort": 81}, {"containerPort": 80, "name": "y"}])]},
        {"containers": [container("a", ports=[{"containerPort": 80, "name": "y"}, {"containerPort": 81}])]},
    ),
    "an element is deleted by directive": (
        {"containers": [container("a"), container("b")]},
        {"containers": [{"$patch": "delete", "name": "a"}]},
        {"containers": [container("b")]},
    ),
    "a list is replaced by directive": (
        {"containers": [container("a"), container("b")]},
        {"containers": [{"$patch": "replace"}, container("c", image=None)]},
        {"containers": [container("c")]},
    ),
    "an object is replaced by directive": (
        {"securityContext": {"runAsUser": 1, "fsGroup": 2}},
        {"securityContext": {"$patch": "replace", "runAsUser": 3}},
        {"securityContext": {"runAsUser": 3}},
    ),
    "an object is emptied by directive": (
        {"nodeSelector": {"a": "b"}},
        {"nodeSelector": {"$patch": "delete"}},
        {"nodeSelector": {}},
    ),
    "null removes, at any depth": (
        {"nodeSelector": {"a": "b", "c": "d"}, "hostname": "h"},
        {"nodeSelector": {"a": None}, "hostname": None},
        {"nodeSelector": {"c": "d"}},
    ),
    "an atomic list is replaced": (
        {"containers": [container("a", args=["1", "2"])]},
        {"containers": [container("a", args=["3"])]},
        {"containers": [container("a", args=["3"])]},
    ),
    "tolerations have no merge key": (
        {"tolerations": [{"key": "a"}]},
        {"tolerations": [{"key": "b"}]},
        {"tolerations": [{"key": "b"}]},
    ),
    "retained keys drop the other volume source": (
        {"volumes": [{"name": "v", "emptyDir": {}}]},
        {"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]},
        {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]},
    ),
    "the order of elements is the patch's": (
        {"containers": [container("a"), container("b"), container("c")]},
        {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "d"}, {"name": "b"}],
            "containers": [container("d")],
        },
        {"containers": [container("c"), container("a"), container("d"), container("b")]},
    ),
    "what only the server knows keeps its place": (
        {"containers": [container("a"), container("sidecar"), container("b")]},
        {
            "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
            "containers": [container("c")],
        },
        {"containers": [container("a"), container("sidecar"), container("b"), container("c")]},
    ),
    "new nested objects carry no directives": (
        {},
        {
            "containers": [
                container("a", env=[{"name": "X", "value": "1"}, {"name": "Y", "$patch": "delete"}])
            ]
        },
        {"containers": [container("a", env=[{"name": "X", "value": "1"}])]},
    ),
}


@pytest.mark.parametrize("case", STRATEGIC)
def test_strategic_merge_patch(case):
    target, patch, expected = STRATEGIC[case]
    before = copy.deepcopy((target, patch))
    assert apply_strategic(target, patch, POD_SPEC) == expected
    assert (target, patch) == before


def test_primitive_lists_with_merge_strategy():
    target = {"finalizers": ["a", "b", "c"]}
    assert apply_strategic(target, {"finalizers": ["d", "a"]}, OBJECT_META) == {
        "finalizers": ["a", "b", "c", "d"]
    }
    removed = {"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["c", "a"]}
    assert apply_strategic(target, removed, OBJECT_META) == {"finalizers": ["c", "a"]}


def test_a_deployment_changes_its_strategy_with_retained_keys():
    target = {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}
    patch = {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}
    assert apply_strategic(target, patch, DEPLOYMENT_SPEC) == {"strategy": {"type": "Recreate"}}


@pytest.mark.parametrize(
    "patch", [{"containers": [{"image": "x"}]}, {"containers": ["x"]}, {"$patch": "spam"}, []]
)
def test_a_malformed_strategic_patch_is_refused(patch):
    with pytest.raises(PatchError):
        apply_strategic({"containers": [container("a")]}, patch, POD_SPEC)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from("abc"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
def test_a_merge_patch_is_idempotent(target, patch):
    once = apply_merge(target, patch)
    assert apply_merge(once, patch) == once


names = st.lists(st.sampled_from("abcdef"), unique=True, max_size=6)


@given(names, names, st.sampled_from(["", "1", "2"]))
def test_a_strategic_patch_is_idempotent_and_keeps_every_name(before, patched, image):
    target = {"containers": [container(name, image="0") for name in before]}
    patch = {"containers": [container(name, image=image) for name in patched]}
    patch["$setElementOrder/containers"] = [{"name": name} for name in patched]
    once = apply_strategic(target, patch, POD_SPEC)
    result = [one["name"] for one in once["containers"]]
    assert sorted(result) == sorted({*before, *patched})
    assert [name for name in result if name in patched] == patched
    assert apply_strategic(once, patch, POD_SPEC) == once
