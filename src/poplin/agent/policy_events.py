"""Events that tell the authors of policies what of them cannot be honoured."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Final

from poplin.agent.cluster import View
from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.datastore.source import Source
from poplin.model.cluster import NetworkPolicy, Node, ObjectReference
from poplin.model.errors import PoplinError

log = logging.getLogger(__name__)

PERIOD_S: Final = 2.0
REASON: Final = "PolicyNotHonoured"


class PolicyEvents:
    """Makes an Event of each problem of each policy, once.

    All nodes find the same problems; the one whose name comes first speaks for all.
    """

    def __init__(
        self,
        source: Source,
        node: str,
        nodes: View[Node],
        policies: View[NetworkPolicy],
    ) -> None:
        self._source = source
        self._node = node
        self._nodes = nodes
        self._policies = policies
        self._told: set[tuple[ObjectReference, str]] = set()

    async def run(self) -> None:
        """Look at the policies now and then, for ever."""
        while True:
            await asyncio.sleep(PERIOD_S)
            await self.tell()

    async def tell(self) -> None:
        """Make the Events that are due."""
        if self._node != min((node.name for node in self._nodes.objects.values()), default=""):
            return
        found = set(self._problems())
        self._told &= found
        for about, text in sorted(found - self._told, key=str):
            try:
                await self._source.create_event(about, reason=REASON, message=text, warning=True)
            except PoplinError as error:
                log.debug("event not made: %s", error)
                return
            self._told.add((about, text))

    def _problems(self) -> Iterator[tuple[ObjectReference, str]]:
        for policy in self._policies.objects.values():
            for text in policy.problems:
                yield _reference(policy.namespace, policy.name, policy.uid), text
        for error in self._policies.rejected.values():
            text = f"{error.what}; every pod of the namespace is closed"
            yield _reference(error.namespace, error.name), text


def _reference(namespace: str, name: str, uid: str = "") -> ObjectReference:
    kind = NETWORK_POLICIES
    return ObjectReference(kind.kind, name, namespace, uid, kind.api_version)
