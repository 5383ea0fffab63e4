"""The pods that take part: those with a network of their own that still runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from poplin.lab.addon import NAMESPACE as OWN
from poplin.lab.controllers.object import Object
from poplin.lab.demo.workload import workload_of
from poplin.lab.directory import Directory
from poplin.lab.kubelet.sandbox import Sandbox, read_sandboxes
from poplin.lab.probing import Probe, Protocol
from poplin.model.kernel import IPAddress


@dataclass(frozen=True, slots=True)
class Member:
    """A pod. `ports` are those that its containers declare and serve."""

    uid: str
    namespace: str
    name: str
    hostname: str
    workload: str
    node: str
    netns: str
    addresses: Sequence[IPAddress]
    ports: Sequence[tuple[Protocol, int]]

    @property
    def title(self) -> str:
        """Namespace and name."""
        return f"{self.namespace}/{self.name}"


def find_members(directory: Directory, pods: Iterable[Object]) -> list[Member]:
    """The application's pods that are attached, in the order of their names. The cluster's own are none."""
    sandboxes = read_sandboxes(directory)
    members = [
        _make_member(pod, sandbox)
        for pod in pods
        if pod.namespace != OWN
        and (sandbox := sandboxes.get(pod.uid)) is not None
        and sandbox.result
        and _lives(pod)
    ]
    return sorted(members, key=lambda member: (member.namespace, member.name))


def _lives(pod: Object) -> bool:
    return not pod.deleting and pod.status.get("phase") not in {"Succeeded", "Failed"}


def _make_member(pod: Object, sandbox: Sandbox) -> Member:
    ready = {s["name"] for s in pod.status.get("containerStatuses") or () if s.get("ready")}
    ports = {
        (Protocol(port.get("protocol") or "TCP"), int(port["containerPort"]))
        for container in pod.spec.get("containers") or ()
        if container["name"] in ready
        for port in container.get("ports") or ()
        if (port.get("protocol") or "TCP") in {Protocol.TCP, Protocol.UDP}
    }
    return Member(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        hostname=str(pod.spec.get("hostname") or pod.name)[:63].rstrip(".-"),
        workload=f"{pod.namespace}/{workload_of(pod)}",
        node=str(pod.spec["nodeName"]),
        netns=sandbox.netns,
        addresses=tuple(sandbox.addresses()),
        ports=tuple(sorted(ports)),
    )


def make_probes(members: Sequence[Member]) -> list[tuple[Member, Member, Probe]]:
    """From every pod to every address of every other: an ICMP echo, and each declared port."""
    return [
        (source, target, Probe(source.netns, source.title, address, port, protocol))
        for source in members
        for target in members
        if target is not source
        for address in target.addresses
        for protocol, port in ((Protocol.ICMP, 0), *target.ports)
    ]
