"""Probes ask from the node's namespace: here one with nothing but a loopback, and servers on it."""

import asyncio
import socket
from ipaddress import ip_address

import pytest

from poplin.dataplane.netns import in_namespace
from poplin.lab.echo import Stream
from poplin.lab.kubelet.probe import Target, ask

HTTP_ERROR = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Unwell(asyncio.Protocol):
    """Answers anything with an error of HTTP."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(HTTP_ERROR)
        self.transport.close()


class Mute(asyncio.Protocol):
    """Accepts, and says nothing."""


@pytest.fixture
async def target(netns):
    node = netns()
    loop = asyncio.get_running_loop()
    ports, servers = {}, []
    for name, protocol in (("echo", lambda: Stream("web")), ("unwell", Unwell), ("mute", Mute)):
        one = in_namespace(node.fd, lambda: socket.create_server(("127.0.0.1", 0)))
        servers.append(await loop.create_server(protocol, sock=one))
        ports[name] = one.getsockname()[1]

    async def execute(command):
        return int(command[0])

    yield Target(node.fd, ip_address("127.0.0.1"), ports, execute)
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("probe", "wrong"),
    [
        ({"exec": {"command": ["0"]}}, ""),
        ({"exec": {"command": ["3"]}}, "exited with 3"),
        ({"tcpSocket": {"port": "echo"}}, ""),
        ({"tcpSocket": {"port": 1}}, "refused"),
        ({"tcpSocket": {"port": "nameless"}}, "no port 'nameless'"),
        ({"httpGet": {"port": "echo", "path": "/x"}}, ""),
        ({"httpGet": {"port": "unwell"}}, "503"),
        ({"httpGet": {"port": "mute"}}, "no answer within"),
        ({"httpGet": {"port": 1}}, "refused"),
        ({"grpc": {"port": "echo"}}, ""),
        ({"grpc": {"port": "echo", "service": "shop.Cart"}}, ""),
        ({"grpc": {"port": "unwell"}}, "bytes"),
        ({"grpc": {"port": "mute"}}, "no answer within"),
        ({}, "asks for nothing"),
    ],
)
async def test_what_a_probe_finds(target, probe, wrong):
    if "grpc" in probe:
        # Its port has no name.
        probe = {"grpc": {**probe["grpc"], "port": target.ports[probe["grpc"]["port"]]}}
    answer = await ask(probe, target, 0.3)
    assert (wrong in answer) if wrong else answer == ""


async def test_the_machines_own_namespace_is_not_asked(target):
    loop = asyncio.get_running_loop()
    async with await loop.create_server(Mute, "127.0.0.1", 0) as outside:
        port = outside.sockets[0].getsockname()[1]
        assert "refused" in await ask({"tcpSocket": {"port": port}}, target, 1)
