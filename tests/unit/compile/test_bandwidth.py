from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.compile.bandwidth import ETHERNET_HEADER_BYTES, SEGMENTED_BYTES, compile_bandwidth, token_bucket
from poplin.compile.pod import compile_pod
from poplin.model.attachment import Attachment, Limit, host_link_of
from poplin.model.kernel import BURST_NS_MAX, POD_LINK_GROUP, Link, Redirect, TokenBucket
from poplin.model.state import NetworkState
from poplin.plan.fold import fold
from poplin.plan.network import plan_network
from poplin.plan.operation import Put, Remove

HOST = Link(
    "pop0123456789ab", "veth", "ee:ee:ee:ee:ee:ee", 1450, group=POD_LINK_GROUP, alias="poplin: a/b eth0"
)
IFB = "ifb0123456789ab"
PLAIN = Attachment(
    container_id="c",
    ifname="eth0",
    netns="/run/netns/c",
    addresses=(ip_address("10.244.1.5"),),
    mac="02:00:00:00:00:05",
    mtu_bytes=1450,
    host_link=HOST.name,
)
TEN = Limit(10_000_000)


def test_without_limits_there_is_nothing():
    found = compile_bandwidth(PLAIN, HOST)
    assert (found.links, found.shaping) == ((), frozenset())


def test_ingress_is_a_queue_of_the_host_link():
    found = compile_bandwidth(replace(PLAIN, ingress=TEN), HOST)
    assert found.links == ()
    [bucket] = found.shaping
    assert (bucket.link, bucket.rate_bytes_s) == (HOST.name, 1_250_000)


def test_egress_goes_through_a_device_of_its_own():
    found = compile_bandwidth(replace(PLAIN, egress=TEN), HOST)
    [ifb] = found.links
    assert (ifb.name, ifb.kind, ifb.group, ifb.alias) == (IFB, "ifb", HOST.group, HOST.alias)
    assert Redirect(HOST.name, IFB) in found.shaping
    [bucket] = (one for one in found.shaping if isinstance(one, TokenBucket))
    assert bucket == token_bucket(IFB, TEN, 1450)
    assert host_link_of(IFB) == host_link_of(HOST.name) == HOST.name


@pytest.mark.parametrize(
    ("rate_bits_s", "burst_bits", "rate_bytes_s", "burst_bytes"),
    [
        (1_000_000, 0, 125_000, 12_500),
        (10_000_000, 0, 1_250_000, SEGMENTED_BYTES),
        (100_000_000, 0, 12_500_000, SEGMENTED_BYTES),
        (1_000_000_000, 0, 125_000_000, 500_000),
        (10_000_000, 8_000_000, 1_250_000, 1_000_000),
        (10_000_000, 8, 1_250_000, 1450 + ETHERNET_HEADER_BYTES),
        (10**15, 0, 125 * 10**12, 5 * 10**11),
    ],
)
def test_bursts(rate_bits_s, burst_bits, rate_bytes_s, burst_bytes):
    bucket = token_bucket("a", Limit(rate_bits_s, burst_bits), 1450)
    assert bucket.rate_bytes_s == rate_bytes_s
    assert bucket.burst_ns * rate_bytes_s / 1e9 == pytest.approx(burst_bytes, abs=1 + 64e-9 * rate_bytes_s)


@given(st.integers(8, 10**15), st.integers(0, 2**40), st.integers(576, 65535))
def test_every_limit_is_one_that_the_kernel_takes_and_gives_back(rate_bits_s, burst_bits, mtu_bytes):
    bucket = token_bucket("a", Limit(rate_bits_s, burst_bits), mtu_bytes)
    burst_bytes = bucket.burst_ns * bucket.rate_bytes_s // 10**9
    assert burst_bytes >= mtu_bytes + ETHERNET_HEADER_BYTES
    assert bucket.burst_ns % 64 == 0
    assert bucket.burst_ns <= BURST_NS_MAX
    assert mtu_bytes < bucket.limit_bytes < 2**32
    assert bucket.rate_bytes_s == rate_bits_s // 8 or bucket.rate_bytes_s < 16_000


LIMITS = st.none() | st.builds(Limit, st.sampled_from([10**6, 10**9]))


@given(LIMITS, LIMITS, LIMITS, LIMITS)
def test_any_limits_become_any_others(ingress, egress, later_ingress, later_egress):
    before = compile_pod(replace(PLAIN, ingress=ingress, egress=egress)).host
    after = compile_pod(replace(PLAIN, ingress=later_ingress, egress=later_egress)).host
    assert plan_network(before, before) == []
    operations = plan_network(after, before)
    assert fold(before, operations).shaping == after.shaping
    assert all(o.replace for o in operations if isinstance(o, Put) and not isinstance(o.what, Link))


def test_limits_are_in_force_before_a_route_leads_to_the_pod():
    operations = plan_network(compile_pod(replace(PLAIN, ingress=TEN, egress=TEN)).host, NetworkState())
    kinds = [type(o.what).__name__ for o in operations]
    assert kinds[:2] == ["Link", "Link"]
    assert kinds[-1] == "Route"
    assert sorted(kinds[3:-1]) == ["Redirect", "TokenBucket", "TokenBucket"]


def test_a_link_that_goes_takes_what_shapes_it_along():
    state = compile_pod(replace(PLAIN, ingress=TEN, egress=TEN)).host
    left = fold(state, [Remove(HOST)])
    assert {one.link for one in left.shaping} == {IFB}
    claimed = plan_network(NetworkState(), state, claimed={HOST.name, IFB})
    assert claimed == []
