"""Services as variables of containers, as they were found before there was DNS.

Source: Kubernetes documentation, "Service" (discovering services, environment variables); API reference,
enableServiceLinks.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from typing import Final

from poplin.datastore.kubernetes import KubernetesSource
from poplin.datastore.source import Deleted, Put, Replaced, Unavailable
from poplin.lab.controllers.object import SERVICES, Key, Object
from poplin.lab.kubelet.document import Pod

log = logging.getLogger(__name__)

MASTER: Final[Key] = ("default", "kubernetes")
"""The API itself, which every pod is told of."""


class ServiceVariables:
    """Follows the Services of a cluster. No container is started before they are known."""

    def __init__(self, source: KubernetesSource) -> None:
        self._source = source
        self._services: dict[Key, Object] = {}
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with aclosing(self._source.watch(SERVICES)) as events:
            async for event in events:
                match event:
                    case Replaced(objects):
                        self._services = {one.key: one for one in objects}
                        self._ready.set()
                    case Put(one):
                        self._services[one.key] = one
                    case Deleted(namespace, name):
                        self._services.pop((namespace, name), None)
                    case Unavailable(error):
                        log.warning("watch out of sync", extra={"watch": "services", "error": str(error)})

    async def of_pod(self, pod: Pod) -> dict[str, str]:
        """The variables that a pod's containers get."""
        await self._ready.wait()
        links = pod.spec.get("enableServiceLinks", True)
        chosen = [one for one in self._services.values() if links and one.namespace == pod.namespace]
        # The pod's namespace may have a Service of the same name, which then is meant.
        master = self._services.get(MASTER)
        return make_variables(([master] if master else []) + chosen)


def make_variables(services: Iterable[Object]) -> dict[str, str]:
    """The variables of Services that have an address."""
    variables: dict[str, str] = {}
    for service in services:
        address = service.spec.get("clusterIP")
        if address and address != "None" and service.spec.get("ports"):
            variables.update(_describe(service, address))
    return variables


def _describe(service: Object, address: str) -> Iterator[tuple[str, str]]:
    prefix = _spell(service.name)
    ports = service.spec["ports"]
    yield f"{prefix}_SERVICE_HOST", address
    yield f"{prefix}_SERVICE_PORT", str(ports[0]["port"])
    for port in ports:
        if port.get("name"):
            yield f"{prefix}_SERVICE_PORT_{_spell(port['name'])}", str(port["port"])
    host = f"[{address}]" if ":" in address else address
    for index, port in enumerate(ports):
        protocol, number = port.get("protocol") or "TCP", port["port"]
        url = f"{protocol.lower()}://{host}:{number}"
        if index == 0:
            yield f"{prefix}_PORT", url
        name = f"{prefix}_PORT_{number}_{protocol}"
        yield from (
            (name, url),
            (f"{name}_PROTO", protocol.lower()),
            (f"{name}_PORT", str(number)),
            (f"{name}_ADDR", address),
        )


def _spell(name: str) -> str:
    return name.upper().replace("-", "_")
