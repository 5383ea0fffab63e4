"""The file of objects as a source: what a watch tells, and what agents that share the file write there."""

import asyncio
import json
import logging
import os
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_network

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poplin.datastore.core import CONFIG_MAPS, NODES, POD_IPS, PODS
from poplin.datastore.file import FileSource, matches_fields
from poplin.datastore.source import Deleted, Put, Rejected, Replaced, Unavailable
from poplin.model.cluster import ConditionStatus, NodeCondition, ObjectReference
from poplin.model.errors import PoplinError

UP = NodeCondition("NetworkUnavailable", ConditionStatus.FALSE, "PoplinIsUp", "the pod network is up")

NODE = """\
apiVersion: v1
kind: Node
metadata:
  name: worker-1
  annotations: {keep: "yes", drop: x}
spec: {podCIDRs: [10.244.1.0/24, "fd00:1::/64"]}
---
"""


def pod(name, **labels):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": {}}


def write(path, content):
    """As the module asks: a new file renamed over the old."""
    fresh = path.with_name("fresh")
    fresh.write_text(content if isinstance(content, str) else yaml.safe_dump_all(content))
    fresh.replace(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.yaml"


@asynccontextmanager
async def watching(path, resource, **selection):
    source = FileSource(path, poll_s=0.001)
    async with aclosing(source.watch(resource, **selection)) as events, asyncio.timeout(10):
        yield events


async def test_first_event_is_the_full_set(path):
    write(path, NODE)
    async with watching(path, NODES) as events:
        (node,) = (await anext(events)).objects
    assert node.name == "worker-1"
    assert node.pod_cidrs == (ip_network("10.244.1.0/24"), ip_network("fd00:1::/64"))
    assert node.annotations == {"keep": "yes", "drop": "x"}


async def test_changes_follow_a_rename(path):
    write(path, [pod("a"), pod("b")])
    async with watching(path, PODS) as events:
        assert {obj.name for obj in (await anext(events)).objects} == {"a", "b"}
        write(path, [pod("a"), pod("c", app="web")])
        assert await anext(events) == Deleted("default", "b")
        event = await anext(events)
        assert isinstance(event, Put)
        assert (event.object.name, event.object.labels) == ("c", {"app": "web"})
        write(path, [pod("a", app="db"), pod("c", app="web")])
        assert (await anext(events)).object.labels == {"app": "db"}


async def test_a_file_just_written_is_read_again(path):
    """Two writes within one tick of the kernel's clock may leave the same status."""
    write(path, [pod("a")])
    source = FileSource(path)
    first = source._look()
    assert source._signature is None
    assert source._look() is first
    os.utime(path, (1, 1))
    assert source._look() is first
    assert source._signature is not None


async def test_missing_file_is_told_and_waited_for(path):
    async with watching(path, PODS) as events:
        told = await anext(events)
        assert isinstance(told, Unavailable)
        assert "No such file" in str(told.error)
        assert str(path) in str(told.error)
        write(path, [pod("a")])
        assert len((await anext(events)).objects) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("kind: Pod\n  bad: [", ":2:6: not YAML"),
        ("apiVersion: v1\nkind: [", ":3:1: not YAML"),
        ("- 1", "document 1: not a Kubernetes object"),
        ("kind: Pod", "no apiVersion"),
        ("apiVersion: v1", "no kind"),
        ("{apiVersion: v1, kind: Pod}", "a Pod without metadata.name"),
        ('{"apiVersion": "v1", "kind": "List", "items": [{"kind": "Pod"}]}', "item 1: no apiVersion"),
        ("x: \x00", "not YAML"),
        ("!!python/object/apply:os.system [true]", "not YAML"),
        (NODE + NODE, "Node worker-1 stands twice"),
    ],
)
async def test_bad_content_is_told_and_the_last_good_state_stands(path, content, expected):
    write(path, [pod("a")])
    async with watching(path, PODS) as events:
        first = await anext(events)
        write(path, content)
        told = await anext(events)
        assert isinstance(told, Unavailable)
        assert expected in str(told.error)
        write(path, [pod("a")])
        assert await anext(events) == first


async def test_bad_object_stops_no_other(path):
    bad = pod("bad") | {"status": {"podIP": "nonsense"}}
    write(path, [bad, pod("a")])
    async with watching(path, PODS) as events:
        first = await anext(events)
        assert [obj.name for obj in first.objects] == ["a"]
        assert [error.name for error in first.rejected] == ["bad"]
        worse = pod("bad") | {"spec": {"nodeName": 7}}
        write(path, [worse, pod("a")])
        event = await anext(events)
        assert isinstance(event, Rejected)
        assert "spec.nodeName" in str(event.error)
        write(path, [pod("bad"), pod("a")])
        assert (await anext(events)).object.name == "bad"


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"apiVersion": "v1", "kind": "List", "items": [pod("a"), pod("b")]}),
        json.dumps({"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": n}, "spec": {}} for n in "ab"]}),
        yaml.safe_dump_all([pod("a"), {"apiVersion": "v1", "kind": "List", "items": [pod("b")]}, None]),
        "{apiVersion: v1, kind: List, items: [" + ",".join(json.dumps(pod(n)) for n in "ab") + ",]}",
    ],
    ids=["json list", "typed list", "yaml documents", "flow yaml"],
)  # fmt: skip
async def test_forms_of_the_file(path, content):
    write(path, content)
    async with watching(path, PODS) as events:
        assert {obj.name for obj in (await anext(events)).objects} == {"a", "b"}


async def test_timestamps_stay_text(path):
    write(path, "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {when: 2024-01-01}}")
    config_map = await FileSource(path).get(CONFIG_MAPS, "c", namespace="default")
    assert config_map.data == {"when": "2024-01-01"}


async def test_namespace_and_field_selector(path):
    there = pod("there")
    there["metadata"]["namespace"] = "other"
    here = pod("here")
    here["spec"]["nodeName"] = "worker-1"
    write(path, [there, here])
    async with watching(path, PODS, namespace="other") as events:
        assert [obj.name for obj in (await anext(events)).objects] == ["there"]
    async with watching(path, PODS, field_selector="spec.nodeName=worker-1") as events:
        assert [obj.name for obj in (await anext(events)).objects] == ["here"]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("", True),
        ("metadata.name=a", True),
        ("metadata.name==a", True),
        ("metadata.name!=a", False),
        ("spec.nodeName=", True),
        ("spec.nodeName!=", False),
        ("spec.hostNetwork=true", True),
        ("metadata.name=a,spec.hostNetwork=false", False),
    ],
)
def test_field_selectors(selector, expected):
    assert matches_fields({"metadata": {"name": "a"}, "spec": {"hostNetwork": True}}, selector) is expected


async def test_get(path):
    write(path, [pod("a"), pod("bad") | {"status": {"podIP": "x"}}])
    source = FileSource(path)
    assert (await source.get(PODS, "a", namespace="default")).name == "a"
    assert await source.get(PODS, "b", namespace="default") is None
    with pytest.raises(PoplinError, match="Pod default/bad"):
        await source.get(PODS, "bad", namespace="default")
    with pytest.raises(PoplinError, match="No such file"):
        await FileSource(path.with_name("none")).get(PODS, "a")


async def test_patch_node_writes_annotations_and_conditions(path):
    write(path, NODE + yaml.safe_dump(pod("a")))
    path.chmod(0o640)
    now = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    source = FileSource(path, now=lambda: now)
    await source.patch_node("worker-1", {"drop": None, "new": "1"}, [UP])
    node, other = yaml.safe_load_all(path.read_text())
    assert node["metadata"]["annotations"] == {"keep": "yes", "new": "1"}
    assert node["status"]["conditions"] == [
        {
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "PoplinIsUp",
            "message": "the pod network is up",
            "lastHeartbeatTime": "2026-01-02T03:04:05Z",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        }
    ]
    assert other == pod("a")
    assert path.stat().st_mode & 0o777 == 0o640
    value = await source.get(NODES, "worker-1")
    assert value.network_unavailable is ConditionStatus.FALSE
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".state.yaml.lock", "state.yaml"]


async def test_annotate_pod(path):
    write(path, [pod("a"), pod("b")])
    source = FileSource(path)
    await source.annotate_pod("default", "b", {POD_IPS: "10.244.1.2,fd00::2"})
    found = await source.get(PODS, "b", namespace="default")
    assert (found.announced, [str(one) for one in found.addresses]) == (True, ["10.244.1.2", "fd00::2"])
    await source.annotate_pod("default", "gone", {"x": "y"})
    inode = path.stat().st_ino
    await source.annotate_pod("default", "b", {POD_IPS: "10.244.1.2,fd00::2"})
    assert path.stat().st_ino == inode


async def test_a_status_goes_before_an_announcement(path):
    one = pod("a")
    one["metadata"]["annotations"] = {POD_IPS: "10.244.1.9"}
    write(path, [one | {"status": {"podIP": "10.244.1.2"}}])
    found = await FileSource(path).get(PODS, "a", namespace="default")
    assert (found.announced, [str(one) for one in found.addresses]) == (False, ["10.244.1.2"])


async def test_patch_that_changes_nothing_writes_nothing(path):
    write(path, NODE)
    source = FileSource(path)
    await source.patch_node("worker-1", {"new": "1"}, [UP])
    inode = path.stat().st_ino, path.stat().st_mtime_ns
    await source.patch_node("worker-1", {"new": "1", "never": None}, [UP])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == inode


async def test_patch_keeps_a_json_list(path):
    items = [yaml.safe_load(NODE.removesuffix("---\n"))]
    write(path, json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    await FileSource(path).patch_node("worker-1", {"new": "1"})
    document = json.loads(path.read_text())
    assert document["items"][0]["metadata"]["annotations"]["new"] == "1"


async def test_patch_of_a_node_that_is_not_there(path):
    write(path, NODE)
    with pytest.raises(PoplinError, match="no Node is named worker-2"):
        await FileSource(path).patch_node("worker-2", {"a": "b"})
    with pytest.raises(PoplinError, match="No such file"):
        await FileSource(path.with_name("none")).patch_node("worker-2", {"a": "b"})


async def test_agents_that_share_the_file_lose_nothing_of_each_other(path):
    count, rounds = 6, 5
    write(path, [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"n{i}"}} for i in range(count)])

    async def publish(index):
        source = FileSource(path)
        for turn in range(rounds):
            await source.patch_node(f"n{index}", {f"key-{turn}": str(turn)})

    await asyncio.gather(*(publish(index) for index in range(count)))
    nodes = [await FileSource(path).get(NODES, f"n{index}") for index in range(count)]
    assert all(len(node.annotations) == rounds for node in nodes)


async def test_another_agents_annotation_arrives(path):
    write(path, NODE)
    async with watching(path, NODES) as events:
        await anext(events)
        await FileSource(path).patch_node("worker-1", {"from": "elsewhere"})
        assert (await anext(events)).object.annotations["from"] == "elsewhere"


async def test_events_go_to_the_log(path, caplog):
    caplog.set_level(logging.INFO)
    await FileSource(path).create_event(
        ObjectReference("Pod", "a", "default"), reason="NoAddress", message="none is free", warning=True
    )
    assert caplog.record_tuples == [
        ("poplin.datastore.file", logging.WARNING, "Pod default/a: NoAddress: none is free")
    ]


states = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(st.one_of(st.none(), states), min_size=1, max_size=8), last=states)
def test_view_ends_equal_to_the_file(tmp_path, history, last):
    """Rapid writes of states and rubbish (None): whatever was seen of them, the view ends as the file."""

    async def play():
        path = tmp_path / "state.yaml"
        path.unlink(missing_ok=True)
        view = {}
        async with watching(path, PODS) as events:
            for state in [*history, last | {"end": 0}]:
                write(path, "[" if state is None else [pod(n, value=str(v)) for n, v in state.items()])
                await asyncio.sleep(0.001)
            while "end" not in view:
                match await anext(events):
                    case Replaced(objects):
                        view = {obj.name: obj for obj in objects}
                    case Put(obj):
                        view[obj.name] = obj
                    case Deleted(_, name):
                        del view[name]
        return {name: int(obj.labels["value"]) for name, obj in view.items()}

    assert asyncio.run(play()) == last | {"end": 0}
