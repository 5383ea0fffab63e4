"""`poplin lab`: a whole cluster's network on one machine."""

import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from poplin.apiserver.endpoint import parse_service_networks
from poplin.cli.output import Format, Output
from poplin.cli.progress import Progress
from poplin.cli.root import require_root
from poplin.datastore.kubeconfig import find_access
from poplin.datastore.netconf import parse_netconf
from poplin.lab.addressing import check_services, parse_families, parse_pool
from poplin.lab.cri.containerd import node_containerd
from poplin.lab.cri.store import load_images
from poplin.lab.enter import enter
from poplin.lab.lifecycle import bring_up, require, take_down
from poplin.lab.report import LabReport, kubeconfig_path, report_lab
from poplin.lab.settings import (
    DEFAULT_NAME,
    Backend,
    MissingImage,
    Runtime,
    Settings,
    check_name,
    check_nodes,
    make_net_conf,
)
from poplin.model.errors import InvalidInputError

Name = Annotated[str, typer.Option(help="Which lab; several may stand side by side.")]


def up(
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 3,
    backend: Annotated[Backend, typer.Option(help="How packets travel between nodes.")] = Backend.VXLAN,
    ip_family: Annotated[str, typer.Option(help="ipv4, ipv6 or dual.")] = "ipv4",
    name: Name = DEFAULT_NAME,
    net_conf: Annotated[
        Path | None, typer.Option(help="A net-conf.json of your own, in place of --backend.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Use this API server, not the embedded one.")
    ] = None,
    controllers: Annotated[str, typer.Option(help="embedded, or none.")] = "embedded",
    kubelet: Annotated[
        str, typer.Option(help="embedded, or none: nodes then register themselves.")
    ] = "embedded",
    runtime: Annotated[
        Runtime,
        typer.Option(help="process: this machine's programs; containerd: images, see `poplin lab load`."),
    ] = Runtime.PROCESS,
    missing_image: Annotated[
        MissingImage, typer.Option(help="With containerd, what is run for an image that is not loaded.")
    ] = MissingImage.ECHO,
    service_cidr: Annotated[
        str, typer.Option(help="What clusterIPs are taken from. [default: 10.96.0.0/16,fd00:10:96::/112]")
    ] = "",
    load_balancer_pool: Annotated[
        str,
        typer.Option(help="What load balancers' addresses are. [default: 172.19.0.0/24,fd00:10:19::/120]"),
    ] = "",
    dns: Annotated[
        str, typer.Option(help="embedded, or none: what kube-dns leads to is then up to you.")
    ] = "embedded",
) -> None:
    """Make a lab and wait until its nodes are ready; on one that stands, start what has died.

    Example: poplin lab up --nodes 3 && export KUBECONFIG=$(poplin lab kubeconfig)
    """
    require_root()
    versions = parse_families(ip_family)
    text = _read(net_conf) if net_conf else make_net_conf(versions, backend)
    parse_netconf(text, str(net_conf or "net-conf.json"))
    if kubeconfig:
        find_access({}, kubeconfig=kubeconfig)
    services = check_services(parse_service_networks(service_cidr) if service_cidr else (), versions)
    settings = Settings(
        name=check_name(name),
        nodes=check_nodes(nodes),
        versions=versions,
        net_conf=text,
        kubeconfig=str(kubeconfig.absolute()) if kubeconfig else "",
        controllers=_embedded("--controllers", controllers),
        kubelet=_embedded("--kubelet", kubelet),
        runtime=runtime,
        missing_image=missing_image,
        service_networks=tuple(map(str, services)),
        dns=_embedded("--dns", dns),
        load_balancer_pool=tuple(map(str, parse_pool(load_balancer_pool, versions))),
    )
    began = time.monotonic()
    made = bring_up(settings, Progress(Console(highlight=False)).step)
    if made:
        typer.echo(f"lab {name} is ready ({time.monotonic() - began:.1f} s)")
        option = "" if name == DEFAULT_NAME else f" --name {name}"
        typer.echo(f"  export KUBECONFIG=$(poplin lab kubeconfig{option})")
    else:
        typer.echo(f"lab {name} stands")


def down(name: Name = DEFAULT_NAME) -> None:
    """Remove a lab, however it ended: processes, namespaces, files. Without one, do nothing.

    Example: poplin lab down
    """
    require_root()
    existed = take_down(check_name(name))
    typer.echo(f"lab {name} is gone" if existed else f"there is no lab {name}")


def load(
    archive: Annotated[Path, typer.Argument(help="An image archive, as `docker save` or skopeo write it.")],
    name: Name = DEFAULT_NAME,
) -> None:
    """Put the images of an archive into the stores of all nodes of a lab that runs containerd.

    Example: poplin lab load app.tar
    """
    require_root()
    directory, settings = require(check_name(name))
    if settings.runtime is not Runtime.CONTAINERD:
        raise InvalidInputError(
            "this lab has no images",
            where=f"lab {name}",
            remedy="make it with `poplin lab up --runtime containerd`",
        )
    if not archive.is_file():
        raise InvalidInputError(
            "no such file", where=str(archive), remedy="name an archive as `docker save` writes it"
        )
    load_images([node_containerd(directory, node) for node in settings.node_names()], archive)
    typer.echo(f"loaded into {settings.nodes} nodes")


def status(name: Name = DEFAULT_NAME, output: Output = Format.TEXT) -> None:
    """Show a lab's nodes, pods and processes. Exit status 1 where something of it is not ready.

    Example: poplin lab status -o json
    """
    report = report_lab(*require(check_name(name)))
    if output is Format.JSON:
        document = msgspec.to_builtins(report) | {"ready": report.ready}
        typer.echo(msgspec.json.format(msgspec.json.encode(document)))
    else:
        _print(report)
    sys.exit(0 if report.ready else 1)


def kubeconfig(name: Name = DEFAULT_NAME) -> None:
    """Print the path of a lab's kubeconfig.

    Example: export KUBECONFIG=$(poplin lab kubeconfig)
    """
    typer.echo(str(kubeconfig_path(*require(check_name(name)))))


def execute(
    target: Annotated[str, typer.Argument(help="[NAMESPACE/]POD, or node/NODE, or fabric.")],
    command: Annotated[list[str], typer.Argument(help="A program of this machine and its arguments.")],
    name: Name = DEFAULT_NAME,
    container: Annotated[
        str, typer.Option("--container", "-c", help="Which container. [default: the first]")
    ] = "",
) -> None:
    """Run a command in a pod's namespaces, or in a node's network. Its exit status is ours.

    Example: poplin lab exec web-1 -- ip route
    """
    require_root()
    directory, settings = require(check_name(name))
    enter(directory, settings, target, container, command)


def _print(report: LabReport) -> None:
    console = Console(highlight=False)
    word = "[green]ready[/]" if report.ready else "[red]not ready[/]"
    console.print(f"lab {report.name}: {word}, {len(report.nodes)} nodes, {len(report.pods)} pods")
    if report.problem:
        console.print(f"[yellow]![/] {report.problem}", soft_wrap=True)
    nodes = Table("node", "ready", "addresses", "pod CIDRs", box=None, padding=(0, 2, 0, 0))
    for node in report.nodes:
        nodes.add_row(
            node.name,
            "yes" if node.ready else node.reason,
            ", ".join(node.addresses),
            ", ".join(node.pod_cidrs),
        )
    pods = Table("pod", "phase", "ready", "node", "addresses", box=None, padding=(0, 2, 0, 0))
    for pod in report.pods:
        pods.add_row(f"{pod.namespace}/{pod.name}", pod.phase, pod.ready, pod.node, ", ".join(pod.addresses))
    processes = Table("process", "pid", "state", box=None, padding=(0, 2, 0, 0))
    for process in report.processes:
        processes.add_row(process.name, str(process.pid), "running" if process.running else "dead")
    for table in (nodes, pods, processes):
        if table.row_count:
            console.print(table)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInputError(
            f"cannot read: {reason}", where=f"--net-conf {path}", remedy="name a file that can be read"
        ) from error


def _embedded(option: str, text: str) -> bool:
    if text not in {"embedded", "none"}:
        raise InvalidInputError(f"{text!r} is no choice", where=option, remedy="write embedded or none")
    return text == "embedded"
