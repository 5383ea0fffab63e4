"""Backends by tables: kernel state as flannel makes it, in every family."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from poplin.compile.backend import (
    UNREACHABLE_METRIC,
    compile_backend,
    compile_peers,
    device_name,
    pod_mtu_bytes,
    vtep_mac,
)
from poplin.compile.lease import Endpoint, Lease
from poplin.compile.underlay import Underlay
from poplin.model.kernel import Address, FdbEntry, Link, Neighbour, Route, RouteKind, Vxlan
from poplin.model.netconf import Backend, BackendType
from poplin.model.state import NetworkState, unite


def endpoint(version, number, vni=1):
    ip = {4: f"192.168.0.{number}", 6: f"fd00::{number}"}[version]
    cidr = {4: f"10.244.{number}.0/24", 6: f"fd00:10:244:{number}::/64"}[version]
    return Endpoint(ip_address(ip), ip_network(cidr), f"0a:00:00:00:0{version}:0{number}", vni)


def underlay(version, mtu_bytes=1500):
    held = ip_interface({4: "192.168.0.1/30", 6: "fd00::1/126"}[version])
    return Underlay("eth0", mtu_bytes, held.ip, (Address("eth0", held, protocol=0),))


def lease(number, versions):
    return Lease(f"node{number}", "vxlan", tuple(endpoint(v, number) for v in versions))


def unreachable(version):
    cidr = endpoint(version, 1).pod_cidr
    return Route(cidr, kind=RouteKind.UNREACHABLE, metric=UNREACHABLE_METRIC)


EXPECTED = {
    4: NetworkState(
        {
            "flannel.1": Link(
                "flannel.1",
                kind="vxlan",
                mac="0a:00:00:00:04:01",
                mtu_bytes=1450,
                alias="poplin: overlay",
                vxlan=Vxlan(1, 8472, "eth0", ip_address("192.168.0.1")),
            )
        },
        frozenset({Address("flannel.1", ip_interface("10.244.1.0/32"))}),
        frozenset(
            {
                unreachable(4),
                Route(ip_network("10.244.2.0/24"), ip_address("10.244.2.0"), "flannel.1", onlink=True),
                Route(ip_network("10.244.9.0/24"), ip_address("10.244.9.0"), "flannel.1", onlink=True),
            }
        ),
        frozenset(
            {
                Neighbour("flannel.1", ip_address("10.244.2.0"), "0a:00:00:00:04:02"),
                Neighbour("flannel.1", ip_address("10.244.9.0"), "0a:00:00:00:04:09"),
            }
        ),
        frozenset(
            {
                FdbEntry("flannel.1", "0a:00:00:00:04:02", ip_address("192.168.0.2")),
                FdbEntry("flannel.1", "0a:00:00:00:04:09", ip_address("192.168.0.9")),
            }
        ),
        {"net/ipv4/conf/flannel.1/rp_filter": "2"},
    ),
    6: NetworkState(
        {
            "flannel-v6.1": Link(
                "flannel-v6.1",
                kind="vxlan",
                mac="0a:00:00:00:06:01",
                mtu_bytes=1430,
                alias="poplin: overlay",
                vxlan=Vxlan(1, 8472, "eth0", ip_address("fd00::1")),
            )
        },
        frozenset({Address("flannel-v6.1", ip_interface("fd00:10:244:1::/128"))}),
        frozenset(
            {
                unreachable(6),
                Route(
                    ip_network("fd00:10:244:2::/64"),
                    ip_address("fd00:10:244:2::"),
                    "flannel-v6.1",
                    onlink=True,
                ),
                Route(
                    ip_network("fd00:10:244:9::/64"),
                    ip_address("fd00:10:244:9::"),
                    "flannel-v6.1",
                    onlink=True,
                ),
            }
        ),
        frozenset(
            {
                Neighbour("flannel-v6.1", ip_address("fd00:10:244:2::"), "0a:00:00:00:06:02"),
                Neighbour("flannel-v6.1", ip_address("fd00:10:244:9::"), "0a:00:00:00:06:09"),
            }
        ),
        frozenset(
            {
                FdbEntry("flannel-v6.1", "0a:00:00:00:06:02", ip_address("fd00::2")),
                FdbEntry("flannel-v6.1", "0a:00:00:00:06:09", ip_address("fd00::9")),
            }
        ),
    ),
}
FAMILIES = [(4,), (6,), (4, 6)]


def compiled(backend, versions, peers=(2, 9)):
    underlays = [underlay(v) for v in versions]
    reached = [
        compile_peers(backend, [endpoint(v, number) for number in peers], u)
        for v, u in zip(versions, underlays, strict=True)
    ]
    return unite([compile_backend(backend, lease(1, versions), underlays), *reached])


@pytest.mark.parametrize("versions", FAMILIES)
def test_vxlan(versions):
    assert compiled(Backend(), versions) == unite([EXPECTED[v] for v in versions])


@pytest.mark.parametrize("versions", FAMILIES)
def test_vxlan_without_peers_is_a_device_with_an_address(versions):
    state = compiled(Backend(), versions, peers=())
    expected = unite([EXPECTED[v] for v in versions])
    assert state == NetworkState(
        expected.links,
        expected.addresses,
        frozenset(unreachable(v) for v in versions),
        sysctls=expected.sysctls,
    )


@pytest.mark.parametrize("versions", FAMILIES)
def test_direct_routing_tunnels_only_to_peers_beyond_the_link(versions):
    state = compiled(Backend(direct_routing=True), versions)
    expected = unite([EXPECTED[v] for v in versions])
    near = [endpoint(v, 2) for v in versions]
    assert state.links == expected.links
    assert state.neighbours == {n for n in expected.neighbours if not n.mac.endswith("02")}
    assert state.fdb == {f for f in expected.fdb if not f.mac.endswith("02")}
    assert state.routes == {
        *(r for r in expected.routes if r.destination not in {e.pod_cidr for e in near}),
        *(Route(e.pod_cidr, gateway=e.public_ip, link="eth0") for e in near),
    }


@pytest.mark.parametrize("versions", FAMILIES)
def test_host_gw_is_routes_alone(versions):
    peers = [endpoint(v, 2) for v in versions]
    assert compiled(Backend(BackendType.HOST_GW), versions, peers=(2,)) == NetworkState(
        routes=frozenset(
            {
                *(unreachable(v) for v in versions),
                *(Route(e.pod_cidr, gateway=e.public_ip, link="eth0") for e in peers),
            }
        )
    )


def test_options_of_the_device_are_those_of_the_configuration():
    backend = Backend(vni=4096, port=4789, learning=True, gbp=True, mtu_bytes=1400)
    state = compiled(backend, (4, 6))
    assert state.links == {
        name: replace(
            EXPECTED[version].links[old],
            name=name,
            mtu_bytes=mtu_bytes,
            vxlan=Vxlan(4096, 4789, "eth0", underlay(version).address, learning=True, gbp=True),
        )
        for version, old, name, mtu_bytes in (
            (4, "flannel.1", "flannel.4096", 1350),
            (6, "flannel-v6.1", "flannel-v6.4096", 1330),
        )
    }


def test_the_tunnel_leaves_from_the_interface_where_peers_send_to_another_address():
    behind_nat = replace(endpoint(4, 1), public_ip=ip_address("203.0.113.1"))
    state = compile_backend(Backend(), Lease("node1", "vxlan", (behind_nat,)), [underlay(4)])
    assert state.links["flannel.1"].vxlan.local == ip_address("192.168.0.1")


@pytest.mark.parametrize(
    ("backend", "versions", "mtu_bytes"),
    [
        (Backend(), (4,), 1450),
        (Backend(), (6,), 1430),
        (Backend(), (4, 6), 1430),
        (Backend(mtu_bytes=1400), (4,), 1350),
        (Backend(mtu_bytes=9000), (4,), 1450),
        (Backend(mtu_bytes=1400), (4, 6), 1330),
        (Backend(BackendType.HOST_GW), (4, 6), 1500),
        (Backend(BackendType.HOST_GW, mtu_bytes=1400), (4, 6), 1400),
    ],
)
def test_mtu_of_pods_is_what_every_family_carries(backend, versions, mtu_bytes):
    assert pod_mtu_bytes(backend, [underlay(v) for v in versions]) == mtu_bytes


def test_mtu_of_pods_is_that_of_the_narrowest_underlay():
    assert pod_mtu_bytes(Backend(), [underlay(4, 1400), underlay(6, 9000)]) == 1350


@pytest.mark.parametrize(
    ("vni", "version", "name"), [(1, 4, "flannel.1"), (1, 6, "flannel-v6.1"), (4096, 6, "flannel-v6.4096")]
)
def test_device_names_are_those_of_flannel(vni, version, name):
    assert device_name(Backend(vni=vni), version) == name


def test_the_mac_of_a_vtep_is_its_nodes_own_and_lasting():
    made = {vtep_mac(f"node{n}", version) for n in range(500) for version in (4, 6)}
    assert len(made) == 1000
    assert {int(mac[:2], 16) & 0x03 for mac in made} == {0x02}
    assert vtep_mac("node1", 4) == "06:3d:fe:22:82:16"
