"""The reconcile pass: inputs and what the kernel holds -> the difference, applied.

A pass runs in a thread, never on the event loop: the kernel may hold a request for milliseconds. What the
kernel holds is read once and then followed; it is read again where something says that it changed under
us, and at each audit.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from poplin.agent.config import AgentConfig
from poplin.agent.host_ports import HostPorts
from poplin.agent.registry import Registry, Snapshot
from poplin.agent.wiring import (
    LEAVING_GROUP,
    find_renamed,
    is_wired,
    mend_pod,
    open_netns_of,
    read_state,
    shaped_links,
)
from poplin.compile.host_ports import TABLE as HOST_PORT_TABLE
from poplin.compile.network import Network, compile_network
from poplin.compile.node_table import TABLE, compile_node_table
from poplin.compile.peers import Peers
from poplin.compile.pod import Wiring, compile_pod
from poplin.compile.underlay import Underlay, find_underlays
from poplin.dataplane.netlink.reader import RouteReader
from poplin.dataplane.netlink.request import describe, object_of
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import in_namespace
from poplin.dataplane.nftables.owned_table import OwnedTable
from poplin.dataplane.sysctl import read_sysctl, write_sysctl
from poplin.model.attachment import Attachment
from poplin.model.cluster import Node
from poplin.model.errors import KernelError, PoplinError, TemporaryError
from poplin.model.kernel import POD_LINK_GROUP, Address, Link, Neighbour, Redirect, Route, TokenBucket, Veth
from poplin.model.netconf import NetConf
from poplin.model.nftables import Family, TableKey
from poplin.model.state import NetworkState, share, unite
from poplin.plan.fold import fold
from poplin.plan.network import find_strangers, is_ours, plan_network
from poplin.plan.operation import Operation, Put

log = logging.getLogger(__name__)

KEY: Final = TableKey(Family.INET, TABLE)

OPERATIONS_NAMED: Final = 16
"""How many operations of a pass its log line names."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a pass depends on beside the kernel and the attachments.

    `hold` says why the node's network cannot be computed now: a watch that is not in sync, a configuration
    that is wrong. What stands is held then; pods' own wiring is kept up all the same. The other fields
    mean something only where `hold` is None.
    """

    hold: PoplinError | None
    conf: NetConf | None = None
    own: Node | None = None
    others: Sequence[Node] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass has found and done.

    `network` is None where it could not be computed, for the reason in `hold`. `failures` will be tried
    again; `problems` wait for a person. `changes` counts operations and written parameters. `adopted` are
    attachments whose pod has its interface with another MAC or MTU, set by somebody who may.
    """

    network: Network | None
    hold: PoplinError | None = None
    failures: tuple[PoplinError, ...] = ()
    problems: tuple[PoplinError, ...] = ()
    changes: int = 0
    adopted: tuple[Attachment, ...] = ()


@dataclass(slots=True)
class _Pass:
    """What one pass collects on its way."""

    failures: list[PoplinError] = field(default_factory=list)
    problems: list[PoplinError] = field(default_factory=list)
    adopted: list[Attachment] = field(default_factory=list)
    changes: int = 0

    def write(self, sysctls: Mapping[str, str]) -> None:
        """Set kernel parameters where they are others."""
        for key, value in sysctls.items():
            try:
                if write_sysctl(key, value):
                    log.info("kernel parameter set", extra={"sysctl": key, "value": value})
                    self.changes += 1
            except PoplinError as error:
                self.failures.append(error)


class Reconciler:
    """Holds the sockets in the node's namespace; `run` is for one thread at a time.

    `desired` is what the last pass has wanted of the node's namespace, for any thread to read.
    """

    def __init__(self, config: AgentConfig, registry: Registry, host_ports: HostPorts) -> None:
        self._config = config
        self._registry = registry
        self._host_ports = host_ports
        self._route = RouteSocket()
        self._routes = RouteReader(self._route)
        self._table = OwnedTable(KEY)
        self._peers = Peers()
        self.desired = NetworkState()
        self._state: NetworkState | None = None
        self._adopted = False
        self._wirings: dict[Attachment, Wiring] = {}
        self.route_ports = frozenset({self._route.port})
        self.nft_ports = self._table.ports

    def close(self) -> None:
        """Close the sockets; no pass is under way."""
        self._route.close()
        self._table.close()

    def forget(self) -> None:
        """Read the kernel anew in the next pass: something changed it, or it is time for an audit."""
        self._state = None
        self._table.forget()
        self._host_ports.forget()

    def run(self, inputs: Inputs, pods: Collection[str] = ()) -> Outcome:
        """Compile, compare and apply. `pods` are the host links of the pods whose own side is looked at too.

        Never raises for what a kernel or a configuration can do: that is in the outcome.
        """
        work = _Pass()
        try:
            known = self._state is not None
            actual = self._read()
            network, hold = self._compile(inputs, actual)
            with self._registry.passing:
                snapshot = self._registry.snapshot()
                actual = fold(actual, snapshot.news)
                self._wirings = {a: self._wirings.get(a) or compile_pod(a) for a in snapshot.ready}
                states = [wiring.host for wiring in self._wirings.values()]
                states.append(network.state if network else _of_the_node(actual))
                self.desired = unite(states)
                if not known:
                    actual = share(actual, self.desired)
                renewed = self._apply(self.desired, actual, snapshot, work)
                for attachment in snapshot.ready:
                    if attachment.host_link in pods or attachment.host_link in renewed:
                        self._mend_pod(attachment, work, young=attachment.host_link in snapshot.young)
            if network is not None:
                self._apply_table(inputs.conf, work)
            self._apply_host_ports(work)
        except PoplinError as error:
            self.forget()
            return Outcome(None, error, (error, *work.failures), changes=work.changes)
        if work.failures:
            self.forget()
        problems = (*(network.problems if network else ()), *work.problems)
        return Outcome(network, hold, tuple(work.failures), problems, work.changes, tuple(work.adopted))

    def _read(self) -> NetworkState:
        if self._state is None:
            self._registry.forget_news()
            state = read_state(
                self._route, self._routes, shaped_links(map(compile_pod, self._registry.shaped()))
            )
            self._state = state if self._adopted else self._with_adopted_routes(state)
            self._adopted = True
        return self._state

    def _with_adopted_routes(self, state: NetworkState) -> NetworkState:
        """Add what others, flanneld before us, have put on devices that may become ours."""
        overlays = [name for name, link in state.links.items() if link.kind == "vxlan"]
        routes = (route for name in overlays for route in self._route.routes(link=name))
        return replace(state, routes=state.routes.union(routes))

    def _compile(self, inputs: Inputs, actual: NetworkState) -> tuple[Network | None, PoplinError | None]:
        if inputs.hold is not None or inputs.conf is None or inputs.own is None:
            return None, inputs.hold
        underlays = find_underlays(
            actual.links,
            actual.addresses,
            (*self._config.public_ips, *inputs.own.internal_addresses),
            interface=self._config.interface,
        )
        try:
            return compile_network(
                inputs.conf, inputs.own, inputs.others, [_with_ra(u) for u in underlays], self._peers
            ), None
        except PoplinError as error:
            return None, error

    def _apply(
        self, desired: NetworkState, actual: NetworkState, snapshot: Snapshot, work: _Pass
    ) -> set[str]:
        """Bring the node's namespace to `desired`. Give the host links of the veths that were made anew."""
        strangers = find_strangers(desired, actual)
        work.failures += map(_refuse, strangers)
        foreign = {link.name for link in strangers}
        planned = [
            operation
            for operation in plan_network(desired, actual, claimed=snapshot.claimed | foreign)
            if not (isinstance(redirect := object_of(operation), Redirect) and redirect.to in foreign)
        ]
        with ExitStack() as open_files:
            operations = _with_peers(planned, self._wirings, open_files)
            failures = self._route.apply(operations)
        work.failures += [failure.error for failure in failures]
        work.changes += len(operations)
        if operations:
            self._state = fold(actual, operations)
            log.info("kernel state changed", extra={"changes": _summary(operations)})
        else:
            self._state = actual
        work.write(_of_standing(desired.sysctls, self._state.links.keys() - foreign))
        return {o.what.host.name for o in operations if isinstance(o, Put) and isinstance(o.what, Veth)}

    def _apply_table(self, conf: NetConf | None, work: _Pass) -> None:
        desired = compile_node_table(conf, masquerade=self._config.masquerade)
        try:
            operations = self._table.write(desired)
        except PoplinError as error:
            work.failures.append(error)
            return
        if operations:
            log.info("nftables table written", extra={"table": desired.name, "operations": len(operations)})
        work.changes += len(operations)

    def _apply_host_ports(self, work: _Pass) -> None:
        """Host ports depend on the attachments alone, and are kept up whatever holds the node's network."""
        try:
            operations = self._host_ports.apply()
        except PoplinError as error:
            work.failures.append(error)
            return
        if operations:
            log.info("nftables table written", extra={"table": HOST_PORT_TABLE, "operations": operations})
        work.changes += operations

    def _mend_pod(self, attachment: Attachment, work: _Pass, *, young: bool) -> None:
        """Look at the pod's own side; a namespace that is gone waits for the runtime's DEL.

        The MAC that a pod's interface has is right, whoever set it: the node's side follows. So is the MTU
        while other plugins may set it.
        """
        netns_fd = open_netns_of(attachment)
        if netns_fd is None:
            return
        try:
            with in_namespace(netns_fd, RouteSocket) as inside:
                find_renamed(attachment, self._route, inside)
                if not is_wired(attachment, self._route, inside):
                    return
                standing = inside.link(attachment.ifname)
            as_it_is = _with_what_stands(attachment, standing, young=young)
            changes = mend_pod(compile_pod(as_it_is).pod, netns_fd)
            if as_it_is != attachment:
                work.adopted.append(as_it_is)
        except PoplinError as error:
            # What a pod does to itself is no reason for its node to be unready.
            work.problems.append(error)
            return
        finally:
            os.close(netns_fd)
        if changes:
            pod = f"{attachment.pod_namespace}/{attachment.pod_name}"
            log.info("pod's interface mended", extra={"pod": pod, "changes": changes})
        work.changes += changes


def _with_what_stands(attachment: Attachment, link: Link | None, *, young: bool) -> Attachment:
    if link is None:
        return attachment
    mtu_bytes = link.mtu_bytes if young else attachment.mtu_bytes
    return replace(attachment, mac=link.mac, mtu_bytes=mtu_bytes)


def _with_peers(
    planned: Sequence[Operation], wirings: Mapping[Attachment, Wiring], open_files: ExitStack
) -> list[Operation]:
    """Turn each host link to be made into a veth with its peer in the pod.

    A pod whose namespace is gone gets nothing: its link cannot be made, and the rest hangs on that.
    """
    attachments = {a.host_link: a for a in wirings}
    operations: list[Operation] = []
    gone: set[str] = set()
    for operation in planned:
        match operation:
            case Put(Link(kind="veth") as host):
                attachment = attachments[host.name]
                netns_fd = open_netns_of(attachment)
                if netns_fd is None:
                    gone.add(host.name)
                    continue
                open_files.callback(os.close, netns_fd)
                peer = wirings[attachment].pod.links[attachment.ifname]
                operations.append(Put(Veth(host, peer, netns_fd)))
            case Put(Address() | Route() | Neighbour() | TokenBucket() | Redirect() as thing) if (
                thing.link in gone
            ):
                continue
            case _:
                operations.append(operation)
    return operations


def _refuse(stranger: Link) -> PoplinError:
    return TemporaryError(
        f"is of kind {stranger.kind or 'device'!r} and not ours, and what should stand there is missing",
        where=f"link {stranger.name}",
        remedy="remove or rename it",
    )


def _with_ra(underlay: Underlay) -> Underlay:
    """Add whether the kernel takes router advertisements on the underlay."""
    if underlay.address.version == 4:
        return underlay
    try:
        accepts = read_sysctl(f"net/ipv6/conf/{underlay.link}/accept_ra") != "0"
    except KernelError:
        return underlay
    return replace(underlay, accepts_ra=accepts)


def _of_standing(sysctls: Mapping[str, str], links: Collection[str]) -> dict[str, str]:
    """Leave out the parameters of links that are not there, a pod's whose namespace is gone, or are not ours."""
    found = {}
    for key, value in sysctls.items():
        match key.split("/"):
            case ["net", _, "conf", link, _] if link not in {"all", "default"} and link not in links:
                continue
        found[key] = value
    return found


def _of_the_node(actual: NetworkState) -> NetworkState:
    """Give what stands of the node's own network: a pass that cannot compute it wants it as it is.

    Routes without a link are the node's: the unreachable ones.
    """
    pods = {name for name, link in actual.links.items() if link.group in {POD_LINK_GROUP, LEAVING_GROUP}}
    kept = actual.of_links({"", *actual.links} - pods)
    return replace(kept, links={name: link for name, link in kept.links.items() if is_ours(link)})


def _summary(operations: Sequence[Operation]) -> list[str]:
    """Name the first few operations, and count the others."""
    named = [
        f"{type(operation).__name__.lower()} {describe(object_of(operation))}"
        for operation in operations[:OPERATIONS_NAMED]
    ]
    more = len(operations) - len(named)
    return [*named, f"and {more} more"] if more else named
