"""The store without HTTP: order, conflicts, history, and what is left after it is closed."""

import asyncio
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.apiserver.collection import Collection, Event, GoneError, make_entry
from poplin.apiserver.status import StatusError
from poplin.apiserver.store import StaleError, Store
from poplin.model.errors import InvalidInputError


def document(name: str, **more: object) -> dict:
    return {"metadata": {"name": name, "uid": name}, **more}


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "objects.db")
    yield store
    await store.close()


async def test_a_write_builds_on_the_newest_version_even_before_it_is_durable(store):
    collection = store.open("/things")
    first = asyncio.create_task(store.write(collection, ("", "a"), document("a"), None))
    await asyncio.sleep(0)
    with pytest.raises(StaleError):
        await store.write(collection, ("", "a"), document("a"), None)
    head = collection.head(("", "a"))
    assert collection.entries == {}
    second = asyncio.create_task(store.write(collection, ("", "a"), document("a", n=2), head))
    assert await first is head
    assert (await second).revision == head.revision + 1
    with pytest.raises(StaleError):
        await store.delete(collection, document("a"), head)


async def test_deleting_and_creating_again_in_one_batch(store):
    collection = store.open("/things")
    entry = await store.write(collection, ("", "a"), document("a"), None)
    deletion = asyncio.create_task(store.delete(collection, document("a"), entry))
    await asyncio.sleep(0)
    assert collection.head(("", "a")) is None
    creation = asyncio.create_task(store.write(collection, ("", "a"), document("a", n=2), None))
    await asyncio.gather(deletion, creation)
    assert [event.type for event in collection.events] == ["ADDED", "DELETED", "ADDED"]
    assert collection.entries[("", "a")].decode()["n"] == 2
    assert (collection.keys, collection.pending) == ([("", "a")], {})


async def test_a_reopened_store_holds_what_was_written_and_goes_on_counting(tmp_path):
    store = Store(tmp_path / "objects.db")
    things, others = store.open("/things"), store.open("/others")
    kept = await store.write(things, ("n", "kept"), document("kept"), None)
    gone = await store.write(things, ("n", "gone"), document("gone"), None)
    last = await store.delete(things, document("gone"), gone)
    other = await store.write(others, ("", "o"), document("o"), None)
    await store.close()
    store = Store(tmp_path / "objects.db")
    things = store.open("/things")
    assert [(entry.key, entry.data) for entry in things.slice(None)] == [(kept.key, kept.data)]
    assert (store.revision, things.floor) == (other.revision, last.revision)
    assert (await store.write(things, ("n", "new"), document("new"), None)).revision > other.revision
    await store.close()


async def test_a_failed_commit_fails_its_writes_and_leaves_what_stood(store, monkeypatch):
    collection = store.open("/things")
    entry = await store.write(collection, ("", "a"), document("a"), None)

    def fail(batch):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_commit", fail)
        writes = [
            store.write(collection, ("", "a"), document("a", n=2), entry),
            store.write(collection, ("", "b"), document("b"), None),
        ]
        results = await asyncio.gather(*writes, return_exceptions=True)
    assert [(type(result), result.code) for result in results] == [(StatusError, 503)] * 2
    assert collection.head(("", "a")) is entry
    assert collection.head(("", "b")) is None
    assert (await store.write(collection, ("", "a"), document("a", n=3), entry)).decode()["n"] == 3


async def test_listeners_hear_every_change_in_order(store):
    heard = []
    store.listen(lambda collection, event: heard.append((collection.name, event.type, event.entry.revision)))
    collections = [store.open("/one"), store.open("/two")]
    await asyncio.gather(
        *(store.write(collections[n % 2], ("", f"k{n}"), document(f"k{n}"), None) for n in range(20))
    )
    assert [revision for _, _, revision in heard] == list(range(2, 22))


async def test_two_stores_cannot_share_a_file(tmp_path):
    store = Store(tmp_path / "objects.db")
    await store.write(store.open("/things"), ("", "a"), document("a"), None)
    with pytest.raises(InvalidInputError, match="locked"):
        Store(tmp_path / "objects.db")
    await store.close()


def event(revision: int, size: int = 10) -> Event:
    name = f"k{revision}"
    entry = make_entry(("", name), revision, b"x" * size, document(name), ())
    return Event("ADDED", entry, None)


@given(st.lists(st.integers(1, 3), max_size=30), st.integers(0, 30), st.integers(0, 70))
def test_a_position_is_just_behind_what_was_seen_or_gone(gaps, compacted, seen):
    collection, revision = Collection("/things"), 0
    for gap in gaps:
        revision += gap
        collection.publish(event(revision))
    collection.compact(min(compacted, len(gaps)))
    if seen < collection.floor:
        with pytest.raises(GoneError):
            collection.position(seen)
        return
    found = [one.entry.revision for one in collection.since(collection.position(seen))]
    assert found == [one.entry.revision for one in collection.events if one.entry.revision > seen]


def test_history_is_bounded_by_bytes(monkeypatch):
    monkeypatch.setattr("poplin.apiserver.collection.HISTORY_BYTES", 1000)
    collection = Collection("/things")
    for revision in range(1, 500):
        collection.publish(event(revision, size=100))
        assert collection.size == sum(len(one.entry.data) for one in collection.events) <= 2000
    assert len(collection.events) >= 10
    with pytest.raises(GoneError):
        collection.since(0)
    assert collection.base + len(collection.events) == 499
