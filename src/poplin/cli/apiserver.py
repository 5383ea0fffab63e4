"""`poplin apiserver`: the embedded Kubernetes API."""

import asyncio
import signal
import socket
import sqlite3
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from poplin.apiserver.endpoint import make_endpoint, parse_service_networks
from poplin.apiserver.server import SERVICE_NETWORKS, ApiServer, Settings, serve
from poplin.model.errors import InvalidInputError, PoplinError
from poplin.model.kernel import IPAddress

app = typer.Typer()
MAX_PORT = 65535
DEFAULT_LISTEN = "127.0.0.1:6443"
DEFAULT_SERVICES = ",".join(map(str, SERVICE_NETWORKS))


@app.command("apiserver")
def run(
    data_dir: Annotated[Path, typer.Option(help="Where objects, keys and the kubeconfig are kept.")],
    listen: Annotated[list[str] | None, typer.Option(help="ADDRESS:PORT; may be repeated.")] = None,
    fd: Annotated[
        list[int] | None, typer.Option(help="A bound socket passed as a descriptor; may be repeated.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Static tokens: lines of token,user,uid[,groups].")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Another name or address for the certificate.")
    ] = None,
    service_cidr: Annotated[
        str,
        typer.Option(help="What clusterIPs are taken from; one of each family, the default one first."),
    ] = DEFAULT_SERVICES,
    advertise_address: Annotated[
        list[str] | None,
        typer.Option(help="Where pods reach this server: makes the Service `kubernetes`. May be repeated."),
    ] = None,
) -> None:
    """Serve the Kubernetes API over a directory until SIGTERM or SIGINT. Writes DATA_DIR/kubeconfig.

    Example: poplin apiserver --data-dir /var/lib/poplin-api --listen 127.0.0.1:6443
    """
    addresses = listen if listen or fd else [DEFAULT_LISTEN]
    with ExitStack() as stack:
        sockets = [stack.enter_context(bind(address)) for address in addresses or ()]
        sockets += [stack.enter_context(adopt(number)) for number in fd or ()]
        hosts = [one.getsockname()[0] for one in sockets if one.family in {socket.AF_INET, socket.AF_INET6}]
        networks = parse_service_networks(service_cidr)
        endpoint = None
        names = {*hosts, *(name or ())}
        if advertise_address:
            advertised = [_parse_address(text) for text in advertise_address]
            endpoint = make_endpoint(networks, advertised, sockets[0].getsockname()[1])
            names.update(endpoint.names())
        settings = Settings(data_dir, sorted(names), token_file, endpoint, networks)
        asyncio.run(_run(settings, sockets))


def _parse_address(text: str) -> IPAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise InvalidInputError("no address", where=f"--advertise-address {text}") from None


def bind(address: str) -> socket.socket:
    """A socket bound to "ADDRESS:PORT" or "[ADDRESS]:PORT". Raises InvalidInputError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise InvalidInputError("not an address and port", where=address, remedy="write it as 127.0.0.1:6443")
    try:
        return socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise InvalidInputError(
            f"cannot listen: {error.strerror}",
            where=address,
            remedy="choose an address of this host and a free port",
        ) from error


def adopt(number: int) -> socket.socket:
    """The socket that a descriptor we were started with is. Raises InvalidInputError."""
    try:
        return socket.socket(fileno=number)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            "is no socket", where=f"--fd {number}", remedy="pass a bound socket, or use --listen"
        ) from error


def describe(host: str, port: int) -> str:
    """The URL for a local client of a socket bound to `host` and `port`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


async def _run(settings: Settings, sockets: list[socket.socket]) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        server = ApiServer(settings)
    except (OSError, sqlite3.Error) as error:
        raise PoplinError(
            f"cannot keep objects there: {getattr(error, 'strerror', None) or error}",
            where=f"--data-dir {settings.directory}",
            remedy="name a directory that can be written, or a new one",
        ) from error
    async with server, serve(server, sockets):
        url = describe(*sockets[0].getsockname()[:2])
        kubeconfig = settings.directory / "kubeconfig"
        server.write_kubeconfig(kubeconfig, url)
        typer.echo(f"serving {url}; export KUBECONFIG={kubeconfig}")
        await stopped.wait()
