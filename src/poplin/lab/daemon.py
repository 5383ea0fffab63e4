"""The daemons of a lab, as children of its init become them: the server, and an agent for each node."""

import asyncio
import os
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn

from poplin.agent import log
from poplin.agent.agent import Agent
from poplin.agent.config import AgentConfig
from poplin.agent.process import serve_until_signal
from poplin.dataplane.netns import NAMED, open_netns
from poplin.datastore.kubeconfig import find_access
from poplin.datastore.kubernetes import KubernetesSource
from poplin.lab.cri.containerd import node_containerd
from poplin.lab.directory import Directory
from poplin.lab.init import Daemon
from poplin.lab.isolation import CLONE_NEWNET, redirect_output, set_process_name, setns
from poplin.lab.message import SERVER, agent_name, containerd_name
from poplin.lab.server import run_server
from poplin.lab.settings import Runtime, Settings
from poplin.model.errors import PoplinError


def make_daemons(
    directory: Directory, settings: Settings, listeners: Sequence[socket.socket]
) -> Mapping[str, Daemon]:
    """By name: "server", and "agent-node-1" for each node."""
    daemons: dict[str, Daemon] = {SERVER: _server(directory, settings, listeners)}
    for node in settings.node_names():
        daemons[agent_name(node)] = _agent(directory, settings, node)
        if settings.runtime is Runtime.CONTAINERD:
            daemons[containerd_name(node)] = _containerd(directory, node)
    return daemons


def _server(directory: Directory, settings: Settings, listeners: Sequence[socket.socket]) -> Daemon:
    return lambda: _become(directory, SERVER, lambda: run_server(directory, settings, listeners))


def _agent(directory: Directory, settings: Settings, node: str) -> Daemon:
    def become() -> NoReturn:
        setns(open_netns(NAMED / directory.node_namespace(node)), CLONE_NEWNET)
        _become(directory, agent_name(node), lambda: run_agent(agent_config(directory, settings, node)))

    return become


def _containerd(directory: Directory, node: str) -> Daemon:
    def become() -> NoReturn:
        try:
            os.setsid()
            redirect_output(directory.log(containerd_name(node)))
            node_containerd(directory, node).become()
        except BaseException:  # noqa: BLE001  - the log is the only place left to say it
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    return become


def agent_config(directory: Directory, settings: Settings, node: str) -> AgentConfig:
    """What `poplin agent` would be told by options on this node. Another cluster's ranges are not known here."""
    files = directory.node(node)
    return AgentConfig(
        node_name=node,
        state_dir=files.state,
        run_dir=files.run,
        cni_conf_dir=files.cni_conf,
        cni_bin_dir=files.cni_bin,
        kubeconfig=directory.fabric_kubeconfig,
        net_conf=directory.net_conf,
        services=True,
        service_cidrs=() if settings.kubeconfig else settings.addressing.service_networks(),
    )


async def run_agent(config: AgentConfig) -> None:
    """Run an agent until it is cancelled."""
    access = find_access({}, kubeconfig=config.kubeconfig)
    async with KubernetesSource(access, host=config.node_name) as source:
        await Agent(config, source).run()


def _become(directory: Directory, name: str, main: Callable[[], Awaitable[None]]) -> NoReturn:
    """Run a daemon's main in a fresh session, its output in its log, until SIGTERM."""
    code = 1
    try:
        os.setsid()
        set_process_name(name)
        redirect_output(directory.log(name))
        log.configure("info")
        asyncio.run(serve_until_signal(main()))
        code = 0
    except PoplinError as error:
        sys.stderr.write(f"poplin: {error}\n")
    except BaseException:  # noqa: BLE001  - the log is the only place left to say it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
