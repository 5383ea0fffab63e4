"""A request as the API understands it: which resource, which object, how to answer, with what options."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import yaml
from aiohttp import web

from poplin.apiserver import protobuf, status
from poplin.apiserver.authentication import User
from poplin.apiserver.collection import Collection, Entry, Object
from poplin.apiserver.deletion import DeleteOptions
from poplin.apiserver.options import Options
from poplin.apiserver.resource import Resource
from poplin.apiserver.selector import Selector, SelectorError, parse_fields, parse_labels

NAMESPACE_SUBRESOURCES: Final = frozenset({"status", "finalize"})
LONGEST_MANAGER: Final = 128
VALIDATION: Final = frozenset({"Ignore", "Warn", "Strict"})


@dataclass(frozen=True, slots=True)
class Target:
    """What a resource path names. `namespace`, `name` and `subresource` are "" where the path has none."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def parse_path(path: str) -> Target | None:
    """The target of /api/v1/... or /apis/GROUP/VERSION/..., None for any other path."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if (
        rest[0] == "namespaces"
        and len(rest) > 2
        and not (len(rest) == 3 and rest[2] in NAMESPACE_SUBRESOURCES)
    ):
        namespace, rest = rest[1], rest[2:]
    if len(rest) > 3 and rest[2] != "proxy":
        return None
    return Target(group, version, rest[0], namespace, *rest[1:3])


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request for a resource."""

    request: web.BaseRequest
    user: User
    resource: Resource
    target: Target

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query

    @property
    def namespace(self) -> str | None:
        """The namespace asked for, None for all of them (and for cluster-scoped types)."""
        return self.target.namespace or None

    @property
    def key(self) -> tuple[str, str]:
        return self.target.namespace, self.target.name

    def flag(self, name: str) -> bool:
        return self.query.get(name, "") in {"true", "1"}

    def options(self) -> Options:
        level = self.query.get("fieldValidation", "Warn")
        if level not in VALIDATION:
            raise status.bad_request(f"fieldValidation must be Ignore, Warn or Strict, not {level!r}")
        manager = (
            self.query.get("fieldManager") or self.request.headers.get("User-Agent", "").partition("/")[0]
        )
        if len(manager) > LONGEST_MANAGER:
            cause = status.Cause(
                "fieldManager", f"Too long: may not be longer than {LONGEST_MANAGER}", "FieldValueTooLong"
            )
            raise status.invalid("PatchOptions", "meta.k8s.io", "", [cause])
        dry_run = _is_dry_run(self.query.getall("dryRun", []))  # type: ignore[attr-defined]  # a MultiDict
        return Options(dry_run=dry_run, field_validation=level, manager=manager or "unknown")

    async def body(self) -> Any:
        """The decoded body. Raises StatusError where it is no JSON, YAML or protobuf."""
        return decode_body(await self.request.read(), self.request.content_type)

    async def document(self) -> Object:
        document = await self.body()
        if not isinstance(document, dict):
            raise status.bad_request("the body of the request is not an object")
        return document

    def selection(self, collection: Collection) -> "Selection":
        try:
            labels = parse_labels(self.query.get("labelSelector", ""))
            shown = {stored: own for own, stored in self.resource.rename.items()}
            known = {_rename_path(path, shown): path for path in collection.fields}
            known |= {"metadata.name": "metadata.name", "metadata.namespace": "metadata.namespace"}
            fields = parse_fields(self.query.get("fieldSelector", ""), known)
        except SelectorError as error:
            raise status.bad_request(str(error)) from None
        return Selection(collection, labels, fields, self.target.namespace or None, self.target.name)


def _rename_path(path: str, shown: Mapping[str, str]) -> str:
    head, dot, rest = path.partition(".")
    return shown.get(head, head) + dot + rest


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a collection a list or watch is about."""

    collection: Collection
    labels: Selector
    fields: Selector
    namespace: str | None = None
    name: str = ""

    @property
    def is_all(self) -> bool:
        return not (
            self.labels.requirements or self.fields.requirements or self.namespace is not None or self.name
        )

    def matches(self, entry: Entry) -> bool:
        if self.namespace is not None and entry.key[0] != self.namespace:
            return False
        if self.name and entry.key[1] != self.name:
            return False
        if self.labels.requirements and not self.labels.matches(entry.labels):
            return False
        return not self.fields.requirements or self.fields.matches(self.collection.values(entry))


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: what looks like a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def decode_body(body: bytes, content_type: str) -> Any:
    try:
        if content_type == "application/vnd.kubernetes.protobuf":
            return protobuf.decode(body)
        # JSON is YAML too, and kubectl's applies are JSON.
        if "yaml" in content_type and not body.startswith(b"{"):
            return yaml.load(body, _Loader)  # noqa: S506  - a safe loader, less one type
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, protobuf.ProtobufError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise status.bad_request(f"the body of the request cannot be decoded: {error}") from None


def _is_dry_run(values: list[str]) -> bool:
    if any(value != "All" for value in values):
        cause = status.Cause("dryRun", f'Unsupported value: {json.dumps(values)}: supported values: "All"')
        raise status.invalid("DeleteOptions", "meta.k8s.io", "", [cause])
    return bool(values)


class _Preconditions(msgspec.Struct, rename="camel"):
    uid: str | None = None
    resource_version: str | None = None


class _DeleteOptions(msgspec.Struct, rename="camel"):
    """meta/v1 DeleteOptions, as far as it is heeded."""

    grace_period_seconds: int | None = None
    propagation_policy: str | None = None
    orphan_dependents: bool | None = None
    preconditions: _Preconditions | None = None
    dry_run: list[str] | None = None


def parse_delete_options(call: Call, body: Any) -> tuple[DeleteOptions, bool]:
    """The options of a DELETE, from its body and, over that, its query; and whether it is a dry run."""
    named = ("gracePeriodSeconds", "propagationPolicy", "orphanDependents")
    query = {name: call.query[name] for name in named if name in call.query}
    try:
        body = msgspec.convert({} if body is None else body, _DeleteOptions)
        over = msgspec.convert(query, _DeleteOptions, strict=False)
    except msgspec.ValidationError as error:
        raise status.bad_request(f"the options of the deletion cannot be read: {error}") from None
    preconditions = body.preconditions or _Preconditions()

    def choose(name: str) -> Any:
        value = getattr(over, name)
        return getattr(body, name) if value is None else value

    grace_s, policy, orphan = map(choose, ("grace_period_seconds", "propagation_policy", "orphan_dependents"))
    if policy is None and orphan is not None:
        policy = "Orphan" if orphan else "Background"
    if policy not in {None, "Background", "Foreground", "Orphan"}:
        message = f'Unsupported value: "{policy}": supported values: "Background", "Foreground", "Orphan"'
        cause = status.Cause("propagationPolicy", message, "FieldValueNotSupported")
        raise status.invalid("DeleteOptions", "meta.k8s.io", "", [cause])
    options = DeleteOptions(grace_s, policy, preconditions.uid, preconditions.resource_version)
    dry = _is_dry_run([*call.query.getall("dryRun", []), *(body.dry_run or [])])  # type: ignore[attr-defined]  # a MultiDict
    return options, dry
