"""What a lab is made from, as kept in its directory: `up` writes it, every other part reads it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import msgspec

from poplin.lab.addressing import MAX_NODES, Addressing
from poplin.model.errors import InvalidInputError

DEFAULT_NAME: Final = "lab"
# It becomes part of names of namespaces, nodes' host names and paths of unix sockets (107 bytes at most).
_NAME: Final = re.compile(r"(?!.{21})[a-z0-9]+(-[a-z0-9]+)*")


class Backend(StrEnum):
    """How packets travel between nodes, as net-conf.json spells it."""

    VXLAN = "vxlan"
    HOST_GW = "host-gw"


class Runtime(StrEnum):
    """What runs the pods: processes of this machine that the lab starts itself, or containerd and images."""

    PROCESS = "process"
    CONTAINERD = "containerd"


class MissingImage(StrEnum):
    """What becomes of a container whose image is not in the store: the echo server serves its ports, or an error."""

    ECHO = "echo"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Settings:
    """A lab. `net_conf` is the text of net-conf.json; `kubeconfig` "" means the embedded API server.

    `missing_image` is for containerd. `service_networks` and `load_balancer_pool` are texts; none are
    the usual ranges. `dns` puts cluster DNS into a cluster of the embedded API server.
    """

    name: str
    nodes: int
    versions: tuple[int, ...]
    net_conf: str
    kubeconfig: str = ""
    controllers: bool = True
    kubelet: bool = True
    runtime: Runtime = Runtime.PROCESS
    missing_image: MissingImage = MissingImage.ECHO
    service_networks: tuple[str, ...] = ()
    load_balancer_pool: tuple[str, ...] = ()
    dns: bool = True

    @property
    def addressing(self) -> Addressing:
        """Who has which address."""
        services = tuple(ip_network(text) for text in self.service_networks)
        return Addressing(self.versions, services, tuple(ip_network(t) for t in self.load_balancer_pool))

    def node_names(self) -> tuple[str, ...]:
        """node-1, node-2, ..."""
        return tuple(f"node-{number}" for number in range(1, self.nodes + 1))


def check_name(name: str) -> str:
    """A lab's name, as it is. Raises InvalidInputError."""
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name!r} is no name for a lab",
            where="--name",
            remedy="use up to 20 small letters and digits, with single hyphens between",
        )
    return name


def check_nodes(nodes: int) -> int:
    """A number of nodes, as it is. Raises InvalidInputError."""
    if not 1 <= nodes <= MAX_NODES:
        raise InvalidInputError(f"{nodes} nodes", where="--nodes", remedy=f"choose from 1 to {MAX_NODES}")
    return nodes


def make_net_conf(versions: Sequence[int], backend: Backend) -> str:
    """The text of net-conf.json for a lab's own ranges (flannel's configuration.md)."""
    networks = {network.version: str(network) for network in Addressing(versions).pod_networks()}
    conf: dict[str, Any] = {"EnableIPv4": 4 in networks}
    if 4 in networks:
        conf["Network"] = networks[4]
    if 6 in networks:
        conf |= {"EnableIPv6": True, "IPv6Network": networks[6]}
    conf["Backend"] = {"Type": backend.value}
    return msgspec.json.format(msgspec.json.encode(conf), indent=2).decode() + "\n"


def read_settings(path: Path) -> Settings:
    """The settings in a file. Raises InvalidInputError where it holds none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInputError(
            f"cannot read the lab's settings: {error}",
            where=str(path),
            remedy="remove the lab with `poplin lab down` and make it anew",
        ) from error


def write_settings(path: Path, settings: Settings) -> None:
    """Keep the settings."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n")
