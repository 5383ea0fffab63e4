"""Carries writes out: bounded concurrency, answers taken in at once, and events told."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from poplin.datastore.client import ApiClient, NonsenseError, RefusedError
from poplin.datastore.kubernetes import KubernetesSource
from poplin.datastore.parse import InvalidObjectError, parse_object
from poplin.datastore.resource import Resource
from poplin.lab.controllers.object import PODS, Key, Object
from poplin.lab.controllers.write import Bind, Create, Delete, Event, Patch, Tell, Write
from poplin.model.cluster import ObjectReference
from poplin.model.errors import PoplinError

log = logging.getLogger(__name__)

CONCURRENCY: Final = 16
WAITING_EVENTS: Final = 2000
"""Events beyond these are dropped: they are for people, and the writes of a storm come first."""

Absorb = Callable[[Resource[Object], str, Object], None]


class Writer:
    """Writes through `client`. `absorb` hears how each object was "created", "updated", "bound" or "deleted"."""

    def __init__(self, client: ApiClient, absorb: Absorb) -> None:
        self._client = client
        self._absorb = absorb
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._event_slots = asyncio.Semaphore(2)
        self._sources: dict[str, KubernetesSource] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Drop the events that are still to be told."""
        for task in self._telling:
            task.cancel()

    async def write(self, writes: Sequence[Write], component: str) -> list[PoplinError]:
        """Carry all of them out; the errors of those that failed."""
        results = await asyncio.gather(*(self._write(one, component) for one in writes))
        return [error for error in results if error is not None]

    async def exists(self, resource: Resource[Object], key: Key, uid: str = "") -> bool:
        """Whether the server has that object, with `uid` unless "". Raises PoplinError."""
        try:
            found = await self._request(resource, "GET", resource.path(*key))
        except RefusedError as error:
            if error.status == 404:
                return False
            raise
        return found is not None and uid in {"", found.uid}

    async def _write(self, write: Write, component: str) -> PoplinError | None:
        name = ""
        try:
            async with self._slots:
                match write:
                    case Create():
                        name = await self._create(write)
                    case Patch():
                        name = await self._patch(write)
                    case Delete():
                        name = await self._delete(write)
                    case Bind():
                        name = await self._bind(write)
        except RefusedError as error:
            if error.status == 404 and isinstance(write, Patch | Delete | Bind):
                return None  # it is gone, and the watch will say so
            if isinstance(write, Create) and write.event is not None and error.reason != "AlreadyExists":
                self._tell(
                    Event(write.event.about, "FailedCreate", f"Error creating: {error.what}", warning=True),
                    component,
                )
            return error
        except PoplinError as error:
            return error
        if write.event is not None and (name or isinstance(write, Tell)):
            self._tell(write.event, component, name)
        return None

    async def _create(self, write: Create) -> str:
        body = {"apiVersion": write.resource.api_version, "kind": write.resource.kind, **write.body}
        made = await self._request(write.resource, "POST", write.resource.path(write.namespace), body=body)
        if made is None:
            return ""
        self._absorb(write.resource, "created", made)
        return made.name

    async def _patch(self, write: Patch) -> str:
        answer = await self._request(
            write.resource,
            "PATCH",
            write.resource.path(*write.key, write.subresource),
            body=write.document,
            content_type=write.content_type,
        )
        if answer is not None:
            self._absorb(write.resource, "updated", answer)
        return write.key[1]

    async def _delete(self, write: Delete) -> str:
        if write.unless is not None and await self.exists(*write.unless):
            return ""
        answer = await self._request(
            write.resource, "DELETE", write.resource.path(*write.key), body=write.options
        )
        if answer is not None and answer.deleting:
            self._absorb(write.resource, "updated", answer)
        else:
            namespace, name = write.key
            metadata = {"namespace": namespace, "name": name, "uid": write.uid}
            self._absorb(write.resource, "deleted", msgspec.convert({"metadata": metadata}, Object))
        return write.key[1]

    async def _bind(self, write: Bind) -> str:
        pod = write.pod
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": write.node},
        }
        await self._client.request("POST", PODS.path(*pod.key, "binding"), body=body)
        # The answer is not the pod, so what it has become is said by us.
        self._absorb(PODS, "bound", msgspec.structs.replace(pod, spec={**pod.spec, "nodeName": write.node}))
        return pod.name

    async def _request(
        self,
        resource: Resource[Object],
        method: str,
        path: str,
        *,
        body: object = None,
        content_type: str = "application/json",
    ) -> Object | None:
        """The object in the answer; None where a deletion was answered by a Status."""
        data = await self._client.request(method, path, body=body, content_type=content_type)
        try:
            value = parse_object(resource, data).value
        except msgspec.DecodeError:
            if method == "DELETE":
                return None
            raise NonsenseError(f"this is no {resource.kind}", where=f"{method} {path}") from None
        if isinstance(value, InvalidObjectError):
            raise value
        return value

    def _tell(self, event: Event, component: str, name: str = "") -> None:
        if len(self._telling) >= WAITING_EVENTS:
            return
        task = asyncio.create_task(self._create_event(event, component, name), name=f"event {event.reason}")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _create_event(self, event: Event, component: str, name: str) -> None:
        source = self._sources.get(component)
        if source is None:
            source = self._sources[component] = KubernetesSource(self._client, component=component)
        about = ObjectReference(
            api_version=event.about.api_version,
            kind=event.about.kind,
            namespace=event.about.namespace,
            name=event.about.name,
            uid=event.about.uid,
        )
        try:
            async with self._event_slots:
                await source.create_event(
                    about,
                    reason=event.reason,
                    message=event.message.replace("{name}", name),
                    warning=event.warning,
                )
        except PoplinError as error:
            log.debug("event %s: %s", event.reason, error)
