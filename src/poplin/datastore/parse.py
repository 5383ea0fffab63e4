"""JSON of the Kubernetes API to model values: one object at a time, so that a bad one stops no other."""

from collections.abc import Iterable
from functools import cache, lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from poplin.datastore.resource import ClusterObject, Metadata, Resource, WireObject
from poplin.model.errors import InvalidInputError
from poplin.model.kernel import IPAddress, IPNetwork

T = TypeVar("T", bound=ClusterObject)


class InvalidObjectError(InvalidInputError):
    """One object that cannot be read. `namespace` and `name` say which, `where` its kind too."""

    def __init__(self, what: str, *, kind: str, metadata: Metadata) -> None:
        full_name = f"{metadata.namespace}/{metadata.name}" if metadata.namespace else metadata.name
        super().__init__(what, where=f"{kind} {full_name}", remedy=f"correct this {kind}")
        self.namespace = metadata.namespace
        self.name = metadata.name


class FieldError(ValueError):
    """A field's text makes no sense: the message begins with the field's path."""

    def __init__(self, path: str, value: object, expected: str) -> None:
        super().__init__(f"{path}: {value!r} is not {expected}")


class Parsed(NamedTuple, Generic[T]):
    """An object's metadata, and its value or what is wrong with it."""

    metadata: Metadata
    value: T | InvalidObjectError


class Envelope(msgspec.Struct, gc=False):
    """What every object has: enough to name it, to order it and to see it deleted."""

    metadata: Metadata


ENVELOPE = msgspec.json.Decoder(Envelope)


@cache
def decoder(struct: type[WireObject]) -> msgspec.json.Decoder[WireObject]:
    """The decoder of a struct: built once, since building costs far more than decoding."""
    return msgspec.json.Decoder(struct)


def parse_metadata(data: bytes | msgspec.Raw) -> Metadata:
    """Name, namespace and resourceVersion of an object of any kind.

    Raises msgspec.DecodeError where the bytes are no Kubernetes object at all.
    """
    metadata = ENVELOPE.decode(data).metadata
    if not metadata.name:
        raise msgspec.ValidationError("an object without a name - at `$.metadata.name`")
    return metadata


def parse_object(resource: Resource[T], data: bytes | msgspec.Raw) -> Parsed[T]:
    """One object from its JSON.

    Raises msgspec.DecodeError where not even the metadata can be read.
    """
    try:
        wire = decoder(resource.struct).decode(data)
    except msgspec.ValidationError as error:
        metadata = parse_metadata(data)
        return Parsed(metadata, InvalidObjectError(describe(error), kind=resource.kind, metadata=metadata))
    return _to_model(resource, wire)


def convert_object(resource: Resource[T], document: Any) -> Parsed[T]:
    """As `parse_object`, from plain dictionaries and lists such as YAML yields."""
    try:
        wire = msgspec.convert(document, resource.struct)
    except msgspec.ValidationError as error:
        metadata = msgspec.convert(document, Envelope).metadata
        return Parsed(metadata, InvalidObjectError(describe(error), kind=resource.kind, metadata=metadata))
    return _to_model(resource, wire)


def _to_model(resource: Resource[T], wire: WireObject) -> Parsed[T]:
    metadata = wire.metadata
    if not metadata.name:
        raise msgspec.ValidationError("an object without a name - at `$.metadata.name`")
    try:
        return Parsed(metadata, resource.to_model(wire))
    except FieldError as error:
        return Parsed(metadata, InvalidObjectError(str(error), kind=resource.kind, metadata=metadata))


def describe(error: msgspec.ValidationError) -> str:
    """The message of msgspec with the field's path first: "spec.nodeName: expected `str`, got `int`"."""
    problem, _, path = str(error).partition(" - at `")
    path = path.rstrip("`").removeprefix("$").removeprefix(".")
    problem = problem[:1].lower() + problem[1:]
    return f"{path}: {problem}" if path else problem


@lru_cache(maxsize=16_384)
def _address(text: str) -> IPAddress:
    return ip_address(text)


@lru_cache(maxsize=16_384)
def _network(text: str) -> IPNetwork:
    return ip_network(text, strict=False)


def parse_address(text: str, path: str) -> IPAddress:
    """An IP address; the same text gives the same object while the cache holds it."""
    try:
        return _address(text)
    except ValueError:
        raise FieldError(path, text, "an IP address") from None


def parse_network(text: str, path: str) -> IPNetwork:
    """A CIDR. Bits beyond the prefix are cleared, as the API server allows them."""
    try:
        network = _network(text)
    except ValueError:
        raise FieldError(path, text, "a CIDR such as 10.244.1.0/24") from None
    if "/" not in text:
        raise FieldError(path, text, "a CIDR such as 10.244.1.0/24")
    return network


def parse_networks(texts: Iterable[str], path: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """A list of CIDRs; `path` is the list's own."""
    return tuple(parse_network(text, f"{path}[{index}]") for index, text in enumerate(texts))


_label_sets: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}


def intern_labels(labels: dict[str, str] | None) -> dict[str, str]:
    """The one dictionary kept for these labels: replicas share theirs, and most pods are replicas.

    The dictionary must not be changed by anyone.
    """
    if not labels:
        return EMPTY
    key = tuple(labels.items())
    known = _label_sets.get(key)
    if known is None:
        if len(_label_sets) >= MAX_LABEL_SETS:
            _label_sets.clear()  # what is in use lives on; sharing only starts afresh
        known = _label_sets[key] = labels
    return known


EMPTY: dict[str, str] = {}
MAX_LABEL_SETS = 16_384
