"""When a probe from pod to pod holds, and many of them as one cell."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from poplin.lab.demo.crossing import Crossing, judge, summarise, tabulate
from poplin.lab.demo.member import Member, make_probes
from poplin.lab.demo.path import Path, Way
from poplin.lab.demo.tour import choose_pair
from poplin.lab.probing import Outcome, Probe, Protocol, Result
from poplin.model.kernel import Route


def member(name, node, *addresses, ports=((Protocol.TCP, 80),), workload="ns/web"):
    return Member(
        uid=f"uid-{name}", namespace="ns", name=name, hostname=name, workload=workload, node=node,
        netns=f"/run/netns/{name}", addresses=tuple(map(ip_address, addresses)), ports=ports,
    )  # fmt: skip


A = member("a", "node-1", "10.244.0.1", "fd00::1")
B = member("b", "node-2", "10.244.1.1", "fd00:0:0:1::1")
C = member("c", "node-1", "10.244.0.2", "fd00::2", workload="ns/db")
ROUTE = Route(ip_network("10.244.1.0/24"), ip_address("10.244.1.0"), "flannel.1")
OVERLAY = Path(Way.VXLAN, ROUTE)
LOCAL = Path(Way.SAME_NODE, ROUTE)


def result(protocol=Protocol.TCP, outcome=Outcome.ANSWERED, name="b", client="10.244.0.1", **fields):
    probe = Probe(A.netns, A.title, B.addresses[0], 80, protocol)
    return Result(probe, outcome, 0.001, name, ip_address(client) if client else None, **fields)


@pytest.mark.parametrize(
    ("given", "path", "word"),
    [
        (result(), OVERLAY, ""),
        (result(outcome=Outcome.CONNECTED, name="", client=""), OVERLAY, ""),
        (result(Protocol.ICMP, name="", client=""), OVERLAY, ""),
        (result(outcome=Outcome.TIMED_OUT), OVERLAY, "timed out"),
        (result(outcome=Outcome.REFUSED), OVERLAY, "refused"),
        (result(outcome=Outcome.UNREACHABLE, reason="No route to host"), OVERLAY, "No route to host"),
        (result(name="c"), OVERLAY, "c answered in its place"),
        (result(name=""), OVERLAY, "something else answered"),
        (result(client="172.18.0.2"), OVERLAY, "sees 172.18.0.2"),
        (result(), Path(Way.NONE, None, "unreachable"), "no route: unreachable"),
        (result(), LOCAL, "by same node"),
    ],
)
def test_a_probe_holds_or_its_fault_is_named(given, path, word):
    fault = judge(A, B, given, path)
    assert word in fault
    assert bool(fault) == bool(word)


def test_an_overlay_between_pods_of_one_node_is_a_fault():
    assert judge(A, C, result(name="c"), OVERLAY) == "from node-1 to node-1 by vxlan"


def test_every_address_and_port_of_every_other_pod_is_probed():
    dual = member("d", "node-2", "10.244.1.2", ports=((Protocol.TCP, 80), (Protocol.UDP, 53)))
    asked = [(s.name, t.name, str(p.address), p.port, p.protocol) for s, t, p in make_probes([A, dual])]
    assert asked == [
        ("a", "d", "10.244.1.2", 0, "ICMP"),
        ("a", "d", "10.244.1.2", 80, "TCP"),
        ("a", "d", "10.244.1.2", 53, "UDP"),
        ("d", "a", "10.244.0.1", 0, "ICMP"),
        ("d", "a", "10.244.0.1", 80, "TCP"),
        ("d", "a", "fd00::1", 0, "ICMP"),
        ("d", "a", "fd00::1", 80, "TCP"),
    ]


def crossing(latency_s, path=OVERLAY, fault="", protocol=Protocol.ICMP, target=B):
    return Crossing(A, target, replace(result(protocol), latency_s=latency_s), path, fault)


def test_a_cell_is_the_median_of_icmp_and_counts_faults():
    cell = summarise(
        [crossing(0.001), crossing(0.003), crossing(0.009, LOCAL), crossing(7.0, protocol=Protocol.TCP),
         crossing(None, fault="timed out")]
    )  # fmt: skip
    assert (cell.asked, cell.faults, cell.latency_s) == (5, 1, 0.003)
    assert cell.ways == [Way.SAME_NODE, Way.VXLAN]
    assert summarise([crossing(None)]).latency_s is None


def test_the_matrix_is_of_pods_or_of_workloads():
    crossings = [crossing(0.001), crossing(0.002, target=C, path=LOCAL)]
    assert set(tabulate(crossings, by_workload=False)) == {("ns/a", "ns/b"), ("ns/a", "ns/c")}
    assert set(tabulate(crossings, by_workload=True)) == {("ns/web", "ns/web"), ("ns/web", "ns/db")}


def test_the_chosen_pair_is_on_two_nodes_where_there_are_two():
    assert choose_pair([A, C, B]) in {(A, B), (B, A), (C, B), (B, C)}
    assert choose_pair([A, C]) == (A, C)
    assert choose_pair([A]) is None
