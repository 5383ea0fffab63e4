"""The route that the kernel takes for one packet, asked for as `ip route get fibmatch` does."""

import errno
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from poplin.dataplane.netns import in_namespace
from poplin.dataplane.sysctl import write_sysctl
from poplin.model.errors import KernelError
from poplin.model.kernel import Address, Link, Route, RouteKind, Veth
from poplin.plan.operation import Change, Put


@dataclass(frozen=True)
class Family:
    node: str
    gateway: str
    pod: str
    remote: str
    unreachable: str
    unknown: str


FAMILIES = {
    4: Family("192.0.2.1/24", "192.0.2.2", "10.244.0.5", "10.244.1.0/24", "10.244.9.0/24", "203.0.113.9"),
    6: Family("2001:db8::1/64", "2001:db8::2", "fd00::5", "fd00:0:0:1::/64", "fd00:0:0:9::/64", "2001:db8:9::9"),
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def node(netns, family):
    """A node with an uplink, one pod, a route to another node's pods, and an unreachable one."""
    node, pod, peer = netns(), netns(), netns()
    in_namespace(node.fd, lambda: write_sysctl("net/ipv4/ip_forward", 1))
    in_namespace(node.fd, lambda: write_sysctl("net/ipv6/conf/all/forwarding", 1))
    objects = [
        Veth(Link("eth0", "veth"), Link("eth0"), peer.fd),
        Veth(Link("pop0", "veth"), Link("eth0"), pod.fd),
        Address("eth0", ip_interface(family.node)),
        Route(ip_network(family.pod), link="pop0"),
        Route(ip_network(family.remote), ip_address(family.gateway), "eth0", metric=7),
        Route(ip_network(family.unreachable), kind=RouteKind.UNREACHABLE),
    ]
    assert node.socket.apply(map(Put, objects)) == []
    for other in (pod, peer):
        assert other.socket.apply([Change(Link("eth0"))]) == []
    return node


def test_the_route_is_the_one_in_the_table(node, family):
    remote = ip_network(family.remote)
    found = node.socket.route_to(remote[9])
    assert found == Route(remote, ip_address(family.gateway), "eth0", metric=7)
    assert node.socket.route_to(ip_address(family.pod)).link == "pop0"


def test_a_pods_packet_is_asked_for_as_it_comes_in(node, family):
    remote, pod = ip_network(family.remote), ip_address(family.pod)
    assert node.socket.route_to(remote[9], source=pod, incoming="pop0").destination == remote
    assert node.socket.route_to(pod, source=remote[9], incoming="eth0").link == "pop0"


def test_the_kernels_reason_for_no_route_is_told(node, family):
    with pytest.raises(KernelError) as caught:
        node.socket.route_to(ip_network(family.unreachable)[9])
    assert caught.value.errno == errno.EHOSTUNREACH
    with pytest.raises(KernelError) as caught:
        node.socket.route_to(ip_address(family.unknown))
    assert caught.value.errno == errno.ENETUNREACH
    with pytest.raises(KernelError) as caught:
        node.socket.route_to(ip_address(family.pod), incoming="nolink")
    assert caught.value.errno == errno.ENODEV
