"""The arithmetic of rollouts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.lab.controllers.rollout import Bounds, Scale, resize, resolve_bounds, roll


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "bounds"),
    [
        (10, "25%", "25%", Bounds(10, 13, 8)),
        (3, "25%", "25%", Bounds(3, 4, 3)),
        (1, "25%", "25%", Bounds(1, 2, 1)),
        (4, 0, "25%", Bounds(4, 4, 3)),
        (3, 0, "10%", Bounds(3, 3, 2)),  # both resolve to none: one may be unavailable
        (2, 0, 5, Bounds(2, 2, 0)),
        (0, 1, 0, Bounds(0, 0, 0)),
    ],
)
def test_percentages_surge_rounds_up_and_unavailable_rounds_down(replicas, surge, unavailable, bounds):
    assert resolve_bounds(replicas, surge, unavailable) == bounds


@pytest.mark.parametrize(
    ("new", "old", "bounds", "next_sizes"),
    [
        # The example of the documentation: 10 replicas, maxSurge 3, maxUnavailable 2.
        (Scale(0, 0), [Scale(10, 10)], Bounds(10, 13, 8), (3, [8])),
        (Scale(3, 0), [Scale(8, 8)], Bounds(10, 13, 8), (5, [8])),
        (Scale(5, 3), [Scale(8, 8)], Bounds(10, 13, 8), (5, [5])),
        # Old pods that do not serve go at once, however many.
        (Scale(1, 0), [Scale(3, 0)], Bounds(3, 4, 3), (1, [3])),
        (Scale(1, 1), [Scale(3, 2)], Bounds(3, 4, 3), (1, [2])),
        (Scale(4, 4), [Scale(3, 0)], Bounds(4, 5, 3), (4, [0])),
        # The oldest first.
        (Scale(2, 2), [Scale(2, 2), Scale(2, 2)], Bounds(4, 6, 4), (2, [0, 2])),
        # A rollback amid a rollout: the new one grows only as the others make room.
        (Scale(1, 1), [Scale(3, 3)], Bounds(3, 4, 3), (1, [2])),
        # Scaled down meanwhile.
        (Scale(5, 5), [], Bounds(3, 4, 3), (3, [])),
    ],
)
def test_steps(new, old, bounds, next_sizes):
    assert roll(new, old, bounds) == next_sizes


scales = st.builds(
    lambda replicas, share: Scale(replicas, min(share, replicas)), st.integers(0, 12), st.integers(0, 12)
)
bounds = st.builds(resolve_bounds, st.integers(0, 12), st.integers(0, 5), st.integers(0, 5))


@given(scales, st.lists(scales, max_size=4), bounds)
def test_a_step_keeps_to_the_bounds(new, old, limits):
    grown, sizes = roll(new, old, limits)
    total = new.replicas + sum(one.replicas for one in old)
    assert grown <= max(limits.replicas, new.replicas)
    assert grown + sum(one.replicas for one in old) <= max(limits.most, total)
    assert all(0 <= size <= one.replicas for size, one in zip(sizes, old, strict=True))
    # What serves: no fewer than the minimum, or what there was where that was fewer. A ReplicaSet that
    # shrinks deletes what does not serve first.
    before = min(new.available, grown) + sum(one.available for one in old)
    after = min(new.available, grown) + sum(
        min(one.available, size) for one, size in zip(old, sizes, strict=True)
    )
    assert after >= min(limits.least, before)


@given(scales, st.lists(scales, min_size=1, max_size=4), bounds)
def test_where_all_serve_a_step_moves_or_nothing_is_left_to_move(new, old, limits):
    new, old = Scale(new.replicas, new.replicas), [Scale(one.replicas, one.replicas) for one in old]
    grown, sizes = roll(new, old, limits)
    done = new.replicas == limits.replicas and not any(one.replicas for one in old)
    moved = grown != new.replicas or sizes != [one.replicas for one in old]
    assert moved != done


@pytest.mark.parametrize(
    ("parts", "bounds", "sizes"),
    [
        # The example of the documentation: 10 to 15 amid a rollout of 8 old and 5 new, maxSurge 3.
        ([Scale(8, 8, 13), Scale(5, 0, 13)], Bounds(15, 18, 13), [11, 7]),
        ([Scale(8, 8, 13), Scale(5, 0, 13)], Bounds(5, 7, 4), [4, 3]),
        ([Scale(8, 8, 13), Scale(5, 0, 13)], Bounds(0, 0, 0), [0, 0]),
    ],
)
def test_a_change_of_size_is_shared_in_proportion(parts, bounds, sizes):
    assert resize(parts, bounds) == sizes


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), bounds)
def test_shares_add_up(replicas, limits):
    total = sum(replicas)
    parts = [Scale(one, one, total) for one in sorted(replicas, reverse=True)]
    sizes = resize(parts, limits)
    assert all(size >= 0 for size in sizes)
    assert sum(sizes) == limits.most
