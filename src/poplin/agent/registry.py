"""The node's attachments: in memory, in their store, and as the reconcile pass is told of them.

Changes are made on the event loop; the pass takes them from its own thread by `snapshot`.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from poplin.compile.host_ports import clashes
from poplin.compile.pod import compile_pod
from poplin.datastore.attachments import AttachmentStore, Key
from poplin.ipam.pool import AddressRange, NodePool
from poplin.model.attachment import Attachment, AttachmentState, host_link_name, ifb_name
from poplin.model.errors import InvalidInputError, PoplinError, TemporaryError
from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.state import NetworkState
from poplin.plan.network import plan_network
from poplin.plan.operation import Operation, Remove

CHAIN_S: Final = 10.0
"""How long after its ADD an interface's MTU may be set by a plugin behind ours, as `tuning` does. After that
another MTU is damage."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Attachments that stand, and the links on the node of those being made or unmade just now.

    `news` are operations that the CNI server has done since the last snapshot, in their order. `young` are host
    links of pods that other plugins of their chain may still be at work on.
    """

    ready: tuple[Attachment, ...]
    claimed: frozenset[str]
    news: tuple[Operation, ...]
    young: frozenset[str] = frozenset()


class Registry:
    """Reserves addresses and keeps every attachment durable before the kernel knows of it."""

    def __init__(self, store: AttachmentStore) -> None:
        self._store = store
        self._attachments: dict[Key, Attachment] = {(a.container_id, a.ifname): a for a in store.all()}
        self._by_link = {a.host_link: a for a in self._attachments.values()}
        self._shaped = {key: a for key, a in self._attachments.items() if a.ingress or a.egress}
        self._mapped = {key: a for key, a in self._attachments.items() if a.port_mappings}
        self._pool: NodePool | None = None
        self._cidrs: tuple[IPNetwork, ...] = ()
        # Held by a pass from its snapshot on. Who unmakes a pod waits for its end once the pod's link is claimed:
        # else the pass would put back what is taken away.
        self.passing = threading.Lock()
        # Shared with the thread of the reconcile pass.
        self._lock = threading.Lock()
        self._claimed = {a.host_link for a in self.unfinished()}
        self._untold: set[str] = set()
        self._news: list[Operation] = []
        self._made_at_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._attachments)

    def serve(self, cidrs: tuple[IPNetwork, ...]) -> None:
        """Take addresses from these CIDRs from here on; those in use and resting stay so."""
        if cidrs == self._cidrs:
            return
        owners = {address: _owner(a) for a in self._attachments.values() for address in a.addresses}
        self._pool = NodePool.restore(cidrs, owners, self._store.resting(time.time()), now_s=time.monotonic())
        self._cidrs = cidrs

    @property
    def problem(self) -> PoplinError | None:
        """Give the reason why attachments cannot be stored now, None where they can."""
        return self._store.problem

    def boot(self, boot_id: str) -> bool:
        """Tell whether the attachments are of an earlier boot of the machine, whose pods are all gone."""
        return self._store.boot(boot_id)

    def standing_on(self, host_link: str) -> Attachment | None:
        """Give the attachment of a host link, None for none.

        None as well for one that is made or unmade just now, or of whose making the kernel may still tell.
        """
        attachment = self._by_link.get(host_link)
        return attachment if host_link not in self._claimed and host_link not in self._untold else None

    def host_links(self) -> list[str]:
        """Give the host links of all attachments."""
        return list(self._by_link)

    def unfinished(self) -> list[Attachment]:
        """Give the attachments that an agent before this one had begun to make."""
        return [a for a in self._attachments.values() if a.state is AttachmentState.ADDING]

    def all(self) -> list[Attachment]:
        """Give every attachment."""
        return list(self._attachments.values())

    def get(self, key: Key) -> Attachment | None:
        """Give an attachment, None where there is none.

        One that was taken over from the kernel alone has no container id that a runtime knows, and is found by
        the host link that such an id would have.
        """
        return self._attachments.get(key) or self._by_link.get(host_link_name(*key))

    def reserve(
        self, draft: Attachment, requested: Sequence[IPAddress], within: Sequence[AddressRange] = ()
    ) -> Attachment:
        """Give the draft its addresses, as `NodePool.allocate` chooses, and store it as ADDING.

        Raises PoplinError where the attachment stands already, TemporaryError where no address is free.
        """
        key = (draft.container_id, draft.ifname)
        if self.get(key) is not None:
            raise PoplinError(
                f"{draft.ifname} has been added already",
                where=f"container {draft.container_id}",
                remedy="delete the attachment first",
            )
        if self._pool is None:
            raise TemporaryError("the node has no pod CIDR yet", remedy="see `poplin status`")
        self._check_host_ports(draft)
        addresses = self._pool.allocate(
            _owner(draft), now_s=time.monotonic(), requested=requested, within=within
        )
        attachment = replace(draft, addresses=addresses, state=AttachmentState.ADDING)
        try:
            _check_families(attachment)
            self._store.add(attachment)
        except BaseException:
            self._pool.release(addresses, now_s=time.monotonic())
            raise
        self._attachments[key] = attachment
        self._by_link[attachment.host_link] = attachment
        with self._lock:
            self._claimed.add(attachment.host_link)
            if attachment.port_mappings:
                self._mapped[key] = attachment
            if attachment.ingress or attachment.egress:
                self._shaped[key] = attachment
        return attachment

    def _check_host_ports(self, draft: Attachment) -> None:
        for other in self._mapped.values() if draft.port_mappings else ():
            for theirs in other.port_mappings:
                for ours in draft.port_mappings:
                    if clashes(ours, theirs):
                        raise TemporaryError(
                            f"host port {ours.host_port}/{ours.protocol} belongs to {_owner(other)}",
                            where=_owner(draft),
                            remedy="delete that pod, or give one of the two another hostPort or node",
                        )

    def confirm(self, attachment: Attachment, netns_cookie: int = 0) -> None:
        """Say that the attachment's kernel objects stand, in the namespace of this cookie."""
        key = (attachment.container_id, attachment.ifname)
        ready = replace(attachment, state=AttachmentState.READY, netns_cookie=netns_cookie)
        self._store.update(ready)
        self._by_link[ready.host_link] = ready
        with self._lock:
            self._made_at_s[ready.host_link] = time.monotonic()
            self._attachments[key] = ready
            self._claimed.discard(attachment.host_link)
            self._untold.add(attachment.host_link)
            self._news += plan_network(compile_pod(attachment).host, NetworkState())

    def told(self, host_link: str) -> None:
        """Say that all the kernel tells of the making of a confirmed attachment has been heard."""
        self._untold.discard(host_link)

    def adopt(self, attachment: Attachment) -> bool:
        """Take the MAC and MTU over that others gave a pod's interface. Tell whether it still stands, as another."""
        standing = self._attachments.get(attachment.key)
        if standing is None or standing.state is not AttachmentState.READY or standing == attachment:
            return False
        fresh = replace(standing, mac=attachment.mac, mtu_bytes=attachment.mtu_bytes)
        with suppress(PoplinError):  # said by `problem`; the next agent finds out again
            self._store.update(fresh)
        self._by_link[fresh.host_link] = fresh
        with self._lock:
            for held in (self._attachments, self._mapped, self._shaped):
                if fresh.key in held:
                    held[fresh.key] = fresh
        return True

    def shaped(self) -> list[Attachment]:
        """Give the attachments with limits, whatever becomes of them; for any thread."""
        with self._lock:
            return list(self._shaped.values())

    def mapped(self) -> list[Attachment]:
        """Give the attachments whose host ports are to be in force; for any thread."""
        with self._lock:
            return list(self._mapped.values())

    def claim(self, attachment: Attachment) -> None:
        """Keep the reconcile pass off the attachment's link and mappings: it is being unmade."""
        with self._lock:
            self._mapped.pop((attachment.container_id, attachment.ifname), None)
            self._claimed.add(attachment.host_link)

    def release(self, attachment: Attachment) -> None:
        """Forget the attachment; its addresses rest. Its link stays claimed until it is `reaped`."""
        key = (attachment.container_id, attachment.ifname)
        self._store.remove(key, time.time())
        if self._pool is not None:
            self._pool.release(attachment.addresses, now_s=time.monotonic())
        self._by_link.pop(attachment.host_link, None)
        with self._lock:
            self._attachments.pop(key, None)
            self._mapped.pop(key, None)
            self._shaped.pop(key, None)
            self._news += map(Remove, compile_pod(attachment).host.links.values())

    def leaving(self) -> set[str]:
        """Give the claimed links of attachments that are no more."""
        return self._claimed - self._by_link.keys()

    def reaped(self, links: set[str]) -> None:
        """Say that these links are destroyed; one that has an attachment again stays claimed."""
        with self._lock:
            self._claimed -= links & self.leaving()

    def forget_news(self) -> None:
        """Drop what the CNI server has done so far: the kernel is about to be read."""
        with self._lock:
            self._news.clear()

    def snapshot(self) -> Snapshot:
        """Give the attachments as they are; for the reconcile pass, after it has read the kernel."""
        with self._lock:
            now_s = time.monotonic()
            self._made_at_s = {k: at_s for k, at_s in self._made_at_s.items() if now_s - at_s < CHAIN_S}
            claimed = {name for link in self._claimed for name in (link, ifb_name(link))}
            news, self._news = self._news, []
            return Snapshot(
                tuple(a for a in self._attachments.values() if a.host_link not in self._claimed),
                frozenset(claimed),
                tuple(news),
                frozenset(self._made_at_s),
            )


def _owner(attachment: Attachment) -> str:
    """Name whose an attachment is, as a person would."""
    a = attachment
    return f"{a.pod_namespace}/{a.pod_name}" if a.pod_name else a.container_id


def _check_families(attachment: Attachment) -> None:
    """Refuse a mapping of a family that the pod has no address of: it would never lead anywhere."""
    families = {address.version for address in attachment.addresses}
    for mapping in attachment.port_mappings:
        if mapping.host_address is not None and mapping.host_address.version not in families:
            raise InvalidInputError(
                f"host port {mapping.host_port}/{mapping.protocol} is of {mapping.host_address}, and the pod "
                f"has no IPv{mapping.host_address.version} address",
                where=_owner(attachment),
                remedy="take hostIP out of the pod's port, or give it an address of the pod's family",
            )
