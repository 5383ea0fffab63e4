"""What the pods of a node take of it, as a running sum."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from poplin.lab.controllers.neighbourhood import has_anti_affinity
from poplin.lab.controllers.object import Object
from poplin.lab.controllers.placement import Port, host_ports, sum_requests
from poplin.lab.controllers.pod import is_finished
from poplin.lab.controllers.store import owner_uid


@dataclass(slots=True)
class Occupancy:
    """Amounts in thousandths, host ports, pods by their owner's uid, and the pods themselves.

    `hermits` are those of the pods that keep others away.
    """

    requests: Counter[str] = field(default_factory=Counter)
    ports: set[Port] = field(default_factory=set)
    owners: Counter[str] = field(default_factory=Counter)
    pods: list[Object] = field(default_factory=list)
    hermits: list[Object] = field(default_factory=list)

    def add(self, pod: Object) -> None:
        self.requests.update(sum_requests(pod.spec))
        self.ports.update(host_ports(pod.spec))
        self.owners[owner_uid(pod)] += 1
        self.pods.append(pod)
        if has_anti_affinity(pod):
            self.hermits.append(pod)

    def copy(self) -> Self:
        """Another with the same in it."""
        return type(self)(
            Counter(self.requests), set(self.ports), Counter(self.owners), list(self.pods), list(self.hermits)
        )


def measure(pods: Iterable[Object]) -> Occupancy:
    """The occupancy by `pods`, finished ones left out."""
    occupancy = Occupancy()
    for pod in pods:
        if not is_finished(pod):
            occupancy.add(pod)
    return occupancy
