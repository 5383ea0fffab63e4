"""Peers updated step by step are those of nodes read for the first time, whatever came between."""

from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import given
from hypothesis import strategies as st

from poplin.compile.lease import PREFIX
from poplin.compile.network import compile_network
from poplin.compile.peers import Peers
from poplin.compile.underlay import Underlay
from poplin.model.cluster import Node
from poplin.model.errors import PoplinError
from poplin.model.kernel import Address
from poplin.model.netconf import Backend, BackendType, NetConf

NETWORKS = (ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48"))
POD_CIDRS = {
    4: [*(f"10.244.{n}.0/24" for n in range(5)), "10.244.2.0/23", "10.244.2.128/25", "10.9.0.0/24"],
    6: [*(f"fd00:10:244:{n}::/64" for n in range(4)), "fd00:10:244:2::/63", "fd00:9::/64"],
}
MACS = [f"0a:00:00:00:00:{n:02x}" for n in range(4)]
FAULTS = [None] * 8 + ["unmanaged", "other backend", "other VNI", "bad address", "our address"]


@st.composite
def nodes(draw, name):
    """A node that may clash with any other, in either family, and is seldom wrong by itself."""
    fault = draw(st.sampled_from(FAULTS))
    annotations = {
        PREFIX + "kube-subnet-manager": "false" if fault == "unmanaged" else "true",
        PREFIX + "backend-type": "host-gw" if fault == "other backend" else "vxlan",
    }
    pod_cidrs = []
    number = draw(st.integers(2, 4))
    for version, infix, address in ((4, "", "192.168.0."), (6, "v6", "fd00::")):
        if draw(st.integers(0, 3)):
            pod_cidrs.append(ip_network(draw(st.sampled_from(POD_CIDRS[version]))))
        mac, vni = draw(st.sampled_from(MACS)), 2 if fault == "other VNI" else 1
        key = PREFIX + ("backend-v6-data" if infix else "backend-data")
        annotations[key] = f'{{"VNI":{vni},"VtepMAC":"{mac}"}}'
        host = {"bad address": "?", "our address": "1"}.get(fault, str(number))
        annotations[PREFIX + f"public-ip{infix}"] = f"{address}{host}"
    return Node(name, annotations=annotations, pod_cidrs=tuple(pod_cidrs))


NAMES = [f"node{n}" for n in range(6)]
changes = st.one_of(*(st.tuples(st.just(name), st.none() | nodes(name)) for name in NAMES))
confs = st.builds(
    NetConf,
    st.sampled_from([NETWORKS[:1], NETWORKS[1:], NETWORKS]),
    st.builds(Backend, type=st.sampled_from(BackendType), direct_routing=st.booleans()),
)
UNDERLAYS = [
    Underlay("eth0", 1500, ip_interface(held).ip, (Address("eth0", ip_interface(held), protocol=0),))
    for held in ("192.168.0.1/24", "fd00::1/64")
]
OWN = Node(
    "node3x",
    pod_cidrs=(ip_network("10.244.3.0/24"), ip_network("fd00:10:244:3::/64")),
    internal_addresses=(ip_address("192.168.0.1"), ip_address("fd00::1")),
)
own_nodes = st.sampled_from([OWN, OWN, Node("node3x", pod_cidrs=(ip_network("10.244.4.0/24"),))])


def outcome(conf, own, others, peers=None):
    """All that a compile says: a network in comparable form, or the error's words."""
    try:
        network = compile_network(conf, own, others, UNDERLAYS, peers)
    except PoplinError as error:
        return str(error)
    return network.lease, network.pod_cidrs, network.state, [str(problem) for problem in network.problems]


@given(
    st.lists(st.tuples(confs | st.none(), own_nodes, st.lists(changes, max_size=4)), min_size=1, max_size=8)
)
def test_peers_updated_are_peers_read_anew(steps):
    cluster, peers, conf = {}, Peers(), NetConf(NETWORKS)
    for new_conf, own, changed in steps:
        conf = new_conf or conf
        for name, node in changed:
            cluster.pop(name, None)
            if node is not None:
                cluster[name] = node
        others = list(cluster.values())
        assert outcome(conf, own, others, peers) == outcome(conf, own, others)


@given(st.lists(st.lists(changes, max_size=3), min_size=2, max_size=8))
def test_in_one_configuration_too(steps):
    cluster, peers, conf = {}, Peers(), NetConf(NETWORKS)
    for changed in steps:
        for name, node in changed:
            cluster.pop(name, None)
            if node is not None:
                cluster[name] = node
        others = list(cluster.values())
        assert outcome(conf, OWN, others, peers) == outcome(conf, OWN, others)


@given(st.lists(changes, min_size=6, max_size=12))
def test_no_two_served_peers_share_anything(changed):
    others = list(dict(changed).values())
    network = compile_network(NetConf(NETWORKS), OWN, [n for n in others if n], UNDERLAYS)
    for version in (4, 6):
        cidrs = [*network.state.routes]
        of_family = [r.destination for r in cidrs if r.destination.version == version]
        assert not any(a.overlaps(b) for i, a in enumerate(of_family) for b in of_family[:i])
    fdb = [(entry.link, entry.mac) for entry in network.state.fdb]
    assert len(fdb) == len(set(fdb))
