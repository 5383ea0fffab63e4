"""Whatever is asked of the API server, it answers with what it was asked for or a Status, never a fault of its own."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poplin.apiserver.resource import META, Registry, Resource, builtin_compiler
from poplin.apiserver.schema import Node
from poplin.apiserver.server import ApiServer, Settings

RESOURCES = sorted(Registry()._resources.values(), key=lambda one: (one.group, one.version, one.plural))
NAME = "x"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
PATCHES = ("application/json-patch+json", "application/merge-patch+json",
           "application/strategic-merge-patch+json", "application/apply-patch+yaml")  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(["x", "y", "a", "a/b", "", "100m", "25%", "x", "a.b", "10.0.0.0/8", "10.0.0.1", "::1", "1", "80", "*", "None", "$patch", "Ingress",
                     "ExternalName", "RollingUpdate", "metadata.name", "a=b", "2024-01-01T00:00:00Z", "\u0000", "é" * 70]),
    st.text(max_size=5),
)  # fmt: skip
FORMATTED = {
    "date-time": st.sampled_from(["2024-01-01T00:00:00Z", "2024-01-01T00:00:00.5+01:00", "9999-99-99T99:99:99Z"]),
    "byte": st.sampled_from(["", "YQ==", "/w=="]),
}
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.integers(-2, 70000), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
QUERY = st.dictionaries(
    st.sampled_from(["dryRun", "fieldManager", "fieldValidation", "force", "labelSelector", "fieldSelector", "limit",
                     "continue", "resourceVersion", "resourceVersionMatch", "gracePeriodSeconds", "propagationPolicy",
                     "orphanDependents", "sendInitialEvents", "pretty", "timeoutSeconds", "includeObject"]),
    st.one_of(TEXTS, st.sampled_from(["true", "All", "Strict", "Warn", "Exact", "NotOlderThan", "0", "-1", "99999999999999999999",
                                      "a in (b,", "!a", "metadata.name!=x", "Orphan", "Foreground", "Object", "W10"])),
    max_size=3,
)  # fmt: skip


@st.composite
def values(draw: st.DrawFn, node: Node, depth: int = 0) -> Any:
    """A value that mostly fits a schema, and now and then does not."""
    if depth > 7 or draw(st.integers(0, 79)) == 0:
        return draw(ANYTHING)
    if node.enum:
        return draw(st.sampled_from(node.enum))
    kind = node.types[0] if node.types else "object" if node.properties else ""
    match kind:
        case "object" if node.properties:
            chosen = draw(st.sets(st.sampled_from(sorted(node.properties)), max_size=4)) | set(node.required)
            return {
                key: draw(values(node.properties[key], depth + 1))
                for key in sorted(chosen)
                if key in node.properties
            }
        case "object" if node.additional is not None:
            return draw(st.dictionaries(TEXTS, values(node.additional, depth + 1), max_size=2))
        case "array" if node.items is not None:
            return draw(st.lists(values(node.items, depth + 1), max_size=3))
        case "string":
            return draw(FORMATTED.get(node.format, TEXTS))
        case "integer" | "number":
            return draw(st.one_of(st.integers(1, 9), st.integers(1, 9), st.integers(-2, 70000), st.integers()))
        case "boolean":
            return draw(st.booleans())
    return draw(ANYTHING)


@st.composite
def documents(draw: st.DrawFn, resource: Resource) -> Any:
    """A whole object of a type, mostly with a usable name."""
    document = draw(values(resource.schema))
    if not isinstance(document, dict) or draw(st.integers(0, 19)) == 0:
        return document
    head = {"apiVersion": resource.api_version, "kind": resource.kind}
    metadata = draw(values(builtin_compiler().definition(META + "ObjectMeta")))
    if isinstance(metadata, dict):
        metadata = {**metadata, "name": NAME}
        if draw(st.integers(0, 3)):
            for key in ("namespace", "resourceVersion", "uid"):
                metadata.pop(key, None)
        document["metadata"] = metadata
    return {**document, **head}


@st.composite
def operations(draw: st.DrawFn) -> Any:
    """An operation of a JSON patch."""
    path = st.lists(st.sampled_from(["spec", "metadata", "labels", "status", "x", "0", "-", "~0", "name"]), max_size=3)
    operation = {
        "op": draw(st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "?"])),
        "path": "".join(f"/{part}" for part in draw(path)),
        "from": "".join(f"/{part}" for part in draw(path)),
        "value": draw(ANYTHING),
    }
    for key in draw(st.sets(st.sampled_from(sorted(operation)), max_size=1)):
        del operation[key]
    return operation


class Harness:
    """A server that is called without a socket, in an event loop that stands still between calls."""

    def __init__(self, directory: Any) -> None:
        (directory / "tokens.csv").write_text("token,fuzzer,1\n")
        self._runner = asyncio.Runner()
        self.server = ApiServer(Settings(directory / "data", tokens=directory / "tokens.csv"))
        self._runner.run(self.server.__aenter__())

    def close(self) -> None:
        self._runner.run(self.server.__aexit__())
        self._runner.close()

    def call(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json", accept: str = "", **query: str
    ) -> tuple[int, Any]:
        """The code and the decoded body; None for what goes on, like a watch."""
        return self._runner.run(self._call(method, path, body, {"Content-Type": kind, "Accept": accept}, query))

    async def _call(self, method: str, path: str, body: bytes, headers: dict[str, str], query: dict[str, str]) -> tuple[int, Any]:
        from yarl import URL

        payload = StreamReader(mock.Mock(spec=BaseProtocol), 1 << 20, loop=asyncio.get_running_loop())
        payload.feed_data(body)
        payload.feed_eof()
        headers = {"Authorization": "Bearer token", **headers}
        url = URL.build(path=path, query=query)
        request = make_mocked_request(method, str(url), headers, payload=payload)
        try:
            async with asyncio.timeout(1):
                response = await self.server.handle(request)
        except TimeoutError:
            return 0, None
        data = getattr(response, "body", None)
        return response.status, msgspec.json.decode(data) if data else None


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    one = Harness(tmp_path_factory.mktemp("api"))
    logging.getLogger("poplin.apiserver.server").addFilter(_remember)
    yield one
    logging.getLogger("poplin.apiserver.server").removeFilter(_remember)
    one.close()


FAULTS: list[str] = []


def _remember(record: logging.LogRecord) -> bool:
    FAULTS.append(logging.Formatter().format(record))
    return True


def check(answer: tuple[int, Any]) -> int:
    code, body = answer
    assert code != 500, FAULTS[-1]
    if code >= 400:
        assert (body["kind"], body["status"], body["code"]) == ("Status", "Failure", code)
        assert body["message"]
    return code


def base(resource: Resource) -> str:
    root = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    return f"{root}/namespaces/default/{resource.plural}" if resource.namespaced else f"{root}/{resource.plural}"


FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck))
Check = Callable[[tuple[int, Any]], int]


@FUZZ
@given(st.data())
def test_objects(harness: Harness, data: st.DataObject):
    resource = data.draw(st.sampled_from(RESOURCES), "resource")
    path = base(resource)
    named = f"{path}/{NAME}"
    if "delete" in resource.verbs:
        harness.call("DELETE", named, gracePeriodSeconds="0")
    body = msgspec.json.encode(data.draw(documents(resource), "object"))
    code = check(harness.call("POST", path, body, **data.draw(QUERY, "query")))
    if "get" not in resource.verbs:
        return
    for accept in ("", TABLE):
        check(harness.call("GET", named, accept=accept))
        check(harness.call("GET", path, accept=accept))
    again = msgspec.json.encode(data.draw(documents(resource), "again"))
    part = data.draw(st.sampled_from(["", "/status", "/scale", *(f"/{one}" for one in resource.subresources)]), "part")
    check(harness.call(data.draw(st.sampled_from(["PUT", "POST", "GET"])), named + part, again, **data.draw(QUERY, "query2"))) if part else None
    check(harness.call("PUT", named + part, again, **data.draw(QUERY, "query")))
    for _ in range(2):
        kind = data.draw(st.sampled_from(PATCHES), "patch type")
        patch = data.draw(st.lists(operations(), max_size=3) if "json-patch" in kind else documents(resource), "patch")
        query = data.draw(QUERY, "query")
        if "apply" in kind and data.draw(st.booleans()):
            query["fieldManager"] = "fuzz"
        check(harness.call("PATCH", named + part, msgspec.json.encode(patch), kind, **query))
    options = msgspec.json.encode(data.draw(st.one_of(ANYTHING, st.dictionaries(st.sampled_from(["gracePeriodSeconds", "preconditions", "propagationPolicy", "orphanDependents", "dryRun"]), ANYTHING)), "options"))
    check(harness.call("DELETE", data.draw(st.sampled_from([named, path])), options, **data.draw(QUERY, "query")))
    del code


PATHS = st.lists(
    st.one_of(st.sampled_from(["api", "apis", "v1", "apps", "namespaces", "default", "pods", "x", "status", "scale", "log",
                               "exec", "proxy", "", "..", "openapi", "v3", "watch", "binding", "eviction", "token",
                               "serviceaccounts", "certificatesigningrequests", "approval", "finalize"]), TEXTS),
    max_size=7,
).map(lambda parts: "/" + "/".join(parts))  # fmt: skip


@FUZZ
@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
    PATHS,
    st.one_of(st.binary(max_size=20), ANYTHING.map(msgspec.json.encode)),
    st.sampled_from([*PATCHES, "application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "text/plain", ""]),
    QUERY,
)
def test_paths_and_bodies(harness: Harness, method: str, path: str, body: bytes, kind: str, query: dict[str, str]):
    check(harness.call(method, path, body, kind, **query))


NUMBERS = itertools.count()


def schemas(depth: int = 0) -> st.SearchStrategy[Any]:
    """OpenAPI schemas of definitions, not all of them good."""
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
    sound = st.sampled_from(["object", "array", "string", "integer"]).map(lambda one: {"type": one})
    return st.tuples(sound, st.fixed_dictionaries({}, optional=words)).map(lambda pair: pair[0] | dict(list(pair[1].items())[:4]))


@FUZZ
@given(schemas(), st.data())
def test_definitions(harness: Harness, schema: Any, data: st.DataObject):
    root = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema if data.draw(st.integers(0, 2)) == 0 else {"type": "object", "properties": {"spec": schema}}},
        "subresources": data.draw(st.sampled_from([{}, {"status": {}}, {"scale": {"specReplicasPath": ".spec.x", "statusReplicasPath": ".status.x"}}])),
        "additionalPrinterColumns": [{"name": "X", "type": data.draw(st.sampled_from(["date", "string", "integer", "boolean", "?"])), "jsonPath": data.draw(st.sampled_from([".spec", ".spec.x", ".x[0]", "x", ".spec[?(@.a==\"b\")].c", ".metadata.creationTimestamp"]))}],
    }
    names = {"plural": "tours", "kind": "Tour"}
    group = f"g{next(NUMBERS)}.example.org"
    spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [version]}
    definition = {"metadata": {"name": f"tours.{group}"}, "spec": spec}
    code = check(harness.call("POST", root, msgspec.json.encode(definition)))
    if code != 201:
        return
    check(harness.call("GET", f"/openapi/v3/apis/{group}/v1"))
    check(harness.call("GET", "/apis", accept="application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"))
    path = f"/apis/{group}/v1/namespaces/default/tours"
    (resource,) = [one for one in harness.server.registry.stored() if one.group == group]
    for _ in range(3):
        tour = data.draw(documents(resource), "tour")
        check(harness.call("POST", path, msgspec.json.encode(tour)))
        check(harness.call("GET", path, accept=TABLE))
        kind = data.draw(st.sampled_from(PATCHES))
        tour = data.draw(documents(resource), "tour")
        check(harness.call("PATCH", f"{path}/{NAME}", msgspec.json.encode(tour), kind, fieldManager="fuzz"))
        check(harness.call("PATCH", f"{path}/{NAME}/scale", msgspec.json.encode({"spec": {"replicas": 1}}), PATCHES[1]))
    harness.call("DELETE", path)
    harness.call("DELETE", f"{root}/tours.{group}")
