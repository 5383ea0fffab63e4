"""Who has which address in a lab. Pure: the same number of nodes always gives the same plan.

Nothing of it is seen outside the lab's own namespaces, so every lab uses the same ranges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Final

from poplin.model.errors import InvalidInputError
from poplin.model.kernel import IPAddress, IPInterface, IPNetwork

FAMILIES: Final[dict[str, tuple[int, ...]]] = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}
"""`--ip-family` -> IP versions, IPv4 first."""

UNDERLAY: Final[dict[int, IPNetwork]] = {4: ip_network("172.18.0.0/16"), 6: ip_network("fd00:10:18::/64")}
PODS: Final[dict[int, IPNetwork]] = {4: ip_network("10.244.0.0/16"), 6: ip_network("fd00:10:244::/56")}
NODE_PREFIX: Final[dict[int, int]] = {4: 24, 6: 64}
SERVICES: Final[dict[int, IPNetwork]] = {4: ip_network("10.96.0.0/16"), 6: ip_network("fd00:10:96::/112")}
LOAD_BALANCERS: Final[dict[int, IPNetwork]] = {
    4: ip_network("172.19.0.0/24"),
    6: ip_network("fd00:10:19::/120"),
}
DNS_HOST: Final = 10
API_PORT: Final = 6443
MAX_NODES: Final = 255
"""As many /24 as pods' /16 holds, less the underlay's gateway."""


@dataclass(frozen=True, slots=True)
class Addressing:
    """A lab's addresses in the IP versions that it speaks.

    `services` are its ranges of clusterIPs, `balancers` those of load balancers; none are the usual ones.
    """

    versions: Sequence[int]
    services: Sequence[IPNetwork] = ()
    balancers: Sequence[IPNetwork] = ()

    def gateways(self) -> tuple[IPInterface, ...]:
        """The fabric's own addresses: each node's default route, and where the API is reached."""
        return self._hosts(1)

    def node(self, number: int) -> tuple[IPInterface, ...]:
        """The addresses of node `number`, counted from 1."""
        return self._hosts(number + 1)

    def pod_networks(self) -> tuple[IPNetwork, ...]:
        """The ranges that nodes get their podCIDRs from."""
        return tuple(PODS[version] for version in self.versions)

    def service_networks(self) -> tuple[IPNetwork, ...]:
        """The ranges of ClusterIPs."""
        return tuple(self.services) or tuple(SERVICES[version] for version in self.versions)

    def load_balancer_pool(self) -> tuple[IPNetwork, ...]:
        """The ranges of load balancers' addresses."""
        return tuple(self.balancers) or tuple(LOAD_BALANCERS[version] for version in self.versions)

    def dns_addresses(self) -> tuple[IPAddress, ...]:
        """Where pods ask for names: the tenth address of each range, as kubeadm has it."""
        return tuple(network.network_address + DNS_HOST for network in self.service_networks())

    def api_address(self) -> IPAddress:
        """Where agents reach the API: the gateway, of the first family."""
        return self.gateways()[0].ip

    def _hosts(self, offset: int) -> tuple[IPInterface, ...]:
        networks = (UNDERLAY[version] for version in self.versions)
        return tuple(ip_interface(f"{n.network_address + offset}/{n.prefixlen}") for n in networks)


def parse_families(text: str) -> tuple[int, ...]:
    """The IP versions of an `--ip-family`. Raises InvalidInputError."""
    if text not in FAMILIES:
        raise InvalidInputError(
            f"{text!r} is no IP family", where="--ip-family", remedy=f"use one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[text]


def check_services(services: Sequence[IPNetwork], versions: Sequence[int]) -> tuple[IPNetwork, ...]:
    """Ranges of clusterIPs in the order of the lab's families; none is the usual ones.

    Raises InvalidInputError for those of families that it does not speak, or that others of it have.
    """
    _check_ranges(services, versions, "--service-cidr")
    given = {network.version: network for network in services}
    if services and versions[0] not in given:
        raise InvalidInputError(
            f"no IPv{versions[0]} range, where the API is", where="--service-cidr", remedy="add one"
        )
    return tuple(given[version] for version in versions if version in given)


def parse_pool(text: str, versions: Sequence[int]) -> tuple[IPNetwork, ...]:
    """The ranges of a `--load-balancer-pool`, "" for the usual ones. Raises InvalidInputError."""
    option = "--load-balancer-pool"
    try:
        pool = tuple(ip_network(part.strip()) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InvalidInputError(str(error), where=option) from None
    _check_ranges(pool, versions, option)
    return pool


def _check_ranges(networks: Sequence[IPNetwork], versions: Sequence[int], option: str) -> None:
    others = [*UNDERLAY.values(), *PODS.values()]
    for network in networks:
        if network.version not in versions:
            what, remedy = f"the lab has no IPv{network.version}", "choose another --ip-family"
        elif any(network.version == other.version and network.overlaps(other) for other in others):
            what, remedy = f"{network} is the lab's own", "choose another range"
        else:
            continue
        raise InvalidInputError(what, where=option, remedy=remedy)
