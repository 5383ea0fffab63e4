"""A resource of the Kubernetes API as data: where it is served, and how its JSON becomes a model value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec


class ClusterObject(Protocol):
    """Any model value that a resource yields: it knows its own name. `namespace` is "" without one."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=ClusterObject)


class Metadata(msgspec.Struct, rename="camel", gc=False):
    """ObjectMeta, as far as we read it (Kubernetes API reference, "ObjectMeta")."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class WireObject(msgspec.Struct, rename="camel", gc=False):
    """The base of every resource's struct: fields spelt as JSON spells them, unknown ones skipped.

    A field that may be null in a hand-written file has None in its type: null means absent.
    """

    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """One row of a table of resources. `group` is "" for the core group.

    `struct` is what its JSON decodes into; `to_model` turns that into the model's value and raises
    `FieldError` where a field's text makes no sense.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    struct: type[WireObject]
    to_model: Callable[[Any], T]

    @property
    def api_version(self) -> str:
        """What objects carry as apiVersion: "v1", "networking.k8s.io/v1"."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def __str__(self) -> str:
        """The name that RBAC rules and people use: "pods", "networkpolicies.networking.k8s.io"."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """URL path (Kubernetes API Concepts, "Resource URIs"); `namespace` None spans all of them."""
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += filter(None, (name, subresource))
        return "/".join(parts)
