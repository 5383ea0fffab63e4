"""Truth tables, read from text and written to it."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.lab.conformance.table import count, differing, read_table, write_table
from poplin.model.errors import InvalidInputError

PODS = ["x/a", "x/b", "y/a"]


def reached(text):
    return {pair for pair, yes in read_table(text, PODS, "here").items() if yes}


def test_later_lines_take_the_place_of_earlier_ones():
    assert reached("* XX X\ny/* .. .\nx/a X. X") == {
        *((pod, pod) for pod in PODS),
        ("x/a", "x/b"),
        ("y/a", "x/a"),
        ("y/a", "x/b"),
    }


def test_a_pattern_may_leave_out_the_namespace():
    assert {source for source, destination in reached("* XX X\n*/a .. .") if source != destination} == {
        "x/a",
        "y/a",
    }


def test_a_pod_reaches_itself_whatever_its_mark():
    assert reached("* XXX") == {(pod, pod) for pod in PODS}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("* ...\nx/a ..", "is no line for 3 pods"),
        ("* ..o", "is no line for 3 pods"),
        ("* ... .", "is no line for 3 pods"),
        ("x/* ...", "no line for y/a"),
        ("* ...\nz/a ...", "'z/a' means no pod"),
        ("", "no line for x/a"),
    ],
)
def test_what_is_no_table_is_told(text, fault):
    with pytest.raises(InvalidInputError, match=fault):
        read_table(text, PODS, "here")


@given(st.fixed_dictionaries({pair: st.booleans() for pair in product(PODS, PODS)}))
def test_what_is_written_reads_back(table):
    table |= {(pod, pod): True for pod in PODS}
    assert read_table(write_table(table, PODS), PODS, "here") == table
    assert count(table) == (sum(table.values()), 9)


def test_differing_cells_are_named():
    left, right = read_table("* ...", PODS, "here"), read_table("* ...\nx/a ..X", PODS, "here")
    assert differing(left, right) == [("x/a", "y/a")]
    assert differing(left, left) == []
