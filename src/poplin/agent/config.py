"""What an operator sets on an agent, and where on the node its things are."""

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from poplin.model.errors import InvalidInputError
from poplin.model.kernel import IPAddress, IPNetwork


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """An agent's settings.

    `state_file` is a file of Kubernetes objects to read instead of an API server; `kubeconfig` None means
    the service account of the agent's pod. `net_conf` is a file; where it is None the ConfigMap
    `net_conf_map` ("namespace/name") is watched. `public_ips` override the node's own addresses and
    `interface` the choice of the underlay. `services` False leaves Services to kube-proxy; `service_cidrs`
    is where clusterIPs come from, () where unknown; `node_port_networks` choose the node's addresses that
    serve node ports, () for its InternalIPs. `health_address` is "host:port", "" for none.
    """

    node_name: str
    state_dir: Path = Path("/var/lib/poplin")
    run_dir: Path = Path("/run/poplin")
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    cni_bin_dir: Path | None = None
    kubeconfig: Path | None = None
    state_file: Path | None = None
    net_conf: Path | None = None
    net_conf_map: str = "kube-flannel/kube-flannel-cfg"
    interface: str = ""
    public_ips: tuple[IPAddress, ...] = ()
    masquerade: bool = True
    services: bool = False
    service_cidrs: tuple[IPNetwork, ...] = ()
    node_port_networks: tuple[IPNetwork, ...] = ()
    health_address: str = "127.0.0.1:9099"
    coalesce_s: float = 0.01
    audit_s: float = 60.0

    @property
    def cni_socket(self) -> Path:
        """Where the CNI plugin finds the agent."""
        return self.run_dir / "cni.sock"

    @property
    def status_socket(self) -> Path:
        """Where `poplin status` and `poplin check` find the agent (HTTP)."""
        return self.run_dir / "agent.sock"


def parse_public_ips(text: str) -> tuple[IPAddress, ...]:
    """Read "ADDRESS[,ADDRESS]", at most one of each family. Raises InvalidInputError."""
    try:
        addresses = tuple(ip_address(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InvalidInputError(
            str(error), where="--public-ip", remedy="write one IPv4 and one IPv6 address at most"
        ) from error
    if len({a.version for a in addresses}) < len(addresses):
        raise InvalidInputError(
            "two addresses of one family", where="--public-ip", remedy="write one of each at most"
        )
    return addresses


def parse_networks(text: str, option: str) -> tuple[IPNetwork, ...]:
    """Read "CIDR[,CIDR...]" of an option. Raises InvalidInputError."""
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InvalidInputError(
            str(error), where=option, remedy="write CIDRs such as 10.96.0.0/16,fd00:10:96::/112"
        ) from error
