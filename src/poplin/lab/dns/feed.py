"""What the API says, into a zone: three watches. Out of reach of the API, the zone stays what it was."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Final

from poplin.datastore.kubernetes import KubernetesSource
from poplin.datastore.resource import Resource
from poplin.datastore.source import Deleted, Put, Rejected, Replaced, Unavailable
from poplin.lab.controllers.object import ENDPOINT_SLICES, SERVICES, Key, Object, make_resource
from poplin.lab.dns.zone import Zone

log = logging.getLogger(__name__)

NAMESPACES: Final = make_resource("", "v1", "namespaces", "Namespace", namespaced=False)


class Feed:
    """Fills `zone`. `ready` is set when all that there is has been read once."""

    def __init__(self, source: KubernetesSource, zone: Zone) -> None:
        self._source = source
        self._zone = zone
        self.ready = asyncio.Event()
        self._waiting = {SERVICES, ENDPOINT_SLICES, NAMESPACES}

    async def run(self) -> None:
        """Follow until cancelled."""
        zone = self._zone
        async with asyncio.TaskGroup() as tasks:
            for resource, put, remove in (
                (SERVICES, zone.put_service, zone.remove_service),
                (ENDPOINT_SLICES, zone.put_slice, zone.remove_slice),
                (NAMESPACES, zone.put_namespace, zone.remove_namespace),
            ):
                tasks.create_task(self._follow(resource, put, remove), name=f"watch of {resource}")

    async def _follow(
        self, resource: Resource[Object], put: Callable[[Object], None], remove: Callable[[Key], None]
    ) -> None:
        known: set[Key] = set()

        def forget(keys: Iterable[Key]) -> None:
            for key in keys:
                remove(key)
            known.difference_update(keys)

        async with aclosing(self._source.watch(resource)) as events:
            async for event in events:
                match event:
                    case Replaced(objects):
                        forget(known - {one.key for one in objects})
                        for one in objects:
                            put(one)
                            known.add(one.key)
                        self._waiting.discard(resource)
                        if not self._waiting:
                            self.ready.set()
                    case Put(one):
                        put(one)
                        known.add(one.key)
                    case Deleted(namespace, name):
                        forget([(namespace, name)])
                    case Rejected(error):
                        forget([(error.namespace, error.name)])
                    case Unavailable(error):
                        log.warning("watch out of sync", extra={"watch": str(resource), "error": str(error)})
