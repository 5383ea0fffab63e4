"""What the watch tells and what our own writes were answered, in every order they can arrive in."""

from hypothesis import given
from hypothesis import strategies as st

from poplin.datastore.source import Deleted, Put, Replaced
from poplin.lab.controllers.controller import make_store
from poplin.lab.controllers.object import PODS
from unit.lab.controllers.objects import make_pod

OLD = make_pod("web", uid="a", version=5)
NEW = make_pod("web", uid="a", version=7, node="node-1")
GONE = Deleted("default", "web")
KEY = ("default", "web")


def filled(*pods):
    store = make_store(PODS)
    store.observe(Replaced(pods))
    return store


def test_an_older_version_than_the_answers_is_no_news():
    store = filled(OLD)
    assert store.updated(NEW)
    assert store.observe(Put(OLD)) == []
    assert store.observe(Put(NEW)) == []
    assert store.get(KEY) is NEW


def test_an_answer_older_than_what_the_watch_told_is_no_news():
    store = filled(NEW)
    assert store.updated(OLD) == []
    assert store.get(KEY) is NEW


def test_what_was_created_is_there_before_the_watch_tells():
    store = filled()
    assert [change.after for change in store.created(OLD)] == [OLD]
    assert store.unconfirmed() == [OLD]
    assert store.observe(Put(OLD)) == []
    assert store.unconfirmed() == []


def test_a_list_from_before_a_creation_does_not_undo_it():
    store = filled()
    store.created(OLD)
    assert store.observe(Replaced(())) == []
    assert store.unconfirmed() == [OLD]
    # The server is asked, and says that there is no such object.
    assert store.deleted(KEY, "a")
    assert store.get(KEY) is None


def test_an_answer_that_comes_after_the_objects_end_revives_nothing():
    store = filled(OLD)
    store.observe(GONE)
    assert store.updated(NEW) == []
    assert store.created(NEW) == []
    assert store.get(KEY) is None


def test_a_deletion_of_ours_is_not_taken_back_by_the_watch():
    store = filled(OLD)
    store.deleted(KEY, "a")
    assert store.observe(Put(NEW)) == []
    assert store.get(KEY) is None


def test_the_end_of_the_predecessor_is_not_the_end_of_its_successor():
    store = filled(OLD)
    store.deleted(KEY, "a")
    successor = make_pod("web", uid="b", version=9)
    store.created(successor)
    assert store.observe(GONE) == []
    assert store.get(KEY) is successor
    assert store.observe(GONE)
    assert store.get(KEY) is None


def test_a_list_from_before_a_deletion_does_not_undo_it():
    store = filled(OLD)
    store.deleted(KEY, "a")
    assert store.observe(Replaced((OLD,))) == []
    assert store.observe(GONE) == []
    successor = make_pod("web", uid="b", version=9)
    assert store.observe(Put(successor))


def test_a_list_without_it_ends_an_object():
    store = filled(OLD)
    assert [change.before for change in store.observe(Replaced(()))] == [OLD]


def test_a_binding_is_known_at_once_and_only_once():
    store = filled(OLD)
    assert store.bound(KEY, "a", "node-1")
    assert store.find("node", "") == []
    assert [pod.name for pod in store.find("node", "node-1")] == ["web"]
    assert store.bound(KEY, "a", "node-2") == []
    assert store.observe(Put(OLD)) == []
    assert store.observe(Put(NEW))


def test_a_cache_can_see_that_its_objects_changed():
    store = filled(OLD)
    before = store.changes("node", "node-1"), store.changes("node", "")
    store.observe(Put(NEW))
    assert (store.changes("node", "node-1"), store.changes("node", "")) == (before[0] + 1, before[1] + 1)


pods = st.builds(
    lambda name, node, version: make_pod(f"p{name}", uid=f"u{name}", node=f"n{node}" * bool(node), version=version),
    st.integers(0, 3), st.integers(0, 2), st.integers(1, 50),
)  # fmt: skip
events = st.one_of(
    st.builds(Put, pods),
    st.builds(Deleted, st.just("default"), st.sampled_from(["p0", "p1", "p2", "p3"])),
    st.builds(lambda some: Replaced(tuple({pod.key: pod for pod in some}.values())), st.lists(pods)),
)


@given(st.lists(events))
def test_the_indexes_hold_exactly_what_the_store_holds(history):
    store = make_store(PODS)
    for event in history:
        store.observe(event)
    objects = sorted(pod.key for pod in store)
    for index, values in (("node", ["", "n1", "n2"]), ("owner", [""]), ("orphan", ["default"])):
        assert sorted(pod.key for value in values for pod in store.find(index, value)) == objects


@given(st.lists(events))
def test_changes_lead_from_each_state_to_the_next(history):
    store, followed = make_store(PODS), {}
    for event in history:
        for before, after in store.observe(event):
            key = (before or after).key
            assert followed.pop(key, None) is before
            if after is not None:
                followed[key] = after
    assert followed == {pod.key: pod for pod in store}
