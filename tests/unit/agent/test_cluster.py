"""A watch's events, taken in one after another: what is known, what is refused, and whether a pass is due."""

import pytest

from poplin.agent.cluster import View
from poplin.datastore.parse import InvalidObjectError, Metadata
from poplin.datastore.source import Deleted, Put, Rejected, Replaced, Resumed, Unavailable
from poplin.model.cluster import Node
from poplin.model.errors import TemporaryError

A, B = Node("a"), Node("b")
A2 = Node("a", labels={"new": "yes"})
BAD_A = InvalidObjectError("spec.podCIDR: is no CIDR", kind="Node", metadata=Metadata(name="a"))
AWAY = TemporaryError("the API server is away")


@pytest.fixture
def view():
    return View("nodes")


def test_before_the_first_list_nothing_is_known_and_it_says_so(view):
    assert (view.filled, view.objects) == (False, {})
    assert "first list" in str(view.not_in_sync)


# Before, event, whether a pass is due, objects after.
STEPS = {
    "first list": ([], Replaced((A,), ()), True, [A]),
    "the same list again": ([Replaced((A,), ())], Replaced((A,), ()), False, [A]),
    "an empty first list": ([], Replaced((), ()), True, []),
    "another list": ([Replaced((A,), ())], Replaced((B,), ()), True, [B]),
    "a list that refuses another": ([Replaced((A,), ())], Replaced((A,), (BAD_A,)), True, [A]),
    "new": ([Replaced((A,), ())], Put(B), True, [A, B]),
    "changed": ([Replaced((A,), ())], Put(A2), True, [A2]),
    "as it was": ([Replaced((A,), ())], Put(A), False, [A]),
    "deleted": ([Replaced((A, B), ())], Deleted("", "a"), True, [B]),
    "deleted, never known": ([Replaced((A,), ())], Deleted("", "b"), False, [A]),
    "refused": ([Replaced((A, B), ())], Rejected(BAD_A), True, [B]),
    "a refused one deleted": ([Replaced((B,), (BAD_A,))], Deleted("", "a"), True, [B]),
    "away": ([Replaced((A,), ())], Unavailable(AWAY), False, [A]),
    "back, nothing missed": ([Replaced((A,), ()), Unavailable(AWAY)], Resumed(), True, [A]),
    "back, with the same list": ([Replaced((A,), ()), Unavailable(AWAY)], Replaced((A,), ()), True, [A]),
}


@pytest.mark.parametrize(("before", "event", "due", "after"), STEPS.values(), ids=STEPS)
def test_an_event_changes_what_is_known_and_asks_for_a_pass_only_where_it_matters(
    view, before, event, due, after
):
    for earlier in before:
        view.apply(earlier)
    assert view.apply(event) is due
    assert list(view.objects.values()) == after
    assert view.filled


def test_a_refused_object_is_named_until_it_can_be_read_or_is_gone(view):
    view.apply(Replaced((B,), (BAD_A,)))
    assert view.rejected == {("", "a"): BAD_A}
    view.apply(Put(A))
    assert view.rejected == {}
    view.apply(Rejected(BAD_A))
    assert view.rejected == {("", "a"): BAD_A}
    view.apply(Deleted("", "a"))
    assert view.rejected == {}


def test_a_watch_that_is_away_keeps_what_it_told(view):
    view.apply(Replaced((A,), ()))
    view.apply(Unavailable(AWAY))
    assert view.not_in_sync is AWAY
    assert view.objects == {("", "a"): A}
    view.apply(Resumed())
    assert view.not_in_sync is None
