"""Faults that all nodes follow: something of the cluster is set otherwise, and back when each has followed."""

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from ipaddress import ip_interface
from typing import Final

import msgspec

from poplin.agent.install import write_atomically
from poplin.lab.fabric import UPLINK, move_uplink
from poplin.lab.repair import FaultReport, stands, wait_until
from poplin.lab.settings import Backend, read_settings
from poplin.lab.snapshot import NodeNetwork
from poplin.model.kernel import IPInterface
from poplin.model.state import NetworkState
from poplin.plan.network import is_ours

FAR: Final = 512
"""How far a node's address moves: past those of MAX_NODES nodes."""


async def switch_backend(struck: NodeNetwork) -> FaultReport:
    """Name the other backend in net-conf.json until each node has changed to it, then the first again."""
    directory = struck.directory
    text = directory.net_conf.read_bytes()
    conf = msgspec.json.decode(text)
    old = Backend(conf["Backend"]["Type"])
    new = Backend.HOST_GW if old is Backend.VXLAN else Backend.VXLAN
    other = msgspec.json.encode({**conf, "Backend": {"Type": new.value}})

    def followed(state: NetworkState) -> bool:
        tunnels = [link for link in state.links.values() if link.kind == "vxlan" and is_ours(link)]
        return bool(tunnels) == (new is Backend.VXLAN)

    return await _swing(
        "backend",
        struck,
        f"{old} -> {new} -> {old}",
        lambda: write_atomically(directory.net_conf, other),
        lambda: write_atomically(directory.net_conf, text),
        followed,
    )


async def move_node(struck: NodeNetwork) -> FaultReport:
    """Give the node other addresses until no node sends packets to the old ones, then those again."""
    before = struck.read(()).node
    # The kernel's own come and go with the link; of ours there are none there.
    old = sorted((a.interface for a in before.addresses if a.link == UPLINK), key=lambda one: one.version)
    new = [ip_interface(f"{one.ip + FAR}/{one.network.prefixlen}") for one in old]

    def move(there: Mapping[IPInterface, IPInterface]) -> None:
        move_uplink(struck.directory, struck.node, before, there)

    def followed(state: NetworkState) -> bool:
        return not {one.ip for one in old} & {
            *(entry.destination for entry in state.fdb),
            *(route.gateway for route in state.routes),
            *(link.vxlan.local for link in state.links.values() if link.vxlan is not None),
        }

    return await _swing(
        "node-address",
        struck,
        f"{', '.join(str(one.ip) for one in old)} -> {', '.join(str(one.ip) for one in new)} and back",
        lambda: move(dict(zip(old, new, strict=True))),
        lambda: move(dict(zip(new, old, strict=True))),
        followed,
    )


async def _swing(
    kind: str,
    struck: NodeNetwork,
    what: str,
    there: Callable[[], object],
    back: Callable[[], object],
    followed: Callable[[NetworkState], bool],
) -> FaultReport:
    """The time counts from the first change until all stands as before the two."""
    names = read_settings(struck.directory.settings).node_names()
    networks = [NodeNetwork(struck.directory, name) for name in names]
    stood = [(network, network.attachments()) for network in networks]
    before = [(network, attachments, network.read(attachments)) for network, attachments in stood]
    began_s = time.monotonic()
    try:
        there()
        for network in networks:
            await wait_until(partial(_has, network, followed), began_s)
    finally:
        back()
    repairs = [await wait_until(partial(stands, *one), began_s) for one in before]
    times_s = [repair_s for repair_s in repairs if repair_s is not None]
    return FaultReport(kind, struck.node, what, max(times_s) if len(times_s) == len(repairs) else None)


def _has(network: NodeNetwork, followed: Callable[[NetworkState], bool]) -> bool:
    return followed(network.read(()).node)


SWINGS: Final[Mapping[str, Callable[[NodeNetwork], Awaitable[FaultReport]]]] = {
    "backend": switch_backend,
    "node-address": move_node,
}
"""The kinds, each struck on one node, whatever chance says."""
