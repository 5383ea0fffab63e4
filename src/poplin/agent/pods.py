"""The CNI commands, done: an attachment is durable before the kernel knows of it, and undone on failure."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import Final, Protocol, TypeVar

from poplin.agent.host_ports import HostPorts
from poplin.agent.registry import Registry
from poplin.agent.wiring import Wirer, differences
from poplin.cni.deletions import forget_deletion, is_deleted, read_deletions
from poplin.cni.error import CniError, ErrorCode
from poplin.cni.protocol import Request
from poplin.cni.result import Interface, IPConfig, Result, Route
from poplin.compile.network import Network
from poplin.compile.pod import DEFAULT_ROUTE, GATEWAY, default_route_metric
from poplin.datastore.attachments import checkpoint
from poplin.model.attachment import HOST_MAC, Attachment, AttachmentState, host_link_name, pod_mac
from poplin.model.errors import PoplinError

log = logging.getLogger(__name__)

T = TypeVar("T")

REAP_DELAY_S: Final = 0.05
"""How long detached links wait for others: destroying many costs what destroying one does."""

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

ATTACHMENTS: Final = "attachments.db"
"""The store's file in the state directory."""

WIRING_THREADS: Final = 4
"""How many pods are wired at once. The kernel's lock lets one through at a time, and more only wait."""

LOOK_S: Final = 1.0
"""How long after an ADD the pod is looked at again. A plugin behind ours (`tuning`) may set the MAC: the
kernel then drops the pod's permanent neighbours. Where the agent may not hear of that, this look mends it."""


class Admission(Protocol):
    """Who has a pod's policy in force."""

    async def admit(self, attachment: Attachment) -> None:
        """Return when it is. Raises PoplinError where it cannot be."""
        ...

    def dismiss(self, attachment: Attachment) -> None:
        """Forget what was admitted, or not even that."""
        ...


class Pods:
    """Serves CNI (`poplin.cni.server.Handler`).

    `network` gives the node's network, or raises why not; `attached` hears of each pod, by its host link,
    when the plugins behind ours have had their time with it. `look` has the kernel read anew: what a failed
    ADD has left there is nobody's. `policies` has each pod's policy in force before its ADD is answered.
    """

    def __init__(
        self,
        registry: Registry,
        host_ports: HostPorts,
        state_dir: Path,
        network: Callable[[], Network],
        attached: Callable[[str], None],
        look: Callable[[], None],
        hear: Callable[[], None],
        policies: Admission,
    ) -> None:
        self._registry = registry
        self._host_ports = host_ports
        self._state_dir = state_dir
        self._network = network
        self._attached = attached
        self._look = look
        self._hear = hear
        self._policies = policies
        self._wirer = Wirer(WIRING_THREADS)
        self._threads = ThreadPoolExecutor(WIRING_THREADS, thread_name_prefix="wiring")
        self._at_work = 0
        self._remains = False
        self._undone: set[tuple[str, str]] = set()
        self._troubles: dict[str, str] = {}
        self._leaving = asyncio.Event()
        self.ports = self._wirer.ports

    def close(self) -> None:
        """Wait for the wiring under way, and close its sockets."""
        self._threads.shutdown()
        self._wirer.close()

    async def add(self, request: Request, netns_fd: int) -> Result:
        """Attach a pod: address, veth, routes, neighbours, and its host ports."""
        network = self._network()
        self._registry.serve(network.pod_cidrs)
        key = request.container_id, request.ifname
        if is_deleted(self._state_dir, *key):
            await self._delete(key)
        draft = Attachment(
            container_id=request.container_id,
            ifname=request.ifname,
            netns=request.netns,
            addresses=(),
            mac=request.requested_mac or pod_mac(request.container_id, request.ifname),
            mtu_bytes=network.pod_mtu_bytes,
            host_link=host_link_name(request.container_id, request.ifname),
            pod_namespace=request.pod.namespace,
            pod_name=request.pod.name,
            pod_uid=request.pod.uid,
            port_mappings=request.port_mappings,
            ingress=request.ingress,
            egress=request.egress,
        )
        attachment = self._registry.reserve(draft, request.requested_addresses, request.address_ranges)
        try:
            netns_cookie = await self._at_once(lambda: self._wire(attachment, netns_fd))
            await self._policies.admit(attachment)
            self._registry.confirm(attachment, netns_cookie)
        except BaseException:
            await self._undo(attachment)
            raise
        loop = asyncio.get_running_loop()
        loop.call_soon(self._hear_of, attachment.host_link)  # when the plugin has its answer
        loop.call_later(LOOK_S, self._attached, attachment.host_link)
        return result_of(attachment)

    async def delete(self, request: Request, netns_fd: int | None) -> None:
        """Detach a pod. One that is not attached is success."""
        await self._delete((request.container_id, request.ifname), netns_fd)

    async def check(self, request: Request, netns_fd: int) -> None:
        """Find what of an attachment does not stand as it was made."""
        attachment = self._registry.get((request.container_id, request.ifname))
        if attachment is None:
            raise CniError(
                ErrorCode.UNKNOWN_CONTAINER, f"{request.ifname} of {request.container_id} is not attached"
            )
        found = await self._in_thread(
            lambda: [*differences(attachment, netns_fd), *self._host_ports.missing(attachment)]
        )
        found += contradictions(attachment, request.previous_result)
        if found:
            raise CniError(ErrorCode.FAILED, f"{request.ifname} is not as it was made", "; ".join(found))

    async def gc(self, request: Request) -> None:
        """Detach everything but the attachments named; go on after an error, and report all."""
        errors = []
        valid = {host_link_name(*key) for key in request.valid_attachments}
        for attachment in self._registry.all():
            if attachment.host_link in valid or attachment.state is AttachmentState.ADDING:
                continue
            try:
                await self._delete(attachment.key)
            except PoplinError as error:
                errors.append(str(error))
        if errors:
            raise CniError(ErrorCode.FAILED, f"{len(errors)} attachments remain", "; ".join(errors))

    async def status(self) -> None:
        """Say whether an ADD can be served, by raising why not."""
        self._network()
        if self._registry.problem is not None:
            raise self._registry.problem

    async def settle(self) -> None:
        """Undo what an agent before this one left half done, and forget pods that are gone: all, after a boot."""
        with self._reported("order among the attachments"):
            rebooted = self._registry.boot(BOOT_ID.read_text().strip())
            for attachment in self._registry.all():
                half_made = attachment.state is AttachmentState.ADDING
                if half_made or rebooted or await self._in_thread(partial(self._wirer.is_gone, attachment)):
                    log.info("attachment forgotten", extra={"attachment": attachment.key})
                    self._undone.add(attachment.key)
        await self.tidy()

    async def tidy(self) -> None:
        """Do what could not be done: deletions that poplin-cni has noted, ADDs not undone; fold the store's log."""
        with self._reported("upkeep of the store"):
            await self._in_thread(lambda: checkpoint(self._state_dir / ATTACHMENTS))
            if self._registry.problem is not None:
                self._registry.boot(BOOT_ID.read_text().strip())
        for key in {*self._undone, *read_deletions(self._state_dir)}:
            with self._reported(f"deletion of {key}"):
                await self._delete(key)

    async def reap(self) -> None:
        """Destroy the links of detached pods, many at a time, for ever."""
        while True:
            await self._leaving.wait()
            await asyncio.sleep(REAP_DELAY_S)
            self._leaving.clear()
            links = self._registry.leaving()
            try:
                await self._in_thread(self._wirer.reap)
            except PoplinError as error:
                log.warning("links not destroyed", extra={"error": str(error), "links": sorted(links)})
            self._registry.reaped(links)
            if self._remains:
                self._remains = False
                self._look()

    async def _undo(self, attachment: Attachment) -> None:
        """Undo an ADD that failed, and forget it even where the kernel keeps something of it.

        That is no attachment's then, and the look at the kernel that is asked for takes it away.
        """
        self._registry.claim(attachment)
        with self._reported(f"undoing ADD of {attachment.key}"):
            try:
                await self._in_thread(lambda: self._unwire(attachment))
            except PoplinError:
                self._remains = True
                raise
            finally:
                self._undone.add(attachment.key)
                self._release(attachment)
                self._undone.discard(attachment.key)

    async def _delete(self, key: tuple[str, str], netns_fd: int | None = None) -> None:
        attachment = self._registry.get(key)
        if attachment is not None:
            self._registry.claim(attachment)
            await self._in_thread(lambda: self._detach(attachment, netns_fd))
            self._release(attachment)
        self._undone.discard(key)
        forget_deletion(self._state_dir, *key)

    @contextmanager
    def _reported(self, task: str) -> Iterator[None]:
        """Go on after a failure of something that is tried again, and log it once."""
        try:
            yield
        except PoplinError as error:
            if self._troubles.get(task) != str(error):
                log.warning("not done yet", extra={"task": task, "error": str(error)})
            self._troubles[task] = str(error)
        else:
            self._troubles.pop(task, None)

    def _hear_of(self, host_link: str) -> None:
        """Hear the kernel out about the making of a pod: from here on, what it tells of the pod is amiss."""
        self._hear()
        self._registry.told(host_link)

    def _wire(self, attachment: Attachment, netns_fd: int) -> int:
        netns_cookie = self._wirer.wire(attachment, netns_fd)
        if attachment.port_mappings:
            self._host_ports.publish(attachment)
        return netns_cookie

    def _unwire(self, attachment: Attachment) -> None:
        self._wait_for_pass()
        try:
            self._wirer.unwire(attachment)
        finally:
            if attachment.port_mappings:
                self._host_ports.withdraw(attachment)

    def _detach(self, attachment: Attachment, netns_fd: int | None) -> None:
        # In this order: the table also keeps a pod whose link leads to it off the node's loopback.
        self._wait_for_pass()
        try:
            self._wirer.detach(attachment, netns_fd)
        finally:
            if attachment.port_mappings:
                self._host_ports.withdraw(attachment)

    def _wait_for_pass(self) -> None:
        """Return when no pass is left that does not know of what is claimed."""
        with self._registry.passing:
            pass

    def _release(self, attachment: Attachment) -> None:
        self._registry.release(attachment)
        self._policies.dismiss(attachment)
        self._leaving.set()

    async def _at_once(self, function: Callable[[], T]) -> T:
        """Run on the event loop while no thread holds the kernel's lock, else in a thread.

        To make a pod takes a millisecond, and to hand that to a thread and back another half.
        """
        return await self._in_thread(function) if self._at_work else function()

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Run to the end in a thread, whatever becomes of the caller: a half-made pod has to be undone."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, function)
        self._at_work += 1
        future.add_done_callback(self._end)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def _end(self, _future: asyncio.Future[T]) -> None:
        self._at_work -= 1


def contradictions(attachment: Attachment, previous: Result | None) -> list[str]:
    """Name what a chain's result says of the attachment's interface and the attachment does not, addresses both ways.

    A MAC or an MTU may be another plugin's, and is looked for nowhere.
    """
    if previous is None:
        return []
    ours = {i for i, one in enumerate(previous.interfaces) if one.sandbox and one.name == attachment.ifname}
    if not ours:
        return [f"not in prevResult: interface {attachment.ifname}"]
    said = {ip.address.ip for ip in previous.ips if ip.interface in ours}
    return [
        *(f"not in prevResult: {address}" for address in attachment.addresses if address not in said),
        *(f"only in prevResult: {address}" for address in sorted(said - set(attachment.addresses), key=str)),
    ]


def result_of(attachment: Attachment) -> Result:
    """Give the CNI result: the host's interface, the pod's, its addresses and default routes."""
    a = attachment
    return Result(
        interfaces=(
            Interface(a.host_link, HOST_MAC, a.mtu_bytes),
            Interface(a.ifname, a.mac, a.mtu_bytes, a.netns),
        ),
        ips=tuple(IPConfig(ip_interface(ip), GATEWAY[ip.version], interface=1) for ip in a.addresses),
        routes=tuple(
            Route(
                DEFAULT_ROUTE[ip.version],
                GATEWAY[ip.version],
                priority=default_route_metric(a.ifname) or None,
            )
            for ip in a.addresses
        ),
    )
