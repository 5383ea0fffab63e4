"""Selectors: the language, its canonical form, and what it matches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.model.selector import (
    EVERYTHING,
    NAMESPACE,
    And,
    Compare,
    Global,
    Has,
    In,
    Labels,
    Not,
    Or,
    TextOperator,
    account_labels,
    all_of,
    any_of,
    keys_of,
    namespace_labels,
    select,
)
from poplin.model.selector_text import SelectorError, parse_selector

POD = Labels(
    {"app": "web", "tier": "", "version": "1.2-rc1", "pcns.team": "forged"},
    namespace_labels("shop", {"team": "red"}),
    account_labels("builder", {"trusted": "yes"}),
)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("all()", True),
        ("all ( )", True),
        ("!all()", False),
        ("app == 'web'", True),
        ('app=="web"', True),
        ("app == 'Web'", False),
        ("app != 'web'", False),
        ("missing != 'web'", True),
        ("missing == ''", False),
        ("tier == ''", True),
        ("has(tier)", True),
        ("!has(tier)", False),
        ("! ! has(tier)", True),
        ("has(missing)", False),
        ("app in {'db', 'web'}", True),
        ("app in {}", False),
        ("app not in {'db'}", True),
        ("app not in {}", True),
        ("missing not in {'x'}", True),
        ("version contains '.2-'", True),
        ("version starts with '1.'", True),
        ("version ends with 'rc2'", False),
        ("missing contains ''", False),
        ("app contains ''", True),
        ("app == 'web' && has(version)", True),
        ("app == 'db' || has(version) && version == '1.2-rc1'", True),
        ("(app == 'db' || has(version)) && version == 'x'", False),
        ("!(app == 'web' && has(missing))", True),
        ("pcns.team == 'red'", True),
        ("pcns.kubernetes.io/metadata.name == 'shop'", True),
        ("projectcalico.org/namespace == 'shop'", True),
        ("projectcalico.org/serviceaccount == 'builder'", True),
        ("pcsa.trusted == 'yes'", True),
        ("global()", False),
        ("not == 'x' || has == 'x' || app == 'web'", True),
    ],
)
def test_a_selector_matches_as_calico_says(text, matches):
    assert parse_selector(text).matches(POD) is matches


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("app = 'x'", 5, "unexpected '='"),
        ("app == web", 8, "expected a string in quotes, found 'web'"),
        ("app == 'web", 8, "a string without its end"),
        ("app in 'web'", 8, "expected {"),
        ("app in {'a' 'b'}", 13, "expected }"),
        ("app not 'x'", 9, "expected in"),
        ("(app == 'x'", 12, "expected ), found its end"),
        ("app == 'x' has(y)", 12, "expected &&, || or the end"),
        ("app starts 'x'", 12, "expected with"),
        ("&& app == 'x'", 1, "expected a label"),
        ("app", 4, "expected ==, !="),
        ("app == 'x'\n", 11, "unexpected '\\n'"),
        ("a" * 513 + " == 'x'", 1, "a label of more than 512"),
        ("!" * 200 + "all()", 101, "nested too deeply"),
    ],
)
def test_an_error_says_where(text, column, words):
    with pytest.raises(SelectorError) as caught:
        parse_selector(text)
    assert caught.value.position == column - 1
    assert f"column {column}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a == 'x' && b == 'y'", "b=='y'&&a==\"x\""),
        ("a in {'x'}", "a == 'x'"),
        ("!(a == 'x')", "a != 'x'"),
        ("!!has(a)", "has(a)"),
        ("(a == 'x' && b == 'y') && c == 'z'", "c == 'z' && (b == 'y' && a == 'x')"),
        ("has(a) && all()", "has(a)"),
        ("has(a) && !all()", "!all()"),
        ("has(a) || all()", "all()"),
        ("has(a) || has(a)", "has(a)"),
        ("a in {'y','x','y'}", "a in {'x','y'}"),
    ],
)
def test_what_means_the_same_has_one_form(one, other):
    assert parse_selector(one) == parse_selector(other)


keys = st.sampled_from(["a", "b/c", "pcns.n", NAMESPACE, "not", "has", "in"])
values = st.sampled_from(["", "x", "y", "it's", 'a "b"'])
leaves = st.one_of(
    st.builds(Has, keys),
    st.builds(In, keys, st.frozensets(values, max_size=3)),
    st.builds(Compare, keys, st.sampled_from(TextOperator), values),
    st.just(Global()),
)
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)
label_sets = st.builds(
    Labels,
    st.dictionaries(st.sampled_from(["a", "b/c", "not"]), values),
    st.dictionaries(st.sampled_from(["pcns.n", NAMESPACE]), values),
)


def evaluate(expression, labels):
    """The meaning, said once more and as plainly as can be."""
    flat = dict(labels.items())
    match expression:
        case Has(key):
            return key in flat
        case In(key, some):
            return key in flat and flat[key] in some
        case Compare(key, operator, text):
            value = flat.get(key)
            if value is None:
                return False
            return {
                TextOperator.CONTAINS: text in value,
                TextOperator.STARTS_WITH: value.startswith(text),
                TextOperator.ENDS_WITH: value.endswith(text),
            }[operator]
        case Global():
            return NAMESPACE not in flat
        case Not(part):
            return not evaluate(part, labels)
        case And(parts):
            return all(evaluate(part, labels) for part in parts)
        case Or(parts):
            return any(evaluate(part, labels) for part in parts)
    raise AssertionError(expression)


@given(expressions, label_sets)
def test_the_canonical_form_means_the_same(expression, labels):
    selector = select(expression)
    assert selector.matches(labels) == evaluate(expression, labels)


@given(expressions)
def test_the_canonical_text_reads_back(expression):
    selector = select(expression)
    again = parse_selector(selector.text)
    assert (again.text, again.expression) == (selector.text, selector.expression)


@given(expressions, expressions, label_sets)
def test_joining(one, other, labels):
    first, second = select(one), select(other)
    assert all_of(first, second).matches(labels) == (first.matches(labels) and second.matches(labels))
    assert any_of(first, second).matches(labels) == (first.matches(labels) or second.matches(labels))
    assert all_of(first, EVERYTHING) == first


def test_the_labels_that_a_selector_asks_for():
    selector = parse_selector("has(a) && (b == 'x' || !(c in {'y'})) && global()")
    assert keys_of(selector.expression) == {"a", "b", "c", NAMESPACE}
