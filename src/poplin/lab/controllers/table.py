"""The table of controllers. One more is one more module, and one more row here."""

from collections.abc import Collection, Sequence

from poplin.lab.controllers.controller import Controller
from poplin.lab.controllers.cron_job import CRON_JOB
from poplin.lab.controllers.daemon_set import DAEMON_SET
from poplin.lab.controllers.deployment import DEPLOYMENT
from poplin.lab.controllers.endpoint_slice import ENDPOINT_SLICE
from poplin.lab.controllers.job import JOB
from poplin.lab.controllers.load_balancer import make_load_balancer
from poplin.lab.controllers.node_cidr import make_node_cidr
from poplin.lab.controllers.node_lifecycle import NODE_LIFECYCLE
from poplin.lab.controllers.pod_garbage import POD_GARBAGE
from poplin.lab.controllers.replica_set import REPLICA_SET
from poplin.lab.controllers.scheduler import make_scheduler
from poplin.lab.controllers.stateful_set import STATEFUL_SET
from poplin.model.errors import InvalidInputError
from poplin.model.kernel import IPNetwork


def make_controllers(
    cluster_networks: Sequence[IPNetwork],
    names: Collection[str] | None = None,
    load_balancer_pool: Sequence[IPNetwork] = (),
) -> list[Controller]:
    """The controllers of these names, None for all. Raises InvalidInputError for a name there is none of."""
    table = [
        make_node_cidr(cluster_networks),
        NODE_LIFECYCLE,
        make_scheduler(),
        REPLICA_SET,
        DEPLOYMENT,
        DAEMON_SET,
        STATEFUL_SET,
        JOB,
        CRON_JOB,
        ENDPOINT_SLICE,
        make_load_balancer(load_balancer_pool),
        POD_GARBAGE,
    ]
    known = {one.name for one in table}
    for name in names or ():
        if name not in known:
            raise InvalidInputError(
                "no such controller", where=name, remedy=f"choose from {', '.join(sorted(known))}"
            )
    return [one for one in table if names is None or one.name in names]
