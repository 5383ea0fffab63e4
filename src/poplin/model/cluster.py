"""Cluster objects as values: what Poplin reads of the Kubernetes API, and no field more.

Names follow the API's own (`podCIDRs` is `pod_cidrs`). Absent lists are empty tuples, absent strings "".
Objects without a namespace have the namespace "". Compare two values to learn whether a change matters:
status heartbeats, managed fields and resource versions are not part of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.selector import EVERYTHING, Selector


class TransportProtocol(StrEnum):
    """core/v1 Protocol, as ports of containers, Services and policies name it."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class PodPhase(StrEnum):
    """status.phase of a Pod; `UNKNOWN` also stands where a node has gone silent."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


class ConditionStatus(StrEnum):
    """Status of a condition (core/v1 ConditionStatus)."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A Namespace; Kubernetes labels each with `kubernetes.io/metadata.name`."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    namespace: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A Node. `pod_cidrs` is empty until the cluster has given it any; at most one of each family.

    `internal_addresses` and `external_addresses` are status.addresses of those types in the API's order.
    `network_unavailable` is the condition of that name, None where nobody has set it.
    """

    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    pod_cidrs: tuple[IPNetwork, ...] = ()
    internal_addresses: tuple[IPAddress, ...] = ()
    external_addresses: tuple[IPAddress, ...] = ()
    network_unavailable: ConditionStatus | None = None
    namespace: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class ConfigMap:
    """A ConfigMap's text; binaryData is not read."""

    namespace: str
    name: str
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port a container declares. `name` is "" and `host_port` 0 where it has none.

    `host_address` None means that the host port listens on every address of the node.
    """

    port: int
    protocol: TransportProtocol = TransportProtocol.TCP
    name: str = ""
    host_port: int = 0
    host_address: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """A Pod. `addresses` is status.podIPs: empty before it has any, else at most one of each family.

    `announced` says that they are not in the status yet: the pod's node has written them into an annotation.
    `node_name` is "" until it is scheduled. `deleting` says that a deletionTimestamp is set: the pod may
    still run for its grace period. `ports` are those of its containers and of its sidecars (restartable
    init containers), in order.
    """

    namespace: str
    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_name: str = ""
    service_account: str = ""
    host_network: bool = False
    phase: PodPhase = PodPhase.PENDING
    deleting: bool = False
    addresses: tuple[IPAddress, ...] = ()
    announced: bool = False
    ports: tuple[ContainerPort, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether its containers have stopped for good: its addresses may already be another pod's."""
        return self.phase in {PodPhase.SUCCEEDED, PodPhase.FAILED}


@dataclass(frozen=True, slots=True)
class NetworkPolicyPort:
    """A port of a NetworkPolicy's rule: a number, or a name that the destination pod gives one of its ports.

    `port` None is every port of the protocol; `end_port` makes a number the first of several.
    """

    protocol: TransportProtocol = TransportProtocol.TCP
    port: int | str | None = None
    end_port: int | None = None


@dataclass(frozen=True, slots=True)
class NetworkPolicyPeer:
    """Either pods by `selector`, which asks for their namespace too, or `block` without `excepts`."""

    selector: Selector | None = None
    block: IPNetwork | None = None
    excepts: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkPolicyRule:
    """What is allowed; no peers are all there are, and no ports every port of every protocol.

    `index` is the rule's place in the object: rules that could not be read are not here.
    """

    index: int
    peers: tuple[NetworkPolicyPeer, ...] = ()
    ports: tuple[NetworkPolicyPort, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """networking.k8s.io/v1 NetworkPolicy. Selectors speak of labels as `model.selector` has them.

    A direction whose rules are None is none of the policy's. `pod_selector` does not ask for the namespace,
    the peers' selectors do. `problems` says what of the policy could not be read,
    each with its field's path: such a rule allows nothing, and a policy whose podSelector is such isolates
    all pods of its namespace.
    """

    namespace: str
    name: str
    pod_selector: Selector = EVERYTHING
    ingress: tuple[NetworkPolicyRule, ...] | None = ()
    egress: tuple[NetworkPolicyRule, ...] | None = None
    problems: tuple[str, ...] = ()
    uid: str = ""


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """A condition to be set on a Node; `reason` is one CamelCase word, `message` for people."""

    type: str
    status: ConditionStatus
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """The object that an Event is about (core/v1 ObjectReference)."""

    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    api_version: str = "v1"
