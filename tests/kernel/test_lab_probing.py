"""Probes and flows between namespaces: every outcome, in both families, against a real echo server."""

import asyncio
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

import pytest

from poplin.dataplane.netns import in_namespace
from poplin.lab.probing import Outcome, Probe, Protocol, Result, probe
from poplin.lab.traffic import run_flow
from poplin.model.errors import KernelError
from poplin.model.kernel import Address, Link, Veth
from poplin.plan.operation import Change, Put

SERVE = """
from poplin.lab.echo import listen, serve
sockets = listen([(80, "TCP"), (53, "UDP")])
print("ready", flush=True)
serve("target", sockets)
"""
ADDRESSES = {
    4: ("192.0.2.1", "192.0.2.2", "198.51.100.1"),
    6: ("2001:db8::1", "2001:db8::2", "2001:db8:1::1"),
}


@dataclass(frozen=True)
class Scene:
    source: object
    target: object
    version: int

    @property
    def own(self):
        return ip_address(ADDRESSES[self.version][0])

    def probe(self, protocol, port=0, address=ADDRESSES):
        there = ADDRESSES[self.version][1] if address is ADDRESSES else address
        return Probe(self.source.path, "source", ip_address(there), port, protocol)

    def ask(self, protocol, port=0, **options) -> Result:
        (result,) = probe([self.probe(protocol, port)], **options)
        return result


@pytest.fixture(params=ADDRESSES)
def scene(request, netns):
    source, target = netns(), netns()
    assert source.socket.apply([Put(Veth(Link("eth0", "veth"), Link("eth0"), target.fd))]) == []
    assert target.socket.apply([Change(Link("eth0"))]) == []
    length = 24 if request.param == 4 else 64
    for end, address in zip((source, target), ADDRESSES[request.param], strict=False):
        assert end.socket.apply([Put(Address("eth0", ip_interface(f"{address}/{length}")))]) == []
    command = ["nsenter", f"--net={target.path}", sys.executable, "-c", SERVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout.readline() == b"ready\n"
            yield Scene(source, target, request.param)
        finally:
            server.kill()


@pytest.mark.parametrize(("protocol", "port"), [(Protocol.TCP, 80), (Protocol.UDP, 53)])
def test_the_echo_server_says_who_it_is_and_whom_it_sees(scene, protocol, port):
    result = scene.ask(protocol, port)
    assert (result.outcome, result.name, result.client) == (Outcome.ANSWERED, "target", scene.own)
    assert 0 < result.latency_s < 1


def test_an_icmp_echo_is_answered(scene):
    result = scene.ask(Protocol.ICMP)
    assert result.outcome is Outcome.ANSWERED
    assert 0 < result.latency_s < 1


@pytest.mark.parametrize(("protocol", "port"), [(Protocol.TCP, 81), (Protocol.UDP, 54)])
def test_a_closed_port_refuses(scene, protocol, port):
    assert scene.ask(protocol, port).outcome is Outcome.REFUSED


@pytest.mark.parametrize(("protocol", "port"), [(Protocol.TCP, 80), (Protocol.UDP, 53), (Protocol.ICMP, 0)])
def test_silence_times_out_and_no_route_is_told(scene, protocol, port):
    rules = "table inet t { chain c { type filter hook input priority 0; meta l4proto { tcp, udp, icmp } drop; icmpv6 type echo-request drop; }; }"
    scene.target.run("nft", rules)
    silent = scene.probe(protocol, port)
    lost = scene.probe(protocol, port, address=ADDRESSES[scene.version][2])
    results = probe([silent, lost], timeout_s=0.2)
    assert [result.outcome for result in results] == [Outcome.TIMED_OUT, Outcome.UNREACHABLE]
    assert results[1].reason == "Network is unreachable"
    assert not results[0].reached


def test_a_server_that_says_nothing_is_connected_to(scene):
    family = socket.AF_INET6 if scene.version == 6 else socket.AF_INET
    address = ADDRESSES[scene.version][1]
    with closing(in_namespace(scene.target.fd, lambda: socket.create_server((address, 99), family=family))):
        result = scene.ask(Protocol.TCP, 99, timeout_s=0.2)
    assert result.outcome is Outcome.CONNECTED
    assert result.reached


def test_results_stand_in_the_order_of_the_probes(scene):
    ports = [80, 81] * 40
    told = []
    results = probe([scene.probe(Protocol.TCP, port) for port in ports], concurrency=7, progress=told.append)
    assert [result.probe.port for result in results] == ports
    assert [result.outcome for result in results] == [Outcome.ANSWERED, Outcome.REFUSED] * 40
    assert told == list(range(1, 81))


def test_a_namespace_that_is_not_there_is_an_error():
    with pytest.raises(KernelError):
        probe([Probe("/run/netns/no-such-namespace", "x", ip_address("192.0.2.1"), 1, Protocol.TCP)])


def flow(scene, protocol, port, meanwhile):
    async def run():
        stop = asyncio.Event()
        task = asyncio.create_task(run_flow(scene.probe(protocol, port), stop, interval_s=0.005))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(meanwhile)
        await asyncio.sleep(0.1)
        stop.set()
        return await task

    return asyncio.run(run())


@pytest.mark.parametrize(("protocol", "port"), [(Protocol.TCP, 80), (Protocol.UDP, 53)])
def test_a_flow_left_alone_is_whole(scene, protocol, port):
    report = flow(scene, protocol, port, lambda: None)
    assert report.whole
    assert report.sent >= 10


def test_what_a_flow_loses_is_counted(scene):
    def cut():
        # The server answers from a port of its own: what is dropped is on its way back.
        rules = "table inet t { chain c { type filter hook output priority 0; udp sport 53 drop; }; }"
        scene.target.run("nft", rules)

    report = flow(scene, Protocol.UDP, 53, cut)
    assert not report.whole
    assert 0 < report.received < report.sent
    assert report.longest_gap_s > 0.05


def test_a_connection_that_is_reset_is_broken(scene):
    def cut():
        rules = "table inet t { chain c { type filter hook input priority 0; tcp dport 80 reject with tcp reset; }; }"
        scene.target.run("nft", rules)

    report = flow(scene, Protocol.TCP, 80, cut)
    assert report.broken
    assert not report.whole


def test_a_flow_that_cannot_begin_says_so(scene):
    report = flow(scene, Protocol.TCP, 81, lambda: None)
    assert "cannot connect" in report.broken
    assert not report.whole
