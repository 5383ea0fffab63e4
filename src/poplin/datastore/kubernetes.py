"""The API server as a source of cluster objects, and what we write there."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any, Final, Self, TypeVar

import msgspec

from poplin.datastore.access import Access
from poplin.datastore.backoff import Pace
from poplin.datastore.client import JSON_MERGE, STRATEGIC_MERGE, ApiClient, NonsenseError, RefusedError
from poplin.datastore.core import NODES, PODS
from poplin.datastore.node_patch import node_patch, timestamp
from poplin.datastore.parse import InvalidObjectError, parse_object
from poplin.datastore.reflector import Reflector
from poplin.datastore.resource import ClusterObject, Resource
from poplin.datastore.source import WatchEvent
from poplin.model.cluster import NodeCondition, ObjectReference

T = TypeVar("T", bound=ClusterObject)

REMEMBERED_EVENTS: Final = 256
MAX_MESSAGE: Final = 1024
"""Length of an Event's message that every API version accepts."""


class KubernetesSource:
    """A `Source` over one API server. Use as an async context manager, or call `close`.

    `component` is who we say we are in Events; `host` the node we run on, "" if none. `now` must be
    aware of its time zone.
    """

    def __init__(
        self,
        access: Access | ApiClient,
        *,
        component: str = "poplin",
        host: str = "",
        pace: Pace | None = None,
        random: Random | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.client = access if isinstance(access, ApiClient) else ApiClient(access)
        self._component = component
        self._host = host
        self._pace = pace
        self._random = random
        self._now = now
        self._told: dict[tuple[object, ...], tuple[str, int]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, those of watches too."""
        await self.client.close()

    def watch(
        self,
        resource: Resource[T],
        *,
        namespace: str | None = None,
        field_selector: str | None = None,
        label_selector: str | None = None,
    ) -> AsyncGenerator[WatchEvent[T], None]:
        """See `Source.watch`."""
        return Reflector(
            self.client,
            resource,
            namespace=namespace,
            field_selector=field_selector,
            label_selector=label_selector,
            pace=self._pace,
            random=self._random,
        ).events()

    async def get(self, resource: Resource[T], name: str, *, namespace: str = "") -> T | None:
        """See `Source.get`."""
        path = resource.path(namespace, name)
        try:
            body = await self.client.request("GET", path)
            value = parse_object(resource, body).value
        except RefusedError as error:
            if error.status == 404 and error.reason == "NotFound":
                return None
            raise
        except msgspec.DecodeError as error:
            raise NonsenseError(f"this is no {resource.kind}: {error}", where=f"GET {path}") from None
        if isinstance(value, InvalidObjectError):
            raise value
        return value

    def end_stranded(self) -> None:
        """See `Source.end_stranded`."""
        self.client.end_stranded()

    async def patch_node(
        self, name: str, annotations: Mapping[str, str | None], conditions: Sequence[NodeCondition] = ()
    ) -> None:
        """See `Source.patch_node`: a strategic merge on nodes/status, which takes annotations as well."""
        patch = node_patch(annotations, conditions, self._now())
        await self.client.request(
            "PATCH",
            NODES.path(name=name, subresource="status"),
            body=patch,
            content_type=STRATEGIC_MERGE,
        )

    async def annotate_pod(
        self, namespace: str, name: str, annotations: Mapping[str, str], *, uid: str = ""
    ) -> None:
        """See `Source.annotate_pod`: a patch of pods/status, which takes annotations as well.

        The uid is a precondition: the server answers 409 for another pod.
        """
        metadata: dict[str, Any] = {"annotations": dict(annotations)}
        if uid:
            metadata["uid"] = uid
        try:
            patch = {"metadata": metadata}
            await self.merge(PODS, name, patch, namespace=namespace, subresource="status")
        except RefusedError as error:
            if error.status not in {404, 409}:
                raise

    async def create(self, resource: Resource[Any], body: Any, *, namespace: str = "") -> bytes:
        """Create an object from its JSON form; the answer is the object as stored."""
        return await self.client.request("POST", resource.path(namespace), body=body)

    async def merge(
        self, resource: Resource[Any], name: str, patch: Any, *, namespace: str = "", subresource: str = ""
    ) -> bytes:
        """Apply a JSON merge patch (RFC 7396); the answer is the object as stored."""
        return await self.client.request(
            "PATCH", resource.path(namespace, name, subresource), body=patch, content_type=JSON_MERGE
        )

    async def create_event(
        self, about: ObjectReference, *, reason: str, message: str, warning: bool = False
    ) -> None:
        """See `Source.create_event`. The same said again counts up the Event that stands."""
        now = self._now()
        key = (about, reason, message, warning)
        namespace = about.namespace or "default"
        name, count = self._told.pop(key, ("", 0))
        if name:
            try:
                await self._count_event(namespace, name, count + 1, now)
            except RefusedError as error:
                if error.status != 404:  # Events are deleted after an hour
                    raise
                name = ""
        if not name:
            count = 0
            name = f"{about.name}.{int(now.timestamp() * 1e6):x}"
            body = event_body(about, name, reason, message, now, warning=warning)
            body["source"] = {"component": self._component, "host": self._host}
            body["reportingComponent"] = self._component
            body["reportingInstance"] = self._host
            await self.client.request("POST", f"/api/v1/namespaces/{namespace}/events", body=body)
        self._told[key] = (name, count + 1)
        if len(self._told) > REMEMBERED_EVENTS:
            del self._told[next(iter(self._told))]

    async def _count_event(self, namespace: str, name: str, count: int, now: datetime) -> None:
        await self.client.request(
            "PATCH",
            f"/api/v1/namespaces/{namespace}/events/{name}",
            body={"count": count, "lastTimestamp": timestamp(now)},
            content_type=JSON_MERGE,
        )


def event_body(
    about: ObjectReference, name: str, reason: str, message: str, now: datetime, *, warning: bool
) -> dict[str, Any]:
    """A core/v1 Event. About a cluster-wide object it lives in the namespace "default"."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about.namespace or "default"},
        "involvedObject": {
            "apiVersion": about.api_version,
            "kind": about.kind,
            "name": about.name,
            "namespace": about.namespace,
            "uid": about.uid,
        },
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "count": 1,
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
    }
