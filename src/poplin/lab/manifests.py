"""Manifests into a cluster: files of YAML or JSON, each object created, or applied to the one that stands."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from poplin.datastore.client import APPLY, ApiClient, RefusedError
from poplin.datastore.documents import load_objects
from poplin.model.errors import InvalidInputError

Json = dict[str, Any]

FIRST: Final = ("CustomResourceDefinition", "Namespace", "ServiceAccount", "ConfigMap", "Secret")
"""Kinds that others need, in the order in which they are made; the others follow as they stand in the files."""

SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
ESTABLISHED_S: Final = 5.0
"""How long the server may take to serve a type that a definition has just brought."""
POLL_S: Final = 0.05


class ApiResource(msgspec.Struct):
    """A row of the API's discovery (API Concepts, "Resource types")."""

    name: str
    kind: str
    namespaced: bool


class ApiResourceList(msgspec.Struct):
    """The resources of a group and version."""

    resources: list[ApiResource]


@dataclass(frozen=True, slots=True)
class Applied:
    """An object that was taken in. `created` False where it stood and was changed."""

    kind: str
    namespace: str
    name: str
    created: bool


def read_manifests(paths: Iterable[Path]) -> list[Json]:
    """The objects of files, and of the files in directories, by name. Raises InvalidInputError."""
    return [
        one
        for path in paths
        for file in list_manifests(path)
        for one in load_objects(read_manifest(file), str(file))
    ]


def list_manifests(path: Path) -> list[Path]:
    """The file, or those of a directory by name. Raises InvalidInputError where a directory has none."""
    try:
        files = (
            sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
        )
    except OSError as error:
        raise InvalidInputError(
            f"cannot read: {error.strerror}",
            where=str(path),
            remedy="name a file or a directory of manifests",
        ) from error
    if not files:
        raise InvalidInputError("has no manifests", where=str(path), remedy="name files that end in .yaml")
    return files


def read_manifest(file: Path) -> bytes:
    """A file's text. Raises InvalidInputError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"cannot read: {error.strerror}", where=str(file), remedy="name a file that can be read"
        ) from error


async def apply(
    client: ApiClient, objects: Sequence[Json], progress: Callable[[int], None] = lambda _: None
) -> list[Applied]:
    """Create or apply each object, what others need first; `progress` is told how many are done.

    Raises RefusedError with the server's reason, or InvalidInputError for a type that it does not serve.
    """
    catalogue = Catalogue(client)
    applied: list[Applied] = []
    for one in sorted(objects, key=rank):
        applied.append(await _apply_one(client, await catalogue.find(one), one))
        progress(len(applied))
    return applied


def rank(one: Json) -> int:
    """Where the object stands among those that are made together."""
    return FIRST.index(one["kind"]) if one["kind"] in FIRST else len(FIRST)


def collection_path(resource: ApiResource, one: Json) -> str:
    """The URL path of the collection that the object is, or will be, in."""
    namespace = _namespace_of(resource, one)
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"{_group_path(one['apiVersion'])}{within}/{resource.name}"


def _namespace_of(resource: ApiResource, one: Json) -> str:
    return str(one["metadata"].get("namespace") or "default") if resource.namespaced else ""


async def _apply_one(client: ApiClient, resource: ApiResource, one: Json) -> Applied:
    metadata, namespace = one["metadata"], _namespace_of(resource, one)
    path = collection_path(resource, one)
    created = True
    try:
        await client.request("POST", path, body=one)
    except RefusedError as refusal:
        if refusal.reason != "AlreadyExists":
            raise
        created = False
        await client.request(
            "PATCH",
            f"{path}/{metadata['name']}",
            query={"fieldManager": "poplin", "force": "true"},
            body=one,
            content_type=APPLY,
        )
    return Applied(one["kind"], namespace, metadata["name"], created)


class Catalogue:
    """Which types the server serves, asked for once each group and version."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._known: dict[tuple[str, str], ApiResource] = {}

    async def find(self, one: Json) -> ApiResource:
        """The object's type. Raises InvalidInputError where the server does not come to serve it."""
        key = one["apiVersion"], one["kind"]
        deadline_s = asyncio.get_running_loop().time() + ESTABLISHED_S
        while key not in self._known:
            await self._read(one["apiVersion"])
            if key in self._known:
                break
            if asyncio.get_running_loop().time() > deadline_s:
                raise InvalidInputError(
                    f"the server does not serve {one['kind']} of {one['apiVersion']}",
                    where=f"{one['kind']} {one['metadata']['name']}",
                    remedy="add the CustomResourceDefinition to the manifests, or correct the apiVersion",
                )
            await asyncio.sleep(POLL_S)
        return self._known[key]

    async def _read(self, api_version: str) -> None:
        try:
            body = await self._client.request("GET", _group_path(api_version))
        except RefusedError as refusal:
            if refusal.status != 404:
                raise
            return
        for resource in msgspec.json.decode(body, type=ApiResourceList).resources:
            if "/" not in resource.name:
                self._known[api_version, resource.kind] = resource


def _group_path(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
