"""The lab's server: API, controllers and kubelet in one process, so that a lab starts Python once."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from poplin.apiserver import server as apiserver
from poplin.apiserver.endpoint import make_endpoint
from poplin.apiserver.server import ApiServer
from poplin.datastore.access import Access
from poplin.datastore.client import ApiClient
from poplin.datastore.kubeconfig import find_access
from poplin.lab.access import server_url, split_server, write_fabric_kubeconfig
from poplin.lab.addon import install
from poplin.lab.addressing import API_PORT
from poplin.lab.controllers.runtime import run as run_controllers
from poplin.lab.directory import Directory
from poplin.lab.kubelet.kubelet import Kubelet
from poplin.lab.kubelet.stream.handler import StreamHandler
from poplin.lab.relay import relay
from poplin.lab.settings import Settings


async def run_server(directory: Directory, settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Serve until cancelled. The last of `listeners` is the fabric's; before it stands 127.0.0.1's, if any."""
    api: ApiServer | None = None
    async with AsyncExitStack() as stack:
        if settings.kubeconfig:
            access = find_access({}, kubeconfig=Path(settings.kubeconfig))
            write_fabric_kubeconfig(directory.fabric_kubeconfig, access, settings.addressing.api_address())
        else:
            api, access = await stack.enter_async_context(_serve_api(directory, settings, listeners))
        client = await stack.enter_async_context(ApiClient(access))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        if settings.kubeconfig:
            tasks.create_task(relay(listeners, *split_server(access)), name="relay to the API server")
        if settings.controllers:
            addressing = settings.addressing
            controllers = run_controllers(
                client,
                cluster_networks=addressing.pod_networks(),
                load_balancer_pool=addressing.load_balancer_pool(),
            )
            tasks.create_task(controllers, name="controllers")
        if settings.dns and api is not None and settings.kubelet and settings.controllers:
            tasks.create_task(install(client, settings), name="cluster DNS")
        if settings.kubelet:
            tasks.create_task(_run_kubelet(directory, settings, client, api), name="kubelet")


@asynccontextmanager
async def _serve_api(
    directory: Directory, settings: Settings, listeners: Sequence[socket.socket]
) -> AsyncIterator[tuple[ApiServer, Access]]:
    """The embedded API server, with its kubeconfigs written; how to reach it from here."""
    addressing = settings.addressing
    gateways = [gateway.ip for gateway in addressing.gateways()]
    networks = addressing.service_networks()
    endpoint = make_endpoint(networks, [addressing.api_address()], API_PORT)
    names = sorted({*map(str, gateways), *endpoint.names(), "127.0.0.1"})
    server = ApiServer(apiserver.Settings(directory.api, names, endpoint=endpoint, service_networks=networks))
    async with server, apiserver.serve(server, listeners):
        port = listeners[0].getsockname()[1]
        if not directory.kubeconfig.exists():
            server.write_kubeconfig(
                directory.fabric_kubeconfig, server_url("https", addressing.api_address())
            )
            # The last file of all: who sees it may use the API.
            server.write_kubeconfig(directory.kubeconfig, f"https://127.0.0.1:{port}")
        yield server, find_access({}, kubeconfig=directory.kubeconfig)


async def _run_kubelet(
    directory: Directory, settings: Settings, client: ApiClient, api: ApiServer | None
) -> None:
    async with Kubelet(directory, settings, client) as kubelet:
        if api is not None:
            StreamHandler(directory, kubelet, api).serve()
        await kubelet.run()
