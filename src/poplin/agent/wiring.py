"""Apply a pod's wiring: what the CNI server makes at once, and what a reconcile pass mends.

It blocks and never awaits: a thread that has entered a pod's namespace has come back when it is done.
"""

import errno
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from poplin.compile.pod import Wiring, compile_pod
from poplin.dataplane.netlink.reader import RouteReader
from poplin.dataplane.netlink.request import describe, object_of
from poplin.dataplane.netlink.route_socket import Failure, RouteSocket
from poplin.dataplane.netns import entered, in_namespace, open_netns
from poplin.dataplane.sysctl import write_sysctl
from poplin.model.attachment import Attachment
from poplin.model.errors import KernelError, PoplinError, TemporaryError
from poplin.model.kernel import POD_LINK_GROUP, PROTOCOL, Link, Redirect, Shaping, Veth
from poplin.model.state import NetworkState
from poplin.plan.network import plan_network
from poplin.plan.operation import Change, Operation, Put, Remove

LEAVING_GROUP: Final = POD_LINK_GROUP + 1
"""IFLA_GROUP of host links that are detached and wait for their end."""

LOCAL_TABLE: Final = 255
"""RT_TABLE_LOCAL (linux/rtnetlink.h): the kernel's own, of the addresses that are here."""

ADDRESS_WAIT_S: Final = 5.0
ADDRESS_POLL_S: Final = 0.0005


class Wirer:
    """Makes and unmakes attachments in the network namespace it was made in, from up to `threads` threads."""

    def __init__(self, threads: int) -> None:
        sockets = [RouteSocket() for _ in range(threads)]
        self._sockets: SimpleQueue[RouteSocket] = SimpleQueue()
        for socket in sockets:
            self._sockets.put(socket)
        self.ports = frozenset(socket.port for socket in sockets)

    def close(self) -> None:
        """Close the sockets, none of which is at work."""
        while not self._sockets.empty():
            self._sockets.get().close()

    def wire(self, attachment: Attachment, netns_fd: int) -> int:
        """Make both ends of an attachment. Give the cookie of the pod's namespace.

        Raises PoplinError where the pod has an interface of that name, KernelError for the first thing that
        the kernel refuses; what is made by then stays, for `unwire`.
        """
        wiring = compile_pod(attachment)
        veth, *rest = host_operations(attachment, wiring, netns_fd)
        with self._host() as host:
            failures = host.apply([veth, *rest])
        if not failures:
            for key, value in wiring.host.sysctls.items():
                write_sysctl(key, value)
        if any(f.operation is veth and f.error.errno == errno.EEXIST for f in failures):
            raise PoplinError(
                f"the pod has an interface {attachment.ifname} already",
                where=attachment.netns,
                remedy="delete the attachment that made it first",
            )
        _raise_first(failures)
        made = Link(attachment.ifname, "veth", attachment.mac, attachment.mtu_bytes, up=False)
        pod, _ = _open_pod(wiring.pod, netns_fd)
        with pod:
            _raise_first(pod.apply(plan_network(wiring.pod, NetworkState(links={made.name: made}))))
            # The node's end went up before the pod's: the kernel drops what is sent by it until a work queue
            # has seen the carrier come (linkwatch), which waits for others' links to be destroyed. To ask for
            # the link does that work at once (rtnl_getlink in net/core/rtnetlink.c).
            with self._host() as host:
                host.link(attachment.host_link)
            _await_addresses(pod, attachment)
            return pod.netns_cookie

    def unwire(self, attachment: Attachment) -> None:
        """Take the attachment's veth away, with all that is on it. That it is gone is success."""
        with self._host() as host:
            _raise_first(host.apply([Remove(link) for link in compile_pod(attachment).host.links.values()]))

    def detach(self, attachment: Attachment, netns_fd: int | None) -> None:
        """Take everything off an attachment but its links, which `reap` destroys later.

        The kernel needs some 30 ms to destroy a veth, whether one or many at once: a DEL does not wait for
        that. The pod's link goes down, loses its addresses and gives up its name; the node's side loses
        its routes and neighbours. A namespace that is another pod's by now stays as it is.
        """
        wiring = compile_pod(attachment)
        with self._host() as host:
            if netns_fd is not None:
                with in_namespace(netns_fd, RouteSocket) as pod:
                    if is_wired(attachment, host, pod):
                        pod.apply([Change(Link(attachment.ifname, up=False))])
                        pod.apply([Remove(address) for address in wiring.pod.addresses])
                        pod.rename(attachment.ifname, attachment.host_link)
            failures = host.apply(
                [
                    *map(Remove, wiring.host.routes),
                    *map(Remove, wiring.host.neighbours),
                    *map(Remove, wiring.host.addresses),
                ]
            )
            links = wiring.host.links.values()
            failures += host.apply([Change(replace(link, up=False, group=LEAVING_GROUP)) for link in links])
        _raise_first([f for f in failures if f.error.errno != errno.ENODEV])

    def is_gone(self, attachment: Attachment) -> bool:
        """Tell whether the attachment's namespace is gone for sure: its path, and its veth with it."""
        with self._host() as host:
            return not Path(attachment.netns).exists() and host.link(attachment.host_link) is None

    def reap(self) -> None:
        """Destroy the links of all attachments that were detached."""
        with self._host() as host:
            host.delete_group(LEAVING_GROUP)

    @contextmanager
    def _host(self) -> Iterator[RouteSocket]:
        socket = self._sockets.get()
        try:
            yield socket
        finally:
            self._sockets.put(socket)


def _await_addresses(pod: RouteSocket, attachment: Attachment) -> None:
    """Wait until the pod takes packets to its IPv6 addresses. Raises TemporaryError after `ADDRESS_WAIT_S`.

    The kernel makes an IPv6 address's local route in a work queue, also where duplicates are not looked for
    (addrconf_dad_work in net/ipv6/addrconf.c), and until then drops what comes for it.
    """
    missing = {ip_network(address) for address in attachment.addresses if address.version == 6}
    deadline = time.monotonic() + ADDRESS_WAIT_S
    while missing:
        missing -= {route.destination for route in pod.routes(table=LOCAL_TABLE)}
        if missing and time.monotonic() > deadline:
            raise TemporaryError(
                f"the kernel did not put {', '.join(map(str, missing))} to use within {ADDRESS_WAIT_S:g} s",
                where=attachment.netns,
                remedy="see whether the node is overloaded",
            )
        if missing:
            time.sleep(ADDRESS_POLL_S)


def is_wired(attachment: Attachment, host: RouteSocket, pod: RouteSocket) -> bool:
    """Tell whether the two ends of the attachment's veth stand in these namespaces, and are one pair's.

    The path of a namespace may lead to another one later (/proc/PID/ns/net), where the name is another's.
    """
    ours, theirs = host.link(attachment.host_link), pod.link(attachment.ifname)
    if ours is None or theirs is None:
        return False
    return (ours.parent, theirs.parent) == (theirs.index, ours.index)


def open_netns_of(attachment: Attachment) -> int | None:
    """Give a descriptor of the attachment's own namespace, None where its path leads to none or to another's.

    The caller closes it.
    """
    try:
        netns_fd = open_netns(attachment.netns)
    except KernelError:
        return None
    try:
        with in_namespace(netns_fd, RouteSocket) as inside:
            if attachment.netns_cookie in {0, inside.netns_cookie}:
                return netns_fd
    except KernelError:
        pass  # no namespace at all
    os.close(netns_fd)
    return None


def find_renamed(attachment: Attachment, host: RouteSocket, pod: RouteSocket) -> None:
    """Give the pod's end of the veth its name back, where it has another and the name is free."""
    ours = host.link(attachment.host_link)
    if ours is None or pod.link(attachment.ifname) is not None:
        return
    for link in pod.links():
        if (ours.parent, ours.index) == (link.index, link.parent):
            # Kernels before 6.2 rename only what is down; `mend_pod` brings up what that takes away.
            pod.apply([Change(replace(link, up=False))])
            pod.rename(link.name, attachment.ifname)


def host_operations(attachment: Attachment, wiring: Wiring, netns_fd: int) -> list[Operation]:
    """Give what makes the veth and the node's side of it.

    A link of one of these names is a leftover: no attachment has it, and it gives way.
    """
    host = wiring.host.links[attachment.host_link]
    veth = Veth(host, wiring.pod.links[attachment.ifname], netns_fd)
    _, *rest = plan_network(wiring.host, NetworkState())
    return [
        Put(veth, replace=True),
        *(Put(o.what, replace=True) if isinstance(o, Put) and isinstance(o.what, Link) else o for o in rest),
    ]


def mend_pod(desired: NetworkState, netns_fd: int) -> int:
    """Bring the pod's side to `desired`. Give the number of changes.

    Raises KernelError for the first thing that the kernel refuses.
    """
    pod, changes = _open_pod(desired, netns_fd)
    with pod:
        # A pod may have another interface of ours, which is not meant here.
        operations = plan_network(desired, read_state(pod).of_links(desired.links))
        _raise_first(pod.apply(operations))
    return changes + len(operations)


def _open_pod(desired: NetworkState, netns_fd: int) -> tuple[RouteSocket, int]:
    """Give a socket in a pod's namespace, whose parameters are as desired, and how many were others."""
    with entered(netns_fd):
        changes = sum(write_sysctl(key, value) for key, value in desired.sysctls.items())
        return RouteSocket(), changes


def differences(attachment: Attachment, netns_fd: int) -> list[str]:
    """Name what of an attachment is missing at either end, in the calling thread's namespace and the pod's.

    A MAC or an MTU that another plugin of the chain has changed since is no difference.
    """
    wiring = compile_pod(attachment)
    with RouteSocket() as host:
        state = read_state(host, redirected=shaped_links([wiring]))
        operations = plan_network(wiring.host, state.of_links(wiring.host.links))
    with in_namespace(netns_fd, RouteSocket) as pod:
        operations += plan_network(wiring.pod, read_state(pod).of_links({attachment.ifname}))
    return [f"missing: {describe(object_of(o))}" for o in operations if isinstance(o, Put)]


def shaped_links(wirings: Iterable[Wiring]) -> set[str] | None:
    """Give the host links whose pods' limits `read_state` is to look for, None where no pod has any."""
    shaping = [shaper for wiring in wirings for shaper in wiring.host.shaping]
    return {shaper.link for shaper in shaping if isinstance(shaper, Redirect)} if shaping else None


def read_state(
    socket: RouteSocket, routes: RouteReader | None = None, redirected: Collection[str] | None = None
) -> NetworkState:
    """Give what stands in the socket's namespace: all links, addresses and neighbours, and our routes.

    What shapes links is read where `redirected` is not None: queues of all links, and redirects of these.
    """
    links = {link.name: link for link in socket.links()}
    overlays = [name for name, link in links.items() if link.kind == "vxlan"]
    return NetworkState(
        links=links,
        addresses=frozenset(socket.addresses()),
        routes=routes.read() if routes else frozenset(socket.routes(protocol=PROTOCOL)),
        neighbours=frozenset(socket.neighbours()),
        fdb=frozenset(entry for name in overlays for entry in socket.fdb(name)),
        shaping=_read_shaping(socket, redirected) if redirected is not None else frozenset(),
    )


def _read_shaping(socket: RouteSocket, redirected: Collection[str]) -> frozenset[Shaping]:
    redirects = [redirect for link in redirected for redirect in socket.redirects(link)]
    return frozenset([*socket.token_buckets(), *redirects])


def _raise_first(failures: Sequence[Failure]) -> None:
    if failures:
        raise failures[0].error
