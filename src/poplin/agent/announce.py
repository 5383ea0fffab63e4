"""Tells the cluster a pod's addresses as soon as it has them: other nodes' policy needs them before its first packet.

kubelet's status of the pod says the same, but only when the pod's containers run.
"""

import asyncio
import logging
from typing import Final

from poplin.datastore.core import POD_IPS
from poplin.datastore.source import Source
from poplin.model.attachment import Attachment
from poplin.model.errors import PoplinError

log = logging.getLogger(__name__)

AT_ONCE: Final = 8
"""How many pods are told of at the same time."""

RETRY_S: Final = 1.0


class Announcer:
    """Writes annotations of pods, off the way of their ADD."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._due: dict[tuple[str, str], Attachment] = {}
        self._news = asyncio.Event()

    def announce(self, attachment: Attachment) -> None:
        """Have the addresses told. Of what is no pod there is nothing to tell."""
        if attachment.pod_name and attachment.addresses:
            self._due[attachment.pod_namespace, attachment.pod_name] = attachment
            self._news.set()

    def forget(self, attachment: Attachment) -> None:
        """Tell nothing of an attachment that is no more."""
        key = attachment.pod_namespace, attachment.pod_name
        if self._due.get(key) is attachment:
            del self._due[key]

    async def run(self) -> None:
        """Tell what is due, trying again after failures, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._due:
                some = list(self._due.values())[:AT_ONCE]
                told = await asyncio.gather(*(self._tell(one) for one in some))
                for attachment, done in zip(some, told, strict=True):
                    if done:
                        self.forget(attachment)
                if not all(told):
                    await asyncio.sleep(RETRY_S)

    async def _tell(self, attachment: Attachment) -> bool:
        namespace, name = attachment.pod_namespace, attachment.pod_name
        annotation = {POD_IPS: ",".join(map(str, attachment.addresses))}
        try:
            await self._source.annotate_pod(namespace, name, annotation, uid=attachment.pod_uid)
        except PoplinError as error:
            log.warning("addresses not announced", extra={"pod": f"{namespace}/{name}", "error": str(error)})
            return False
        return True
