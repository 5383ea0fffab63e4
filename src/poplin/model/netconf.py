"""The cluster's network configuration: flannel's net-conf.json as a value."""

from dataclasses import dataclass
from enum import StrEnum

from poplin.model.kernel import IPAddress, IPNetwork


class BackendType(StrEnum):
    """How packets travel between nodes; the values are flannel's `backend-type` annotation."""

    VXLAN = "vxlan"
    HOST_GW = "host-gw"


@dataclass(frozen=True, slots=True)
class Backend:
    """Backend{Type, ...}. `mtu_bytes` is the underlay's, 0 to take the interface's own.

    All but `type` and `mtu_bytes` concern vxlan alone. `port` is the UDP destination port.
    """

    type: BackendType = BackendType.VXLAN
    mtu_bytes: int = 0
    vni: int = 1
    port: int = 8472
    direct_routing: bool = False
    learning: bool = False
    gbp: bool = False


@dataclass(frozen=True, slots=True)
class NetConf:
    """`networks` has one pod network for each enabled family, IPv4 first.

    `non_masquerade` are destinations outside the cluster that see pods' own addresses.
    """

    networks: tuple[IPNetwork, ...]
    backend: Backend = Backend()
    non_masquerade: tuple[IPNetwork, ...] = ()

    def network(self, of: IPAddress | IPNetwork) -> IPNetwork | None:
        """Give the pod network of the family that `of` has, None where that family is off."""
        return next((n for n in self.networks if n.version == of.version), None)
