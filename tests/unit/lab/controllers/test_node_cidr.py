"""Pod CIDRs of nodes."""

from ipaddress import ip_network
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.lab.controllers.node_cidr import allot, find_free, pod_cidrs
from poplin.lab.controllers.object import NODES
from unit.lab.controllers.objects import ago, altered, make_node, patches

FOUR, SIX = ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/56")


def given_to(writes):
    return {one.key[1]: one.body["spec"]["podCIDRs"] for one in patches(writes, NODES)}


@pytest.mark.parametrize(
    ("networks", "cidrs"),
    [
        ([FOUR], ["10.244.0.0/24"]),
        ([SIX], ["fd00:10:244::/64"]),
        ([FOUR, SIX], ["10.244.0.0/24", "fd00:10:244::/64"]),
        ([SIX, FOUR], ["fd00:10:244::/64", "10.244.0.0/24"]),
        ([ip_network("10.9.8.0/26")], ["10.9.8.0/26"]),
        ([], None),
    ],
)
def test_one_block_of_each_family(networks, cidrs):
    writes = allot([make_node("a")], networks)
    assert given_to(writes).get("a") == cidrs
    if cidrs:
        assert writes[0].body["spec"]["podCIDR"] == cidrs[0]


def test_the_lowest_free_one_and_never_one_that_overlaps():
    nodes = [
        make_node("a", spec={"podCIDRs": ["10.244.0.0/24"]}),
        make_node("b", spec={"podCIDR": "10.244.2.128/25"}),
        make_node("c", spec={"podCIDRs": ["10.244.4.0/23"]}),
        *(make_node(f"new-{number}", created=ago(minutes=9 - number)) for number in range(4)),
    ]
    assert given_to(allot(nodes, [FOUR])) == {
        "new-0": ["10.244.1.0/24"], "new-1": ["10.244.3.0/24"], "new-2": ["10.244.6.0/24"],
        "new-3": ["10.244.7.0/24"],
    }  # fmt: skip


def test_a_second_network_serves_when_the_first_is_used_up():
    first, second = ip_network("10.1.0.0/24"), ip_network("10.2.0.0/16")
    assert find_free([first, second], [first]) == ip_network("10.2.0.0/24")


def test_a_node_gets_all_families_or_none_and_is_told():
    nodes = [make_node("a", spec={"podCIDRs": ["10.1.0.0/24"]}), make_node("b")]
    (told,) = allot(nodes, [ip_network("10.1.0.0/24"), SIX])
    assert (told.event.reason, told.event.about.name) == ("CIDRNotAvailable", "b")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=40))
def test_cidrs_never_overlap_and_never_change(history):
    """Nodes come and go in any order."""
    nodes = {}
    for number, comes in history:
        if comes:
            nodes.setdefault(number, make_node(f"n{number}"))
        else:
            nodes.pop(number, None)
        before = {name: node.spec.get("podCIDRs") for name, node in nodes.items()}
        for one in patches(allot(nodes.values(), [FOUR, SIX]), NODES):
            key = int(one.key[1][1:])
            nodes[key] = altered(nodes[key], spec=one.body["spec"])
        for name, cidrs in before.items():
            assert not cidrs or nodes[name].spec["podCIDRs"] == cidrs
        held = [cidr for node in nodes.values() for cidr in pod_cidrs(node)]
        assert len(held) == 2 * len(nodes)
        assert all(cidr.subnet_of(FOUR if cidr.version == 4 else SIX) for cidr in held)
        assert not any(one.version == two.version and one.overlaps(two) for one, two in combinations(held, 2))
