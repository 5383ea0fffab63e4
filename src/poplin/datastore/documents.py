"""YAML as Kubernetes reads it: many documents, Lists flattened, errors with line and column."""

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
    if content.lstrip()[:1] in JSON_STARTS:
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
    """The Kubernetes objects of a text: its documents, with each List replaced by its items.

    Raises InvalidInputError where a document has no apiVersion or kind.
    """
    objects: list[dict[str, Any]] = []
    for number, document in enumerate(load_documents(content, where), start=1):
        objects += _flatten(document, f"{where}, document {number}")
    return objects


def _flatten(document: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(document, dict):
        raise InvalidInputError("not a Kubernetes object", where=where, remedy="each document is a mapping")
    for key in ("apiVersion", "kind"):
        if not isinstance(document.get(key), str):
            raise InvalidInputError(f"no {key}", where=where, remedy=f"give the object its {key}")
    if not document["kind"].endswith("List") or not isinstance(document.get("items"), list):
        return [document]
    item_kind = document["kind"].removesuffix("List")
    items = []
    for index, item in enumerate(document["items"]):
        # Items of a typed list (PodList) may leave out what the list's kind says already.
        named = (
            {"apiVersion": document["apiVersion"], "kind": item_kind, **item}
            if item_kind and isinstance(item, dict)
            else item
        )
        items += _flatten(named, f"{where}, item {index + 1}")
    return items
