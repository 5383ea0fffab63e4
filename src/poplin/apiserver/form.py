"""The forms an answer can take: the objects themselves, server-side tables, or metadata alone.

Tables: https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from poplin.apiserver import status
from poplin.apiserver.collection import Object
from poplin.apiserver.resource import Resource
from poplin.apiserver.table import make_row, make_table

METADATA_VERSION: Final = "meta.k8s.io/v1"
PIECE_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Form:
    """How objects of `resource` are shown. `name` is object, Table or PartialObjectMetadata."""

    resource: Resource
    name: str = "object"
    include: str = "Metadata"

    def one(self, data: bytes, *, headings: bool = True) -> bytes:
        """One stored object; `headings` False leaves a table's columns out (a later event of a watch)."""
        data = self.resource.view(data)
        if self.name == "object":
            return data
        document = msgspec.json.decode(data)
        if self.name == "Table":
            revision = {"resourceVersion": document["metadata"].get("resourceVersion", "")}
            table = make_table(self.resource, [self._row(document)], revision)
            if not headings:
                table["columnDefinitions"] = None
            return msgspec.json.encode(table)
        return msgspec.json.encode(partial(document))

    def many(self, items: Sequence[bytes], metadata: Object) -> Iterator[bytes]:
        """A list of stored objects under its list metadata, in pieces of about PIECE_BYTES."""
        view = self.resource.view
        if self.name == "object":
            head = {
                "kind": self.resource.list_kind,
                "apiVersion": self.resource.api_version,
                "metadata": metadata,
            }
            yield msgspec.json.encode(head)[:-1] + b',"items":['
            yield from _join(items if _is_plain(self.resource) else map(view, items))
            yield b"]}"
            return
        documents = [msgspec.json.decode(view(item)) for item in items]
        if self.name == "Table":
            rows = [self._row(one) for one in documents]
            yield msgspec.json.encode(make_table(self.resource, rows, metadata))
            return
        kind, partials = "PartialObjectMetadataList", [partial(one) for one in documents]
        body = {"kind": kind, "apiVersion": METADATA_VERSION, "metadata": metadata, "items": partials}
        yield msgspec.json.encode(body)

    def _row(self, document: Object) -> Object:
        row = make_row(self.resource, document)
        if self.include == "Object":
            row["object"] = document
        elif self.include == "Metadata":
            row["object"] = partial(document)
        return row


def _join(items: Iterable[bytes]) -> Iterator[bytes]:
    """The items with commas between them, gathered into larger pieces."""
    piece: list[bytes] = []
    size = 0
    separator = b""
    for item in items:
        piece += (separator, item)
        size += len(item)
        separator = b","
        if size > PIECE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    yield b"".join(piece)


def _is_plain(resource: Resource) -> bool:
    return not resource.custom and not resource.rename


def partial(document: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": METADATA_VERSION, "metadata": document["metadata"]}


def choose_form(resource: Resource, accept: str, include: str) -> Form:
    """The first form in an Accept header that the server knows. Raises StatusError NotAcceptable."""
    if not accept:
        return Form(resource)
    for choice in accept.split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        given: dict[str, Any] = dict(part.split("=", 1) for part in parameters if "=" in part)
        if media not in {"application/json", "*/*", "application/*"}:
            continue
        kind = given.get("as", "").removesuffix("List")
        if not kind:
            return Form(resource)
        if (
            kind in {"Table", "PartialObjectMetadata"}
            and given.get("g") == "meta.k8s.io"
            and given.get("v") == "v1"
        ):
            return Form(resource, kind, include or "Metadata")
    raise status.not_acceptable("only the following media types are accepted: application/json")
