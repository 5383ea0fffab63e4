from ipaddress import ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from poplin.compile.policy.blocks import intervals, merge, subtract

spans = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)).map(lambda one: (one[0], one[0] + one[1])))


def members(some):
    return {number for first, last in some for number in range(first, last + 1)}


@given(spans, spans)
def test_what_is_left_is_disjoint_and_does_not_touch(some, holes):
    left = subtract(some, holes)
    assert members(left) == members(some) - members(holes)
    assert merge(left) == left
    assert all(one[1] + 1 < other[0] for one, other in pairwise(left))


def test_blocks_of_one_family():
    nets = [ip_network("10.0.0.0/30"), ip_network("fd00::/126"), ip_network("10.0.0.4/30")]
    holes = [ip_network("10.0.0.2/32"), ip_network("fd00::/127")]
    base = 10 << 24
    assert intervals(nets, holes, 4) == [(base, base + 1), (base + 3, base + 7)]
    assert intervals(nets, holes, 6) == [((0xFD00 << 112) + 2, (0xFD00 << 112) + 3)]
