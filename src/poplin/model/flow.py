"""Flows as people ask for them: which pod talked to which, and what policy said of it."""

from dataclasses import dataclass
from enum import StrEnum

from poplin.model.connection import FlowTuple
from poplin.model.kernel import IPAddress


@dataclass(frozen=True, slots=True)
class LoggedPacket:
    """A packet that a rule of a table has told of. `prefix` is the rule's.

    `icmp` is type and code, None for other protocols. `in_link` and `out_link` are indexes, 0 for none.
    """

    prefix: str
    flow: FlowTuple
    icmp: tuple[int, int] | None = None
    in_link: int = 0
    out_link: int = 0


class FlowVerdict(StrEnum):
    """LOGGED: a rule that logs has told of it, and what comes after that rule decides."""

    DENIED = "denied"
    ALLOWED = "allowed"
    LOGGED = "logged"


@dataclass(frozen=True, slots=True)
class FlowEnd:
    """Who has the address: a pod, a node (whose `namespace` is ""), or nobody known, who has no `name`."""

    address: IPAddress
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        if not self.name:
            return str(self.address)
        return f"{self.namespace or 'node'}/{self.name}"


@dataclass(frozen=True, slots=True)
class Ruling:
    """What decided in one direction: a policy, "" for none, and the place in it of the rule, None for none.

    Where several policies select the pod and none allows a packet, `policy` is the first of them.
    """

    direction: str
    reason: str
    policy: str = ""
    rule: int | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection, or try at one, seen at one node.

    `time_s` is since 1970, of the last packet where `count` are told as one. `service` is what the client asked
    for where that is not the destination, with its port. `port` is 0 for protocols that have none.
    """

    time_s: float
    verdict: FlowVerdict
    source: FlowEnd
    destination: FlowEnd
    protocol: int
    port: int = 0
    rulings: tuple[Ruling, ...] = ()
    service: tuple[IPAddress, int] | None = None
    count: int = 1
