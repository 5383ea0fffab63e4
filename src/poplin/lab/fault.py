"""Faults: damage of one kind, done to something of ours that a seed chooses, and how long its repair takes."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Final, TypeVar

from poplin.dataplane.netlink.request import describe
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.netns import entered, open_netns
from poplin.dataplane.nftables.socket import NftSocket
from poplin.dataplane.sysctl import write_sysctl
from poplin.lab.fabric import UPLINK, replace_uplink
from poplin.lab.message import Question, agent_name
from poplin.lab.repair import POLL_S, REPAIR_TIMEOUT_S, FaultReport, stands, wait_for_rest, wait_until
from poplin.lab.runtime import ask
from poplin.lab.snapshot import SYSCTLS, NodeNetwork, Snapshot
from poplin.lab.swing import SWINGS
from poplin.model.attachment import Attachment
from poplin.model.errors import InvalidInputError, TemporaryError
from poplin.model.kernel import PROTOCOL, Link, Route, RouteKind
from poplin.model.state import NetworkState
from poplin.plan.network import is_ours
from poplin.plan.nftables import DeleteTable, FlushChain
from poplin.plan.operation import Change, Operation, Put, Remove

ANY: Final = "random"

MISSES_MAX: Final = 100
"""Choices in a row that found nothing to damage."""

STRAY: Final = ip_network("198.18.0.0/24")
"""Of the benchmarking range (RFC 2544): nobody's in a lab."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fault strikes: the node's namespace, or with `host_link` that of a pod on it."""

    network: NodeNetwork
    before: Snapshot
    host_link: str = ""
    netns: str = ""
    ifname: str = ""

    @property
    def state(self) -> NetworkState:
        """What stands in the namespace."""
        return self.before.pods[self.host_link] if self.host_link else self.before.node

    def links(self) -> list[Link]:
        """Our links there."""
        if self.host_link:
            return [link for link in self.state.links.values() if link.name == self.ifname]
        return [link for link in self.state.links.values() if is_ours(link)]

    def apply(self, operations: Sequence[Operation]) -> None:
        """Change the namespace. Raises KernelError for the first that is refused."""
        with self.entered_socket() as socket:
            for failure in socket.apply(operations):
                raise failure.error

    def entered_socket(self) -> RouteSocket:
        """A socket of the namespace, for the caller to close."""
        netns_fd = open_netns(self.netns or self.network.path)
        try:
            with entered(netns_fd):
                return RouteSocket()
        finally:
            os.close(netns_fd)


Strike = Callable[[Place, random.Random], str | None]
"""Does the damage and says what it was; None where there is nothing of that kind."""


def _remove(things: Callable[[Place], Collection[T]]) -> Strike:
    def strike(place: Place, chance: random.Random) -> str | None:
        found = _choose(things(place), chance)
        if found is None:
            return None
        place.apply([Remove(found)])  # type: ignore[arg-type]  # what `things` gives is of a removable kind
        return describe(found)  # type: ignore[arg-type]

    return strike


def _change(change: Callable[[Link, random.Random], Sequence[Link]]) -> Strike:
    """Set one of our links otherwise, in one step or more."""

    def strike(place: Place, chance: random.Random) -> str | None:
        link = _choose(place.links(), chance)
        if link is None:
            return None
        place.apply([Change(changed) for changed in change(link, chance)])
        return describe(link)

    return strike


def _rename(place: Place, chance: random.Random) -> str | None:
    link = _choose(place.links(), chance)
    if link is None:
        return None
    name = f"mine{chance.randrange(10**6)}"
    with place.entered_socket() as socket:
        socket.apply([Change(replace(link, up=False))])
        socket.rename(link.name, name)
    return f"{describe(link)} -> {name}"


def _random_mac(link: Link, chance: random.Random) -> Sequence[Link]:
    return [replace(link, mac=bytes([0x02, *chance.randbytes(5)]).hex(":"))]


def _drop_table(place: Place, chance: random.Random) -> str | None:
    return _strike_table(place, chance, whole=True)


def _flush_chain(place: Place, chance: random.Random) -> str | None:
    return _strike_table(place, chance, whole=False)


def _strike_table(place: Place, chance: random.Random, *, whole: bool) -> str | None:
    table = _choose([t for t in place.before.tables.values() if t is not None], chance)
    if table is None:
        return None
    chain = _choose([c for c in table.chains if c.rules], chance)
    if chain is None and not whole:
        return None
    netns_fd = open_netns(place.network.path)
    try:
        with entered(netns_fd), NftSocket() as nft:
            if whole or chain is None:
                nft.apply([DeleteTable(table.key)])
                return f"table {table.name}"
            nft.apply([FlushChain(table.key, chain.name)])
            return f"chain {table.name} {chain.name}"
    finally:
        os.close(netns_fd)


def _stop_forwarding(place: Place, chance: random.Random) -> str | None:
    key = _choose([key for key in SYSCTLS if place.before.sysctls[key] == "1"], chance)
    if key is None:
        return None
    netns_fd = open_netns(place.network.path)
    try:
        with entered(netns_fd):
            write_sysctl(key, 0)
    finally:
        os.close(netns_fd)
    return key


def _add_stray(place: Place, _chance: random.Random) -> str | None:
    route = Route(STRAY, kind=RouteKind.UNREACHABLE)
    place.apply([Put(route)])
    return describe(route)


def _replace_uplink(place: Place, _chance: random.Random) -> str | None:
    replace_uplink(place.network.directory, place.network.node, place.before.node)
    return describe(place.before.node.links[UPLINK])


def _kill_agent(number: int) -> Strike:
    def strike(place: Place, _chance: random.Random) -> str | None:
        name = agent_name(place.network.node)
        ask(place.network.directory.socket, Question(0, signal=name, number=number))
        return name

    return strike


def _ours(kind: str) -> Callable[[Place], Collection[object]]:
    """Give what is ours of a kind of object; forwarding entries are where they stand on a link of ours."""

    def things(place: Place) -> Collection[object]:
        standing = getattr(place.state, kind)
        if kind == "fdb":
            names = {link.name for link in place.links()}
            return [entry for entry in standing if entry.link in names]
        return [thing for thing in standing if thing.protocol == PROTOCOL]

    return things


def _gone_and_back(link: Link, _chance: random.Random) -> Sequence[Link]:
    return [replace(link, up=False), link]


ANYWHERE: Final[dict[str, Strike]] = {
    "address": _remove(_ours("addresses")),
    "route": _remove(_ours("routes")),
    "neighbour": _remove(_ours("neighbours")),
    "link-down": _change(lambda link, _: [replace(link, up=False)]),
    "link-flap": _change(_gone_and_back),
    "rename": _rename,
}
"""What may happen on the node and inside a pod alike; there with "pod-" before it."""

ON_NODE: Final[dict[str, Strike]] = {
    **ANYWHERE,
    "fdb": _remove(_ours("fdb")),
    "link": _remove(lambda place: place.links()),
    # On the node alone: what MAC a pod's interface has is right, and a young pod's MTU (a plugin behind ours).
    "mac": _change(_random_mac),
    "mtu": _change(lambda link, chance: [replace(link, mtu_bytes=chance.randrange(1280, 1400))]),
    "table": _drop_table,
    "chain": _flush_chain,
    "forwarding": _stop_forwarding,
    "stray": _add_stray,
    "uplink": _replace_uplink,
    "agent-kill": _kill_agent(signal.SIGKILL),
    "agent-stop": _kill_agent(signal.SIGTERM),
}

ON_ONE_NODE: Final[tuple[str, ...]] = (*ON_NODE, *(f"pod-{kind}" for kind in ANYWHERE), "pod-link")
"""What "random" chooses from."""

FAULTS: Final[tuple[str, ...]] = (*ON_ONE_NODE, *SWINGS)
"""All kinds."""


def _strike_of(kind: str) -> Strike:
    inside = kind.removeprefix("pod-")
    if kind == inside:
        return ON_NODE[kind]
    return ANYWHERE.get(inside) or ON_NODE[inside]


def _place(
    network: NodeNetwork,
    before: Snapshot,
    attachments: Sequence[Attachment],
    kind: str,
    chance: random.Random,
) -> Place | None:
    if not kind.startswith("pod-"):
        return Place(network, before)
    pod = _choose(attachments, chance)
    return Place(network, before, pod.host_link, pod.netns, pod.ifname) if pod is not None else None


async def inflict(network: NodeNetwork, kind: str, chance: random.Random) -> FaultReport | None:
    """Do one fault on a node and wait for its repair. None where the node has nothing of the kind.

    Raises KernelError where the damage cannot be done, TemporaryError where the agent does not answer.
    """
    if kind in SWINGS:
        return await SWINGS[kind](network)
    attachments = network.attachments()
    before = network.read(attachments)
    place = _place(network, before, attachments, kind, chance)
    began_s = time.monotonic()
    what = _strike_of(kind)(place, chance) if place is not None else None
    if what is None:
        return None
    if kind.startswith("agent-"):
        await _wait_for_agent(network, began_s)
    repair_s = await wait_until(partial(stands, network, attachments, before), began_s)
    return FaultReport(kind, network.node, what, repair_s)


async def _wait_for_agent(network: NodeNetwork, began_s: float) -> None:
    """Return when the agent that was struck is gone and its successor listens."""
    path = network.directory.node(network.node).run / "agent.sock"
    old = _identity(path)
    while time.monotonic() - began_s < REPAIR_TIMEOUT_S:
        if _identity(path) not in {None, old}:
            return
        await asyncio.sleep(POLL_S)
    raise TemporaryError("the agent does not come back", where=network.node)


def _identity(path: Path) -> tuple[int, int] | None:
    """Tell one socket's file from its successor's, which may get the same number."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _choose(things: Collection[T], chance: random.Random) -> T | None:
    """Choose one, the same each time for the same seed: sets have no order of their own."""
    return chance.choice(sorted(things, key=repr)) if things else None


def check_kind(kind: str) -> str:
    """Give a kind of fault, or "random" for any. Raises InvalidInputError."""
    if kind not in {*FAULTS, ANY}:
        raise InvalidInputError(
            "no such fault", where=kind, remedy=f"choose {ANY} or one of {', '.join(sorted(FAULTS))}"
        )
    return kind


async def inflict_some(
    networks: Sequence[NodeNetwork], kind: str, count: int, chance: random.Random
) -> AsyncIterator[FaultReport]:
    """Do `count` faults of a kind, or of any, one after another, each on a node that chance chooses.

    Ends early where no node has anything of the kind. Raises what `inflict` raises.
    """
    await wait_for_rest(networks)
    done = misses = 0
    while done < count and misses < MISSES_MAX:
        chosen = chance.choice(ON_ONE_NODE) if kind == ANY else kind
        report = await inflict(chance.choice(networks), chosen, chance)
        if report is None:
            misses += 1
            continue
        done, misses = done + 1, 0
        yield report
