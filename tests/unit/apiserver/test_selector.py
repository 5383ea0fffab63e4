import pytest

from poplin.apiserver.selector import SelectorError, parse_fields, parse_labels

LABELS = {"app": "web", "tier": "front", "n": "5", "example.org/x": ""}

MATCHES = [
    ("", True),
    ("app=web", True),
    ("app==web", True),
    ("app=db", False),
    ("app!=db", True),
    ("app!=web", False),
    ("none!=x", True),
    ("app", True),
    ("none", False),
    ("!none", True),
    ("!app", False),
    ("app in (db, web)", True),
    ("app in (db)", False),
    ("app notin (db,cache)", True),
    ("app notin (web)", False),
    ("none notin (web)", True),
    ("n>4", True),
    ("n > 5", False),
    ("n<6", True),
    ("app>1", False),
    ("app=web,tier=front", True),
    (" app = web , tier in (front) , !old ", True),
    ("app=web,tier=back", False),
    ("example.org/x", True),
    ("example.org/x=", True),
    ("app=,tier=front", False),
    ("example.org/x in (,a)", True),
]


@pytest.mark.parametrize(("text", "expected"), MATCHES)
def test_label_selectors(text, expected):
    assert parse_labels(text).matches(LABELS) is expected


@pytest.mark.parametrize(
    "text",
    [
        "app=web,",
        ",app",
        "=web",
        "app in web",
        "app in (web",
        "app in (a b)",
        "app=(x)",
        "a b",
        "!",
        "n>x",
        "app=$",
    ],
)
def test_what_is_no_label_selector_is_refused(text):
    with pytest.raises(SelectorError):
        parse_labels(text)


KNOWN = {"metadata.name": "metadata.name", "regarding.name": "involvedObject.name"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("metadata.name=a", True),
        ("metadata.name==a", True),
        ("metadata.name!=a", False),
        ("metadata.name=a,regarding.name!=b", True),
        ("regarding.name=c", True),
    ],
)
def test_field_selectors(text, expected):
    values = {"metadata.name": "a", "involvedObject.name": "c"}
    assert parse_fields(text, KNOWN).matches(values) is expected


@pytest.mark.parametrize("text", ["spec.x=1", "metadata.name", "=a"])
def test_what_is_no_field_selector_is_refused(text):
    with pytest.raises(SelectorError):
        parse_fields(text, KNOWN)
