"""Services and EndpointSlices as values: what their datapath needs, and no field more.

Kubernetes API reference, "core/v1 Service" and "discovery.k8s.io/v1 EndpointSlice". As in `model.cluster`,
absent lists are empty tuples and absent strings "".
"""

from dataclasses import dataclass

from poplin.model.cluster import TransportProtocol
from poplin.model.kernel import IPAddress, IPNetwork

PROTOCOL_NUMBERS = {TransportProtocol.TCP: 6, TransportProtocol.UDP: 17, TransportProtocol.SCTP: 132}
"""Of the protocols as IP numbers them."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a Service; slices name their own port after its `name`. `node_port` 0: it has none."""

    name: str
    protocol: TransportProtocol
    port: int
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A Service that a node serves, or a headless one (`cluster_ips` is empty), which only DNS does.

    `created` is the API's creationTimestamp, "" where it has none: of two Services that want one address and
    port the older has it. `served_elsewhere` says that its label hands it to another proxy
    (service.kubernetes.io/service-proxy-name), or that it is an ExternalName.

    `load_balancer_ips` are the ingress addresses of ipMode VIP; those of ipMode Proxy translate by
    themselves. `source_ranges` empty: anyone may use them. `affinity_timeout_s` None: every connection may
    go elsewhere. `internal_local` and `external_local` are the traffic policies' value Local.
    `health_check_node_port` 0: none.
    """

    namespace: str
    name: str
    uid: str = ""
    created: str = ""
    served_elsewhere: bool = False
    ports: tuple[ServicePort, ...] = ()
    cluster_ips: tuple[IPAddress, ...] = ()
    external_ips: tuple[IPAddress, ...] = ()
    load_balancer_ips: tuple[IPAddress, ...] = ()
    source_ranges: tuple[IPNetwork, ...] = ()
    affinity_timeout_s: int | None = None
    internal_local: bool = False
    external_local: bool = False
    health_check_node_port: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of a slice: its first address (all of one endpoint lead to the same place).

    `ready` is true for any endpoint of a Service with publishNotReadyAddresses: the slice's controller says so.
    `serving` holds while it answers, whether or not it is `terminating`. `zones` and `nodes` are the
    topology hints, empty where it has none. `node_name` "": on no node of the cluster.
    """

    address: IPAddress
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str = ""
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointPort:
    """A port that all endpoints of a slice have."""

    name: str
    protocol: TransportProtocol
    port: int


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Endpoints of `service`, a name in its own namespace; "" where it belongs to none that a node serves.

    `endpoints` are all of one family. A slice of FQDNs has none here.
    """

    namespace: str
    name: str
    service: str = ""
    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
