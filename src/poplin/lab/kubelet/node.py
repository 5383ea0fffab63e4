"""A node's own objects: the Node with its addresses and conditions, and the Lease that says it lives."""

import asyncio
import logging
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from poplin import __version__
from poplin.datastore.client import JSON, JSON_MERGE, STRATEGIC_MERGE, ApiClient, RefusedError
from poplin.lab.controllers.object import LEASES, NODES, Json, format_time
from poplin.lab.fabric import read_uplink
from poplin.lab.kubelet.cni import find_conflist
from poplin.lab.kubelet.place import NodePlace
from poplin.model.errors import PoplinError
from poplin.model.kernel import IPAddress

log = logging.getLogger(__name__)

LEASE_NAMESPACE: Final = "kube-node-lease"
LEASE_S: Final = 40
RENEW_S: Final = 10.0
STATUS_S: Final = 300.0
"""Least often that a status which stays the same is told again (kubelet's nodeStatusReportFrequency)."""

LOOK_S: Final = (0.05, 1.0)
"""How often the CNI configuration is looked for: before the node was ready for the first time, and after."""

PODS: Final = 250
CONDITIONS: Final = (
    ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
)


class NodeAgent:
    """Keeps one node in the API. `ready` is set while its CNI configuration is there; `addresses` are its interface's."""

    def __init__(self, place: NodePlace, client: ApiClient, runtime: str) -> None:
        self.place = place
        self.addresses = place.addresses
        self._runtime = runtime
        self.ready = asyncio.Event()
        self._client = client
        self._registered = False
        self._told: tuple[bool, Sequence[IPAddress]] | None = None
        self._told_at = 0.0
        self._renewed_at = 0.0
        self._since = datetime.now(UTC)

    async def run(self) -> None:
        """Register, then tell and renew until cancelled, through every failure."""
        while True:
            try:
                await self._keep()
            except PoplinError as error:
                log.warning("node not told", extra={"node": self.place.name, "error": str(error)})
                await asyncio.sleep(LOOK_S[1])
            await asyncio.sleep(LOOK_S[self._told is not None and self._told[0]])

    async def _keep(self) -> None:
        if not self._registered:
            await self._register()
            self._registered = True
        now = asyncio.get_running_loop().time()
        ready = find_conflist(self.place.files.cni_conf) is not None
        self.addresses = _choose_addresses(read_uplink(self.place.netns_fd), self.addresses)
        if (ready, self.addresses) != self._told or now - self._told_at > STATUS_S:
            await self._tell(ready=ready)
            self._told_at, self._told = now, (ready, self.addresses)
        if ready:
            self.ready.set()
        else:
            self.ready.clear()
        if not self._renewed_at or now - self._renewed_at > RENEW_S:
            await self._renew()
            self._renewed_at = now

    async def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self.place.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _architecture(),
        }
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.place.name, "labels": labels}}
        await self._create_or("POST", NODES.path(), body)

    async def _tell(self, *, ready: bool) -> None:
        if self._told is None or ready != self._told[0]:
            self._since = datetime.now(UTC)
        status = node_status(
            self.place.name,
            self.addresses,
            self._runtime,
            ready=ready,
            since=self._since,
            now=datetime.now(UTC),
        )
        path = NODES.path(name=self.place.name, subresource="status")
        await self._client.request("PATCH", path, body={"status": status}, content_type=STRATEGIC_MERGE)

    async def _renew(self) -> None:
        name = self.place.name
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": LEASE_S,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        path = LEASES.path(LEASE_NAMESPACE, name)
        try:
            await self._client.request("PATCH", path, body={"spec": spec}, content_type=JSON_MERGE)
        except RefusedError as error:
            if error.status != 404:
                raise
            metadata = {"name": name, "namespace": LEASE_NAMESPACE}
            body = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": metadata, "spec": spec}
            await self._create_or("POST", LEASES.path(LEASE_NAMESPACE), body)

    async def _create_or(self, method: str, path: str, body: Json) -> None:
        """Create; that it exists is success."""
        try:
            await self._client.request(method, path, body=body, content_type=JSON)
        except RefusedError as error:
            if error.status != 409:
                raise


def _choose_addresses(found: Sequence[IPAddress], told: Sequence[IPAddress]) -> list[IPAddress]:
    """Of each family one: that which was told as long as it is there, and where none is."""
    first = {address.version: address for address in reversed(found)}
    return [one if one in found else first.get(one.version, one) for one in told]


def node_status(
    name: str, addresses: Sequence[IPAddress], runtime: str, *, ready: bool, since: datetime, now: datetime
) -> Json:
    """The status that a kubelet reports, as a strategic merge (API reference, "NodeStatus")."""
    word = (
        ("KubeletReady", "kubelet is posting ready status")
        if ready
        else ("KubeletNotReady", "container runtime network not ready: cni config uninitialized")
    )
    told = [(kind, "False", reason, message) for kind, reason, message in CONDITIONS]
    told.append(("Ready", "True" if ready else "False", *word))
    resources = {"cpu": str(os.cpu_count() or 1), "memory": f"{_memory_bytes() >> 10}Ki", "pods": str(PODS)}
    return {
        "addresses": [
            *({"type": "InternalIP", "address": str(address)} for address in addresses),
            {"type": "Hostname", "address": name},
            # The list's merge key is its type, so that without this one InternalIP would take the other's place.
            {"$patch": "replace"},
        ],
        "capacity": resources,
        "allocatable": resources,
        "conditions": [
            {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": format_time(now),
                "lastTransitionTime": format_time(since),
            }
            for kind, value, reason, message in told
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "architecture": _architecture(),
            "bootID": "",
            "containerRuntimeVersion": runtime,
            "kernelVersion": platform.release(),
            "kubeProxyVersion": "",
            "kubeletVersion": f"v{__version__}-poplin-lab",
            "machineID": "",
            "operatingSystem": "linux",
            "osImage": "the machine's own",
            "systemUUID": "",
        },
    }


def _architecture() -> str:
    """The machine as Go names it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
