"""OpenAPI v3 documents, one for each group and version, from the schemas that objects are checked against.

https://kubernetes.io/docs/concepts/overview/kubernetes-api/#openapi-v3
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from poplin.apiserver.collection import Object
from poplin.apiserver.discovery import KUBERNETES_VERSION, subresources
from poplin.apiserver.resource import META, Registry, Resource, builtin_schemas

REFERENCE: Final = "#/components/schemas/"
PATCH_TYPES: Final = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
    "application/strategic-merge-patch+json",
)
OPTIONS: Final = ("dryRun", "fieldManager", "fieldValidation", "pretty")
LIST_OPTIONS: Final = (
    "allowWatchBookmarks", "continue", "fieldSelector", "labelSelector", "limit", "resourceVersion",
    "resourceVersionMatch", "sendInitialEvents", "timeoutSeconds", "watch",
)  # fmt: skip
ACTIONS: Final[Mapping[str, tuple[str, str, bool]]] = {
    "get": ("get", "get", True),
    "list": ("get", "list", False),
    "create": ("post", "post", False),
    "update": ("put", "put", True),
    "patch": ("patch", "patch", True),
    "delete": ("delete", "delete", True),
    "deletecollection": ("delete", "deletecollection", False),
}
"""Verb -> method, x-kubernetes-action, and whether its path names an object."""


def list_documents(registry: Registry) -> Object:
    """The index at /openapi/v3."""
    paths: dict[str, Object] = {}
    for group, versions in registry.groups().items():
        for version, resources in versions.items():
            path = f"apis/{group}/{version}" if group else f"api/{version}"
            state = repr([(one.plural, one.definition or one.openapi, one.verbs) for one in resources])
            digest = hashlib.sha256(state.encode()).hexdigest()[:32]
            paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
    return {"paths": paths}


def describe(registry: Registry, group: str, version: str) -> Object | None:
    """The document of one group and version, None where it is not served."""
    resources = registry.groups().get(group, {}).get(version)
    if resources is None:
        return None
    schemas = dict(_collect(resources))
    paths: dict[str, Object] = {}
    for resource in resources:
        _describe_paths(resource, paths)
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": KUBERNETES_VERSION},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def schema_name(resource: Resource) -> str:
    if resource.definition:
        return resource.definition
    return ".".join([*reversed(resource.group.split(".")), resource.version, resource.kind])


def _collect(resources: Iterable[Resource]) -> Iterable[tuple[str, Any]]:
    """The schemas of the resources and all that those refer to."""
    known = builtin_schemas()
    wanted = [META + "DeleteOptions", META + "Status"]
    for resource in resources:
        if resource.definition:
            wanted.append(resource.definition)
            if resource.definition + "List" in known:
                wanted.append(resource.definition + "List")
        else:
            yield schema_name(resource), _custom_schema(resource)
            wanted.append(META + "ObjectMeta")
        if resource.scale:
            wanted.append("io.k8s.api.autoscaling.v1.Scale")
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in seen:
            seen.add(name)
            yield name, known[name]
            wanted.extend(_references(known[name]))


def _references(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"].removeprefix(REFERENCE)
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _custom_schema(resource: Resource) -> Object:
    text = {"type": "string"}
    properties = {**(resource.openapi.get("properties") or {})}
    properties.update(apiVersion=text, kind=text, metadata={"$ref": REFERENCE + META + "ObjectMeta"})
    return {
        "type": "object",
        **resource.openapi,
        "properties": properties,
        "x-kubernetes-group-version-kind": [_kind(resource)],
    }


def _kind(resource: Resource) -> Object:
    return {"group": resource.group, "version": resource.version, "kind": resource.kind}


def _describe_paths(resource: Resource, paths: dict[str, Object]) -> None:
    base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    scope = "/namespaces/{namespace}" if resource.namespaced else ""
    reference = {"$ref": REFERENCE + schema_name(resource)}
    variables = ["namespace"] if resource.namespaced else []
    for verb in resource.verbs:
        if verb not in ACTIONS:
            continue
        method, action, named = ACTIONS[verb]
        path = f"{base}{scope}/{resource.plural}" + ("/{name}" if named else "")
        operation = _operation(resource, method, action, _kind(resource), reference)
        _place(paths, path, [*variables, *(["name"] if named else [])], method, operation)
    for name, kind, verbs in subresources(resource):
        path = f"{base}{scope}/{resource.plural}/{{name}}/{name}"
        for verb in verbs:
            method, action, _ = ACTIONS[verb]
            operation = _operation(
                resource, method, action, {"group": "", "version": "v1", **kind}, reference
            )
            _place(paths, path, [*variables, "name"], method, operation)


def _place(
    paths: dict[str, Object], path: str, variables: Sequence[str], method: str, operation: Object
) -> None:
    item = paths.setdefault(path, {"parameters": [_parameter(name, "path") for name in variables]})
    item[method] = operation


def _parameter(name: str, where: str) -> Object:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "schema": {"type": "string", "uniqueItems": True},
    }


def _operation(resource: Resource, method: str, action: str, kind: Object, reference: Object) -> Object:
    content = {"application/json": {"schema": reference}}
    names = (
        LIST_OPTIONS
        if action in {"list", "deletecollection"}
        else OPTIONS
        if method != "get"
        else ("pretty",)
    )
    operation: Object = {
        "operationId": f"{action}{resource.version.title()}{resource.kind}{len(kind['kind'])}",
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind,
        "parameters": [_parameter(name, "query") for name in names],
        "responses": {"200": {"description": "OK", "content": content}},
    }
    if method in {"post", "put"}:
        operation["requestBody"] = {"content": content, "required": True}
    elif method == "patch":
        patch = {"schema": {"type": "object"}}
        types = PATCH_TYPES[: 3 if resource.custom else 4]
        operation["requestBody"] = {"content": dict.fromkeys(types, patch), "required": True}
    return operation


def encode(document: Object) -> bytes:
    return msgspec.json.encode(document)
