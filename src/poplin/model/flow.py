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
    DENIED = "denied"
    ALLOWED = "allowed"


@dataclass(frozen=True, slots=True)
class FlowEnd:
    """Who has the address; `namespace` and `name` are "" where it is no pod's that this node knows."""

    address: IPAddress
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else str(self.address)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What decided in one direction: a policy, and the rule's place in it.

    `rule` None: none of the policies' rules allows it. `policy` "": no policy selects the pod.
    """

    direction: str
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
