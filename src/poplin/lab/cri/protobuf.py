"""The protobuf wire format for messages that are declared as structs, each field annotated with its number. Pure.

Field types: bool, int, str, bytes, an IntEnum, a message or None, a tuple of any of these, Mapping[str, str].
What has its default value is not sent, and a field that is not known is skipped, as proto3 has it.
Source: protobuf.dev, "Encoding".
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from poplin.model.errors import InvalidInputError

M = TypeVar("M", bound="Message")

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5
_WIDTHS: Final = {_FIXED64: 8, _FIXED32: 4}
_UINT64: Final = (1 << 64) - 1


class Message(msgspec.Struct, frozen=True):
    """A protobuf message. Subclasses annotate each field: `name: Annotated[str, 1] = ""`."""


class Entry(Message, frozen=True):
    """One pair of a map field, which is a repeated message on the wire."""

    key: Annotated[str, 1] = ""
    value: Annotated[str, 2] = ""


@dataclass(frozen=True, slots=True)
class Field:
    """How one field is sent. `kind` is the type of a value, of one item where the field repeats."""

    name: str
    number: int
    kind: type
    repeated: bool = False
    mapping: bool = False


def encode(message: Message) -> bytes:
    """The message's bytes."""
    out = bytearray()
    for field in _fields(type(message)):
        value = getattr(message, field.name)
        if field.mapping:
            value = tuple(Entry(key, item) for key, item in value.items())
        if field.repeated:
            for item in value:
                out += _encode_one(field.number, item)
        # An absent message is None; a present one is sent even if all in it has its default.
        elif isinstance(value, Message) or value:
            out += _encode_one(field.number, value)
    return bytes(out)


def decode(data: bytes, kind: type[M]) -> M:
    """The message in `data`. Raises InvalidInputError for what is no message of the kind."""
    fields = {field.number: field for field in _fields(kind)}
    found: dict[str, Any] = {}
    try:
        for number, value in _split(memoryview(data)):
            field = fields.get(number)
            if field is None:
                continue
            one = _decode_one(field.kind, value)
            if field.mapping:
                found.setdefault(field.name, {})[one.key] = one.value
            elif field.repeated:
                found.setdefault(field.name, []).append(one)
            else:
                found[field.name] = one
    except (IndexError, TypeError, ValueError) as error:
        raise InvalidInputError(f"not a protobuf message: {error}", where=kind.__name__) from error
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in found.items()})


@functools.cache
def _fields(kind: type[Message]) -> tuple[Field, ...]:
    return tuple(
        _read_annotation(name, *get_args(annotation))
        for name, annotation in get_type_hints(kind, include_extras=True).items()
    )


def _read_annotation(name: str, declared: Any, number: int) -> Field:
    origin = get_origin(declared)
    if origin is tuple:
        return Field(name, number, get_args(declared)[0], repeated=True)
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return Field(name, number, Entry, repeated=True, mapping=True)
    if isinstance(declared, UnionType):
        declared = next(one for one in get_args(declared) if one is not type(None))
    return Field(name, number, declared)


def _encode_one(number: int, value: Any) -> bytes:
    match value:
        case int():  # bool and IntEnum are ints; a negative one is sent as its 64-bit complement
            return _varint(number << 3 | _VARINT) + _varint(value & _UINT64)
        case str():
            body = value.encode()
        case Message():
            body = encode(value)
        case _:
            body = bytes(value)
    return _varint(number << 3 | _LENGTH) + _varint(len(body)) + body


def _decode_one(kind: type, value: int | memoryview) -> Any:
    if isinstance(value, int):
        if not issubclass(kind, int):
            raise TypeError(f"a number where {kind.__name__} is meant")
        if issubclass(kind, IntEnum):
            return kind(value)
        return bool(value) if kind is bool else value - (1 << 64) if value >> 63 else value
    if issubclass(kind, Message):
        return decode(bytes(value), kind)
    if issubclass(kind, str):
        return str(value, "utf-8")
    if issubclass(kind, bytes):
        return bytes(value)
    raise TypeError(f"bytes where {kind.__name__} is meant")


def _split(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field: an int for a varint, bytes for all else."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        wire = key & 7
        if wire == _VARINT:
            value, position = _read_varint(data, position)
            yield key >> 3, value
            continue
        if wire == _LENGTH:
            size, position = _read_varint(data, position)
        else:
            size = _WIDTHS.get(wire, -1)
        end = position + size
        if size < 0 or end > len(data):
            raise ValueError("it is cut short, or of another encoding")
        yield key >> 3, data[position:end]
        position = end


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of at most 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _UINT64, position
    raise ValueError("a number of more than 64 bits")
