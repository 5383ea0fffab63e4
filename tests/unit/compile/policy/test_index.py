"""The index finds exactly what asking everything would."""

from hypothesis import given
from hypothesis import strategies as st

from poplin.compile.policy.index import LabelIndex, SelectorIndex
from poplin.model.selector import select
from unit.model.test_selector import expressions, label_sets

selectors = expressions.map(select)


@given(st.lists(selectors, max_size=8), st.lists(selectors, max_size=3), st.lists(label_sets, max_size=3))
def test_selectors_by_labels(some, removed, labels):
    index = SelectorIndex()
    for selector in some:
        index.add(selector)
    for selector in removed:
        index.remove(selector.text)
    gone = {selector.text for selector in removed}
    for one in labels:
        found = {selector.text for selector in some if selector.text not in gone and selector.matches(one)}
        assert index.matching(one) == found


@given(st.lists(label_sets, max_size=8), st.lists(st.tuples(st.integers(0, 7), label_sets)), expressions)
def test_labels_by_selector(some, replaced, expression):
    index = LabelIndex()
    known = dict(enumerate(some))
    for key, labels in known.items():
        index.put(key, labels)
    index.matching(expression)  # what is put from now on is filed as it comes
    for key, labels in replaced:
        index.put(key, labels)
        known[key] = labels
    index.remove(0)
    known.pop(0, None)
    wanted = [key for key, labels in known.items() if select(expression).matches(labels)]
    assert sorted(index.matching(expression)) == sorted(wanted)
    assert len(index) == len(known)
