"""`poplin agent` and `poplin cleanup`."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from poplin.agent import log
from poplin.agent.agent import Agent
from poplin.agent.cleanup import remove_everything
from poplin.agent.config import AgentConfig, parse_networks, parse_public_ips
from poplin.agent.process import serve_until_signal
from poplin.cli.options import CniConfDir, RunDir, StateDir
from poplin.datastore.file import FileSource
from poplin.datastore.kubeconfig import find_access
from poplin.datastore.kubernetes import KubernetesSource
from poplin.model.errors import InvalidInputError, PoplinError


def agent(
    node_name: Annotated[
        str, typer.Option(envvar="NODE_NAME", help="This node's name in the cluster. [default: hostname]")
    ] = "",
    kubeconfig: Annotated[
        Path | None, typer.Option(help="How to reach the API server. [default: as kubectl, or the pod's own]")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="A file of Kubernetes objects instead of an API server.")
    ] = None,
    net_conf: Annotated[Path | None, typer.Option(help="A net-conf.json. [default: the ConfigMap]")] = None,
    net_conf_map: Annotated[
        str, typer.Option(help="NAMESPACE/NAME of the ConfigMap with net-conf.json.")
    ] = "kube-flannel/kube-flannel-cfg",
    interface: Annotated[str, typer.Option(help="The underlay. [default: it has the InternalIP]")] = "",
    public_ip: Annotated[
        str, typer.Option(help="Addresses that peers send to, IPv4[,IPv6]. [default: the InternalIPs]")
    ] = "",
    masquerade: Annotated[
        bool, typer.Option(help="Give packets that leave the cluster the node's address.")
    ] = True,
    services: Annotated[
        bool, typer.Option("--services/--no-services", help="Serve Services, in place of kube-proxy.")
    ] = False,
    service_cidr: Annotated[
        str, typer.Option(help="CIDR[,CIDR] of clusterIPs: packets to one that no Service has are dropped.")
    ] = "",
    node_port_addresses: Annotated[
        str, typer.Option(help="CIDRs of the node's addresses that serve node ports. [default: InternalIPs]")
    ] = "",
    state_dir: StateDir = Path("/var/lib/poplin"),
    run_dir: RunDir = Path("/run/poplin"),
    cni_conf_dir: CniConfDir = Path("/etc/cni/net.d"),
    cni_bin_dir: Annotated[
        Path | None, typer.Option(help="Install poplin-cni here at start (/opt/cni/bin).")
    ] = None,
    health_address: Annotated[
        str, typer.Option(help="HOST:PORT of /healthz and /readyz; '' for none.")
    ] = "127.0.0.1:9099",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run this node's agent, in the foreground.

    Example: poplin agent --node-name worker-1 --kubeconfig /etc/kubernetes/kubelet.conf
    """
    _require_root()
    if "/" not in net_conf_map:
        raise InvalidInputError(
            f"{net_conf_map!r} is not NAMESPACE/NAME", where="--net-conf-map", remedy="write both"
        )
    log.configure(log_level)
    config = AgentConfig(
        node_name=node_name or socket.gethostname(),
        state_dir=state_dir,
        run_dir=run_dir,
        cni_conf_dir=cni_conf_dir,
        cni_bin_dir=cni_bin_dir,
        kubeconfig=kubeconfig,
        state_file=state,
        net_conf=net_conf,
        net_conf_map=net_conf_map,
        interface=interface,
        public_ips=parse_public_ips(public_ip),
        masquerade=masquerade,
        services=services,
        service_cidrs=parse_networks(service_cidr, "--service-cidr"),
        node_port_networks=parse_networks(node_port_addresses, "--node-port-addresses"),
        health_address=health_address,
    )
    asyncio.run(serve_until_signal(_run(config)))


async def _run(config: AgentConfig) -> None:
    if config.state_file is not None:
        await Agent(config, FileSource(config.state_file)).run()
        return
    access = find_access(os.environ, kubeconfig=config.kubeconfig)
    async with KubernetesSource(access, host=config.node_name) as source:
        await Agent(config, source).run()


def cleanup(
    state_dir: StateDir = Path("/var/lib/poplin"),
    run_dir: RunDir = Path("/run/poplin"),
    cni_conf_dir: CniConfDir = Path("/etc/cni/net.d"),
) -> None:
    """Remove all that Poplin has made on this node: links, routes, rules, files. Pods lose their network.

    Example: poplin cleanup
    """
    _require_root()
    removed = False
    for line in remove_everything(state_dir, run_dir, cni_conf_dir):
        removed = True
        typer.echo(line)
    if not removed:
        typer.echo("nothing of Poplin's is here")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise PoplinError("needs root", remedy="run it with sudo, or as a privileged pod")
