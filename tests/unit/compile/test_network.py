"""compile_network: what is served, and what is left out with its reason."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from poplin.compile.backend import vtep_mac
from poplin.compile.lease import Endpoint, Lease, annotate
from poplin.compile.network import compile_network
from poplin.compile.underlay import Underlay
from poplin.model.cluster import Node
from poplin.model.errors import InvalidInputError, TemporaryError
from poplin.model.kernel import Address
from poplin.model.netconf import Backend, BackendType, NetConf

NETWORK = {4: ip_network("10.244.0.0/16"), 6: ip_network("fd00:10:244::/48")}
CONF = NetConf((NETWORK[4],))
DUAL = NetConf((NETWORK[4], NETWORK[6]))
UNDERLAY = {
    version: Underlay("eth0", 1500, ip_interface(held).ip, (Address("eth0", ip_interface(held), protocol=0),))
    for version, held in ((4, "192.168.0.1/24"), (6, "fd00::1/64"))
}
BOTH = (UNDERLAY[4], UNDERLAY[6])
F = "flannel.alpha.coreos.com/"


def node(number, *, cidrs=None, backend_type="vxlan", vni=1, macs=None, versions=(4, 6), **annotations):
    """A node that has published a lease; names sort as numbers do."""
    ip = {4: f"192.168.0.{number}", 6: f"fd00::{number}"}
    pod_cidrs = tuple(ip_network(c) for c in cidrs or (f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"))
    endpoints = tuple(
        Endpoint(
            ip_address(ip[cidr.version]),
            cidr,
            macs or f"0a:00:00:00:0{cidr.version}:0{number}" if backend_type == "vxlan" else "",
            vni,
        )
        for cidr in pod_cidrs
        if cidr.version in versions
    )
    published = annotate(Lease(f"node{number}", backend_type, endpoints))
    return Node(
        f"node{number}",
        pod_cidrs=pod_cidrs,
        annotations={**published, **{F + k.replace("_", "-"): v for k, v in annotations.items()}},
    )


OWN = node(1)


def served(network):
    """podCIDRs of peers that have a route."""
    return {str(r.destination) for r in network.state.routes if r.gateway is not None}


class TestOwn:
    def test_a_node_that_has_published_nothing_gets_a_lease(self):
        network = compile_network(CONF, replace(OWN, annotations={}), [], [UNDERLAY[4]])
        assert network.lease == Lease(
            "node1",
            "vxlan",
            (Endpoint(ip_address("192.168.0.1"), ip_network("10.244.1.0/24"), vtep_mac("node1", 4), 1),),
        )
        assert network.pod_cidrs == (ip_network("10.244.1.0/24"),)
        assert network.pod_mtu_bytes == 1450
        assert network.problems == ()

    @pytest.mark.parametrize("cidrs", [None, ("fd00:10:244:1::/64", "10.244.1.0/24")])
    def test_families_come_ipv4_first_whatever_the_order_of_pod_cidrs(self, cidrs):
        network = compile_network(DUAL, node(1, cidrs=cidrs), [], BOTH[::-1])
        assert [c.version for c in network.pod_cidrs] == [4, 6]
        assert [e.public_ip.version for e in network.lease.endpoints] == [4, 6]
        assert network.pod_mtu_bytes == 1430

    def test_an_mtu_beyond_the_underlays_is_named_and_cut(self):
        conf = replace(CONF, backend=replace(CONF.backend, mtu_bytes=9000))
        network = compile_network(conf, OWN, [], [UNDERLAY[4]])
        assert network.pod_mtu_bytes == 1450
        assert [str(p) for p in network.problems] == [
            (
                "net-conf.json: Backend: MTU: MTU 9000 is more than eth0 carries: 1500 is used; "
                "leave MTU out, or raise the interface's"
            )
        ]

    def test_the_published_mac_is_kept(self):
        lease = compile_network(DUAL, OWN, [], BOTH).lease
        assert [e.vtep_mac for e in lease.endpoints] == ["0a:00:00:00:04:01", "0a:00:00:00:06:01"]

    def test_a_mac_published_for_another_vni_is_not_kept(self):
        conf = replace(CONF, backend=Backend(vni=2))
        lease = compile_network(conf, OWN, [], BOTH).lease
        assert lease.endpoints[0].vtep_mac == vtep_mac("node1", 4)
        assert lease.endpoints[0].vni == 2

    def test_a_published_mac_that_cannot_be_read_gives_way_and_leaves_the_other_family(self):
        lease = compile_network(DUAL, node(1, backend_data="{"), [], BOTH).lease
        assert [e.vtep_mac for e in lease.endpoints] == [vtep_mac("node1", 4), "0a:00:00:00:06:01"]

    def test_host_gw_publishes_no_mac(self):
        conf = replace(DUAL, backend=Backend(BackendType.HOST_GW))
        lease = compile_network(conf, OWN, [], BOTH).lease
        assert [(e.vtep_mac, e.vni) for e in lease.endpoints] == [("", 0), ("", 0)]
        assert annotate(lease)[F + "backend-data"] == "null"

    def test_an_overwritten_public_ip_is_published(self):
        network = compile_network(CONF, node(1, public_ip_overwrite="203.0.113.1"), [], [UNDERLAY[4]])
        assert network.lease.endpoints[0].public_ip == ip_address("203.0.113.1")
        assert network.state.links["flannel.1"].vxlan.local == ip_address("192.168.0.1")

    def test_forwarding_is_on_for_the_families_in_use(self):
        takes_ra = replace(UNDERLAY[6], accepts_ra=True)
        assert compile_network(CONF, OWN, [], BOTH).state.sysctls == {
            "net/ipv4/ip_forward": "1",
            "net/ipv4/conf/flannel.1/rp_filter": "2",
        }
        sysctls = compile_network(DUAL, OWN, [], [takes_ra]).state.sysctls
        assert sysctls["net/ipv6/conf/all/forwarding"] == "1"
        assert sysctls["net/ipv6/conf/eth0/accept_ra"] == "2"
        # The order counts: forwarding first would drop the default route that came by advertisement.
        keys = list(sysctls)
        assert keys.index("net/ipv6/conf/eth0/accept_ra") < keys.index("net/ipv6/conf/all/forwarding")


@pytest.mark.parametrize(
    ("own", "underlays", "kind", "words", "remedy"),
    [
        (replace(OWN, pod_cidrs=()), BOTH, TemporaryError, "has no IPv4 podCIDR", "podSubnet"),
        (node(1, cidrs=["fd00:10:244:1::/64"]), BOTH, TemporaryError, "has no IPv4 podCIDR", "podSubnet"),
        (
            node(1, cidrs=["10.245.1.0/24"]),
            BOTH,
            InvalidInputError,
            "podCIDR 10.245.1.0/24 lies outside the pod network 10.244.0.0/16",
            "net-conf.json",
        ),
        (node(1, cidrs=["10.0.0.0/8"]), BOTH, InvalidInputError, "lies outside", "net-conf.json"),
        (OWN, (), TemporaryError, "no interface carries an IPv4 address", "--public-ip"),
        (OWN, (UNDERLAY[6],), TemporaryError, "no interface carries an IPv4 address", "--public-ip"),
        (
            node(1, public_ip_overwrite="elsewhere"),
            BOTH,
            InvalidInputError,
            "'elsewhere' is not an IPv4 address",
            "annotation",
        ),
    ],
)
class TestOwnProblem:
    def test_alone_is_raised(self, own, underlays, kind, words, remedy):
        with pytest.raises(kind) as caught:
            compile_network(CONF, own, [], underlays)
        assert words in caught.value.what
        assert "node node1" in caught.value.where
        assert remedy in caught.value.remedy

    def test_leaves_the_other_family(self, own, underlays, kind, words, remedy):
        own = replace(own, pod_cidrs=(*(c for c in own.pod_cidrs if c.version == 4), OWN.pod_cidrs[1]))
        network = compile_network(DUAL, own, [node(2)], (*underlays, UNDERLAY[6]))
        assert network.pod_cidrs == (OWN.pod_cidrs[1],)
        assert served(network) == {"fd00:10:244:2::/64"}
        assert [type(p) for p in network.problems] == [kind]
        assert words in network.problems[0].what


@pytest.mark.parametrize(
    ("peer", "where", "words"),
    [
        (node(2, cidrs=["10.245.2.0/24"]), "node node2", "10.245.2.0/24 lies outside the pod network"),
        (node(2, cidrs=["10.0.0.0/8"]), "node node2", "10.0.0.0/8 lies outside the pod network"),
        (node(2, cidrs=["10.244.1.0/24"]), "node node2", "overlaps 10.244.1.0/24 of node node1"),
        (node(2, cidrs=["10.244.1.128/25"]), "node node2", "overlaps 10.244.1.0/24 of node node1"),
        (node(2, cidrs=["10.244.0.0/23"]), "node node2", "overlaps 10.244.1.0/24 of node node1"),
        (node(8, cidrs=["10.244.3.0/24"]), "node node8", "overlaps 10.244.3.0/24 of node node3"),
        (node(8, cidrs=["10.244.3.64/26"]), "node node8", "overlaps 10.244.3.0/24 of node node3"),
        (node(8, cidrs=["10.244.2.0/23"]), "node node8", "overlaps 10.244.3.0/24 of node node3"),
        (node(2, backend_type="host-gw", versions=(4,)), "node node2", "runs backend 'host-gw'"),
        (node(2, backend_type="wireguard", versions=(4,)), "node node2", "runs backend 'wireguard'"),
        (node(2, vni=2, versions=(4,)), "node node2", "uses VNI 2 and this node 1"),
        (node(2, backend_data="{}"), f"node node2: annotation {F}backend-data", "missing required field"),
        (node(2, public_ip="?"), f"node node2: annotation {F}public-ip", "'?' is not an IPv4 address"),
        (
            node(2, public_ip="192.168.0.1"),
            f"node node2: annotation {F}public-ip",
            "192.168.0.1, this node's own address",
        ),
        (
            node(8, macs="0a:00:00:00:04:03", versions=(4,)),
            f"node node8: annotation {F}backend-data",
            "also that of node node3",
        ),
        (
            node(8, macs="0a:00:00:00:04:01", versions=(4,)),
            f"node node8: annotation {F}backend-data",
            "also that of node node1",
        ),
    ],
)
class TestPeer:
    def test_is_left_out_with_its_reason_and_all_others_served(self, peer, where, words):
        network = compile_network(CONF, OWN, [peer, node(3), node(4)], BOTH)
        assert served(network) == {"10.244.3.0/24", "10.244.4.0/24"}
        assert [p.where for p in network.problems] == [where]
        assert words in network.problems[0].what
        assert network.problems[0].remedy

    def test_is_left_out_whatever_the_order(self, peer, where, words):
        peers = [peer, node(3), node(4)]
        one, other = (compile_network(CONF, OWN, order, BOTH) for order in (peers, peers[::-1]))
        assert one.state == other.state
        assert [str(p) for p in one.problems] == [str(p) for p in other.problems]

    def test_keeps_its_other_family(self, peer, where, words):
        own_ipv6 = ip_network("fd00:10:244:9::/64")
        ipv6 = node(9)
        annotations = {
            **peer.annotations,
            **{k: v for k, v in ipv6.annotations.items() if "v6" in k},
        }
        dual = replace(
            peer,
            pod_cidrs=(next(c for c in peer.pod_cidrs if c.version == 4), own_ipv6),
            annotations=annotations,
        )
        network = compile_network(DUAL, OWN, [dual, node(3)], BOTH)
        lost_backend = "runs backend" in words
        expected = {"10.244.3.0/24", "fd00:10:244:3::/64"} | (set() if lost_backend else {str(own_ipv6)})
        assert served(network) == expected


@pytest.mark.parametrize(
    "peer",
    [
        Node("node2"),
        Node("node2", pod_cidrs=(ip_network("10.244.2.0/24"),)),
        Node("node2", pod_cidrs=(ip_network("10.244.2.0/24"),), annotations={F + "backend-type": "vxlan"}),
        node(2, versions=()),
        node(2, cidrs=["fd00:10:244:2::/64"]),
        replace(node(2), pod_cidrs=()),
        node(2, public_ipv6="?"),
    ],
)
def test_a_node_that_has_nothing_to_offer_yet_is_no_problem(peer):
    network = compile_network(CONF, OWN, [peer, node(3)], BOTH)
    assert network.problems == ()
    assert served(network) - {"10.244.2.0/24"} == {"10.244.3.0/24"}


@pytest.mark.parametrize("versions", [(4,), (6,), (4, 6)])
def test_peers_are_served_in_each_family_of_the_configuration(versions):
    conf = NetConf(tuple(NETWORK[v] for v in versions))
    network = compile_network(conf, OWN, [node(2), node(3)], BOTH)
    assert served(network) == {str(n.pod_cidrs[v == 6]) for n in (node(2), node(3)) for v in versions}
    assert network.problems == ()


def test_host_gw_leaves_out_peers_beyond_the_link():
    conf = replace(CONF, backend=Backend(BackendType.HOST_GW))
    near = node(2, backend_type="host-gw")
    far = node(3, backend_type="host-gw", public_ip="192.168.7.3")
    network = compile_network(conf, OWN, [near, far], BOTH)
    assert served(network) == {"10.244.2.0/24"}
    assert [p.where for p in network.problems] == ["node node3"]
    assert "192.168.7.3 lies in no network of eth0" in network.problems[0].what


def test_one_mac_in_two_families_of_a_node_is_fine():
    network = compile_network(DUAL, OWN, [node(2, macs="0a:00:00:00:00:02")], BOTH)
    assert served(network) == {"10.244.2.0/24", "fd00:10:244:2::/64"}
    assert network.problems == ()
