"""The underlay: a namespace that is the switch between nodes, and a namespace for each node, cabled to it.

The fabric's gateway address on the switch is each node's default route. It knows the way to nowhere else, so
nothing that is sent inside a lab can leave it.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Final

from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import NAMED, create_netns, entered, in_namespace, open_netns
from poplin.dataplane.sysctl import write_sysctl
from poplin.lab.addressing import API_PORT
from poplin.lab.directory import Directory
from poplin.lab.settings import Settings
from poplin.model.kernel import PROTOCOL, Address, IPAddress, IPInterface, Link, Route, Veth
from poplin.model.state import NetworkState
from poplin.plan.operation import Change, Operation, Put, Remove

BRIDGE: Final = "switch"
SWITCH_MAC: Final = "02:00:00:00:00:01"
"""A bridge without one of its own has the lowest of its ports', and another when a node is cabled anew."""

UPLINK: Final = "eth0"
"""A node's interface."""

_STATIC: Final = 4
"""RTPROT_STATIC: to the agent these routes and addresses are the machine's own, not its."""


def make_fabric(directory: Directory, settings: Settings) -> None:
    """Make the switch's namespace, with the switch up. Raises KernelError."""
    create_netns(directory.fabric_namespace())
    with inside(directory.fabric_namespace()) as (_, links):
        _forward()
        gateways = [Put(Address(BRIDGE, a, protocol=0)) for a in settings.addressing.gateways()]
        _apply(links, [Change(Link("lo")), Put(Link(BRIDGE, "bridge", SWITCH_MAC)), *gateways])


def make_node(directory: Directory, settings: Settings, number: int) -> None:
    """Make the namespace of node `number` (from 1) and its cable to the switch. Raises KernelError."""
    node = f"node-{number}"
    create_netns(directory.node_namespace(node))
    with inside(directory.node_namespace(node)) as (netns_fd, links):
        _plug_in(directory, node, Link(UPLINK), netns_fd)
        if number == 1:
            with inside(directory.fabric_namespace()) as (_, switch):
                _apply(switch, _lead_to_load_balancers(settings))
        _forward()
        operations: list[Operation] = [Change(Link("lo")), Change(Link(UPLINK))]
        operations += [Put(Address(UPLINK, a, protocol=0)) for a in settings.addressing.node(number)]
        for gateway in settings.addressing.gateways():
            everywhere = ip_network("0.0.0.0/0" if gateway.version == 4 else "::/0")
            operations.append(Put(Route(everywhere, gateway.ip, UPLINK, protocol=_STATIC)))
        _apply(links, operations)


def replace_uplink(directory: Directory, node: str, before: NetworkState) -> None:
    """Take a node's interface away and give it another with the same MAC, set up as a network daemon would.

    `before` is what stood in the node's namespace. The kernel takes with the interface what was on it, the
    agent's included; only what others had there is put back. Raises KernelError.
    """
    old = before.links[UPLINK]
    with inside(directory.node_namespace(node)) as (netns_fd, links):
        _apply(links, [Remove(old)])
        _plug_in(directory, node, Link(UPLINK, mac=old.mac), netns_fd)
        operations: list[Operation] = [Change(Link(UPLINK, mtu_bytes=old.mtu_bytes))]
        operations += [Put(a) for a in before.addresses if a.link == UPLINK and a.protocol != PROTOCOL]
        operations += [Put(r) for r in before.routes if r.link == UPLINK and r.protocol != PROTOCOL]
        _apply(links, operations)


def move_uplink(
    directory: Directory, node: str, before: NetworkState, moved: Mapping[IPInterface, IPInterface]
) -> None:
    """Give a node's interface other addresses, as a network daemon would. Raises KernelError.

    `before` is what stood in the node's namespace: of IPv4 the kernel takes the routes with the last address,
    and others' are put back.
    """
    with inside(directory.node_namespace(node)) as (_, links):
        operations: list[Operation] = [Remove(Address(UPLINK, old, protocol=0)) for old in moved]
        operations += [Put(Address(UPLINK, new, protocol=0)) for new in moved.values()]
        others = (r for r in before.routes if r.link == UPLINK and r.protocol != PROTOCOL)
        operations += [Put(route, replace=True) for route in others]
        _apply(links, operations)


def read_uplink(netns_fd: int) -> list[IPAddress]:
    """The addresses of a node's interface, in the kernel's order, without link-local ones; [] where there is none."""

    def read() -> list[IPAddress]:
        with RouteSocket() as links:
            found = [one.interface.ip for one in links.addresses() if one.link == UPLINK]
        return [address for address in found if not address.is_link_local]

    return in_namespace(netns_fd, read)


def _plug_in(directory: Directory, node: str, uplink: Link, netns_fd: int) -> None:
    """Cable a node, in whose namespace the thread is, to the switch. Raises KernelError."""
    with inside(directory.fabric_namespace()) as (_, switch):
        port = Link(node, "veth", master=BRIDGE)
        _apply(switch, [Put(Veth(port, uplink, netns_fd))])
    # While its link-local address is tentative a node cannot ask for a neighbour on behalf of a pod.
    write_sysctl(f"net/ipv6/conf/{UPLINK}/accept_dad", 0)


def _lead_to_load_balancers(settings: Settings) -> list[Operation]:
    """The way to load balancers' addresses from the fabric, which plays the world outside: by the first node."""
    addressing = settings.addressing
    node = {address.version: address.ip for address in addressing.node(1)}
    return [
        Put(Route(network, node[network.version], BRIDGE, protocol=_STATIC))
        for network in addressing.load_balancer_pool()
    ]


def listen_in_fabric(directory: Directory, address: IPAddress, port: int = API_PORT) -> socket.socket:
    """A listening socket in the fabric, which a process anywhere may serve. Raises KernelError or OSError."""
    with inside(directory.fabric_namespace()):
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        return socket.create_server((str(address), port), family=family, backlog=1024)


@contextmanager
def inside(namespace: str) -> Iterator[tuple[int, RouteSocket]]:
    """The thread in a named namespace: its descriptor and a socket of it. Never await in here."""
    netns_fd = open_netns(NAMED / namespace)
    try:
        with entered(netns_fd), RouteSocket() as links:
            yield netns_fd, links
    finally:
        os.close(netns_fd)


def _forward() -> None:
    """Be a router: one answers "unreachable" where a host keeps silent."""
    write_sysctl("net/ipv4/ip_forward", 1)
    write_sysctl("net/ipv6/conf/all/forwarding", 1)


def _apply(links: RouteSocket, operations: Sequence[Operation]) -> None:
    for failure in links.apply(operations):
        raise failure.error
