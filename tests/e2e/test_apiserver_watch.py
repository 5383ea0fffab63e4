"""Watches: every change once and in order, whoever writes and however many look on."""

import asyncio
import random

import pytest

from e2e.apiserver_harness import Client, config_map, pod, running

CORE = "/api/v1/namespaces/default"
MAPS = f"{CORE}/configmaps"
PODS = f"{CORE}/pods"


@pytest.fixture
async def client(tmp_path):
    async with running(tmp_path) as (_, client):
        yield client


async def revision(client: Client, path: str = PODS) -> str:
    return (await client.get(path))[1]["metadata"]["resourceVersion"]


async def test_a_watch_without_a_revision_begins_with_what_there_is(client: Client):
    await client.create(PODS, pod("a"))
    async with client.watch(PODS) as watch:
        assert await watch.names(1) == [("ADDED", "a")]
        await client.create(PODS, pod("b"))
        await client.patch(f"{PODS}/a", {"metadata": {"labels": {"x": "y"}}})
        await client.delete(f"{PODS}/a")
        assert await watch.names(3) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_a_watch_from_a_revision_misses_and_repeats_nothing(client: Client):
    await client.create(PODS, pod("a"))
    start = await revision(client)
    await client.create(PODS, pod("b"))
    await client.delete(f"{PODS}/a")
    async with client.watch(PODS, resourceVersion=start) as watch:
        kind, body = await watch.next()
        assert (kind, body["metadata"]["name"]) == ("ADDED", "b")
        kind, gone = await watch.next()
        assert (kind, gone["metadata"]["name"]) == ("DELETED", "a")
        assert int(gone["metadata"]["resourceVersion"]) > int(body["metadata"]["resourceVersion"])
    async with client.watch(PODS, resourceVersion=body["metadata"]["resourceVersion"]) as watch:
        assert await watch.names(1) == [("DELETED", "a")]


async def test_an_object_enters_and_leaves_a_selection(client: Client):
    start = await revision(client)
    async with client.watch(PODS, resourceVersion=start, labelSelector="app=web") as watch:
        await client.create(PODS, pod("a"))
        await client.patch(f"{PODS}/a", {"metadata": {"labels": {"app": "web"}}})
        await client.patch(f"{PODS}/a", {"metadata": {"annotations": {"n": "1"}}})
        _, last = await client.patch(f"{PODS}/a", {"metadata": {"labels": {"app": None}}})
        await client.delete(f"{PODS}/a")
        await client.create(PODS, pod("b", app="web"))
        assert await watch.names(2) == [("ADDED", "a"), ("MODIFIED", "a")]
        kind, body = await watch.next()
        # The object as the selection last saw it, at the revision of its leaving.
        assert (kind, body["metadata"]["labels"]) == ("DELETED", {"app": "web"})
        assert body["metadata"]["resourceVersion"] == last["metadata"]["resourceVersion"]
        assert await watch.names(1) == [("ADDED", "b")]


async def test_field_selectors_choose_a_name_and_a_node(client: Client):
    start = await revision(client)
    async with (
        client.watch(PODS, resourceVersion=start, fieldSelector="metadata.name=b") as by_name,
        client.watch("/api/v1/pods", resourceVersion=start, fieldSelector="spec.nodeName=n1") as by_node,
    ):
        for name in ("a", "b"):
            await client.create(PODS, pod(name))
        await client.create(f"{PODS}/a/binding", {"target": {"name": "n1"}})
        assert await by_name.names(1) == [("ADDED", "b")]
        assert await by_node.names(1) == [("ADDED", "a")]
    code, status = await client.get(PODS, fieldSelector="spec.image=x")
    assert (code, status["message"]) == (400, "field label not supported: spec.image")


async def test_a_watch_list_marks_the_end_of_the_initial_events(client: Client):
    await client.create(PODS, pod("a"))
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    async with client.watch(PODS, **query) as watch:
        assert await watch.names(1) == [("ADDED", "a")]
        kind, mark = await watch.next()
        assert (kind, mark["metadata"]["annotations"]) == ("BOOKMARK", {"k8s.io/initial-events-end": "true"})
        await client.create(PODS, pod("b"))
        assert await watch.names(1) == [("ADDED", "b")]
    # The bookmark's revision continues where the initial events ended.
    async with client.watch(PODS, resourceVersion=mark["metadata"]["resourceVersion"]) as watch:
        assert await watch.names(1) == [("ADDED", "b")]


async def test_bookmarks_advance_with_other_types(tmp_path, monkeypatch):
    monkeypatch.setattr("poplin.apiserver.watch.BOOKMARK_PERIOD_S", 0.05)
    async with running(tmp_path) as (_, client):
        start = await revision(client)
        async with client.watch(PODS, resourceVersion=start, allowWatchBookmarks="true") as watch:
            _, made = await client.create(MAPS, config_map("a"))
            async with asyncio.timeout(5):
                while True:
                    kind, body = await watch.next()
                    assert kind == "BOOKMARK"
                    if int(body["metadata"]["resourceVersion"]) >= int(made["metadata"]["resourceVersion"]):
                        break


async def test_a_watch_ends_at_its_timeout(client: Client):
    async with client.watch(PODS, timeoutSeconds=1, resourceVersion=await revision(client)) as watch:
        assert await watch.next() == ("END", None)


async def test_a_compacted_revision_is_gone(tmp_path):
    async with running(tmp_path) as (server, client):
        start = await revision(client)
        for name in "abc":
            await client.create(PODS, pod(name))
        server.store.open("/pods").compact(2)
        async with client.watch(PODS, resourceVersion=start) as watch:
            kind, status = await watch.next()
            assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
            assert await watch.next() == ("END", None)


async def test_a_revision_that_has_not_come_yet_is_no_place_to_begin(client: Client):
    async with client.watch(PODS, resourceVersion="1000000") as watch:
        assert (await watch.next())[1]["code"] == 410
    code, status = await client.get(PODS, resourceVersion="1000000")
    assert (code, status["reason"]) == (504, "Timeout")


async def test_a_restarted_server_has_no_past_but_goes_on_counting(tmp_path):
    async with running(tmp_path) as (_, client):
        start = await revision(client)
        _, made = await client.create(PODS, pod("a"))
    async with running(tmp_path) as (_, client):
        assert await client.get(f"{PODS}/a") == (200, made)
        assert int(await revision(client)) >= int(made["metadata"]["resourceVersion"])
        async with client.watch(PODS, resourceVersion=start) as watch:
            assert (await watch.next())[1]["code"] == 410
        # A client that has seen everything goes on without a relist.
        async with client.watch(PODS, resourceVersion=made["metadata"]["resourceVersion"]) as watch:
            await client.create(PODS, pod("b"))
            assert await watch.names(1) == [("ADDED", "b")]


async def test_a_watcher_that_falls_behind_is_sent_away_and_can_list_again(tmp_path, monkeypatch):
    monkeypatch.setattr("poplin.apiserver.collection.HISTORY_BYTES", 200_000)
    async with running(tmp_path) as (_, client):
        start = await revision(client)
        async with client.watch(MAPS, resourceVersion=start) as watch:
            await client.create(MAPS, config_map("a"))
            # Not reading: the kernel's buffers fill, then the history moves on.
            for index in range(150):
                await client.patch(f"{MAPS}/a", {"data": {"k": str(index) * 60_000}})
            last = ""
            while True:
                kind, body = await watch.next()
                if kind == "ERROR":
                    assert body["code"] == 410
                    break
                assert kind != "END"
                assert int(body["metadata"]["resourceVersion"]) > int(last or start)
                last = body["metadata"]["resourceVersion"]
        code, listed = await client.get(MAPS)
        assert (code, len(listed["items"])) == (200, 2)


async def test_many_writers_and_watchers_see_one_history(client: Client):
    """Each counter is raised by read, add one and write, repeated on conflict: none of the steps may be lost."""
    counters, writers, steps, watchers = 3, 8, 15, 20
    for index in range(counters):
        await client.create(MAPS, config_map(f"c{index}", n="0"))
    start = await revision(client, MAPS)

    async def write(seed: int) -> int:
        chance, conflicts = random.Random(seed), 0
        for _ in range(steps):
            path = f"{MAPS}/c{chance.randrange(counters)}"
            while True:
                _, body = await client.get(path)
                body["data"]["n"] = str(int(body["data"]["n"]) + 1)
                code, _ = await client.update(path, body)
                if code == 200:
                    break
                assert code == 409
                conflicts += 1
        return conflicts

    async def look() -> list[tuple[str, str, str]]:
        async with client.watch(MAPS, resourceVersion=start) as watch:
            ready.release()
            seen = []
            for _ in range(writers * steps):
                kind, body = await watch.next()
                assert kind == "MODIFIED"
                metadata = body["metadata"]
                seen.append((metadata["resourceVersion"], metadata["name"], body["data"]["n"]))
            return seen

    ready = asyncio.Semaphore(0)
    looking = [asyncio.create_task(look()) for _ in range(watchers)]
    for _ in looking:
        await ready.acquire()
    conflicts = await asyncio.gather(*(write(seed) for seed in range(writers)))
    histories = await asyncio.gather(*looking)
    assert sum(conflicts) > 0
    assert all(history == histories[0] for history in histories)
    revisions = [int(entry[0]) for entry in histories[0]]
    assert revisions == sorted(set(revisions))
    final: dict[str, int] = {}
    for _, name, count in histories[0]:
        assert int(count) == final.get(name, 0) + 1
        final[name] = int(count)
    assert sum(final.values()) == writers * steps
