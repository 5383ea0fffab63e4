"""Every kind of object made in real namespaces, read back equal, and seen by `ip` and `bridge` too."""

import errno
import json
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from poplin.dataplane.netlink.reader import RouteReader
from poplin.model.errors import KernelError
from poplin.model.kernel import (
    POD_LINK_GROUP,
    PROTOCOL,
    Address,
    FdbEntry,
    Link,
    Neighbour,
    Route,
    RouteKind,
    Scope,
    Veth,
    Vxlan,
)
from poplin.model.state import NetworkState
from poplin.plan.network import plan_network
from poplin.plan.operation import Change, Put, Remove

POD_MAC = "0a:58:0a:f4:00:05"
HOST_MAC = "ee:ee:ee:ee:ee:ee"


@dataclass(frozen=True)
class Family:
    """What one family's tests use."""

    version: int
    node: str
    pod: str
    pods: str
    remote: str
    vtep: str
    unreachable: str

    @property
    def host_bits(self):
        return 32 if self.version == 4 else 128


FAMILIES = [
    Family(4, "192.0.2.1/24", "10.244.0.5", "10.244.0.0/24", "10.244.1.0/24", "192.0.2.2", "10.244.9.0/24"),
    Family(6, "2001:db8::1/64", "fd00::5", "fd00::/64", "fd00:0:0:1::/64", "2001:db8::2", "fd00:0:0:9::/64"),
]


@pytest.fixture(params=FAMILIES, ids=["ipv4", "ipv6"])
def family(request):
    return request.param


def pod_veth(peer_fd, name="pop0", mtu_bytes=1450):
    host = Link(name, "veth", HOST_MAC, mtu_bytes, group=POD_LINK_GROUP, alias="default/web")
    return Veth(host, Link("eth0", "veth", POD_MAC, mtu_bytes), peer_fd)


def vxlan_link(family, underlay="pop0"):
    vxlan = Vxlan(7, 8472, underlay, ip_interface(family.node).ip)
    return Link("vxlan.7", "vxlan", "0a:58:0a:00:00:07", 1350, vxlan=vxlan)


def node_with_vxlan(netns, family):
    """A namespace with a veth that has the node's address, and a vxlan device on it."""
    node, other = netns(), netns()
    made = node.socket.apply(
        [
            Put(pod_veth(other.fd)),
            Put(Address("pop0", ip_interface(family.node))),
            Put(vxlan_link(family)),
        ]
    )
    assert made == []
    assert other.socket.apply([Change(Link("eth0"))]) == []
    return node


def ours(node):
    return set(node.socket.routes(protocol=PROTOCOL))


def errors(failures):
    return [str(failure.error) for failure in failures]


def test_a_pod_of_one_list_each_side(netns, family):
    node, pod = netns(), netns()
    ip, gateway = ip_address(family.pod), ip_address("169.254.1.1" if family.version == 4 else "fe80::1")
    route = Route(ip_network(family.pod), link="pop0")
    neighbour = Neighbour("pop0", ip, POD_MAC)
    assert node.socket.apply([Put(pod_veth(pod.fd)), Put(neighbour), Put(route)]) == []
    address = Address("eth0", ip_interface(f"{family.pod}/{family.host_bits}"))
    entry = Neighbour("eth0", gateway, HOST_MAC)
    default = Route(ip_network("0.0.0.0/0" if family.version == 4 else "::/0"), gateway, "eth0", onlink=True)
    assert pod.socket.apply([Change(Link("eth0")), Put(address), Put(entry), Put(default)]) == []

    host = node.socket.link("pop0")
    assert replace(host, index=0, parent=0, parent_nsid=-1, carrier=False) == pod_veth(0).host
    peer = pod.socket.link("eth0")
    assert replace(peer, index=0, parent=0, parent_nsid=-1, carrier=False) == pod_veth(0).peer
    assert (host.parent, peer.parent) == (peer.index, host.index)
    assert host.carrier
    assert peer.carrier
    assert ours(node) == {route}
    assert node.socket.neighbours(link="pop0") == [neighbour]
    assert address in pod.socket.addresses(link="eth0")
    assert ours(pod) == {default}
    assert pod.socket.neighbours() == [entry]

    (seen,) = json.loads(node.run("ip", "-j", "-d", "link", "show", "pop0"))
    assert (seen["address"], seen["mtu"], seen["group"]) == (HOST_MAC, 1450, str(POD_LINK_GROUP))
    assert (seen["ifalias"], seen["inet6_addr_gen_mode"]) == ("default/web", "none")
    (seen,) = json.loads(pod.run("ip", "-j", f"-{family.version}", "route", "show", "default"))
    assert (seen["gateway"], seen["dev"], seen["protocol"]) == (str(gateway), "eth0", "112")


def test_an_overlay_in_one_list(netns, family):
    node = node_with_vxlan(netns, family)
    remote = ip_network(family.remote)
    mac = "0a:58:0a:00:00:08"
    neighbour = Neighbour("vxlan.7", remote.network_address, mac)
    fdb_entry = FdbEntry("vxlan.7", mac, ip_address(family.vtep))
    route = Route(remote, remote.network_address, "vxlan.7", onlink=True, mtu_bytes=1300, metric=50)
    assert node.socket.apply([Put(neighbour), Put(fdb_entry), Put(route)]) == []

    link = node.socket.link("vxlan.7")
    assert replace(link, index=0, carrier=False) == vxlan_link(family)
    assert node.socket.neighbours(link="vxlan.7") == [neighbour]
    assert node.socket.fdb("vxlan.7") == [fdb_entry]
    assert ours(node) == {route}

    (seen,) = json.loads(node.run("ip", "-j", "-d", "link", "show", "vxlan.7"))
    data = seen["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["learning"], data["link"]) == (7, 8472, False, "pop0")
    (seen,) = json.loads(node.run("bridge", "-j", "fdb", "show", "dev", "vxlan.7"))
    assert (seen["mac"], seen["dst"], seen["state"]) == (mac, family.vtep, "permanent")
    (seen,) = json.loads(node.run("ip", "-j", f"-{family.version}", "route", "show", family.remote))
    assert (seen["metric"], seen["metrics"], seen["flags"]) == (50, [{"mtu": 1300}], ["onlink"])


def test_a_node_moves_behind_the_overlay_and_back(netns, family):
    """In one pass each, whichever of its routes stands: IPv6 takes no gateway to which the old route leads."""
    node = node_with_vxlan(netns, family)
    remote = ip_network(family.remote)
    direct = Route(remote, ip_address(family.vtep), "pop0")
    tunnelled = Route(remote, remote.network_address, "vxlan.7", onlink=True)
    standing = NetworkState()
    for route in (direct, tunnelled, direct):
        desired = NetworkState(routes=frozenset({route}))
        assert node.socket.apply(plan_network(desired, standing)) == []
        assert ours(node) == {route}
        standing = desired


@pytest.mark.parametrize(
    "kind", [RouteKind.UNREACHABLE, RouteKind.BLACKHOLE, RouteKind.PROHIBIT, RouteKind.THROW]
)
def test_a_route_without_next_hop(netns, family, kind):
    node = netns()
    route = Route(ip_network(family.unreachable), kind=kind)
    assert node.socket.apply([Put(route)]) == []
    assert ours(node) == {route}
    table = json.loads(node.run("ip", "-j", f"-{family.version}", "route", "show", "proto", "112"))
    assert [(seen["type"], seen["dst"]) for seen in table] == [(kind.name.lower(), family.unreachable)]
    assert node.socket.apply([Remove(route)]) == []
    assert ours(node) == set()


def test_an_ipv4_route_by_way_of_an_ipv6_gateway(netns):
    node = node_with_vxlan(netns, FAMILIES[1])
    route = Route(ip_network("10.1.0.0/24"), ip_address("2001:db8::2"), "pop0")
    assert node.socket.apply([Put(route)]) == []
    assert ours(node) == {route}


def test_a_route_with_its_source_in_a_table_of_its_own(netns, family):
    node = node_with_vxlan(netns, family)
    route = Route(
        ip_network(family.remote),
        ip_address(family.vtep),
        "pop0",
        source=ip_interface(family.node).ip,
        table=100_000,
        protocol=200,
    )
    assert node.socket.apply([Put(route)]) == []
    assert node.socket.routes(table=100_000) == [route]
    assert node.socket.routes(protocol=200) == [route]
    assert node.socket.routes(protocol=201) == []
    assert node.socket.routes(table=99) == []


def test_our_own_links_get_no_address_by_themselves(netns):
    node = node_with_vxlan(netns, FAMILIES[0])
    assert {address.link for address in node.socket.addresses()} == {"lo", "pop0"}
    assert [a.interface.version for a in node.socket.addresses(link="pop0")] == [4]


def test_a_link_too_small_for_ipv6_is_made_all_the_same(netns):
    node, pod = netns(), netns()
    assert node.socket.apply([Put(pod_veth(pod.fd, mtu_bytes=1000))]) == []
    assert node.socket.link("pop0").mtu_bytes == 1000


def test_a_link_that_cannot_be_made_as_a_whole_is_not_left_behind(netns):
    node, pod = netns(), netns()
    veth = pod_veth(pod.fd)
    (failure,) = node.socket.apply([Put(replace(veth, host=replace(veth.host, alias="x" * 300)))])
    assert failure.error.errno in {errno.EINVAL, errno.ERANGE}
    assert failure.error.where == "veth pop0 peer eth0"
    assert node.socket.link("pop0") is None
    assert pod.socket.link("eth0") is None


def test_a_link_becomes_the_port_of_a_bridge(netns):
    node, other = netns(), netns()
    veth = pod_veth(other.fd)
    port = replace(veth, host=replace(veth.host, master="br0"))
    (failure,) = node.socket.apply([Put(port)])
    assert str(failure.error) == "veth pop0 peer eth0: no such link: br0"
    assert node.socket.link("pop0") is None
    assert node.socket.apply([Put(Link("br0", "bridge")), Put(port)]) == []
    assert node.socket.link("pop0").master == "br0"
    assert node.socket.link("br0").kind == "bridge"


def test_a_change_keeps_what_it_leaves_open(netns):
    node, pod = netns(), netns()
    assert node.socket.apply([Put(pod_veth(pod.fd))]) == []
    assert node.socket.apply([Change(Link("pop0", mtu_bytes=1300, up=False, group=5, alias=""))]) == []
    link = node.socket.link("pop0")
    assert (link.mac, link.mtu_bytes, link.up, link.group, link.alias) == (HOST_MAC, 1300, False, 5, "")


def test_rename_and_delete_by_group(netns):
    node, pod = netns(), netns()
    assert node.socket.apply([Put(pod_veth(pod.fd))]) == []
    node.socket.rename("pop0", "pop.1")
    assert node.socket.link("pop0") is None
    assert node.socket.link("pop.1").group == POD_LINK_GROUP
    node.socket.delete_group(POD_LINK_GROUP)
    assert [link.name for link in node.socket.links()] == ["lo"]
    node.socket.delete_group(POD_LINK_GROUP)
    with pytest.raises(KernelError, match="links of group 0"):
        node.socket.delete_group(0)
    with pytest.raises(KernelError, match="no such link: nosuch"):
        node.socket.rename("nosuch", "other")


def everything(family):
    """One of each kind, on the links of `node_with_vxlan`, and the same with something else in it."""
    remote = ip_network(family.remote)
    link = vxlan_link(family)
    route = Route(remote, ip_address(family.vtep), "pop0")
    neighbour = Neighbour("pop0", ip_address(family.pod), POD_MAC)
    entry = FdbEntry("vxlan.7", POD_MAC, ip_address(family.vtep))
    address = Address("vxlan.7", ip_interface(f"{family.pod}/{family.host_bits}"))
    return [
        (link, replace(link, mtu_bytes=1340, vxlan=replace(link.vxlan, vni=8))),
        (route, replace(route, gateway=None, scope=Scope.LINK if family.version == 4 else Scope.UNIVERSE)),
        (neighbour, replace(neighbour, mac=HOST_MAC)),
        (entry, replace(entry, destination=ip_interface(family.node).ip)),
        (address, replace(address, protocol=99)),
    ]


def standing(node, what):
    """Whether exactly this object is there."""
    match what:
        case Link():
            link = node.socket.link(what.name)
            return link is not None and replace(link, index=0, carrier=False) == what
        case Route():
            return what in node.socket.routes()
        case Neighbour():
            return what in node.socket.neighbours()
        case FdbEntry():
            return what in node.socket.fdb(what.link)
        case Address():
            # Equality leaves the protocol out.
            return (what, what.protocol) in [(found, found.protocol) for found in node.socket.addresses()]


@pytest.mark.parametrize(
    "position", range(5), ids=["link", "route", "neighbour", "forwarding entry", "address"]
)
def test_put_refuses_replaces_and_removes(netns, family, position):
    node = node_with_vxlan(netns, family)
    first, second = everything(family)[position]
    if not isinstance(first, Link):
        assert node.socket.apply([Put(first)]) == []
    assert standing(node, first)

    (failure,) = node.socket.apply([Put(second)])
    assert failure.error.errno == errno.EEXIST
    assert "belongs to somebody else" in str(failure.error)
    assert standing(node, first)

    assert node.socket.apply([Put(second, replace=True)]) == []
    assert standing(node, second)
    assert node.socket.apply([Remove(second)]) == []
    assert node.socket.apply([Remove(second)]) == []
    assert not standing(node, second)


def test_what_is_on_a_link_that_is_gone_is_gone(netns, family):
    node = netns()
    for what, _ in everything(family):
        assert node.socket.apply([Remove(what)]) == []


def test_somebody_elses_route_stays(netns, family):
    node = node_with_vxlan(netns, family)
    node.run("ip", "route", "add", family.remote, "via", family.vtep, "proto", "static", "metric", "1024")
    mine = Route(ip_network(family.remote), kind=RouteKind.UNREACHABLE, metric=1024)
    theirs = set(node.socket.routes(protocol=4))
    (failure,) = node.socket.apply([Put(mine)])
    assert failure.error.errno == errno.EEXIST
    assert failure.operation == Put(mine)
    assert str(failure.error).startswith(f"unreachable route {family.remote} metric 1024: File exists; ")
    assert node.socket.apply([Remove(mine)]) == []
    assert set(node.socket.routes(protocol=4)) == theirs
    assert len(theirs) == 1


def test_a_neighbour_that_the_kernel_learned_gives_way(netns, family):
    node = node_with_vxlan(netns, family)
    node.run("ip", "neigh", "add", family.pod, "lladdr", HOST_MAC, "dev", "pop0", "nud", "stale")
    neighbour = Neighbour("pop0", ip_address(family.pod), POD_MAC)
    assert node.socket.neighbours() == []
    assert node.socket.apply([Put(neighbour)]) == []
    assert node.socket.neighbours() == [neighbour]


def test_an_error_names_the_object_and_carries_the_kernels_words(netns):
    node = node_with_vxlan(netns, FAMILIES[0])
    far = Route(ip_network("10.244.1.0/24"), ip_address("10.0.0.2"), "pop0")
    nowhere = replace(far, link="nosuch")
    long = replace(far, link="a-name-of-16-chr")
    assert errors(node.socket.apply([Put(far), Put(nowhere), Put(long), Change(Link("nosuch"))])) == [
        "route 10.244.1.0/24 via 10.0.0.2 dev pop0: Nexthop has invalid gateway (Network is unreachable)",
        "route 10.244.1.0/24 via 10.0.0.2 dev nosuch: no such link: nosuch",
        "route 10.244.1.0/24 via 10.0.0.2 dev a-name-of-16-chr: no such link: a-name-of-16-chr has more than 15 bytes",
        "link nosuch: No such device",
    ]


def test_of_ten_thousand_the_one_that_fails_is_told(netns, family):
    node = node_with_vxlan(netns, family)
    base = ip_network("10.0.0.0/8" if family.version == 4 else "fd01::/48")
    step = 256 if family.version == 4 else 1 << 64
    length = 24 if family.version == 4 else 64
    first = int(base.network_address)
    kind = type(base)
    routes = [
        Route(kind((first + number * step, length)), ip_address(family.vtep), "pop0")
        for number in range(10_000)
    ]
    bad = replace(
        routes[5000], gateway=ip_address("198.51.100.1" if family.version == 4 else "2001:db8:9::1")
    )
    operations = [Put(route) for route in [*routes[:5000], bad, *routes[5001:]]]
    (failure,) = node.socket.apply(operations)
    assert failure.operation == Put(bad)
    assert failure.error.where.startswith(f"route {bad.destination} via ")
    assert ours(node) == set(routes) - {routes[5000]}
    assert node.socket.apply([Put(routes[5000])]) == []
    again = node.socket.apply([Put(route) for route in routes])
    assert {failure.error.errno for failure in again} == {errno.EEXIST}
    assert len(again) == 10_000


def test_a_second_reading_gives_the_same_object_until_something_changes(netns, family):
    node = node_with_vxlan(netns, family)
    route = Route(ip_network(family.remote), ip_address(family.vtep), "pop0")
    other = Route(ip_network(family.unreachable), kind=RouteKind.UNREACHABLE)
    reader = RouteReader(node.socket)
    assert reader.read() == frozenset()
    assert node.socket.apply([Put(route), Put(other)]) == []
    desired = frozenset({replace(route), replace(other)})
    first = reader.read(desired)
    assert first == desired
    assert {id(one) for one in first} == {id(one) for one in desired}
    assert reader.read() is first
    assert node.socket.apply([Remove(other)]) == []
    assert reader.read(desired) == {route}
    changed = replace(route, mtu_bytes=1300)
    assert node.socket.apply([Put(changed, replace=True)]) == []
    assert reader.read(desired) == {changed}
    node.run("ip", "route", "replace", family.remote, "via", family.vtep, "proto", "static")
    assert reader.read(desired) == frozenset()


def test_a_reader_follows_a_link_to_its_new_name(netns, family):
    node = node_with_vxlan(netns, family)
    route = Route(ip_network(family.remote), link="pop0")
    assert node.socket.apply([Put(route)]) == []
    reader = RouteReader(node.socket)
    assert reader.read() == {route}
    node.socket.rename("pop0", "new0")
    assert reader.read() == {replace(route, link="new0")}


def test_a_reader_keeps_a_route_while_one_of_two_that_look_alike_goes(netns):
    node = node_with_vxlan(netns, FAMILIES[0])
    command = ("10.7.0.0/24", "dev", "pop0", "proto", "112", "scope", "global")
    node.run("ip", "route", "add", *command)
    node.run("ip", "route", "add", *command, "tos", "4")
    reader = RouteReader(node.socket)
    route = Route(ip_network("10.7.0.0/24"), link="pop0")
    assert reader.read() == {route}
    node.run("ip", "route", "del", *command, "tos", "4")
    assert reader.read() == {route}
    node.run("ip", "route", "del", *command)
    assert reader.read() == frozenset()
