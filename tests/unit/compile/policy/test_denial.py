import pytest

from poplin.compile.policy.denial import (
    DENY,
    LOG,
    MAX_PREFIX_BYTES,
    UNKNOWN_POD,
    Notice,
    encode_prefix,
    parse_prefix,
)
from poplin.model.policy import Direction, PolicyKey


@pytest.mark.parametrize(
    ("notice", "text"),
    [
        (
            Notice(DENY, Direction.INGRESS, 2, PolicyKey("GlobalNetworkPolicy", "", "no-telnet")),
            "deny ingress 2 GlobalNetworkPolicy no-telnet",
        ),
        (
            Notice(DENY, Direction.EGRESS, None, PolicyKey("NetworkPolicy", "shop", "back.end")),
            "deny egress - NetworkPolicy shop/back.end",
        ),
        (
            Notice(LOG, Direction.INGRESS, 0, PolicyKey("NetworkPolicy", "shop", "audit")),
            "log ingress 0 NetworkPolicy shop/audit",
        ),
        (Notice(DENY, Direction.EGRESS, None, UNKNOWN_POD), "deny egress - Pod"),
    ],
)
def test_a_prefix_says_why_and_reads_back(notice, text):
    assert encode_prefix(notice) == text
    assert parse_prefix(text) == notice


def test_a_long_name_is_cut_off_where_the_kernel_ends():
    key = PolicyKey("NetworkPolicy", "n" * 63, "p" * 253)
    text = encode_prefix(Notice(DENY, Direction.INGRESS, None, key))
    assert len(text) == MAX_PREFIX_BYTES
    told = parse_prefix(text)
    assert told.policy.namespace == key.namespace
    assert told.policy.name.endswith("p~")


@pytest.mark.parametrize(
    "text", ["", "deny", "p1|drop", "deny upward - Pod", "deny ingress x Pod a", "a b c d e f"]
)
def test_the_prefixes_of_others_are_not_ours(text):
    assert parse_prefix(text) is None
