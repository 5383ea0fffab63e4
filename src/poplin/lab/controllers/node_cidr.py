"""Pod CIDRs of nodes, cut from the cluster's networks (Kubernetes documentation, "kube-controller-manager").

A node keeps for ever what it has; the lowest free block goes to the next one.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from poplin.datastore.resource import Resource
from poplin.lab.controllers.controller import THE_CLUSTER, Cluster, Controller
from poplin.lab.controllers.object import NODES, Key, Object
from poplin.lab.controllers.write import Event, Outcome, Tell, Write, patch
from poplin.model.kernel import IPNetwork

NODE_PREFIX: Final = {4: 24, 6: 64}


def allot(nodes: Iterable[Object], networks: Sequence[IPNetwork]) -> list[Write]:
    """Give each node without pod CIDRs one block of every family of `networks`; of none where one is used up."""
    nodes = sorted(nodes, key=lambda node: (node.created, node.name))
    taken = [network for node in nodes for network in pod_cidrs(node)]
    writes: list[Write] = []
    for node in nodes:
        if pod_cidrs(node) or node.deleting:
            continue
        blocks = [find_free(family, taken) for family in _families(networks)]
        given = [block for block in blocks if block is not None]
        if len(given) < len(blocks):
            text = f"Node {node.name} status is now: CIDRNotAvailable"
            writes.append(Tell(Event(node, "CIDRNotAvailable", text, warning=True)))
        elif given:
            taken += given
            texts = [str(block) for block in given]
            writes.append(patch(NODES, node, {"spec": {"podCIDR": texts[0], "podCIDRs": texts}}))
    return writes


def pod_cidrs(node: Object) -> list[IPNetwork]:
    """What a node has already."""
    texts = node.spec.get("podCIDRs") or ([node.spec["podCIDR"]] if node.spec.get("podCIDR") else [])
    return [_parse(text) for text in texts]


@lru_cache(maxsize=4096)
def _parse(text: str) -> IPNetwork:
    return ip_network(text, strict=False)


def _families(networks: Sequence[IPNetwork]) -> list[list[IPNetwork]]:
    """The networks of each family, in the order given."""
    versions = dict.fromkeys(network.version for network in networks)
    return [[network for network in networks if network.version == version] for version in versions]


def find_free(networks: Iterable[IPNetwork], taken: Iterable[IPNetwork]) -> IPNetwork | None:
    """The lowest block of a node's size in `networks` that overlaps nothing taken; None where there is none.

    A network smaller than a node's block is one block.
    """
    taken = list(taken)
    for network in networks:
        prefix = max(network.prefixlen, NODE_PREFIX[network.version])
        size = 1 << (network.max_prefixlen - prefix)
        start = int(network.network_address)
        busy = sorted(
            (int(one.network_address), int(one.broadcast_address))
            for one in taken
            if one.version == network.version
        )
        for low, high in busy:
            if high >= start and low < start + size:
                start += (high - start) // size * size + size
        if start + size - 1 <= int(network.broadcast_address):
            return IPv4Network((start, prefix)) if network.version == 4 else IPv6Network((start, prefix))
    return None


def make_node_cidr(networks: Sequence[IPNetwork]) -> Controller:
    """The row for a cluster of these networks."""

    def decide(cluster: Cluster, _: Key, now: datetime) -> Outcome:
        del now
        if all(node.spec.get("podCIDRs") for node in cluster[NODES]):
            return Outcome()
        return Outcome(tuple(allot(cluster[NODES], networks)))

    return Controller("node-ipam-controller", (NODES,), _affected, decide)


def _affected(_: Cluster, resource: Resource[Object], one: Object) -> Iterable[Key]:
    del resource, one
    return (THE_CLUSTER,)
