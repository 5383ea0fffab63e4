"""The kernel takes every plan, and then holds what was desired."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from poplin.dataplane.netns import in_namespace
from poplin.dataplane.nftables.socket import NftSocket
from poplin.plan.nftables import plan_table
from unit.plan.nftables_tables import tables


@pytest.fixture
def nft(netns):
    with in_namespace(netns().fd, NftSocket) as made:
        yield made


@settings(
    max_examples=100,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.none() | tables(), min_size=1, max_size=4))
def test_the_kernel_follows_plans(nft, states):
    standing = None
    for desired in (*states, None):
        nft.apply(plan_table(desired, standing))
        key = (desired or standing).key if desired or standing else None
        if key:
            assert nft.read_table(key) == desired
        standing = desired
