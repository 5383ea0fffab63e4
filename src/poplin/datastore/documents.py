"""YAML as Kubernetes reads it: many documents, Lists flattened, errors with line and column."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import yaml

from poplin.model.errors import InvalidInputError

TIMESTAMP = "tag:yaml.org,2002:timestamp"


class DocumentLoader(yaml.CSafeLoader):
    """The safe loader without timestamps: Kubernetes' YAML is JSON by another spelling, and JSON has none."""


DocumentLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}

JSON_STARTS: Final = (b"{", b"[")


def load_documents(content: bytes, where: str) -> list[Any]:
    """The documents of a YAML stream, or the one of a JSON text; empty documents are left out.

    Raises InvalidInputError with the line and column of what cannot be read.
    """
    if is_json(content):
        # Flow-style YAML begins like JSON: what is not JSON is left to the YAML parser to judge.
        try:
            return [msgspec.json.decode(content)]
        except msgspec.DecodeError:
            pass
    try:
        return [
            document
            # A subclass of CSafeLoader, which makes no objects but plain ones.
            for document in yaml.load_all(content, Loader=DocumentLoader)
            if document is not None
        ]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise InvalidInputError(
            f"not YAML: {error.problem or error.context}", where=place, remedy="correct this line"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"not YAML: {error}", where=where, remedy="save it as UTF-8 text") from None
    except RecursionError:
        raise InvalidInputError("nested too deeply", where=where) from None


def load_objects(content: bytes, where: str) -> list[dict[str, Any]]:
    """The Kubernetes objects of a text; see `load_documents` and `flatten`."""
    return flatten(load_documents(content, where), where)


def flatten(documents: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """The Kubernetes objects among documents: each List gives its items, which stay parts of the documents.

    Items of a typed list (PodList) are given the apiVersion and kind that the list's own say already.
    Raises InvalidInputError where a document has no apiVersion, kind or name.
    """
    objects: list[dict[str, Any]] = []
    for number, document in enumerate(documents, start=1):
        objects += _flatten(document, f"{where}, document {number}")
    return objects


def _flatten(document: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(document, dict):
        raise InvalidInputError("not a Kubernetes object", where=where, remedy="each document is a mapping")
    for key in ("apiVersion", "kind"):
        if not isinstance(document.get(key), str):
            raise InvalidInputError(f"no {key}", where=where, remedy=f"give the object its {key}")
    kind = document["kind"]
    items = document.get("items")
    if not kind.endswith("List") or not isinstance(items, list | None):
        metadata = document.get("metadata")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
            raise InvalidInputError(
                f"a {kind} without metadata.name", where=where, remedy="give the object its name"
            )
        return [document]
    objects = []
    for index, item in enumerate(items or (), start=1):
        if isinstance(item, dict) and kind != "List":
            item.setdefault("apiVersion", document["apiVersion"])
            item.setdefault("kind", kind.removesuffix("List"))
        objects += _flatten(item, f"{where}, item {index}")
    return objects


def dump_documents(documents: Sequence[Any], *, as_json: bool) -> bytes:
    """The text of documents, in the order of their keys as they stand; as JSON, there must be one."""
    if as_json:
        (document,) = documents
        return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    text: str = yaml.dump_all(
        documents,
        Dumper=yaml.CSafeDumper,
        sort_keys=False,
        allow_unicode=True,
        explicit_start=True,
        width=110,
    )
    return text.encode()


def is_json(content: bytes) -> bool:
    """Whether a text that `load_documents` has accepted is JSON."""
    return content.lstrip()[:1] in JSON_STARTS
