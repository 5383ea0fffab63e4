"""A pod's wiring: every object at both ends, in every family."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.compile.pod import compile_pod
from poplin.model.attachment import HOST_MAC, Attachment
from poplin.model.kernel import POD_LINK_GROUP, Address, Link, Neighbour, Route, Scope
from poplin.plan.network import is_ours

V4, V6 = ip_address("10.244.0.5"), ip_address("fd00:10:244::5")
MAC = "0a:58:0a:f4:00:05"
ATTACHMENT = Attachment(
    "c1", "eth0", "/run/netns/c1", (V4, V6), MAC, 1430, "pop5ca9de511394", "default", "web-0"
)
FAMILIES = [(V4,), (V6,), (V4, V6)]
HOST = ATTACHMENT.host_link


def wire(addresses):
    return compile_pod(replace(ATTACHMENT, addresses=addresses))


@pytest.mark.parametrize("addresses", FAMILIES)
class TestHost:
    def test_link(self, addresses):
        assert wire(addresses).host.links == {
            HOST: Link(
                HOST,
                kind="veth",
                mac=HOST_MAC,
                mtu_bytes=1430,
                group=POD_LINK_GROUP,
                alias="poplin: default/web-0 eth0",
            )
        }

    def test_addresses(self, addresses):
        expected = {Address(HOST, ip_interface("fe80::1/64"), scope=Scope.LINK)} if V6 in addresses else set()
        assert wire(addresses).host.addresses == expected

    def test_routes(self, addresses):
        routes = {
            V4: Route(ip_network("10.244.0.5/32"), link=HOST, scope=Scope.LINK),
            V6: Route(ip_network("fd00:10:244::5/128"), link=HOST),
        }
        assert wire(addresses).host.routes == {routes[a] for a in addresses}

    def test_neighbours(self, addresses):
        assert wire(addresses).host.neighbours == {Neighbour(HOST, a, MAC) for a in addresses}

    def test_sysctls_and_fdb(self, addresses):
        host = wire(addresses).host
        assert host.sysctls == {}
        assert host.fdb == frozenset()


@pytest.mark.parametrize("addresses", FAMILIES)
class TestPod:
    def test_link(self, addresses):
        assert wire(addresses).pod.links == {"eth0": Link("eth0", kind="veth", mac=MAC, mtu_bytes=1430)}

    def test_addresses(self, addresses):
        own = {
            V4: Address("eth0", ip_interface("10.244.0.5/32")),
            V6: Address("eth0", ip_interface("fd00:10:244::5/128")),
        }
        assert wire(addresses).pod.addresses == {own[a] for a in addresses}

    def test_routes(self, addresses):
        routes = {
            V4: Route(ip_network("0.0.0.0/0"), ip_address("169.254.1.1"), "eth0", onlink=True),
            V6: Route(ip_network("::/0"), ip_address("fe80::1"), "eth0", onlink=True),
        }
        assert wire(addresses).pod.routes == {routes[a] for a in addresses}

    def test_neighbours(self, addresses):
        gateways = {V4: ip_address("169.254.1.1"), V6: ip_address("fe80::1")}
        assert wire(addresses).pod.neighbours == {Neighbour("eth0", gateways[a], HOST_MAC) for a in addresses}

    def test_sysctls(self, addresses):
        assert wire(addresses).pod.sysctls == (
            {f"net/ipv6/conf/eth0/{key}": "0" for key in ("disable_ipv6", "accept_ra", "accept_dad")}
            if V6 in addresses
            else {}
        )


names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-.", min_size=1, max_size=253)


@given(names, names.map(lambda name: name[:63]), st.text("abc0123", min_size=1, max_size=15))
def test_the_alias_fits_the_kernel_and_marks_the_link_as_ours(name, namespace, ifname):
    attachment = replace(ATTACHMENT, pod_name=name, pod_namespace=namespace, ifname=ifname)
    link = compile_pod(attachment).host.links[HOST]
    assert len(link.alias.encode()) <= 255  # IFALIASZ less its NUL (linux/if.h)
    assert is_ours(link)


def test_the_alias_of_a_caller_that_is_not_kubernetes_names_the_container():
    link = compile_pod(replace(ATTACHMENT, pod_name="", pod_namespace="")).host.links[HOST]
    assert link.alias == "poplin: c1 eth0"


def test_an_attachment_with_another_interface_name_has_all_on_it():
    pod = compile_pod(replace(ATTACHMENT, ifname="net1")).pod
    assert pod.links.keys() == {"net1"}
    assert {o.link for o in (*pod.addresses, *pod.routes, *pod.neighbours)} == {"net1"}
    assert all("/net1/" in key for key in pod.sysctls)
