"""What others change in a namespace arrives as typed events, and what does not concern us does not."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from poplin.dataplane.netlink import monitor as module
from poplin.dataplane.netlink.monitor import Configured, Elsewhere, Gone, Monitor, Overrun, Seen
from poplin.dataplane.netns import in_namespace
from poplin.model.kernel import Address, FdbEntry, Link, Neighbour, Route, RouteKind, Scope, Veth, Vxlan
from poplin.plan.operation import Change, Put, Remove

MARK = Address("lo", ip_interface("192.0.2.99/32"), protocol=0)
"""Made last: when it is seen, everything before it has been."""

MAC = "0a:58:0a:f4:00:05"


class Events:
    """The events of a monitor, read as far as a test wants."""

    def __init__(self, namespace, monitor, stream):
        self.namespace = namespace
        self.monitor = monitor
        self.stream = stream

    async def until(self, last):
        """What came before `last`."""
        found = []
        async with asyncio.timeout(20):
            async for event in self.stream:
                if event == last:
                    return found
                found.append(event)
        raise AssertionError("a monitor's events have no end")

    async def until_now(self):
        self.namespace.run("ip", "address", "add", "192.0.2.99/32", "dev", "lo")
        found = await self.until(Seen(MARK))
        self.namespace.run("ip", "address", "del", "192.0.2.99/32", "dev", "lo")
        return [event for event in found if event != Gone(MARK)]

    async def expect(self, *expected):
        """All of these, in whichever order."""
        missing = list(expected)
        async with asyncio.timeout(20):
            async for event in self.stream:
                if event in missing:
                    missing.remove(event)
                if not missing:
                    return


@asynccontextmanager
async def monitored(namespace, **options):
    with in_namespace(namespace.fd, lambda: Monitor(**options)) as monitor:
        stream = monitor.events()
        yield Events(namespace, monitor, stream)
        await stream.aclose()


def pair(namespace):
    """A veth pair within one namespace, both ends up."""
    assert namespace.socket.apply([Put(Veth(Link("a"), Link("b"), namespace.fd)), Change(Link("b"))]) == []


@pytest.mark.parametrize(
    ("network", "gateway"), [("10.1.0.0/24", "10.9.0.2"), ("fd01::/64", "fd09::2")], ids=["ipv4", "ipv6"]
)
async def test_each_kind_is_seen_and_gone(netns, network, gateway):
    node = netns()
    pair(node)
    node_address = ip_interface(gateway.replace("2", "1") + ("/24" if "." in gateway else "/64"))
    address = Address("a", node_address)
    neighbour = Neighbour("a", ip_address(gateway), MAC)
    route = Route(ip_network(network), ip_address(gateway), "a")
    async with monitored(node) as events:
        assert node.socket.apply([Put(address), Put(neighbour), Put(route)]) == []
        # The kernel tells of an IPv6 address later, from a work queue.
        await events.expect(Seen(address), Seen(neighbour), Seen(route))
        assert node.socket.apply([Remove(route)]) == []
        await events.expect(Gone(route))
        assert node.socket.apply([Remove(neighbour), Remove(address)]) == []
        gone = [event.what for event in await events.until_now() if isinstance(event, Gone)]
        assert address in gone
        assert neighbour.address in [what.address for what in gone if isinstance(what, Neighbour)]


async def test_links_and_forwarding_entries(netns):
    node = netns()
    link = Link("vxlan.7", "vxlan", vxlan=Vxlan(7, 8472))
    entry = FdbEntry("vxlan.7", MAC, ip_address("192.0.2.1"))
    async with monitored(node) as events:
        assert (
            node.socket.apply([Put(link), Put(entry), Change(Link("vxlan.7", up=False)), Remove(link)]) == []
        )
        found = [e for e in await events.until_now() if not isinstance(e, Configured)]
    states = [(type(event), event.what.up) for event in found if isinstance(event.what, Link)]
    assert states[0] == (Seen, False)
    assert (Seen, True) in states
    assert states[-1] == (Gone, False)
    assert Seen(entry) in found
    # The link is no more when this is read, and its name is known all the same.
    assert {event.what.link for event in found if isinstance(event.what, FdbEntry)} == {"vxlan.7"}


async def test_other_owners_routes_are_no_news_unless_they_take_the_place_of_ours(netns):
    node = netns()
    ours = Route(ip_network("10.1.0.0/24"), kind=RouteKind.UNREACHABLE)
    theirs = Route(ip_network("10.1.0.0/24"), kind=RouteKind.BLACKHOLE, protocol=4)
    async with monitored(node) as events:
        node.run("ip", "route", "add", "blackhole", "10.2.0.0/24", "proto", "static")
        node.run("ip", "route", "del", "blackhole", "10.2.0.0/24", "proto", "static")
        assert routes_in(await events.until_now()) == []
        assert node.socket.apply([Put(ours)]) == []
        node.run("ip", "route", "replace", "blackhole", "10.1.0.0/24", "proto", "static")
        assert routes_in(await events.until_now()) == [Seen(ours), Seen(theirs)]


async def test_learned_neighbours_are_no_news_unless_they_were_ours(netns):
    node = netns()
    pair(node)
    neighbour = Neighbour("a", ip_address("10.9.0.2"), MAC)
    async with monitored(node) as events:
        node.run("ip", "neigh", "add", "10.9.0.3", "lladdr", MAC, "dev", "a", "nud", "stale")
        node.run("ip", "neigh", "del", "10.9.0.3", "dev", "a")
        assert neighbours_in(await events.until_now()) == []
        assert node.socket.apply([Put(neighbour)]) == []
        node.run("ip", "neigh", "change", "10.9.0.2", "lladdr", MAC, "dev", "a", "nud", "stale")
        assert neighbours_in(await events.until_now()) == [Seen(neighbour), Gone(neighbour)]


async def test_what_our_own_socket_did_is_no_news(netns):
    node = netns()
    route = Route(ip_network("10.1.0.0/24"), kind=RouteKind.UNREACHABLE)
    async with monitored(node, ignored_ports=[node.socket.port]) as events:
        assert node.socket.apply([Put(route)]) == []
        assert routes_in(await events.until_now()) == []
        node.run("ip", "route", "del", "unreachable", "10.1.0.0/24")
        assert routes_in(await events.until_now()) == [Gone(route)]


async def test_a_reader_that_falls_behind_is_told_so(netns, monkeypatch):
    monkeypatch.setattr(module, "_EVENTS_HELD", 10)
    node = netns()
    routes = [Route(ip_network(f"10.{number}.0.0/16"), kind=RouteKind.UNREACHABLE) for number in range(15)]
    async with monitored(node) as events:
        assert node.socket.apply([Put(route) for route in routes]) == []
        found = await events.until_now()
    assert found == [Overrun(), *map(Seen, routes[11:])]


async def test_a_flood_that_the_kernel_drops_is_an_overrun(netns):
    node = netns()
    base = int(ip_address("10.0.0.0"))
    routes = [
        Route(ip_network((base + number * 256, 24)), kind=RouteKind.UNREACHABLE) for number in range(20_000)
    ]
    async with monitored(node) as events:
        # All within one turn of the loop: the socket's buffer is all there is to hold them.
        assert node.socket.apply([Put(route) for route in routes]) == []
        await events.until(Overrun())
        # Whoever reads everything now misses nothing: the kernel tells again.
        assert node.socket.apply([Remove(routes[0])]) == []
        assert await events.until(Gone(routes[0])) == []


@pytest.mark.parametrize("key", ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"])
async def test_forwarding_that_is_turned_off_is_told(netns, key):
    node = netns()
    node.run("sysctl", "-q", "-w", f"{key}=1")
    async with monitored(node) as events:
        node.run("sysctl", "-q", "-w", f"{key}=0")
        await events.expect(Configured("all"))


async def test_what_happens_at_a_peers_end_in_its_own_namespace_is_told(netns):
    node, pod = netns(), netns()
    assert node.socket.apply([Put(Veth(Link("a"), Link("eth0"), pod.fd))]) == []
    host = node.socket.link("a")
    index = pod.socket.link("eth0").index
    assert (host.parent, pod.socket.link("eth0").parent_nsid) != (0, -1)
    assert host.parent == index
    address = Address("eth0", ip_interface("10.1.0.5/32"))
    route = Route(ip_network("10.2.0.0/24"), link="eth0", scope=Scope.LINK)
    neighbour = Neighbour("eth0", ip_address("10.2.0.2"), MAC)
    async with monitored(node) as events:
        things = [address, route, neighbour]
        assert pod.socket.apply([Change(Link("eth0")), *map(Put, things)]) == []
        assert pod.socket.apply([*map(Remove, reversed(things))]) == []
        found = [e for e in await events.until_now() if isinstance(e, Elsewhere)]
    assert {event.nsid for event in found} == {host.parent_nsid}
    told = [event.event for event in found]
    for thing in things:
        assert Seen(replace(thing, link=str(index))) in told
        assert any(isinstance(e, Gone) and type(e.what) is type(thing) for e in told)
    assert any(isinstance(e.what, Link) and e.what.up and e.what.index == index for e in told)


def routes_in(events):
    return [event for event in events if isinstance(event, Seen | Gone) and isinstance(event.what, Route)]


def neighbours_in(events):
    return [event for event in events if isinstance(event, Seen | Gone) and isinstance(event.what, Neighbour)]


async def test_what_is_taken_at_once_has_been_told_by_then_and_is_not_told_again(netns):
    node = netns()
    route = Route(ip_network("198.51.100.0/24"), link="lo", scope=Scope.LINK)
    async with monitored(node) as events:
        node.run("ip", "link", "set", "lo", "up")
        node.socket.apply([Put(route)])
        await events.until_now()
        node.socket.apply([Remove(route)])
        assert Gone(route) in events.monitor.take()
        assert Gone(route) not in await events.until_now()
