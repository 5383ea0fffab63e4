"""Documents that were valid: somewhere a value is another, is missing, or stands twice."""

import copy

from hypothesis import strategies as st

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**64, -1, 65536]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", "/", "0.0.0.0/0", "10.0.0.1/24", "::ffff:10.0.0.1", "fe80::1%eth0", "TCP", "\0", "%", "a" * 300]
    ),
    st.lists(st.none() | st.integers() | st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3),
)


def _places(document, path=()):
    """Every place of a document but its root: the path to a container, and the key there."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))


@st.composite
def mutated(draw, valid):
    """A copy of `valid` with one to three changes."""
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            break
        *path, key = draw(st.sampled_from(places))
        container = document
        for step in path:
            container = container[step]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat"])):
            case "replace":
                container[key] = draw(JUNK)
            case "remove":
                del container[key]
            case "repeat" if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
    return document
