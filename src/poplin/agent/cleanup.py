"""Take everything of ours off a node: what a `poplin` without any memory can tell as its own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from poplin.agent.install import lock_state_dir
from poplin.agent.wiring import read_state
from poplin.cni.conflist import NAME as CONFLIST
from poplin.compile.node_table import TABLE
from poplin.dataplane.netlink.request import describe, object_of
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.nftables import Family, TableKey
from poplin.model.state import NetworkState
from poplin.plan.network import plan_network
from poplin.plan.nftables import DeleteTable


def remove_everything(state_dir: Path, run_dir: Path, cni_conf_dir: Path) -> Iterator[str]:
    """Remove links, routes, tables and files, and say of each that it is gone.

    Raises PoplinError where an agent still runs, or the kernel refuses.
    """
    # New pods stop coming first. Then nobody may be adding any.
    conflist = cni_conf_dir / CONFLIST
    if conflist.exists():
        conflist.unlink()
        yield f"removed {conflist}"
    if state_dir.exists():
        lock_state_dir(state_dir)
    with RouteSocket() as socket:
        operations = plan_network(NetworkState(), read_state(socket))
        for failure in socket.apply(operations):
            raise failure.error
    for operation in operations:
        yield f"removed {describe(object_of(operation))}"
    with NftSocket() as tables:
        key = TableKey(Family.INET, TABLE)
        if tables.read_table(key) is not None:
            tables.apply([DeleteTable(key)])
            yield f"removed nftables table inet {TABLE}"
    for directory in (state_dir, run_dir):
        if directory.exists():
            shutil.rmtree(directory)
            yield f"removed {directory}"
