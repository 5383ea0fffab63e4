"""A node as its kubelet knows it."""

from collections.abc import Sequence
from dataclasses import dataclass

from poplin.lab.directory import NodeDirectory
from poplin.model.kernel import IPAddress


@dataclass(frozen=True, slots=True)
class NodePlace:
    """Where a node is: `netns` is the path of its namespace, `netns_fd` stays open as long as the kubelet runs."""

    name: str
    netns: str
    netns_fd: int
    addresses: Sequence[IPAddress]
    files: NodeDirectory
