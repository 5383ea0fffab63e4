"""What makes one pod reach another: each object in the kernel on the way, and a sentence on what it is for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from poplin.dataplane.netlink.request import describe
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.lab.demo.member import Member
from poplin.lab.directory import Directory
from poplin.lab.fabric import inside
from poplin.lab.kubelet import cni
from poplin.lab.kubelet.place import NodePlace
from poplin.lab.kubelet.sandbox import bin_dirs, read_sandboxes
from poplin.model.kernel import POD_LINK_GROUP, IPAddress, Link, Route


@dataclass(frozen=True, slots=True)
class Fact:
    """A line of what the kernel holds, where it holds it, and what it is for."""

    place: str
    line: str
    meaning: str


@dataclass(frozen=True, slots=True)
class CniCall:
    """How the plugin was called for a pod, and what it answered; `config` and `answer` are JSON."""

    program: str
    environment: dict[str, str]
    config: str
    answer: str


def choose_pair(members: Sequence[Member]) -> tuple[Member, Member] | None:
    """Two pods, best on different nodes, and a target that serves most protocols; None for less than two pods."""
    pairs = [(source, target) for source in members for target in members if target is not source]

    def rank(pair: tuple[Member, Member]) -> tuple[bool, int]:
        source, target = pair
        return source.node != target.node, len({protocol for protocol, _ in target.ports})

    return max(pairs, key=rank, default=None)


def walk(directory: Directory, source: Member, target: Member, version: int) -> Iterator[Fact]:
    """The way of a packet from `source` to `target`. Raises KernelError where something of it is missing."""
    sender = next(address for address in source.addresses if address.version == version)
    receiver = next(address for address in target.addresses if address.version == version)
    with inside(Path(source.netns).name) as (_, pod):
        yield from _leave_pod(pod, f"pod {source.title}", receiver, sender)
    with inside(directory.node_namespace(source.node)) as (_, node):
        yield from _cross_node(node, source, sender, receiver)
    with inside(directory.node_namespace(target.node)) as (_, node):
        yield from _arrive(node, target, receiver)


def _leave_pod(pod: RouteSocket, place: str, receiver: IPAddress, sender: IPAddress) -> Iterator[Fact]:
    route = pod.route_to(receiver)
    for address in pod.addresses(link=route.link):
        if address.interface.ip == sender:
            yield Fact(place, describe(address), "The pod's only address here: nobody shares its link.")
    yield Fact(place, describe(route), "All that the pod sends goes to its node, whoever it is for.")
    for neighbour in pod.neighbours(link=route.link):
        if neighbour.address == route.gateway:
            yield Fact(
                place,
                describe(neighbour),
                "The gateway's MAC is written down, so the pod need not ask for it.",
            )


def _cross_node(node: RouteSocket, source: Member, sender: IPAddress, receiver: IPAddress) -> Iterator[Fact]:
    place = source.node
    back = node.route_to(sender)
    link = _find_link(node, back.link)
    yield Fact(place, _describe_link(link), "The node's end of the pod's veth pair.")
    route = node.route_to(receiver, source=sender, incoming=link.name)
    yield Fact(place, describe(route), _explain_route(route))
    device = _find_link(node, route.link)
    if device.vxlan is None:
        return
    yield Fact(place, _describe_link(device), "The overlay: Ethernet frames in UDP, between nodes.")
    for neighbour in node.neighbours(link=device.name):
        if neighbour.address != route.gateway:
            continue
        yield Fact(place, describe(neighbour), "The MAC of the other node's VTEP.")
        for entry in node.fdb(device.name):
            if entry.mac == neighbour.mac:
                yield Fact(place, describe(entry), "The node that has this VTEP: the outer destination.")
                underlay = node.route_to(entry.destination)
                yield Fact(place, describe(underlay), "The underlay: how nodes reach each other anyway.")


def _arrive(node: RouteSocket, target: Member, receiver: IPAddress) -> Iterator[Fact]:
    route = node.route_to(receiver)
    yield Fact(target.node, describe(route), "Each pod has a route of its own to its veth.")
    yield Fact(
        target.node, _describe_link(_find_link(node, route.link)), "The node's end of the target's veth."
    )
    for neighbour in node.neighbours(link=route.link):
        if neighbour.address == receiver:
            yield Fact(
                target.node, describe(neighbour), "The pod's MAC, so that the node need not ask either."
            )


def _explain_route(route: Route) -> str:
    if route.gateway is None:
        return "The target is on this node."
    return f"All pods of the other node are behind {route.gateway}."


def _find_link(node: RouteSocket, name: str) -> Link:
    return next(link for link in node.links() if link.name == name)


def _describe_link(link: Link) -> str:
    parts = [f"link {link.name} type {link.kind} mtu {link.mtu_bytes}"]
    if link.vxlan is not None:
        parts.append(
            f"id {link.vxlan.vni} dstport {link.vxlan.port} local {link.vxlan.local} dev {link.vxlan.underlay}"
        )
    if link.group == POD_LINK_GROUP:
        parts.append(f"group {link.group}")
    return " ".join(parts)


def read_cni_call(directory: Directory, member: Member) -> CniCall:
    """How the pod was attached, as its kubelet has kept it."""
    sandbox = read_sandboxes(directory)[member.uid]
    plugin = sandbox.conflist["plugins"][0]
    place = NodePlace(member.node, "", -1, (), directory.node(member.node))
    return CniCall(
        program=plugin["type"],
        environment=cni.make_variables("ADD", sandbox.attachment(), bin_dirs(place)),
        config=_to_text(cni.make_config(sandbox.conflist, plugin, sandbox.attachment(), None)),
        answer=_to_text(sandbox.result),
    )


def _to_text(document: cni.Json) -> str:
    return msgspec.json.encode(document).decode()
