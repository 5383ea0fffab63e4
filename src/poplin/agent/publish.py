"""What the agent tells the cluster of its node: the lease that peers read, a condition, and Events."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from poplin.compile.lease import annotate
from poplin.compile.network import Network
from poplin.datastore.source import Source
from poplin.model.cluster import ConditionStatus, Node, NodeCondition, ObjectReference
from poplin.model.errors import PoplinError, TemporaryError

log = logging.getLogger(__name__)

RETRY_S: Final = (0.2, 0.5, 1.0, 2.0)
"""Waits before a write is tried again after failures in a row; the last one repeats."""

PATIENCE_S: Final = 5.0
"""How long something is wrong before an Event says so: a node that joins has no podCIDR for a moment."""

NETWORK_UP: Final = NodeCondition(
    type="NetworkUnavailable",
    status=ConditionStatus.FALSE,
    reason="PoplinIsUp",
    message="Poplin is running on this node",
)


class Publisher:
    """Writes to one node's object, and only what differs from what the node's watch shows.

    It runs beside the reconcile loop, which an API server that hangs must not stop.
    """

    def __init__(
        self,
        source: Source,
        node_name: str,
        published: Callable[[], None],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._source = source
        self._node_name = node_name
        self._published = published
        self._patience_s = patience_s
        self._news = asyncio.Event()
        self._node: Node | None = None
        self._network: Network | None = None
        self._hold: PoplinError | None = None
        self._told = ""
        self._noticed = ""
        self._told_from_s = 0.0
        self._written_to: Node | None = None
        self._written: dict[str, str] = {}
        self.not_published: PoplinError | None = TemporaryError("the node's network is not up yet")

    def offer(self, node: Node | None, network: Network | None, hold: PoplinError | None) -> None:
        """Take in the newest state: `network` if it stands in the kernel, `hold` if it cannot be computed."""
        self._node, self._network, self._hold = node, network, hold
        self._news.set()

    async def run(self) -> None:
        """Publish what is offered, trying again after failures, for ever."""
        failed = 0
        while True:
            again = failed or self._noticed != self._told
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S[min(failed, len(RETRY_S)) - 1] if again else None):
                    await self._news.wait()
            self._news.clear()
            try:
                await self._publish()
            except PoplinError as error:
                failed += 1
                if str(error) != str(self.not_published):
                    log.warning("not published", extra={"error": str(error)})
                self.not_published = error
            else:
                failed = 0

    async def _publish(self) -> None:
        node, network = self._node, self._network
        if node is None:
            return
        await self._tell(node, self._hold)
        if network is None:
            return
        wanted = annotate(network.lease)
        missing = {key: value for key, value in wanted.items() if node.annotations.get(key) != value}
        unpublished = missing or node.network_unavailable is not ConditionStatus.FALSE
        # What was written shows in the watch a moment later; until then the node is the same object.
        if unpublished and not (node is self._written_to and wanted == self._written):
            await self._source.patch_node(self._node_name, missing, [NETWORK_UP])
            self._written_to, self._written = node, wanted
            log.info("lease published", extra={"annotations": missing})
        self.not_published = None
        self._published()

    async def _tell(self, node: Node, problem: PoplinError | None) -> None:
        """Make an Event of what has kept the node from being served for a while, once for each reason."""
        reason = str(problem) if problem else ""
        now_s = asyncio.get_running_loop().time()
        if reason != self._noticed:
            self._noticed, self._told_from_s = reason, now_s + self._patience_s
        if reason == self._told or (reason and now_s < self._told_from_s):
            return
        if reason:
            about = ObjectReference("Node", node.name, uid=node.uid)
            await self._source.create_event(about, reason="PodNetworkNotReady", message=reason, warning=True)
        self._told = reason
