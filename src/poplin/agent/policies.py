"""Policy on the event loop: the watches it depends on, the thread that enforces it, and who waits for it."""

import asyncio
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from typing import Final, TypeVar

from poplin.agent.announce import Announcer
from poplin.agent.cluster import View
from poplin.agent.enforcer import Change, Enforcer, Written
from poplin.agent.flows import Seen
from poplin.datastore.core import NAMESPACES, NODES, POLICY_PODS
from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.datastore.parse import InvalidObjectError
from poplin.datastore.resource import ClusterObject, Resource
from poplin.datastore.source import Deleted, Put, Rejected, Replaced, Source, WatchEvent
from poplin.model.attachment import Attachment
from poplin.model.cluster import Namespace, NetworkPolicy, Pod
from poplin.model.errors import PoplinError, TemporaryError
from poplin.model.flow import Flow

log = logging.getLogger(__name__)

T = TypeVar("T", bound=ClusterObject)
R = TypeVar("R")

ADMIT_S: Final = 10.0
"""How long an ADD waits for its pod's policy. The runtime tries again after an error."""

RETRY_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits before the table is tried again after failures in a row; the last one repeats."""

SWEEP_S: Final = 0.005
"""How long connections are looked through before a change of policy has its turn."""


class Policies:
    """Keeps the node's policy in force. Nothing is written before all watches have delivered their first list.

    A list is believed of a server that knows this node: one that has lost its data must not lift policy.
    `attachments` gives those that stand when the agent starts; later ones come by `admit`.
    """

    def __init__(self, source: Source, node: str, attachments: Callable[[], list[Attachment]]) -> None:
        self._source = source
        self._node = node
        self._attachments = attachments
        self._announcer = Announcer(source)
        self._enforcer = Enforcer(node)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self.pods: View[Pod] = View("pods")
        self.policies: View[NetworkPolicy] = View("networkpolicies")
        self._namespaces: View[Namespace] = View("namespaces")
        self._changes: list[Change] = []
        self._waiting: list[asyncio.Future[int]] = []
        self._wanted = asyncio.Event()
        self._in_sync = asyncio.Event()
        self._sweep_due = False
        self._failed_in_a_row = 0
        self._written_once = False
        self._unproven = False  # a list came, and the server has not been asked for this node since
        self.failure: PoplinError | None = None
        self.ports = self._enforcer.ports

    def close(self) -> None:
        """Wait for the work under way."""
        self._thread.shutdown()
        self._enforcer.close()

    @property
    def not_in_force(self) -> PoplinError | None:
        """Why policy is not in force as the cluster wants it, None where it is."""
        views: tuple[View[Pod] | View[NetworkPolicy] | View[Namespace], ...]
        views = self.policies, self._namespaces, self.pods
        return self.failure or next((view.not_in_sync for view in views if view.not_in_sync), None)

    @property
    def problems(self) -> Iterator[str]:
        """What of the policies cannot be honoured, and why."""
        yield from map(str, self.policies.rejected.values())
        yield from map(str, self.pods.rejected.values())
        for policy in self.policies.objects.values():
            yield from (f"NetworkPolicy {policy.namespace}/{policy.name}: {text}" for text in policy.problems)

    def matter(self) -> bool:
        """Whether there is any policy, or may be. Without, nothing need be known of a pod."""
        return not self._in_sync.is_set() or bool(self.policies.objects or self.policies.rejected)

    def suspect(self) -> None:
        """Have the table read anew, and put right."""
        self._change(Enforcer.forget)

    async def audit(self) -> int:
        """Have the table and the connections looked at, wait for the end, and give how many operations it took."""
        self._sweep_due = self._in_sync.is_set()
        self.suspect()
        if self._in_sync.is_set():
            with suppress(PoplinError):  # which stays, as `failure`
                return await self._written()
        return 0

    async def admit(self, attachment: Attachment) -> None:
        """Return when the policy of what has just been attached is in force. Raises PoplinError where it cannot be."""
        self._change(lambda enforcer: enforcer.attach(attachment))
        if not self.matter():
            return
        try:
            async with asyncio.timeout(ADMIT_S):
                await self._in_sync.wait()
                if self.matter():
                    self._announcer.announce(attachment)
                    await self._learn(attachment)
                    await self._written()
        except TimeoutError:
            raise TemporaryError(
                f"the pod's policy is not in force after {ADMIT_S:.0f} s: {self.not_in_force or 'busy'}",
                remedy="see `poplin status`",
            ) from None

    def dismiss(self, attachment: Attachment) -> None:
        """Forget an attachment."""
        self._announcer.forget(attachment)
        self._change(lambda enforcer: enforcer.detach(attachment))

    async def describe(self, seen: Sequence[Seen], time_s: float) -> list[Flow | None]:
        """See `poplin.agent.flows.Describe`."""
        return await self._in_thread(lambda: self._enforcer.describe(seen, time_s))

    async def run(self) -> None:
        """Watch and enforce, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(NAMESPACES, self._namespaces, _of_namespaces), name="namespaces")
            tasks.create_task(self._follow(NETWORK_POLICIES, self.policies, _of_policies), name="policies")
            tasks.create_task(self._follow(POLICY_PODS, self.pods, _of_pods), name="pods")
            tasks.create_task(self._announcer.run(), name="announcements")
            tasks.create_task(self._enforce(), name="policy")

    async def _follow(
        self,
        resource: Resource[T],
        view: View[T],
        translate: Callable[[WatchEvent[T]], Change | None],
    ) -> None:
        async with aclosing(self._source.watch(resource)) as events:
            async for event in events:
                self._unproven |= isinstance(event, Replaced)
                if view.apply(event):
                    change = translate(event)
                    if change is not None:
                        self._change(change)
                    elif self._unproven:
                        self._wanted.set()
                if not self._in_sync.is_set() and self._all_filled():
                    for attachment in self._attachments():
                        self._change(partial(_attach, attachment=attachment))
                    self._in_sync.set()
                    self._wanted.set()

    def _all_filled(self) -> bool:
        return self.pods.filled and self.policies.filled and self._namespaces.filled

    def _change(self, change: Change) -> None:
        self._changes.append(change)
        self._wanted.set()

    async def _learn(self, attachment: Attachment) -> None:
        """Ask for the pod where the watch has not shown it yet."""
        name, namespace = attachment.pod_name, attachment.pod_namespace
        known = self.pods.objects.get((namespace, name))
        if not name or (known is not None and attachment.pod_uid in {"", known.uid}):
            return
        try:
            pod = await self._source.get(POLICY_PODS, name, namespace=namespace)
        except InvalidObjectError:
            self._change(lambda enforcer: enforcer.refuse_pod(namespace, name))
            return
        if pod is not None:
            self._change(lambda enforcer: enforcer.put_pod(pod))

    async def _written(self) -> int:
        """Wait until all changes so far are in force, and give the operations. Raises what kept them from it."""
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(written)
        self._wanted.set()
        return await written

    async def _enforce(self) -> None:
        await self._in_sync.wait()
        self._sweep_due = True
        while True:
            await self._wait()
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            operations = 0
            try:
                if self._changes or waiting or self._failed_in_a_row:
                    await self._prove_lists()
                    changes, self._changes = self._changes, []
                    written = await self._in_thread(partial(self._write, changes))
                    self._sweep_due |= written.concerns_standing
                    self._tell(written)
                    operations = written.operations
                self._end(waiting, operations)
                if self._sweep_due and not self._changes:
                    self._sweep_due = not await self._in_thread(lambda: self._enforcer.sweep(SWEEP_S))
            except PoplinError as error:
                self._enforcer.forget()
                self._failed_in_a_row += 1
                if str(error) != str(self.failure):
                    log.warning("policy not in force", extra={"error": str(error)})
                self.failure = error
                self._end(waiting, error)

    async def _prove_lists(self) -> None:
        """Raise PoplinError where a list came from a server that does not know this node, or a newer one is due.

        What has been listed meanwhile is then written as one with it: policy is at no time less than the cluster's.
        """
        if not self._unproven:
            return
        self._unproven = False
        try:
            with suppress(InvalidObjectError):  # it is there all the same
                if await self._source.get(NODES, self._node) is None:
                    raise TemporaryError(
                        "is not among the cluster's nodes: policy stays as it was", where=f"node {self._node}"
                    )
            for view in (self.policies, self._namespaces, self.pods):
                if view.not_in_sync is not None:
                    raise view.not_in_sync
        except PoplinError:
            self._unproven = True
            raise

    async def _wait(self) -> None:
        """Wait for a change, for the rest of the connections, or to try again."""
        wait_s: float | None = None
        if self._failed_in_a_row:
            wait_s = RETRY_S[min(self._failed_in_a_row, len(RETRY_S)) - 1]
        elif self._sweep_due:
            return
        try:
            async with asyncio.timeout(wait_s):
                await self._wanted.wait()
        except TimeoutError:
            pass

    def _write(self, changes: list[Change]) -> Written:
        """The first time brings the whole cluster: what stays is not looked through for garbage, then or later."""
        first, self._written_once = not self._written_once, True
        if first:
            gc.disable()
        try:
            for change in changes:
                change(self._enforcer)
            return self._enforcer.write()
        finally:
            if first:
                gc.freeze()
                gc.enable()

    def _tell(self, written: Written) -> None:
        if self.failure is not None:
            log.info("policy in force again")
        self.failure, self._failed_in_a_row = None, 0
        if written.operations:
            log.debug("policy written", extra={"operations": written.operations})

    @staticmethod
    def _end(waiting: list[asyncio.Future[int]], result: int | PoplinError) -> None:
        for one in waiting:
            if one.done():
                continue
            if isinstance(result, PoplinError):
                one.set_exception(result)
            else:
                one.set_result(result)

    async def _in_thread(self, function: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _attach(enforcer: Enforcer, attachment: Attachment) -> None:
    enforcer.attach(attachment)


def _of_namespaces(event: WatchEvent[Namespace]) -> Change | None:
    match event:
        case Replaced(objects):
            return lambda enforcer: enforcer.replace_namespaces(objects)
        case Put(namespace):
            return lambda enforcer: enforcer.put_namespace(namespace)
        case Deleted(_, name):
            return lambda enforcer: enforcer.delete_namespace(name)
    return None


def _of_policies(event: WatchEvent[NetworkPolicy]) -> Change | None:
    match event:
        case Replaced(objects, rejected):
            return lambda enforcer: enforcer.replace_policies(objects, rejected)
        case Put(policy):
            return lambda enforcer: enforcer.put_policy(policy)
        case Rejected(error):
            return lambda enforcer: enforcer.put_policy(error)
        case Deleted(namespace, name):
            return lambda enforcer: enforcer.delete_policy(namespace, name)
    return None


def _of_pods(event: WatchEvent[Pod]) -> Change | None:
    match event:
        case Replaced(objects, rejected):
            return lambda enforcer: enforcer.replace_pods(objects, rejected)
        case Put(pod):
            return lambda enforcer: enforcer.put_pod(pod)
        case Rejected(error):
            return lambda enforcer: enforcer.refuse_pod(error.namespace, error.name)
        case Deleted(namespace, name):
            return lambda enforcer: enforcer.delete_pod(namespace, name)
    return None
