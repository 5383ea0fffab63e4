"""The reflector against a stand-in for kube-apiserver: each thing a server may do, and the view that results."""

import asyncio
import json
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.datastore import reflector
from poplin.datastore.client import ApiClient
from poplin.datastore.core import PODS
from poplin.datastore.parse import InvalidObjectError
from poplin.datastore.reflector import Reflector
from poplin.datastore.source import Deleted, Put, Rejected, Replaced, Resumed, Unavailable
from unit.datastore.stand_in_api import FAST, Cut, Failure, StandInApi, pod


@asynccontextmanager
async def running(tls=None):
    api = StandInApi()
    await api.start(tls)
    try:
        yield api
    finally:
        await api.stop()


@asynccontextmanager
async def watching(api, *, pace=FAST, response_s=5, **selection):
    async with ApiClient(api.access(), response_s=response_s) as client:
        watched = Reflector(client, PODS, pace=pace, random=Random(1), **selection)
        async with aclosing(watched.events()) as events, asyncio.timeout(20):
            yield events


async def until_watched(api):
    """Until the server has a watch open: what it sends from now on arrives as events."""
    await api.until(lambda: api.watches_open)


def names(replaced):
    assert isinstance(replaced, Replaced), replaced
    return sorted(obj.name for obj in replaced.objects)


@pytest.fixture(params=[False, True], ids=["list", "streaming list"])
async def api(request):
    async with running() as server:
        server.watch_list = request.param
        yield server


async def test_first_event_is_the_full_set(api):
    for name in "abcdefgh":
        api.put(pod(name))
    async with watching(api) as events:
        assert names(await anext(events)) == list("abcdefgh")
        assert api.counts["list"] == (0 if api.watch_list else 3)


async def test_empty_cluster(api):
    async with watching(api) as events:
        assert await anext(events) == Replaced(())


async def test_changes_follow(api):
    api.put(pod("a"))
    async with watching(api) as events:
        assert names(await anext(events)) == ["a"]
        api.put(pod("b", app="web"))
        event = await anext(events)
        assert isinstance(event, Put)
        assert event.object.name == "b"
        assert event.object.labels == {"app": "web"}
        api.delete("a")
        assert await anext(events) == Deleted("default", "a")


async def test_namespace_and_selectors_reach_the_server(api):
    api.put(pod("a"))
    api.put(pod("b", namespace="other"))
    elsewhere = pod("c")
    elsewhere["spec"]["nodeName"] = "worker-2"
    api.put(elsewhere)
    async with watching(
        api, namespace="default", field_selector="spec.nodeName=worker-1", label_selector="app!=x"
    ) as events:
        assert names(await anext(events)) == ["a"]
    assert {request.path for request in api.requests} == {"/api/v1/namespaces/default/pods"}
    assert {request.query["labelSelector"] for request in api.requests} == {"app!=x"}


async def test_list_pages_are_of_one_moment():
    async with running() as api:
        for name in "abcdef":
            api.put(pod(name))
        api.pages_between.append(lambda: api.put(pod("late")))
        async with watching(api) as events:
            assert names(await anext(events)) == list("abcdef")
            event = await anext(events)
            assert event.object.name == "late"


async def test_expired_continue_token_starts_the_list_again():
    async with running() as api:
        for name in "abcdef":
            api.put(pod(name))
        api.expired_continues = 1
        async with watching(api) as events:
            told = await anext(events)
            assert isinstance(told, Unavailable)
            assert "cannot watch pods" in str(told.error)
            assert names(await anext(events)) == list("abcdef")


@pytest.mark.parametrize("mid_line", [False, True])
@pytest.mark.parametrize("after", [0, 1, 2])
async def test_cut_watch_is_resumed_and_nothing_is_lost_or_told_as_failure(api, after, mid_line):
    api.put(pod("a"))
    if api.watch_list:
        after += 2  # the initial object and the bookmark
    api.cuts.append(Cut(after=after, mid_line=mid_line))
    async with watching(api) as events:
        await anext(events)
        for name in "bcde":
            api.put(pod(name))
        assert [(await anext(events)).object.name for _ in range(4)] == list("bcde")
        assert api.counts["watch"] >= 2


@pytest.mark.parametrize("fragment_bytes", [1, 100, 1000])
async def test_lines_arrive_in_pieces(api, fragment_bytes):
    api.fragment_bytes = fragment_bytes
    api.put(pod("a"))
    async with watching(api) as events:
        assert names(await anext(events)) == ["a"]
        waiting = asyncio.create_task(anext(events))
        await until_watched(api)
        api.put(pod("b"))
        api.put(pod("c"))
        assert (await waiting).object.name == "b"
        assert (await anext(events)).object.name == "c"


async def test_object_larger_than_any_buffer(api):
    api.put(pod("large", value="x" * 3_000_000))
    async with watching(api) as events:
        assert names(await anext(events)) == ["large"]
        api.put(pod("larger", value="x" * 3_000_001))
        assert (await anext(events)).object.name == "larger"


async def test_changes_among_the_initial_objects():
    """Until the bookmark that ends them, a streaming list may tell of changes too."""
    async with running() as api:
        objects = [pod("a"), pod("b"), pod("b", app="new"), pod("a")]
        kinds = ["ADDED", "ADDED", "MODIFIED", "DELETED"]
        lines = [json.dumps({"type": kind, "object": obj}) for kind, obj in zip(kinds, objects, strict=True)]
        end = {"resourceVersion": "100", "annotations": {"k8s.io/initial-events-end": "true"}}
        lines.append(json.dumps({"type": "BOOKMARK", "object": {"metadata": end}}))
        api.failures["watch"].append(Failure(body="\n".join([*lines, ""]).encode()))
        async with watching(api) as events:
            first = await anext(events)
            assert names(first) == ["b"]
            assert first.objects[0].labels == {"app": "new"}


async def test_watch_resumes_from_the_bookmark(api):
    async with watching(api) as events:
        await anext(events)
        waiting = asyncio.create_task(anext(events))
        await until_watched(api)
        api.put(pod("a"))
        assert (await waiting).object.name == "a"
        waiting = asyncio.create_task(anext(events))
        sent = api.counts["sent"]
        api.version = 600
        api.raw(b"")  # an empty line is nothing
        api.bookmark()
        await api.until(lambda: api.counts["sent"] == sent + 2)
        lists = api.counts["list"]
        api.compact()
        api.put(pod("b"))
        assert (await waiting).object.name == "b"
        assert api.counts["list"] == lists
        assert api.requests[-1].query["resourceVersion"] == "600"


async def test_gone_event_leads_to_a_fresh_set_untold(api):
    api.put(pod("a"))
    async with watching(api) as events:
        await anext(events)
        waiting = asyncio.create_task(anext(events))
        await until_watched(api)
        api.delete("a")
        assert await waiting == Deleted("default", "a")
        waiting = asyncio.create_task(anext(events))
        api.put(pod("b"))
        assert (await waiting).object.name == "b"
        waiting = asyncio.create_task(anext(events))
        api.error_event(410, "Expired")
        assert names(await waiting) == ["b"]


async def test_gone_status_leads_to_a_fresh_set():
    async with running() as api:
        api.put(pod("a"))
        # The first watch asks for a streaming list, and is refused anyway; the second resumes.
        api.failures["watch"] += [Failure(422, "Invalid"), Failure(410, "Gone")]
        async with watching(api) as events:
            assert names(await anext(events)) == ["a"]
            assert names(await anext(events)) == ["a"]
            assert api.counts["list"] == 2


async def test_compaction_under_a_watch(api):
    api.put(pod("a"))
    async with watching(api) as events:
        await anext(events)
        waiting = asyncio.create_task(anext(events))
        await until_watched(api)
        api.put(pod("b"))
        assert (await waiting).object.name == "b"
        api.put(pod("c"))
        api.delete("a")
        api.compact()
        seen = [await anext(events)]
        while not isinstance(seen[-1], Replaced):
            seen.append(await anext(events))
        assert names(seen[-1]) == ["b", "c"]
        assert not any(isinstance(event, Unavailable) for event in seen)


async def test_unauthorized_once_renews_the_credentials_untold(tmp_path, api):
    token = tmp_path / "token"
    token.write_text("old\n")
    api.tokens = {"new"}
    api.put(pod("a"))
    access = api.access()
    access = replace(access, identity=replace(access.identity, token="", token_file=token))
    async with ApiClient(access) as client:
        assert client._credentials is not None
        await client._credentials.current()
        token.write_text("new\n")
        async with aclosing(Reflector(client, PODS, pace=FAST).events()) as events, asyncio.timeout(10):
            assert names(await anext(events)) == ["a"]
    assert api.counts["unauthorized"] == 1


async def test_unauthorized_for_good_is_told(api):
    api.tokens = set()
    async with watching(api) as events:
        told = await anext(events)
        assert isinstance(told, Unavailable)
        assert "unauthorized" in str(told.error)
        assert "renew the credentials" in str(told.error)
        api.tokens = None
        async for event in events:
            if not isinstance(event, Unavailable):
                assert event == Replaced(())
                break


@pytest.mark.parametrize(
    ("status", "reason", "remedy"), [(403, "Forbidden", "RBAC"), (404, "NotFound", "CRD"), (500, "Oops", "")]
)
async def test_refusal_is_told_and_mended_when_it_ends(api, status, reason, remedy):
    api.always = {"list": Failure(status, reason), "watch": Failure(status, reason)}
    async with watching(api) as events:
        for _ in range(2):
            told = await anext(events)
            assert isinstance(told, Unavailable)
            assert f"cannot watch pods: {reason.lower()}" in str(told.error)
            assert remedy in str(told.error)
        api.always = {}
        while isinstance(event := await anext(events), Unavailable):
            pass
        assert event == Replaced(())


async def test_refused_watch_after_a_list_is_resumed_in_sync():
    async with running() as api:
        api.failures["watch"] += [Failure(422, "Invalid"), Failure(503, "ServiceUnavailable")]
        async with watching(api) as events:
            assert await anext(events) == Replaced(())
            assert isinstance(await anext(events), Unavailable)
            assert await anext(events) == Resumed()
            waiting = asyncio.create_task(anext(events))
            api.put(pod("a"))
            assert (await waiting).object.name == "a"
            assert api.counts["list"] == 1


async def test_too_many_requests_waits_as_long_as_the_server_asks(api):
    api.failures["watch"].append(Failure(429, "TooManyRequests", {"Retry-After": "0.2"}))
    async with watching(api) as events:
        clock = asyncio.get_running_loop().time
        assert isinstance(await anext(events), Unavailable)
        began = clock()
        assert await anext(events) == Replaced(())
        assert clock() - began >= 0.2


async def test_silent_server_is_noticed(api):
    api.always = {"list": Failure(hang=True), "watch": Failure(hang=True)}
    async with watching(api, response_s=0.05) as events:
        told = await anext(events)
        assert isinstance(told, Unavailable)
        assert "no answer in time" in str(told.error)


async def test_silent_watch_is_begun_again(api):
    api.put(pod("a"))
    async with watching(api, pace=replace(FAST, idle_s=0.02)) as events:
        await anext(events)
        waiting = asyncio.create_task(anext(events))
        await api.until(lambda: api.counts["watch"] >= 5)
        api.put(pod("b"))
        assert (await waiting).object.name == "b"


async def test_quiet_watch_is_left_alone(api):
    """The bound on answers is none on the news of a watch, which may be long in coming."""
    async with watching(api, response_s=0.25) as events:
        await anext(events)
        waiting = asyncio.create_task(anext(events))
        await until_watched(api)
        watches = api.counts["watch"]
        await asyncio.sleep(0.5)
        assert api.counts["watch"] == watches
        api.put(pod("a"))
        assert (await waiting).object.name == "a"


async def test_streaming_list_without_end_falls_back_to_a_list():
    async with running() as api:
        api.watch_list = True
        api.put(pod("a"))
        api.cuts.append(Cut(after=1))
        async with watching(api) as events:
            assert names(await anext(events)) == ["a"]
            assert api.counts["list"] == 1


async def test_server_that_ignores_the_streaming_list_falls_back_to_a_list():
    async with running() as api:
        api.put(pod("a"))
        old = b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"100"}}}\n'
        api.failures["watch"].append(Failure(body=old))
        async with watching(api) as events:
            assert names(await anext(events)) == ["a"]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"<html>welcome to the captive portal</html>",
        b'{"type":"ADDED","object":{"metadata":',
        b'{"type":"ADDED","object":[]}',
        b'{"type":"ADDED","object":{"metadata":{"name":""}}}',
        b'{"type":"SURPRISE","object":{"metadata":{"name":"x"}}}',
        b'{"type":"ERROR","object":7}',
        b"\xff\xfe\x00",
    ],
)
async def test_rubbish_in_a_watch_is_told_and_a_fresh_set_follows(api, rubbish):
    api.put(pod("a"))
    async with watching(api) as events:
        await anext(events)
        waiting = asyncio.create_task(anext(events))
        await until_watched(api)
        api.put(pod("b"))
        assert (await waiting).object.name == "b"
        waiting = asyncio.create_task(anext(events))
        api.raw(rubbish)
        told = await waiting
        assert isinstance(told, Unavailable)
        assert "no answer of a Kubernetes API" in str(told.error)
        assert names(await anext(events)) == ["a", "b"]


async def test_line_without_end_is_rubbish(monkeypatch):
    monkeypatch.setattr(reflector, "MAX_LINE_BYTES", 1000)
    async with running() as api:
        api.failures["watch"].append(Failure(body=b"x" * 2000))
        async with watching(api) as events:
            told = await anext(events)
            assert isinstance(told, Unavailable)
            assert "a line without end" in str(told.error)


@pytest.mark.parametrize("body", [b"rubbish", b'{"items":[]}', b'{"metadata":{},"items":[]}', b"[]"])
async def test_rubbish_as_a_list_is_told(body):
    async with running() as api:
        api.failures["list"].append(Failure(body=body))
        async with watching(api) as events:
            assert isinstance(await anext(events), Unavailable)
            assert await anext(events) == Replaced(())


async def test_bad_object_stops_no_other(api):
    bad = pod("bad")
    bad["status"]["podIPs"] = [{"ip": "10.244.1.5"}, {"ip": "nonsense"}]
    worse = pod("worse")
    worse["spec"]["nodeName"] = 7
    for obj in (pod("a"), bad, worse, pod("z")):
        api.put(obj)
    async with watching(api) as events:
        first = await anext(events)
        assert names(first) == ["a", "z"]
        assert [str(error) for error in first.rejected] == [
            "Pod default/bad: status.podIPs[1].ip: 'nonsense' is not an IP address; correct this Pod",
            "Pod default/worse: spec.nodeName: expected `str | null`, got `int`; correct this Pod",
        ]
        api.put(bad)
        event = await anext(events)
        assert isinstance(event, Rejected)
        assert isinstance(event.error, InvalidObjectError)
        assert (event.error.namespace, event.error.name) == ("default", "bad")
        api.put(pod("bad"))
        assert (await anext(events)).object.name == "bad"


async def test_server_that_is_not_there():
    async with running() as api:
        port = api.port
    access = replace(api.access(), server=f"http://127.0.0.1:{port}")
    async with ApiClient(access) as client, aclosing(Reflector(client, PODS, pace=FAST).events()) as events:
        told = await anext(events)
        assert isinstance(told, Unavailable)
        assert str(port) in str(told.error)


async def test_closing_ends_the_servers_watch(api):
    async with watching(api) as events:
        await anext(events)
        waiting = asyncio.create_task(anext(events))
        await until_watched(api)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await api.until(lambda: not api.watches_open)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcdefgh"), st.integers(0, 3)),
        st.tuples(st.just("delete"), st.sampled_from("abcdefgh")),
        st.tuples(st.just("cut"), st.integers(0, 4), st.booleans()),
        st.tuples(st.sampled_from(["compact", "gone", "bookmark", "breathe", "refuse", "rubbish", "expire"])),
    ),
    max_size=40,
)


async def play(history, *, watch_list):
    """Run a history at a server under a reflector's eyes; the view it ends with, and the server's."""
    view = {}
    done = asyncio.Event()

    def apply(event):
        match event:
            case Replaced(objects):
                view.clear()
                view.update({obj.name: obj for obj in objects})
            case Put(obj):
                view[obj.name] = obj
            case Deleted(_, name):
                view.pop(name, None)
        if "end" in view:
            done.set()

    async with running() as api, ApiClient(api.access()) as client:
        api.watch_list = watch_list
        watched = Reflector(client, PODS, pace=FAST, random=Random(1))

        async def follow():
            async with aclosing(watched.events()) as events:
                async for event in events:
                    apply(event)

        follower = asyncio.create_task(follow())
        try:
            for step in history:
                match step:
                    case ("put", name, value):
                        api.put(pod(name, value=str(value)))
                    case ("delete", name) if ("default", name) in api.objects:
                        api.delete(name)
                    case ("cut", after, mid_line):
                        api.cuts.append(Cut(after, mid_line))
                        api.wake()
                    case ("compact",):
                        api.compact()
                    case ("gone",):
                        api.error_event(410, "Expired")
                    case ("bookmark",):
                        api.bookmark()
                    case ("breathe",):
                        await asyncio.sleep(0.003)
                    case ("refuse",):
                        api.failures["watch"].append(Failure(500, "InternalError"))
                        api.failures["list"].append(Failure(503, "ServiceUnavailable"))
                    case ("rubbish",):
                        api.raw(b"rubbish")
                    case ("expire",):
                        api.expired_continues += 1
                await asyncio.sleep(0)
            api.put(pod("end"))
            async with asyncio.timeout(20):
                await done.wait()
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
        server = {name: obj["metadata"]["labels"] for (_, name), obj in api.objects.items()}
    return {name: dict(obj.labels) for name, obj in view.items()}, server


@settings(max_examples=60, deadline=None)
@given(history=steps, watch_list=st.booleans())
def test_view_ends_equal_to_the_server_whatever_happens(history, watch_list):
    view, server = asyncio.run(play(history, watch_list=watch_list))
    assert view == server
