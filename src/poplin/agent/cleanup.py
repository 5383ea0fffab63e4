"""Take everything of ours off a node: what a `poplin` without any memory can tell as its own."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from poplin.agent.install import lock_namespace, lock_state_dir
from poplin.agent.pods import ATTACHMENTS
from poplin.agent.wiring import read_state
from poplin.cni.conflist import NAME as CONFLIST
from poplin.compile.host_ports import TABLE as HOST_PORT_TABLE
from poplin.compile.node_table import TABLE
from poplin.compile.policy.table import TABLE as POLICY_TABLE
from poplin.compile.services.table import TABLE as SERVICE_TABLE
from poplin.dataplane.netlink.request import describe, object_of
from poplin.dataplane.netlink.route_socket import RouteSocket
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.nftables import Family, TableKey
from poplin.model.state import NetworkState
from poplin.plan.network import plan_network
from poplin.plan.nftables import DeleteTable

STATE_FILES: Final = (f"{ATTACHMENTS}*", "deleted/*", "deleted", "lock")
RUN_FILES: Final = ("cni.sock", "agent.sock")
"""What the agent and its plugin leave in their two directories, in the order in which it can go."""


def remove_everything(state_dir: Path, run_dir: Path, cni_conf_dir: Path) -> Iterator[str]:
    """Remove links, routes, tables and files, and say of each that it is gone.

    Raises PoplinError where an agent still runs, or the kernel refuses.
    """
    with ExitStack() as locks:
        if state_dir.exists():
            locks.callback(os.close, lock_state_dir(state_dir))
        locks.enter_context(lock_namespace())
        yield from _remove_all(state_dir, run_dir, cni_conf_dir)


def _remove_all(state_dir: Path, run_dir: Path, cni_conf_dir: Path) -> Iterator[str]:
    # New pods stop coming first.
    conflist = cni_conf_dir / CONFLIST
    if conflist.exists():
        conflist.unlink()
        yield f"removed {conflist}"
    with RouteSocket() as socket:
        operations = plan_network(NetworkState(), read_state(socket))
        for failure in socket.apply(operations):
            raise failure.error
    for operation in operations:
        yield f"removed {describe(object_of(operation))}"
    with NftSocket() as tables:
        for name in (TABLE, HOST_PORT_TABLE, SERVICE_TABLE, POLICY_TABLE):
            key = TableKey(Family.INET, name)
            if tables.read_table(key) is not None:
                tables.apply([DeleteTable(key)])
                yield f"removed nftables table inet {name}"
    yield from _remove_files(state_dir, STATE_FILES)
    yield from _remove_files(run_dir, RUN_FILES)


def _remove_files(directory: Path, patterns: Sequence[str]) -> Iterator[str]:
    """Remove our files, and the directory where no other is in it: who mistypes its name loses nothing."""
    for path in [path for pattern in patterns for path in sorted(directory.glob(pattern))]:
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    if directory.exists() and not any(directory.iterdir()):
        directory.rmdir()
        yield f"removed {directory}"
