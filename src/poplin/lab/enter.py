"""Running a program inside a lab: in a pod's namespaces, or in the network of a node or of the fabric."""

import asyncio
import os
from collections.abc import Sequence
from typing import NoReturn

from poplin.dataplane.netns import NAMED
from poplin.lab.container import DEFAULT_PATH
from poplin.lab.cri.client import Cri
from poplin.lab.cri.containerd import node_containerd, read_cgroup
from poplin.lab.cri.message import ContainerState
from poplin.lab.cri.pod import CONTAINER_NAME, POD_UID
from poplin.lab.directory import Directory
from poplin.lab.isolation import enter_options
from poplin.lab.message import Question
from poplin.lab.report import read_pods
from poplin.lab.runtime import ask
from poplin.lab.settings import Runtime, Settings
from poplin.model.errors import InvalidInputError, PoplinError


def enter(
    directory: Directory, settings: Settings, target: str, container: str, command: Sequence[str]
) -> NoReturn:
    """Become `command` inside `target`: "fabric", "node/NAME", "POD" or "NAMESPACE/POD".

    Raises InvalidInputError for what is not there, PoplinError for a command that cannot be run.
    """
    kind, _, name = target.rpartition("/")
    if target == "fabric":
        prefix = [f"--net={NAMED / directory.fabric_namespace()}"]
    elif kind == "node":
        if name not in settings.node_names():
            raise InvalidInputError("no such node", where=target, remedy="see `poplin lab status`")
        prefix = [f"--net={NAMED / directory.node_namespace(name)}"]
    else:
        prefix = enter_options(find_process(directory, settings, kind or "default", name, container))
    arguments = ["nsenter", *prefix, "--", *command]
    environment = {**os.environ, "PATH": os.environ.get("PATH", DEFAULT_PATH)}
    try:
        os.execvpe(arguments[0], arguments, environment)  # noqa: S606  - no shell is wanted
    except OSError as error:
        raise PoplinError(f"cannot run nsenter: {error.strerror}", remedy="install util-linux") from error


def find_process(directory: Directory, settings: Settings, namespace: str, name: str, container: str) -> int:
    """The id of the first process of a pod's container, "" for its first. Raises InvalidInputError."""
    pods = read_pods(directory, settings)
    pod = next((one for one in pods if one.key == (namespace, name)), None)
    if pod is None:
        raise InvalidInputError("no such pod", where=f"{namespace}/{name}", remedy="see `poplin lab status`")
    wanted = container or str(pod.spec["containers"][0]["name"])
    if settings.runtime is Runtime.CONTAINERD:
        pid = asyncio.run(_find_in_containerd(directory, str(pod.spec["nodeName"]), pod.uid, wanted))
        if pid:
            return pid
    for state in ask(directory.socket, Question(0)):
        if state.code is None and state.id.startswith(f"{pod.uid}/{wanted}/"):
            return state.pid
    raise InvalidInputError(
        f"its container {wanted} does not run",
        where=f"{namespace}/{name}",
        remedy="see `kubectl describe pod`",
    )


async def _find_in_containerd(directory: Directory, node: str, uid: str, name: str) -> int:
    """The first process of a container as this process' PID namespace numbers it, 0 where it does not run."""
    containerd = node_containerd(directory, node)
    async with Cri(containerd.address) as cri:
        found = await cri.list_containers({POD_UID: uid, CONTAINER_NAME: name})
    running = [one.id for one in found if one.state is ContainerState.RUNNING]
    pids = [pid for one in running for pid in read_cgroup(f"{containerd.cgroup}/pod{uid}/{one}")]
    return min(pids, default=0)
