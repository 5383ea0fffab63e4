"""Whatever the API server is asked, it answers with that or with a Status, never with a fault of its own."""

import asyncio
import itertools
import logging
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from poplin.apiserver.resource import META, Resource, builtin_compiler, builtin_resources
from poplin.apiserver.schema import Node
from poplin.apiserver.server import ApiServer, Settings

RESOURCES = sorted(builtin_resources(), key=lambda one: (one.group, one.version, one.plural))
NAME = "x"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
PATCHES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
TEXTS = st.one_of(
    st.sampled_from([
        "x", "y", "a", "a/b", "", "100m", "25%", "a.b", "10.0.0.0/8", "10.0.0.1", "::1", "1", "80", "*", "None",
        "$patch", "Ingress", "ExternalName", "RollingUpdate", "metadata.name", "a=b", "\0", "é" * 70,
    ]),
    st.text(max_size=5),
)  # fmt: skip
FORMATTED = {
    "date-time": st.sampled_from(["2024-01-01T00:00:00Z", "2024-01-01T00:00:00.5+01:00", "9999-99-99T99:99:99Z"]),
    "byte": st.sampled_from(["", "YQ==", "/w=="]),
}  # fmt: skip
NUMBERS = st.one_of(st.integers(1, 9), st.integers(-2, 70000), st.integers())
ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), NUMBERS, st.floats(allow_nan=False, allow_infinity=False), TEXTS
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
QUERIES = st.dictionaries(
    st.sampled_from([
        "dryRun", "fieldManager", "fieldValidation", "force", "labelSelector", "fieldSelector", "limit", "continue",
        "resourceVersion", "resourceVersionMatch", "gracePeriodSeconds", "propagationPolicy", "orphanDependents",
        "sendInitialEvents", "pretty", "timeoutSeconds", "includeObject",
    ]),
    TEXTS | st.sampled_from([
        "true", "All", "Strict", "Warn", "Exact", "NotOlderThan", "0", "-1", "9" * 20, "a in (b,", "!a",
        "metadata.name!=x", "Orphan", "Foreground", "Object", "W10",
    ]),
    max_size=3,
)  # fmt: skip
PATHS = st.lists(
    TEXTS | st.sampled_from([
        "api", "apis", "v1", "apps", "namespaces", "default", "pods", "status", "scale", "log", "exec", "proxy", "..",
        "openapi", "v3", "watch", "binding", "eviction", "token", "serviceaccounts", "certificatesigningrequests",
        "approval", "finalize",
    ]),
    max_size=7,
).map(lambda parts: "/" + "/".join(parts))  # fmt: skip
FUZZ = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
COUNT = itertools.count()


@st.composite
def values(draw: st.DrawFn, node: Node, depth: int = 0) -> Any:
    """What mostly fits a schema, and now and then does not."""
    if depth > 7 or draw(st.integers(0, 79)) == 0:
        return draw(ANYTHING)
    if node.enum:
        return draw(st.sampled_from(node.enum))
    match node.types[0] if node.types else "":
        case "object" | "" if node.properties:
            some = draw(st.sets(st.sampled_from(sorted(node.properties)), max_size=4))
            chosen = some | (set(node.required) & node.properties.keys())
            return {key: draw(values(node.properties[key], depth + 1)) for key in sorted(chosen)}
        case "object" if node.additional is not None:
            return draw(st.dictionaries(TEXTS, values(node.additional, depth + 1), max_size=2))
        case "array" if node.items is not None:
            return draw(st.lists(values(node.items, depth + 1), max_size=3))
        case "string":
            return draw(FORMATTED.get(node.format, TEXTS))
        case "integer" | "number":
            return draw(NUMBERS)
        case "boolean":
            return draw(st.booleans())
    return draw(ANYTHING)


@st.composite
def documents(draw: st.DrawFn, resource: Resource) -> Any:
    """A whole object of a type, mostly of the name NAME."""
    document = draw(values(resource.schema))
    if not isinstance(document, dict) or draw(st.integers(0, 19)) == 0:
        return document
    metadata = draw(values(builtin_compiler().definition(META + "ObjectMeta")))
    if isinstance(metadata, dict):
        metadata["name"] = NAME
        for key in ("namespace", "resourceVersion", "uid") if draw(st.integers(0, 3)) else ():
            metadata.pop(key, None)
        document["metadata"] = metadata
    return {**document, "apiVersion": resource.api_version, "kind": resource.kind}


@st.composite
def operations(draw: st.DrawFn) -> Any:
    """An operation of a JSON patch."""
    steps = st.lists(
        st.sampled_from(["spec", "metadata", "labels", "status", "x", "0", "-", "~0", "name"]), max_size=3
    )
    operation = {
        "op": draw(st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "?"])),
        "path": "".join(f"/{step}" for step in draw(steps)),
        "from": "".join(f"/{step}" for step in draw(steps)),
        "value": draw(ANYTHING),
    }
    left_out = draw(st.sets(st.sampled_from(sorted(operation)), max_size=1))
    return {key: value for key, value in operation.items() if key not in left_out}


def schemas(depth: int = 0) -> st.SearchStrategy[Any]:
    """OpenAPI schemas as definitions have them, not all of them good."""
    words = {
        "type": st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "date"]),
        "enum": st.lists(ANYTHING, max_size=2),
        "pattern": st.sampled_from(["a+", "(", "^x$", r"\p{L}"]),
        "format": TEXTS | st.sampled_from(["int32", "date-time", "byte"]),
        "minimum": st.integers(-3, 3),
        "maxLength": st.integers(-3, 3),
        "maxItems": st.integers(-3, 3),
        "multipleOf": st.integers(-1, 3),
        "uniqueItems": st.booleans(),
        "default": ANYTHING,
        "nullable": st.booleans(),
        "required": st.lists(TEXTS, max_size=2),
        "x-kubernetes-preserve-unknown-fields": st.booleans(),
        "x-kubernetes-int-or-string": st.booleans(),
        "x-kubernetes-embedded-resource": st.booleans(),
        "x-kubernetes-list-type": st.sampled_from(["map", "set", "atomic", "x"]),
        "x-kubernetes-list-map-keys": st.lists(TEXTS, max_size=2),
        "x-kubernetes-map-type": st.sampled_from(["granular", "atomic"]),
        "x-kubernetes-validations": ANYTHING,
    }
    if depth < 3:
        inner = st.deferred(lambda: schemas(depth + 1))
        words |= {
            "properties": st.dictionaries(TEXTS, inner, max_size=3),
            "items": inner,
            "additionalProperties": inner | st.booleans(),
            "anyOf": st.lists(inner, max_size=2),
            "oneOf": st.lists(inner, max_size=2),
            "not": inner,
        }
    sound = st.sampled_from(["object", "array", "string", "integer"]).map(lambda kind: {"type": kind})
    more = st.fixed_dictionaries({}, optional=words).map(lambda schema: dict(list(schema.items())[:4]))
    return st.builds(lambda one, other: one | other, sound, more)


@st.composite
def versions(draw: st.DrawFn) -> Any:
    """A version of a definition."""
    schema = draw(schemas())
    if draw(st.integers(0, 2)):
        schema = {"type": "object", "properties": {"spec": schema}}
    scale = {"specReplicasPath": ".spec.x", "statusReplicasPath": ".status.x"}
    paths = [
        ".spec",
        ".spec.x",
        ".x[0]",
        "x",
        '.spec[?(@.a=="b")].c',
        ".metadata.creationTimestamp",
        ".spec[",
    ]
    column = {
        "name": "X",
        "type": draw(st.sampled_from(["date", "string", "integer", "boolean", "?"])),
        "jsonPath": draw(st.sampled_from(paths)),
    }
    return {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": draw(st.sampled_from([{}, {"status": {}}, {"scale": scale}])),
        "additionalPrinterColumns": [column],
    }


class Faults(logging.Handler):
    """What the server has logged of faults of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


class Api:
    """A server that is called without a socket, in an event loop that stands still between calls."""

    def __init__(self, server: ApiServer, runner: asyncio.Runner) -> None:
        self.server = server
        self.faults = Faults()
        self._runner = runner

    def __call__(
        self, method: str, path: str, body: Any = b"", kind: str = "application/json", accept: str = "", **query: str
    ) -> int:  # fmt: skip
        """The code of an answer that is as it should be; 0 for one that goes on, like a watch."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        headers = {"Authorization": "Bearer token", "Content-Type": kind, "Accept": accept}
        code, answer = self._runner.run(
            self._ask(method, str(URL.build(path=path, query=query)), data, headers)
        )
        assert code != 500, self.faults.texts[-1]
        if code >= 400:
            found = msgspec.json.decode(answer)
            assert (found["kind"], found["status"], found["code"]) == ("Status", "Failure", code)
            assert found["message"]
        return code

    async def _ask(self, method: str, url: str, data: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        payload = StreamReader(mock.Mock(spec=BaseProtocol), 1 << 20, loop=asyncio.get_running_loop())
        payload.feed_data(data)
        payload.feed_eof()
        request = make_mocked_request(method, url, headers, payload=payload)
        try:
            async with asyncio.timeout(1):
                response = await self.server.handle(request)
        except TimeoutError:
            return 0, b""
        return response.status, getattr(response, "body", b"")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    directory = tmp_path_factory.mktemp("api")
    (directory / "tokens.csv").write_text("token,somebody,1\n")
    server = ApiServer(Settings(directory / "data", tokens=directory / "tokens.csv"))
    log = logging.getLogger("poplin.apiserver.server")
    with asyncio.Runner() as runner:
        runner.run(server.__aenter__())
        one = Api(server, runner)
        log.addHandler(one.faults)
        yield one
        log.removeHandler(one.faults)
        runner.run(server.__aexit__())


def path_of(resource: Resource) -> str:
    root = f"/apis/{resource.group}" if resource.group else "/api"
    below = "/namespaces/default" if resource.namespaced else ""
    return f"{root}/{resource.version}{below}/{resource.plural}"


@FUZZ
@given(st.data())
def test_objects_of_every_type(api: Api, data: st.DataObject):
    resource = data.draw(st.sampled_from(RESOURCES), "resource")
    document, queries = documents(resource), QUERIES
    path = path_of(resource)
    named = f"{path}/{NAME}"
    api("POST", path, data.draw(document), **data.draw(queries))
    for accept in ("", TABLE):
        api("GET", named, accept=accept)
        api("GET", path, accept=accept, **data.draw(queries))
    part = data.draw(
        st.sampled_from(["", "/status", "/scale", *(f"/{one}" for one in resource.subresources)])
    )
    api(
        data.draw(st.sampled_from(["PUT", "PUT", "POST", "GET"])),
        named + part,
        data.draw(document),
        **data.draw(queries),
    )
    for _ in range(2):
        kind = data.draw(st.sampled_from(PATCHES))
        patch = data.draw(st.lists(operations(), max_size=3) if "json-patch" in kind else document)
        manager = {"fieldManager": "fuzz"} if kind == PATCHES[-1] and data.draw(st.booleans()) else {}
        api("PATCH", named + part, patch, kind, **data.draw(queries) | manager)
    words = ["gracePeriodSeconds", "preconditions", "propagationPolicy", "orphanDependents", "dryRun"]
    options = data.draw(ANYTHING | st.dictionaries(st.sampled_from(words), ANYTHING))
    api("DELETE", data.draw(st.sampled_from([named, path])), options, **data.draw(queries))
    if "delete" in resource.verbs:
        api("DELETE", named, gracePeriodSeconds="0")


@FUZZ
@given(versions(), st.data())
def test_types_of_every_schema(api: Api, version: Any, data: st.DataObject):
    group = f"g{next(COUNT)}.example.org"
    names = {"plural": "tours", "kind": "Tour"}
    spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [version]}
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    definition = {"metadata": {"name": f"tours.{group}"}, "spec": spec}
    if api("POST", definitions, definition) != 201:
        return
    api("GET", f"/openapi/v3/apis/{group}/v1")
    api("GET", "/apis", accept=AGGREGATED)
    resource = api.server.registry.find(group, "v1", "tours")
    assert resource is not None
    path, document = path_of(resource), documents(resource)
    for _ in range(2):
        api("POST", path, data.draw(document))
        api("GET", path, accept=TABLE)
        kind = data.draw(st.sampled_from(PATCHES))
        api("PATCH", f"{path}/{NAME}", data.draw(document), kind, fieldManager="fuzz")
        api("PATCH", f"{path}/{NAME}/scale", {"spec": {"replicas": 1}}, PATCHES[1])
    api("DELETE", path)
    api("DELETE", f"{definitions}/tours.{group}")


@settings(FUZZ, max_examples=400)
@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
    PATHS,
    st.binary(max_size=20) | ANYTHING,
    st.sampled_from([*PATCHES, "application/json", "application/yaml", "application/vnd.kubernetes.protobuf", ""]),
    QUERIES,
)  # fmt: skip
def test_any_request(api: Api, method: str, path: str, body: Any, kind: str, query: dict[str, str]):
    api(method, path, body, kind, **query)
