"""The echo server's answers, on the loopback."""

import asyncio

import pytest

from poplin.lab.echo import Datagrams, Stream, describe


@pytest.fixture
async def server():
    loop = asyncio.get_running_loop()
    one = await loop.create_server(lambda: Stream("web-1"), "127.0.0.1", 0)
    async with one:
        yield one.sockets[0].getsockname()[1]


async def talk(port, *pieces, until_end=True):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        me = writer.get_extra_info("sockname")[1]
        if until_end:
            writer.write_eof()
        data = await asyncio.wait_for(reader.read() if until_end else reader.read(4096), 5)
        return data.decode(), f"pod: web-1\nclient: 127.0.0.1:{me}\n"
    finally:
        writer.close()


async def test_plain_tcp_is_greeted_and_echoed(server):
    text, greeting = await talk(server, b"hello ", b"world")
    assert text == greeting + "hello world"


async def test_a_silent_client_is_greeted(server):
    text, greeting = await talk(server, until_end=False)
    assert text == greeting


async def test_a_client_that_only_closes_is_greeted(server):
    text, greeting = await talk(server)
    assert text == greeting


async def test_bytes_that_only_begin_as_a_method_are_plain(server):
    text, greeting = await talk(server, b"GE", b"X")
    assert text == greeting + "GEX"


async def test_http_requests_of_one_connection_are_answered_in_turn(server):
    first = b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
    second = b"GET /b HTTP/1.1\r\nConnection: close\r\n\r\n"
    text, greeting = await talk(server, first[:10], first[10:] + second, until_end=False)
    one, two = text.split("HTTP/1.1 200 OK\r\n")[1:]
    assert one.endswith("\r\n\r\n" + greeting + "POST /a HTTP/1.1\nabc")
    assert two.endswith("\r\n\r\n" + greeting + "GET /b HTTP/1.1\n")
    assert "Connection: keep-alive" in one
    assert "Connection: close" in two


async def test_a_head_request_has_no_body(server):
    text, _ = await talk(server, b"HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n", until_end=False)
    assert text.endswith("\r\n\r\n")


async def test_a_datagram_is_answered_with_what_it_held():
    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(lambda: Datagrams("web-1"), ("127.0.0.1", 0))
    answer = loop.create_future()

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data, addr):
            answer.set_result(data)

    client, _ = await loop.create_datagram_endpoint(Client, remote_addr=server.get_extra_info("sockname"))
    client.sendto(b"ping")
    me = client.get_extra_info("sockname")[1]
    assert await asyncio.wait_for(answer, 5) == f"pod: web-1\nclient: 127.0.0.1:{me}\nping".encode()
    client.close()
    server.close()


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (("10.0.0.1", 5), "10.0.0.1:5"),
        (("::ffff:10.0.0.1", 5, 0, 0), "10.0.0.1:5"),
        (("fd00::1", 5, 0, 0), "[fd00::1]:5"),
        (("fe80::1%eth0", 5, 0, 2), "[fe80::1]:5"),
    ],
)
def test_clients_are_named_by_the_family_they_came_in(peer, client):
    assert describe("a", peer) == f"pod: a\nclient: {client}\n".encode()
