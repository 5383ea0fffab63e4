"""Request bodies in Kubernetes' protobuf encoding, which kubectl's typed commands send, as JSON objects.

https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding and
https://protobuf.dev/programming-guides/encoding/. Answers are JSON always: every client accepts it.
"""

import base64
import functools
import gzip
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from poplin.apiserver.collection import Object
from poplin.apiserver.resource import DATA, builtin_schemas

MAGIC: Final = b"k8s\x00"
API: Final = "k8s.io.apimachinery.pkg."
MEANINGFUL_ZEROS: Final = frozenset({
    "activeDeadlineSeconds", "allowPrivilegeEscalation", "automountServiceAccountToken", "backoffLimit",
    "defaultMode", "enableServiceLinks", "fsGroup", "gracePeriodSeconds", "manualSelector", "maxReplicas",
    "minReplicas", "mode", "optional", "parallelism", "completions", "partition", "priority", "replicas",
    "revisionHistoryLimit", "runAsGroup", "runAsNonRoot", "runAsUser", "failedJobsHistoryLimit",
    "successfulJobsHistoryLimit", "terminationGracePeriodSeconds", "tolerationSeconds",
    "ttlSecondsAfterFinished", "value", "weight",
})  # fmt: skip
"""Fields in which zero or false says something else than absence. Go writes every other zero out as well."""


class ProtobufError(ValueError):
    """The bytes are not a message the server knows."""


@functools.cache
def _messages() -> Mapping[str, Mapping[str, tuple[str, str, str]]]:
    packed = gzip.decompress((DATA / "protobuf.json.gz").read_bytes())
    return msgspec.json.decode(packed, type=dict[str, dict[str, tuple[str, str, str]]])


@functools.cache
def _message_names() -> Mapping[tuple[str, str], str]:
    """(apiVersion, kind) -> message."""
    names: dict[tuple[str, str], str] = {}
    for name, schema in builtin_schemas().items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            version = f"{kind['group']}/{kind['version']}" if kind["group"] else kind["version"]
            names[version, kind["kind"]] = name.replace("io.k8s.", "k8s.io.", 1).replace("-", "_")
    return names


def decode(body: bytes) -> Object:
    """The object in an envelope (runtime.Unknown). Raises ProtobufError."""
    if not body.startswith(MAGIC):
        raise ProtobufError("the body does not begin with k8s\\0")
    try:
        envelope = _decode_message(API + "runtime.Unknown", body[len(MAGIC) :], raw=True)
        head = envelope["typeMeta"]
        name = _message_names().get((head.get("apiVersion", ""), head.get("kind", "")), "")
        if name not in _messages():
            raise ProtobufError(f"no message is known for {head}")
        document = _decode_message(name, envelope.get("raw", b""))
    except (IndexError, KeyError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ProtobufError(f"malformed message: {error}") from error
    return {"apiVersion": head.get("apiVersion"), "kind": head.get("kind"), **document}


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def _read_fields(data: bytes) -> Iterator[tuple[str, Any]]:
    """(field number, value): integers for varints, bytes for what has a length."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        match key & 7:
            case 0:
                value, position = _read_varint(data, position)
                yield str(key >> 3), value
            case 2:
                size, position = _read_varint(data, position)
                if position + size > len(data):
                    raise ProtobufError("a field is longer than its message")
                yield str(key >> 3), data[position : position + size]
                position += size
            case wire_type:
                raise ProtobufError(f"wire type {wire_type} is not used by Kubernetes")


def _decode_message(name: str, data: bytes, *, raw: bool = False) -> Object:
    """The JSON members of a message; `raw` leaves its bytes fields as they are."""
    fields = _messages()[name]
    result: Object = {}
    for number, value in _read_fields(data):
        if number not in fields:
            continue
        member, kind, message = fields[number]
        if kind == "message=":
            result.update(_decode_message(message, value))
        elif message.endswith("Entry"):
            result.setdefault(member, {}).update([_decode_entry(message, value)])
        elif kind.endswith("*"):
            result.setdefault(member, []).append(_decode_value(kind[:-1], message, value, raw=raw))
        else:
            decoded = _decode_value(kind, message, value, raw=raw)
            if (
                decoded
                or isinstance(decoded, dict)
                or (decoded is not None and member in MEANINGFUL_ZEROS and decoded != "")
            ):
                result[member] = decoded
    return result


def _decode_entry(name: str, data: bytes) -> tuple[str, Any]:
    """A pair of a map, whose value may be empty."""
    (_, key_kind, key_message), (_, kind, message) = _messages()[name]["1"], _messages()[name]["2"]
    found = dict(_read_fields(data))
    key = _decode_value(key_kind, key_message, found.get("1", b""))
    return key, _decode_value(kind, message, found.get("2", b""))


def _decode_value(kind: str, message: str, value: Any, *, raw: bool = False) -> Any:
    match kind:
        case "string":
            return value.decode()
        case "bool":
            return bool(value)
        case "bytes":
            return value if raw else base64.b64encode(value).decode()
        case "message":
            special = SPECIAL.get(message.rpartition(".")[2])
            return special(value) if special else _decode_message(message, value)
    # Negative numbers are written as their 64-bit two's complement.
    return value - (1 << 64) if value >> 63 else value


def _decode_time(data: bytes) -> str | None:
    parts = dict(_read_fields(data))
    seconds = parts.get("1", 0)
    # Go's zero time lies before the epoch; an absent time is an empty message.
    if not parts or seconds >> 63:
        return None
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    micros = parts.get("2", 0) // 1000
    return f"{moment}.{micros:06}Z" if micros else f"{moment}Z"


def _decode_int_or_string(data: bytes) -> int | str:
    parts = dict(_read_fields(data))
    if parts.get("1", 0) == 0:
        return int(_decode_value("int32", "", parts.get("2", 0)))
    return str(parts.get("3", b"").decode())


def _decode_text(data: bytes) -> str:
    return str(dict(_read_fields(data)).get("1", b"").decode())


def _decode_json(data: bytes) -> Any:
    raw = dict(_read_fields(data)).get("1")
    return msgspec.json.decode(raw) if raw else None


def _decode_list(data: bytes) -> list[str]:
    return [value.decode() for _, value in _read_fields(data)]


SPECIAL: Final = {
    "Time": _decode_time,
    "MicroTime": _decode_time,
    "IntOrString": _decode_int_or_string,
    "Quantity": _decode_text,
    "RawExtension": _decode_json,
    "FieldsV1": _decode_json,
    "JSON": _decode_json,
    "ExtraValue": _decode_list,
}
"""Messages that are not objects in JSON."""
