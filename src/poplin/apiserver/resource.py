"""The types the server knows, as values: built-in ones from data/, custom ones from their definitions.

A type's behaviour follows from these values; only semantic rules (`rules`) and derived defaults
(`defaults`) are code, looked up by kind.
"""

import functools
import gzip
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources as package_resources
from typing import Any, Final

import msgspec

from poplin.apiserver.collection import Object
from poplin.apiserver.schema import Compiler, Node

DATA: Final = package_resources.files(__package__) / "data"
ALL_VERBS: Final = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1."


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a server-side table. `cell` is a path (".status.phase") or a function of `table`."""

    name: str
    type: str
    cell: str
    priority: int = 0
    description: str = ""
    format: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a type keeps what its scale subresource shows: dotted paths, `selector` "" for none."""

    replicas: str
    status: str
    selector: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One version of one type. `store` names its collection, which its other versions share."""

    group: str
    version: str
    plural: str
    kind: str
    schema: Node
    singular: str = ""
    list_kind: str = ""
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    definition: str = ""
    openapi: Mapping[str, Any] = field(default_factory=dict)
    status: bool = False
    status_metadata: bool = False
    scale: Scale | None = None
    subresources: tuple[str, ...] = ()
    generation: bool = False
    fields: tuple[str, ...] = ()
    store: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    custom: bool = False
    stored: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def prefix(self) -> bytes:
        """How the encoding of every object of this version begins."""
        return f'{{"apiVersion":"{self.api_version}","kind":"{self.kind}",'.encode()

    def accept(self, document: Object) -> Object:
        """The stored form of a document of this version: known members first, fields as stored."""
        renamed = {self.rename.get(key, key): value for key, value in document.items()}
        head = {"apiVersion": self.api_version, "kind": self.kind, "metadata": renamed.get("metadata", {})}
        if self.rename:
            head["apiVersion"] = "v1"
        return {**head, **{key: value for key, value in renamed.items() if key not in head}}

    def present(self, document: Object) -> Object:
        """The document of this version that a stored one is. Conversion between versions is "None"."""
        shown = {stored: own for own, stored in self.rename.items()}
        result = {shown.get(key, key): value for key, value in document.items()}
        result["apiVersion"] = self.api_version
        return result

    def view(self, data: bytes) -> bytes:
        """As `present`, from bytes to bytes; the stored bytes themselves where nothing differs."""
        if not self.custom and not self.rename:
            return data
        if data.startswith(self.prefix) and not self.rename:
            return data
        return msgspec.json.encode(self.present(msgspec.json.decode(data)))


class Registry:
    """All types by group, version and plural, built in and custom."""

    def __init__(self) -> None:
        self._resources: dict[tuple[str, str, str], Resource] = {}
        for resource in builtin_resources():
            self.add(resource)

    def add(self, resource: Resource) -> None:
        self._resources[resource.group, resource.version, resource.plural] = resource

    def remove(self, resource: Resource) -> None:
        self._resources.pop((resource.group, resource.version, resource.plural), None)

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._resources.get((group, version, plural))

    def stored(self) -> Iterator[Resource]:
        """One resource for each collection."""
        for resource in list(self._resources.values()):
            if resource.stored and "get" in resource.verbs:
                yield resource

    def stored_as(self, store: str) -> Resource | None:
        """The resource whose collection is `store`."""
        return next((resource for resource in self.stored() if resource.store == store), None)

    def groups(self) -> dict[str, dict[str, list[Resource]]]:
        """Group -> version, preferred first -> resources."""
        groups: dict[str, dict[str, list[Resource]]] = {}
        for resource in sorted(self._resources.values(), key=lambda one: (one.group, one.plural)):
            groups.setdefault(resource.group, {}).setdefault(resource.version, []).append(resource)
        return {
            group: dict(sorted(versions.items(), key=lambda item: version_order(item[0])))
            for group, versions in groups.items()
        }


def version_order(version: str) -> tuple[int, int, int, str]:
    """Sorts versions as Kubernetes prefers them: v2, v1, v2beta1, v1alpha1, anything else.

    https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/
    """
    major, stage, minor = version.removeprefix("v"), 0, "0"
    for rank, word in enumerate(("beta", "alpha"), start=1):
        if word in major:
            major, _, minor = major.partition(word)
            stage = rank
    if not version.startswith("v") or not major.isdecimal() or not minor.isdecimal():
        return 3, 0, 0, version
    return stage, -int(major), -int(minor), ""


@functools.cache
def builtin_schemas() -> Mapping[str, Any]:
    """The OpenAPI schemas of the built-in types by name, with the overlay's defaults and bounds."""
    packed = (DATA / "schemas.json.gz").read_bytes()
    schemas: dict[str, Any] = msgspec.json.decode(gzip.decompress(packed))["schemas"]
    for name, properties in tomllib.loads((DATA / "overlay.toml").read_text()).items():
        for key, more in properties.items():
            schemas[name]["properties"].setdefault(key, {}).update(more)
    return schemas


@functools.cache
def builtin_compiler() -> Compiler:
    return Compiler(builtin_schemas())


def builtin_resources() -> Iterator[Resource]:
    for key, row in tomllib.loads((DATA / "resources.toml").read_text()).items():
        group, version, plural = key.split("/")
        yield _build(group, version, plural, row)


def _build(group: str, version: str, plural: str, row: Mapping[str, Any]) -> Resource:
    columns = [Column(*column) for column in row.get("columns", ())]
    if row.get("named", True):
        columns.insert(0, Column("Name", "string", ".metadata.name", format="name"))
    if row.get("age", True) and not any(column.name == "Age" for column in columns):
        columns.append(Column("Age", "string", "age"))
    return Resource(
        group=group,
        version=version,
        plural=plural,
        kind=row["kind"],
        schema=builtin_compiler().definition(row["schema"]),
        definition=row["schema"],
        singular=row.get("singular", row["kind"].lower()),
        list_kind=row["kind"] + "List",
        namespaced=row.get("scope") != "Cluster",
        short_names=tuple(row.get("short", ())),
        categories=tuple(row.get("categories", ())),
        verbs=tuple(row.get("verbs", ALL_VERBS)),
        status=row.get("status", False),
        status_metadata=row.get("status_metadata", False),
        scale=Scale(*row["scale"]) if "scale" in row else None,
        subresources=tuple(row.get("subresources", ())),
        generation=row.get("generation", False),
        fields=tuple(row.get("fields", ())),
        store=row.get("store", f"{group}/{plural}"),
        rename=row.get("rename", {}),
        columns=tuple(columns),
        stored="store" not in row,
    )


def lookup(document: Any, path: str) -> Any:
    """The value at a dotted path (".spec.replicas"), None where there is none."""
    for part in path.removeprefix(".").split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document
