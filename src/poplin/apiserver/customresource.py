"""Custom resources: each version of a CustomResourceDefinition becomes a type like the built-in ones.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/. Structural
schemas are enforced; CEL rules (x-kubernetes-validations) are not evaluated; conversion is "None" only.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from poplin.apiserver import status
from poplin.apiserver.collection import Collection, Event, Object
from poplin.apiserver.deletion import DeleteOptions, timestamp
from poplin.apiserver.lifecycle import Lifecycle
from poplin.apiserver.options import Options
from poplin.apiserver.resource import META, Column, Resource, Scale, builtin_compiler
from poplin.apiserver.schema import Node
from poplin.apiserver.status import Cause, StatusError

DEFINITIONS: Final = "apiextensions.k8s.io/customresourcedefinitions"
CLEANUP: Final = "customresourcecleanup.apiextensions.k8s.io"
FINALIZER_KEY: Final = "finalizers"


def build_resources(definition: Object) -> Iterator[Resource]:
    """A resource for each served version."""
    spec = definition["spec"]
    names, group = spec["names"], spec["group"]
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        document = (version.get("schema") or {}).get("openAPIV3Schema") or {}
        subresources = version.get("subresources") or {}
        scale = subresources.get("scale")
        yield Resource(
            group=group,
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            schema=compile_schema(document),
            singular=names.get("singular") or names["kind"].lower(),
            list_kind=names.get("listKind") or names["kind"] + "List",
            namespaced=spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            openapi=document,
            status="status" in subresources,
            scale=scale
            and Scale(
                scale["specReplicasPath"], scale["statusReplicasPath"], scale.get("labelSelectorPath", "")
            ),
            generation=True,
            fields=tuple(one["jsonPath"].removeprefix(".") for one in version.get("selectableFields") or ()),
            store=f"{group}/{names['plural']}",
            columns=tuple(_columns(version)),
            custom=True,
            stored=bool(version.get("storage")),
        )


def compile_schema(document: Mapping[str, Any]) -> Node:
    """The schema of a version, with what every object has beside it: apiVersion, kind and metadata."""
    node = builtin_compiler().compile({"type": "object", "x-structural": True, **_structural(document)})
    text = Node(types=("string",), accepts=(str,))
    node.properties.update(
        apiVersion=text, kind=text, metadata=builtin_compiler().definition(META + "ObjectMeta")
    )
    return node


def _structural(schema: Any) -> Any:
    """Marks each object, so that one without properties means "no members", not "any" as in built-in types."""
    if not isinstance(schema, Mapping):
        return schema
    result = {**schema, "x-structural": True}
    for key in ("properties",):
        if isinstance(schema.get(key), Mapping):
            result[key] = {name: _structural(body) for name, body in schema[key].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            result[key] = _structural(schema[key])
    return result


def _columns(version: Mapping[str, Any]) -> Iterator[Column]:
    yield Column("Name", "string", ".metadata.name", format="name")
    given = version.get("additionalPrinterColumns") or ()
    for one in given:
        path = "{" + one["jsonPath"].strip("{}") + "}"
        yield Column(one["name"], one["type"], path, one.get("priority", 0), one.get("description", ""))
    if not given:
        yield Column("Age", "date", "{.metadata.creationTimestamp}")


def check_definition(definition: Object) -> Iterator[Cause]:
    """What makes a definition unusable."""
    spec = definition.get("spec") or {}
    names, versions = spec.get("names") or {}, spec.get("versions") or []
    wanted = f"{names.get('plural')}.{spec.get('group')}"
    if definition["metadata"].get("name") != wanted:
        yield Cause(
            "metadata.name", f'Invalid value: "{definition["metadata"].get("name")}": must be "{wanted}"'
        )
    stored = [version for version in versions if version.get("storage")]
    if len(stored) != 1:
        yield Cause("spec.versions", "Invalid value: must have exactly one version marked as storage version")
    conversion = spec.get("conversion") or {}
    if conversion.get("strategy", "None") != "None":
        message = f'Unsupported value: "{conversion["strategy"]}": supported values: "None"'
        yield Cause("spec.conversion.strategy", message, "FieldValueNotSupported")
    for index, version in enumerate(versions):
        where = f"spec.versions[{index}].schema.openAPIV3Schema"
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if schema is None:
            yield Cause(where, "Required value: schemas are required", "FieldValueRequired")
        else:
            yield from _check_schema(schema, where, top=True)


def _has_rules(value: Any) -> bool:
    """Whether CEL rules stand anywhere in `value`."""
    if isinstance(value, Mapping):
        return "x-kubernetes-validations" in value or any(map(_has_rules, value.values()))
    return isinstance(value, list) and any(map(_has_rules, value))


def _check_schema(schema: Mapping[str, Any], where: str, *, top: bool = False) -> Iterator[Cause]:
    """The rules of structural schemas that a walk of objects relies on."""
    free = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    if not schema.get("type") and not (free and not top):
        message = "Required value: must not be empty for specified object fields"
        yield Cause(f"{where}.type", message, "FieldValueRequired")
    elif schema.get("type") not in {None, "object", "array", "string", "integer", "number", "boolean"}:
        yield Cause(f"{where}.type", f'Unsupported value: "{schema["type"]}"', "FieldValueNotSupported")
    if schema.get("pattern"):
        try:
            re.compile(schema["pattern"])
        except re.error as error:
            yield Cause(f"{where}.pattern", f"Invalid value: {schema['pattern']!r}: {error}")
    for name, body in (schema.get("properties") or {}).items():
        yield from _check_schema(body, f"{where}.properties[{name}]")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield from _check_schema(schema[key], f"{where}.{key}")


class CustomResources:
    """Keeps the registry in step with the stored definitions, and their status with the registry."""

    def __init__(self, lifecycle: Lifecycle, definitions: Resource) -> None:
        self._lifecycle = lifecycle
        self._definitions = definitions
        self._served: dict[str, list[Resource]] = {}

    def prepare(self, resource: Resource, document: Object, old: Object | None, options: Options) -> None:
        """A hook: refuses a bad definition; an accepted one is established at once."""
        if resource is not self._definitions:
            return
        name, spec = document["metadata"].get("name", ""), document["spec"]
        if causes := list(check_definition(document)):
            raise status.invalid(resource.kind, resource.group, name, causes)
        self._check_conflicts(name, spec)
        if _has_rules(spec["versions"]):
            options.warnings.append("x-kubernetes-validations are stored but not evaluated by this server")
        metadata = document["metadata"]
        finalizers = metadata.setdefault(FINALIZER_KEY, [])
        if "deletionTimestamp" not in metadata and CLEANUP not in finalizers:
            finalizers.append(CLEANUP)
        if not finalizers:
            del metadata[FINALIZER_KEY]
        before = (old or {}).get("status") or {}
        storage = next(version["name"] for version in spec["versions"] if version.get("storage"))
        versions = [*before.get("storedVersions", ())]
        document["status"] = {
            "conditions": before.get("conditions") or _conditions(),
            "acceptedNames": spec["names"],
            "storedVersions": versions if storage in versions else [*versions, storage],
        }

    def _check_conflicts(self, name: str, spec: Object) -> None:
        for other, resources in self._served.items():
            for one in resources:
                if other != name and one.group == spec["group"] and one.kind == spec["names"]["kind"]:
                    message = f'Invalid value: "{one.kind}": is already in use by {other}'
                    cause = Cause("spec.names.kind", message)
                    raise status.invalid("CustomResourceDefinition", "apiextensions.k8s.io", name, [cause])

    def load(self) -> None:
        """Serve every stored definition."""
        for entry in self._lifecycle.collection(self._definitions).slice(None):
            self._serve(entry.key[1], entry.decode())

    def observe(self, collection: Collection, event: Event) -> None:
        """A store listener."""
        if collection.name != DEFINITIONS:
            return
        name = event.entry.key[1]
        if event.type == "DELETED":
            self._withdraw(name, close=True)
        else:
            self._serve(name, event.entry.decode())

    def _serve(self, name: str, definition: Object) -> None:
        self._withdraw(name, close=False)
        self._served[name] = list(build_resources(definition))
        for resource in self._served[name]:
            self._lifecycle.registry.add(resource)
            self._lifecycle.collection(resource).closed = False

    def _withdraw(self, name: str, *, close: bool) -> None:
        for resource in self._served.pop(name, ()):
            self._lifecycle.registry.remove(resource)
            if close:
                self._lifecycle.collection(resource).close()

    async def finish(self, name: str) -> None:
        """End a definition that is being deleted: its objects first, then itself."""
        remaining = 0
        for resource in self._served.get(name, ())[:1]:
            collection = self._lifecycle.collection(resource)
            living = [entry for entry in collection.slice(None) if not entry.deleting]
            await self._lifecycle.delete_all(resource, living, DeleteOptions())
            remaining = len(collection.entries)
        if remaining:
            return

        def release(document: Object) -> Object:
            kept = [one for one in document["metadata"].get(FINALIZER_KEY, ()) if one != CLEANUP]
            document["metadata"][FINALIZER_KEY] = kept
            return document

        try:
            await self._lifecycle.update(self._definitions, ("", name), release, Options())
        except StatusError as error:
            if error.code != 404:
                raise


def _conditions() -> list[Object]:
    now = timestamp()
    return [
        {
            "type": kind,
            "status": "True",
            "lastTransitionTime": now,
            "reason": reason,
            "message": message,
        }
        for kind, reason, message in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        )
    ]
