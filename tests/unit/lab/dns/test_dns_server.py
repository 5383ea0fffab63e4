"""The sockets of cluster DNS, asked by a resolver that is not ours."""

import asyncio

import dns.asyncquery
import dns.message
import dns.rcode
import pytest

from poplin.lab.controllers.object import ENDPOINT_SLICES, SERVICES
from poplin.lab.dns import server
from poplin.lab.dns.server import serving
from poplin.lab.dns.zone import Zone
from unit.lab.controllers.objects import make

NAME = "db.default.svc.cluster.local."


@pytest.fixture
def zone():
    made = Zone()
    made.put_service(make(SERVICES, "db", spec={"clusterIP": "None"}))
    endpoints = [{"addresses": [f"10.244.1.{n}"]} for n in range(1, 101)]
    labels = {"kubernetes.io/service-name": "db"}
    made.put_slice(make(ENDPOINT_SLICES, "db-1", labels=labels, addressType="IPv4", endpoints=endpoints))
    return made


async def test_udp_with_tcp_for_what_is_too_long(zone):
    async with serving(zone, port=0, host="127.0.0.1") as port:
        query = dns.message.make_query(NAME, "A")
        reply, by_tcp = await dns.asyncquery.udp_with_fallback(query, "127.0.0.1", port=port, timeout=5)
        assert by_tcp
        assert len(reply.answer[0]) == 100
        small = dns.message.make_query("none." + NAME, "A")
        reply = await dns.asyncquery.udp(small, "127.0.0.1", port=port, timeout=5)
        assert reply.rcode() == dns.rcode.NXDOMAIN


async def test_a_connection_carries_many_queries(zone):
    async with serving(zone, port=0, host="127.0.0.1") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        queries = [dns.message.make_query(NAME, "A") for _ in range(3)]
        for query in queries:
            writer.write(query.to_wire(prepend_length=True))
        for query in queries:
            size = int.from_bytes(await reader.readexactly(2))
            assert dns.message.from_wire(await reader.readexactly(size)).id == query.id
        writer.close()


async def test_connections_that_idle_or_are_too_many_are_closed(zone, monkeypatch):
    monkeypatch.setattr(server, "IDLE_S", 0.05)
    monkeypatch.setattr(server, "CONNECTIONS", 1)
    async with serving(zone, port=0, host="127.0.0.1") as port, asyncio.timeout(5):
        first, first_writer = await asyncio.open_connection("127.0.0.1", port)
        second, second_writer = await asyncio.open_connection("127.0.0.1", port)
        assert await second.read() == b""
        assert await first.read() == b""
        reply = await dns.asyncquery.tcp(dns.message.make_query(NAME, "A"), "127.0.0.1", port=port, timeout=5)
        assert reply.answer
        first_writer.close()
        second_writer.close()
