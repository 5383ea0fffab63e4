"""The command, and sockets of other network namespaces."""

import asyncio
import concurrent.futures
import ctypes
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from e2e.apiserver_harness import config_map, connected
from poplin.apiserver.endpoint import Endpoint
from poplin.apiserver.server import ApiServer, Settings, serve
from poplin.cli.apiserver import bind, describe
from poplin.model.errors import InvalidInputError

CLONE_NEWNET = 0x40000000
MAPS = "/api/v1/namespaces/default/configmaps"
COMMAND = [sys.executable, "-c", "from poplin.cli.apiserver import app; app()"]


async def start(
    directory: Path, *arguments: str, descriptors: tuple[int, ...] = ()
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        "--data-dir",
        str(directory),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        pass_fds=descriptors,
    )


async def first_line(process: asyncio.subprocess.Process) -> str:
    async with asyncio.timeout(20):
        return (await process.stdout.readline()).decode()


async def test_the_command_serves_addresses_and_descriptors_and_stops_when_told(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as given:
        process = await start(
            tmp_path, "--listen", "127.0.0.1:0", "--fd", str(given.fileno()), descriptors=(given.fileno(),)
        )
        try:
            url = re.search(r"https://127\.0\.0\.1:\d+", await first_line(process))[0]
            context = ssl.create_default_context(cafile=str(tmp_path / "pki" / "ca.crt"))
            for port in (int(url.rpartition(":")[2]), given.getsockname()[1]):
                body = await asyncio.to_thread(fetch, port, context, "/readyz")
                assert body == b"ok"
            assert (tmp_path / "kubeconfig").stat().st_mode & 0o777 == 0o600
            assert all(key.stat().st_mode & 0o777 == 0o600 for key in (tmp_path / "pki").glob("*.key"))
        finally:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await process.wait() == 0


async def test_a_second_server_on_the_same_directory_is_refused(tmp_path: Path):
    async with ApiServer(Settings(tmp_path)):
        process = await start(tmp_path, "--listen", "127.0.0.1:0")
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
        assert process.returncode != 0
        assert b"the store cannot be opened" in output


def fetch(port: int, context: ssl.SSLContext, path: str) -> bytes:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="making a network namespace needs root")
async def test_a_socket_of_another_network_namespace_is_served_beside_one_of_ours(tmp_path: Path):
    # The namespace belongs to this one thread and goes with it.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:

        def enter() -> socket.socket:
            assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            return socket.create_server(("127.0.0.1", 6443))

        inside = await asyncio.wrap_future(thread.submit(enter))
        outside = socket.create_server(("127.0.0.1", 0))
        server = ApiServer(Settings(tmp_path, endpoint=Endpoint("10.96.0.1", ["10.0.0.1"], 6443)))
        async with server, serve(server, [inside, outside]):
            url = f"https://127.0.0.1:{outside.getsockname()[1]}"
            async with connected(server, url) as client:
                assert (await client.create(MAPS, config_map("a")))[0] == 201
                _, service = await client.get("/api/v1/namespaces/default/services/kubernetes")
                assert service["spec"]["clusterIP"] == "10.96.0.1"
            context = ssl.create_default_context(cafile=str(server.authority.certificate_path))
            body = await asyncio.wrap_future(thread.submit(fetch, 6443, context, "/version"))
            assert json.loads(body)["major"] == "1"
        inside.close()
        outside.close()


async def test_the_endpoint_is_brought_up_to_date(tmp_path: Path):
    for addresses in (["10.0.0.1"], ["10.0.0.2", "10.0.0.3"]):
        async with ApiServer(Settings(tmp_path, endpoint=Endpoint("10.96.0.1", addresses, 6443))) as server:
            entry = server.store.open("discovery.k8s.io/endpointslices").entries["default", "kubernetes"]
            assert [one["addresses"] for one in entry.decode()["endpoints"]] == [[one] for one in addresses]


async def test_the_endpoint_follows_the_range_of_services(tmp_path: Path):
    for network, address in (("10.96.0.0/16", "10.96.0.1"), ("fd00:96::/112", "fd00:96::1")):
        endpoint = Endpoint(address, ["10.0.0.1" if "." in address else "fd00::1"], 6443)
        settings = Settings(tmp_path, endpoint=endpoint, service_networks=[ip_network(network)])
        async with ApiServer(settings) as server:
            service = server.store.open("/services").entries["default", "kubernetes"].decode()
            assert service["spec"]["clusterIPs"] == [address]
            slice_ = server.store.open("discovery.k8s.io/endpointslices").entries["default", "kubernetes"]
            assert slice_.decode()["addressType"] == service["spec"]["ipFamilies"][0]


async def test_open_watches_do_not_hold_up_the_end(tmp_path: Path):
    server = ApiServer(Settings(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        async with server, connected(server, url) as client:
            async with serve(server, [listener]):
                _, listed = await client.get(MAPS)
                revision = listed["metadata"]["resourceVersion"]
                answer = await client.session.get(f"{url}{MAPS}?watch=true&resourceVersion={revision}")
                assert answer.status == 200
            assert await answer.content.read() == b""
            answer.close()


@pytest.mark.parametrize("address", ["6443", "127.0.0.1", "127.0.0.1:http", ":6443", "256.0.0.1:1"])
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(InvalidInputError, match=r"address|host|127"):
        bind(address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("127.0.0.1", 1), "https://127.0.0.1:1"),
        (("0.0.0.0", 2), "https://127.0.0.1:2"),
        (("::", 3), "https://[::1]:3"),
    ],
)
def test_the_url_for_local_clients(address: tuple[str, int], expected: str):
    assert describe(*address) == expected
