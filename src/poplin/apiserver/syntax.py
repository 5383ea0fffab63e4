"""The spelling of names, labels and the like. Each check yields what is wrong, nothing when all is well.

https://kubernetes.io/docs/concepts/overview/working-with-objects/names/ and .../labels/
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from poplin.apiserver.status import Cause

LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LABEL_1035: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
LABEL_VALUE: Final = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
PORT_NAME: Final = re.compile(r"(?!.*--)(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?")

RULES: Final[Mapping[str, tuple[re.Pattern[str], int, str]]] = {
    "label": (
        LABEL,
        63,
        (
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
            "and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
            "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
        ),
    ),
    "label1035": (
        LABEL_1035,
        63,
        (
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
            "character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for "
            "validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
        ),
    ),
    "subdomain": (
        SUBDOMAIN,
        253,
        (
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
            "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
            "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        ),
    ),
    "port": (
        PORT_NAME,
        15,
        (
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), with at least one letter, and "
            "no two hyphens in a row or at an end"
        ),
    ),
    "value": (
        LABEL_VALUE,
        63,
        (
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
            "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used "
            "for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
        ),
    ),
    "name part": (
        QUALIFIED,
        63,
        (
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
            "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
            "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        ),
    ),
}


def check(value: Any, rule: str, field: str) -> Iterator[Cause]:
    """`value` against one of RULES."""
    pattern, limit, message = RULES[rule]
    if not isinstance(value, str):
        return
    if len(value) > limit:
        yield Cause(field, f'Invalid value: "{value}": must be no more than {limit} characters')
    if not pattern.fullmatch(value):
        yield Cause(field, f'Invalid value: "{value}": {message}')


def check_qualified(key: str, field: str) -> Iterator[Cause]:
    """A label or annotation key: an optional DNS prefix and a name."""
    prefix, slash, name = key.rpartition("/")
    if slash:
        if not prefix:
            yield Cause(field, f'Invalid value: "{key}": prefix part must be non-empty')
        for cause in check(prefix, "subdomain", field) if prefix else ():
            yield Cause(field, f'Invalid value: "{key}": prefix part {cause.message.partition(": ")[2]}')
    if not name:
        yield Cause(field, f'Invalid value: "{key}": name part must be non-empty')
    else:
        for cause in check(name, "name part", field):
            yield Cause(field, f'Invalid value: "{key}": {cause.message.partition(": ")[2]}')


def check_labels(labels: Any, field: str) -> Iterator[Cause]:
    for key, value in (labels or {}).items():
        yield from check_qualified(key, field)
        yield from check(value, "value", field)


NAME_RULES: Final[Mapping[tuple[str, str], str]] = {
    ("", "Namespace"): "label",
    ("", "Service"): "label1035",
}
PATH_SEGMENT_GROUPS: Final = frozenset({"rbac.authorization.k8s.io"})
ANNOTATIONS_LIMIT_BYTES: Final = 256 * 1024


def check_name(name: str, group: str, kind: str, field: str = "metadata.name") -> Iterator[Cause]:
    if group in PATH_SEGMENT_GROUPS:
        # Role names are free but for what a URL's path cannot carry ("system:node").
        if name in {".", ".."} or "/" in name or "%" in name:
            yield Cause(
                field, f'Invalid value: "{name}": may not contain \'/\' or \'%\', and not be "." or ".."'
            )
        return
    yield from check(name, NAME_RULES.get((group, kind), "subdomain"), field)


def check_metadata(metadata: Mapping[str, Any], group: str, kind: str) -> Iterator[Cause]:
    """What holds for the metadata of every object."""
    yield from check_name(metadata.get("name", ""), group, kind)
    yield from check_labels(metadata.get("labels"), "metadata.labels")
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        yield from check_qualified(key.lower(), "metadata.annotations")
    if sum(len(key) + len(value) for key, value in annotations.items()) > ANNOTATIONS_LIMIT_BYTES:
        message = f"Too long: may not be more than {ANNOTATIONS_LIMIT_BYTES} bytes"
        yield Cause("metadata.annotations", message, "FieldValueTooLong")
    for finalizer in metadata.get("finalizers") or ():
        yield from check_qualified(finalizer, "metadata.finalizers")
    controllers = 0
    for index, owner in enumerate(metadata.get("ownerReferences") or ()):
        field = f"metadata.ownerReferences[{index}]"
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                yield Cause(f"{field}.{key}", 'Invalid value: "": must not be empty')
        controllers += bool(owner.get("controller"))
    if controllers > 1:
        message = "Invalid value: only one reference can have controller set to true"
        yield Cause("metadata.ownerReferences", message)
