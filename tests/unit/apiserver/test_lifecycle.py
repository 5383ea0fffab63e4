"""Whatever a client sends, it is stored or refused with a Status; nothing else happens."""

import asyncio

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.apiserver.allocation import ServiceAllocator
from poplin.apiserver.lifecycle import Lifecycle
from poplin.apiserver.options import Options
from poplin.apiserver.resource import Registry
from poplin.apiserver.schema import Node
from poplin.apiserver.server import SERVICE_NETWORKS
from poplin.apiserver.status import StatusError
from poplin.apiserver.store import Store
from poplin.apiserver.table import make_row

TEXT = st.sampled_from(
    ["", "a", "A b", "10.0.0.1", "10.0.0.0/8", "None", "2026-01-01T00:00:00Z", "In", "http"]
)
NUMBER = st.sampled_from([-1, 0, 1, 80, 70000])
ANYTHING = st.none() | st.booleans() | NUMBER | TEXT | st.just([]) | st.just({}) | st.just([None])


def values(node: Node, depth: int = 6) -> st.SearchStrategy:
    """Values that mostly fit `node`."""
    if not node.types:
        return ANYTHING
    if depth == 0:
        return {"object": st.just({}), "array": st.just([]), "boolean": st.booleans(), "string": TEXT}.get(
            node.types[0], NUMBER
        )
    choices = []
    for kind in node.types:
        if kind == "object" and node.properties:
            members = {
                key: values(child, depth - 1)
                for key, child in node.properties.items()
                if key not in {"apiVersion", "kind"}
            }
            choices.append(st.deferred(lambda members=members: some_of(members, node.required)))
        elif kind == "object":
            inner = values(node.additional, depth - 1) if node.additional else ANYTHING
            choices.append(st.dictionaries(TEXT, inner, max_size=2))
        elif kind == "array":
            choices.append(st.lists(values(node.items, depth - 1) if node.items else ANYTHING, max_size=2))
        else:
            choices.append(
                {"string": TEXT | st.sampled_from(node.enum or ("a",)), "boolean": st.booleans()}.get(
                    kind, NUMBER
                )
            )
    return st.one_of(*choices)


@st.composite
def some_of(draw: st.DrawFn, members: dict[str, st.SearchStrategy], required: tuple[str, ...]) -> dict:
    """An object with a few of its members, nearly always with those it needs."""
    chosen = draw(st.lists(st.sampled_from(sorted(members)), max_size=4, unique=True))
    chosen += [
        key for key in (*required, "spec") if key in members and key not in chosen and draw(st.integers(0, 9))
    ]
    return {key: draw(members[key]) for key in chosen}


REGISTRY = Registry()
STORED = {resource.definition: resource for resource in REGISTRY.stored()}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_object_of_any_type_is_stored_or_refused(data):
    resource = STORED[data.draw(st.sampled_from(sorted(STORED)))]
    documents = [data.draw(values(resource.schema)) for _ in range(2)]
    for document in documents:
        if data.draw(st.integers(0, 9)):
            document["metadata"] = {"name": "a"}
    asyncio.run(write(resource, documents))


async def write(resource, documents: list[dict]) -> None:
    """Create the first document, then update it to be the second."""
    registry = Registry()
    store = Store(":memory:")
    lifecycle = Lifecycle(store, registry)
    lifecycle.hooks.append(ServiceAllocator(lifecycle, SERVICE_NETWORKS))
    namespaces = registry.find("", "v1", "namespaces")
    await lifecycle.create(namespaces, "", {"metadata": {"name": "default"}}, Options())
    namespace = "default" if resource.namespaced else ""
    resource = registry.find(resource.group, resource.version, resource.plural)
    refused: StatusError | None = None
    try:
        made = await lifecycle.create(resource, namespace, documents[0], Options())
        make_row(resource, made.decode())
        document = msgspec.json.encode({**documents[1], "metadata": {"name": made.key[1]}})
        await lifecycle.update(resource, made.key, lambda _: msgspec.json.decode(document), Options())
    except StatusError as error:
        refused = error
    finally:
        await store.close()
    if refused is not None:
        assert refused.code in {400, 409, 422}
        msgspec.json.encode(refused.document())
