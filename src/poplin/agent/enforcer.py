"""Keeps table `inet poplin-policy` as the cluster wants it, and cuts the connections that it no longer allows.

All of it is for one thread at a time: that of `poplin.agent.policies`.
"""

import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from poplin.compile.policy.compiler import PodKey, PolicyCompiler, held_numbers
from poplin.compile.policy.flow import allowed_flow, first_packet, logged_flow
from poplin.compile.policy.network_policy import close_namespace, translate
from poplin.compile.policy.table import CUT, IDENTITY_MAPS, TABLE
from poplin.dataplane.conntrack import ConntrackSocket
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.nftables.owned_table import OwnedTable
from poplin.datastore.parse import InvalidObjectError
from poplin.model.attachment import Attachment
from poplin.model.cluster import Namespace, NetworkPolicy, Pod, PodPhase
from poplin.model.connection import Connection
from poplin.model.flow import Flow, FlowEnd, LoggedPacket
from poplin.model.kernel import IPAddress
from poplin.model.nftables import Family, TableKey
from poplin.model.policy import NETWORK_POLICY, Direction, PolicyKey, Reason, Verdict
from poplin.plan.nftables import AddElements, Operation

log = logging.getLogger(__name__)

KEY: Final = TableKey(Family.INET, TABLE)
MARKS_AT_ONCE: Final = 256

Change = Callable[["Enforcer"], None]


@dataclass(frozen=True, slots=True)
class Written:
    """What a change came to: the operations on the table, and whether connections that stand may be concerned."""

    operations: int
    concerns_standing: bool


class Enforcer:
    """Bound to the network namespace in which it is made, whose table it takes up as it stands.

    What asks the kernel raises KernelError.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._table = OwnedTable(KEY)
        self._dump = ConntrackSocket()
        self._marks = ConntrackSocket()
        self._route = RouteSocket()
        self._compile = PolicyCompiler(node, held_numbers(self._table.read()))
        self._pods: dict[PodKey, Pod] = {}
        self._unreadable: set[PodKey] = set()
        self._attached: dict[PodKey, dict[tuple[str, str], tuple[IPAddress, ...]]] = {}
        self._of_node: frozenset[IPAddress] = frozenset()
        self._policies: set[tuple[str, str]] = set()
        self._namespaces: set[str] = set()
        self._sweep: Iterator[Connection] | None = None
        self.ports = self._table.ports

    def close(self) -> None:
        """Close the sockets; nothing may be asked any more."""
        for socket in (self._table, self._dump, self._marks, self._route):
            socket.close()

    # Changes

    def replace_namespaces(self, namespaces: Iterable[Namespace]) -> None:
        found = {one.name: one for one in namespaces}
        for name in self._namespaces - found.keys():
            self.delete_namespace(name)
        for one in found.values():
            self.put_namespace(one)

    def put_namespace(self, namespace: Namespace) -> None:
        self._namespaces.add(namespace.name)
        self._compile.put_namespace(namespace)

    def delete_namespace(self, name: str) -> None:
        self._namespaces.discard(name)
        self._compile.delete_namespace(name)

    def replace_policies(
        self, policies: Iterable[NetworkPolicy], unreadable: Iterable[InvalidObjectError]
    ) -> None:
        found: dict[tuple[str, str], NetworkPolicy | InvalidObjectError] = {}
        found |= {(one.namespace, one.name): one for one in policies}
        found |= {(error.namespace, error.name): error for error in unreadable}
        for namespace, name in self._policies - found.keys():
            self.delete_policy(namespace, name)
        for one in found.values():
            self.put_policy(one)

    def put_policy(self, policy: NetworkPolicy | InvalidObjectError) -> None:
        """One that cannot be read closes the pods of its namespace: nobody knows which of them it means."""
        self._policies.add((policy.namespace, policy.name))
        if isinstance(policy, InvalidObjectError):
            self._compile.put_policy(close_namespace(policy.namespace, policy.name, policy.what))
        else:
            self._compile.put_policy(translate(policy))

    def delete_policy(self, namespace: str, name: str) -> None:
        self._policies.discard((namespace, name))
        self._compile.delete_policy(PolicyKey(NETWORK_POLICY, namespace, name))

    def replace_pods(self, pods: Iterable[Pod], unreadable: Iterable[InvalidObjectError]) -> None:
        found = {(pod.namespace, pod.name): pod for pod in pods}
        refused = {(error.namespace, error.name) for error in unreadable}
        touched = (self._pods.keys() - found.keys()) | (self._unreadable ^ refused) | found.keys()
        self._pods, self._unreadable = found, refused
        for key in touched:
            self._place(key)

    def put_pod(self, pod: Pod) -> None:
        key = pod.namespace, pod.name
        self._unreadable.discard(key)
        self._pods[key] = pod
        self._place(key)

    def refuse_pod(self, namespace: str, name: str) -> None:
        """Take in that the pod cannot be read. What is attached of it is closed."""
        self._unreadable.add((namespace, name))
        self._pods.pop((namespace, name), None)
        self._place((namespace, name))

    def delete_pod(self, namespace: str, name: str) -> None:
        self._unreadable.discard((namespace, name))
        self._pods.pop((namespace, name), None)
        self._place((namespace, name))

    def attach(self, attachment: Attachment) -> None:
        key = pod_key(attachment)
        self._attached.setdefault(key, {})[attachment.key] = attachment.addresses
        self._place(key)

    def detach(self, attachment: Attachment) -> None:
        key = pod_key(attachment)
        links = self._attached.get(key, {})
        links.pop(attachment.key, None)
        if not links:
            self._attached.pop(key, None)
        self._place(key)

    def _place(self, key: PodKey) -> None:
        """Tell the compiler of a pod. Of what is attached here we know the addresses better than the API."""
        pod, links = self._pods.get(key), self._attached.get(key)
        if links is None:
            if pod is None:
                self._compile.delete_pod(*key)
            else:
                self._compile.put_pod(pod)
            return
        if key in self._unreadable:
            self._compile.delete_pod(*key)
            return
        addresses = tuple(address for some in links.values() for address in some)
        known = pod or Pod(*key, phase=PodPhase.RUNNING)  # of no API: a pod without labels
        self._compile.put_pod(replace(known, node_name=self._node, addresses=addresses, announced=False))

    # The table

    def forget(self) -> None:
        """Read the table anew before it is next written: somebody else may have changed it."""
        self._table.forget()

    def write(self) -> Written:
        """Bring the table to what all changes so far want. Without any policy there is no table."""
        desired = self._compile.table() if self._policies else None
        operations = self._table.write(desired)
        return Written(len(operations), desired is not None and any(map(_concerns_standing, operations)))

    # Connections that stand

    def sweep(self, budget_s: float) -> bool:
        """Cut the connections that policy does not allow, and mend those cut that it does. Tell whether all are done.

        Stops after about `budget_s` and goes on where it was when called again.
        """
        deadline_s = time.monotonic() + budget_s
        if self._sweep is None:
            self._of_node = frozenset(one.interface.ip for one in self._route.addresses())
            self._sweep = self._dump.each()
        local = self._local()
        marks: dict[int, list[Connection]] = {CUT: [], 0: []}
        done = False
        for count, connection in enumerate(self._sweep):
            mark = self._judge(connection, local)
            if mark is not None:
                marks[mark].append(connection)
            if count % MARKS_AT_ONCE == MARKS_AT_ONCE - 1 and time.monotonic() > deadline_s:
                break
        else:
            done, self._sweep = True, None
        for mark, some in marks.items():
            self._marks.set_mark(some, mark, CUT)
            if some:
                log.info("connections", extra={"cut" if mark else "mended": len(some)})
        return done

    def _judge(self, connection: Connection, local: Container[IPAddress]) -> int | None:
        """The CUT bit that the connection should have, None where it has it."""
        directions = self._directions(connection, local)
        free = not directions or all(one.allowed for one in self._verdicts(connection, directions))
        wanted = 0 if free else CUT
        return wanted if connection.mark & CUT != wanted else None

    def _directions(self, connection: Connection, local: Container[IPAddress]) -> list[Direction]:
        """Those in which it is for this node to decide of the connection."""
        source, destination = connection.original.source, connection.reply.source
        directions = [Direction.EGRESS] if source in local else []
        if destination in local and source not in self._of_node:
            directions.append(Direction.INGRESS)
        return directions

    def _verdicts(self, connection: Connection, directions: Iterable[Direction]) -> list[Verdict]:
        if not self._policies:
            return [Verdict(direction, True, Reason.NOT_ISOLATED) for direction in directions]
        return self._compile.verdicts(first_packet(connection), directions)

    def _local(self) -> frozenset[IPAddress]:
        """The addresses of this node's pods."""
        return frozenset(ip for links in self._attached.values() for ips in links.values() for ip in ips)

    # What people ask

    def describe(self, seen: Iterable[LoggedPacket | Connection], time_s: float) -> list[Flow | None]:
        """The flows of what was seen; None for what policy has no part in, or has ended."""
        local = self._local()
        return [self._describe(one, time_s, local) for one in seen]

    def _describe(
        self, seen: LoggedPacket | Connection, time_s: float, local: Container[IPAddress]
    ) -> Flow | None:
        if isinstance(seen, LoggedPacket):
            return logged_flow(seen, time_s, self._name)
        directions = self._directions(seen, local)
        if not directions or seen.mark & CUT:
            return None
        return allowed_flow(seen, time_s, self._name, self._verdicts(seen, directions))

    def _name(self, address: IPAddress) -> FlowEnd:
        if address in self._of_node:
            return FlowEnd(address, "", self._node)
        return FlowEnd(address, *(self._compile.owner(address) or ("", "")))


def pod_key(attachment: Attachment) -> PodKey:
    """The pod's namespace and name; of what was attached for no pod, the container."""
    return attachment.pod_namespace, attachment.pod_name or attachment.container_id


def _concerns_standing(operation: Operation) -> bool:
    """Whether anything but the arrival of pods: no connection stands with a pod that is new."""
    return not (isinstance(operation, AddElements) and operation.set.name in IDENTITY_MAPS)
