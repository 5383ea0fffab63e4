from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.compile.node_table import compile_node_table
from poplin.model.netconf import NetConf
from poplin.model.nftables import Masquerade

V4 = ip_network("10.244.0.0/16")
V6 = ip_network("fd00:10:244::/48")


def spans(table, name):
    (found,) = [one for one in table.sets if one.name == name]
    return sorted((ip_address(e.key), ip_address(e.last)) for e in found.elements)


def masquerades(table):
    (chain,) = [chain for chain in table.chains if chain.name == "masquerading"]
    return [rule for rule in chain.rules if any(isinstance(e, Masquerade) for e in rule.expressions)]


@pytest.mark.parametrize(("networks", "rules"), [((V4,), 1), ((V6,), 1), ((V4, V6), 2)])
def test_each_family_in_use_is_masqueraded(networks, rules):
    table = compile_node_table(NetConf(networks))
    assert len(masquerades(table)) == rules
    assert len([one for one in table.sets if not one.dynamic]) == rules


def test_sources_are_bound_without_a_configuration():
    table = compile_node_table(None)
    assert [(chain.name, len(chain.rules)) for chain in table.chains] == [
        ("anti-spoofing", 1),
        ("from-pods", 5),
        ("masquerading", 0),
    ]
    assert all(one.dynamic for one in table.sets)


def test_masquerade_can_be_off():
    assert masquerades(compile_node_table(NetConf((V4, V6)), masquerade=False)) == []


def test_the_cluster_multicast_and_what_the_operator_names_are_left_alone():
    conf = NetConf((V4,), non_masquerade=(ip_network("10.0.0.0/9"), ip_network("2001:db8::/32")))
    assert spans(compile_node_table(conf), "direct-4") == [
        (ip_address("10.0.0.0"), ip_address("10.127.255.255")),
        (V4[0], V4[-1]),
        (ip_address("224.0.0.0"), ip_address("239.255.255.255")),
    ]


@given(
    st.lists(
        st.builds(
            lambda n, p: ip_network((n >> (32 - p) << (32 - p), p)),
            st.integers(0, 2**32 - 1),
            st.integers(1, 32),
        ),
        max_size=12,
    )
)
def test_intervals_are_disjoint_do_not_touch_and_cover_exactly_the_blocks(blocks):
    found = spans(compile_node_table(NetConf((V4,), non_masquerade=tuple(blocks))), "direct-4")
    for (_, last), (first, _) in pairwise(found):
        assert int(last) + 1 < int(first)
    wanted = [V4, ip_network("224.0.0.0/4"), *blocks]
    assert all(any(f <= b[0] and b[-1] <= t for f, t in found) for b in wanted)
    # Nothing but the blocks: each end of an interval is an end of a block.
    assert {f for f, _ in found} <= {b[0] for b in wanted}
    assert {t for _, t in found} <= {b[-1] for b in wanted}
