"""Queueing disciplines and redirects in the kernel: what we make `tc` lists, and what `tc` makes we read."""

import asyncio
import json

import pytest

from poplin.compile.bandwidth import token_bucket
from poplin.dataplane.netlink.monitor import Monitor, Reshaped
from poplin.dataplane.netns import in_namespace
from poplin.model.attachment import Limit
from poplin.model.kernel import Link, Redirect, TokenBucket, Veth
from poplin.plan.operation import Put, Remove


@pytest.fixture
def node(netns):
    """A veth of whose ends one is in another namespace, and an ifb device."""
    node, other = netns(), netns()
    pair = Veth(Link("a", "veth"), Link("b", "veth"), other.fd)
    assert node.socket.apply([Put(pair), Put(Link("ifb-a", "ifb"))]) == []
    return node


def listed(node, link):
    return [
        one
        for one in json.loads(node.run("tc", "-j", "qdisc", "show", "dev", link))
        if one["kind"] not in {"noqueue", "noop"}
    ]


@pytest.mark.parametrize(
    ("limit", "rate", "burst"),
    [
        (Limit(10_000_000), 1_250_000, 72 << 10),
        (Limit(8_000_000, 800_000), 1_000_000, 100_000),
        (Limit(100_000_000_000), 12_500_000_000, 50_000_000),
        (Limit(1), 342, 1468),
    ],
)
def test_tc_lists_the_bucket_that_was_meant(node, limit, rate, burst):
    bucket = token_bucket("a", limit, 1450)
    assert node.socket.apply([Put(bucket, replace=True)]) == []
    [found] = listed(node, "a")
    assert (found["kind"], found["handle"], found["root"]) == ("tbf", "706f:", True)
    assert found["options"]["rate"] == rate
    assert found["options"]["burst"] == pytest.approx(burst, abs=2 + 64e-9 * rate)
    assert node.socket.token_buckets() == [bucket]


def test_a_bucket_is_changed_replaced_and_removed_in_place(node):
    first, second = TokenBucket("a", 10**6, 64 * 10**6, 10**5), TokenBucket("a", 2 * 10**6, 64 * 10**6, 10**5)
    assert node.socket.apply([Put(first, replace=True), Put(first, replace=True)]) == []
    assert node.socket.apply([Put(second, replace=True)]) == []
    assert node.socket.token_buckets() == [second]
    node.run("tc", "qdisc", "replace", "dev", "a", "root", "handle", "1:", "htb")
    assert node.socket.token_buckets() == []
    assert node.socket.apply([Put(first, replace=True)]) == []
    assert node.socket.token_buckets() == [first]
    assert node.socket.apply([Remove(first), Remove(first)]) == []
    assert listed(node, "a") == []


def test_a_bucket_of_ours_that_tc_makes_is_read_and_anothers_is_not(node):
    tbf = ["tbf", "rate", "8mbit", "burst", "64000b", "limit", "100000b"]
    node.run("tc", "qdisc", "add", "dev", "a", "root", "handle", "706f:", *tbf)
    node.run("tc", "qdisc", "add", "dev", "ifb-a", "root", "handle", "1:", *tbf)
    [found] = node.socket.token_buckets()
    assert (found.link, found.rate_bytes_s, found.limit_bytes) == ("a", 10**6, 100_000)
    assert found.burst_ns == pytest.approx(64 * 10**6, abs=1000)


def test_tc_lists_the_redirect_that_was_meant(node):
    redirect = Redirect("a", "ifb-a")
    for _ in range(2):  # a second time, it takes the first one's place
        assert node.socket.apply([Put(redirect, replace=True)]) == []
        text = node.run("tc", "filter", "show", "dev", "a", "ingress")
        assert text.count("match 00000000/00000000 at 0") == 1
        assert "filter protocol all pref 28783 u32" in text
        assert "mirred (Egress Redirect to device ifb-a) stolen" in text
    assert [one["kind"] for one in listed(node, "a")] == ["clsact"]
    assert node.socket.redirects("a") == [redirect]
    assert node.socket.redirects("ifb-a") == node.socket.redirects("none") == []
    assert node.socket.apply([Remove(redirect), Remove(redirect)]) == []
    assert node.socket.redirects("a") == []


def test_others_filters_stay(node):
    node.run("tc", "qdisc", "add", "dev", "a", "clsact")
    match = ["u32", "match", "u32", "0", "0", "action", "mirred", "egress", "mirror", "dev", "ifb-a"]
    node.run("tc", "filter", "add", "dev", "a", "ingress", "protocol", "all", "pref", "7", *match)
    assert node.socket.redirects("a") == []
    redirect = Redirect("a", "ifb-a")
    assert node.socket.apply([Put(redirect, replace=True)]) == []
    assert node.socket.redirects("a") == [redirect]
    assert node.socket.apply([Remove(redirect)]) == []
    assert "pref 7 u32" in node.run("tc", "filter", "show", "dev", "a", "ingress")


def test_a_redirect_whose_device_is_gone_is_not_the_one_that_was_meant(node):
    redirect = Redirect("a", "ifb-a")
    assert node.socket.apply([Put(redirect, replace=True)]) == []
    assert node.socket.apply([Remove(Link("ifb-a", "ifb")), Put(Link("ifb-a", "ifb"))]) == []
    assert redirect not in node.socket.redirects("a")
    assert node.socket.apply([Put(redirect, replace=True)]) == []
    assert node.socket.redirects("a") == [redirect]


def test_what_cannot_be_made_is_named(node):
    failures = node.socket.apply(
        [Put(TokenBucket("none", 1000, 6400, 1000), replace=True), Put(Redirect("a", "none"), replace=True)]
    )
    assert [str(failure.error) for failure in failures] == [
        "qdisc tbf rate 8000bit dev none: no such link: none",
        "redirect of dev a to none: no such link: none",
    ]


async def test_others_changes_of_queues_and_filters_are_told_and_ours_are_not(node):
    redirect, bucket = Redirect("a", "ifb-a"), TokenBucket("a", 10**6, 64 * 10**6, 10**5)
    with in_namespace(node.fd, lambda: Monitor(ignored_ports={node.socket.port})) as monitor:
        assert node.socket.apply([Put(bucket, replace=True), Put(redirect, replace=True)]) == []
        changes = [
            (
                "qdisc",
                "change",
                "dev",
                "a",
                "root",
                "handle",
                "706f:",
                "tbf",
                "rate",
                "1mbit",
                "burst",
                "9k",
                "limit",
                "9k",
            ),
            ("filter", "del", "dev", "a", "ingress"),
            ("qdisc", "del", "dev", "a", "clsact"),
            ("qdisc", "del", "dev", "a", "root"),
        ]
        stream = monitor.events()
        async with asyncio.timeout(20):
            for change in changes:
                node.run("tc", *change)
                while (event := await anext(stream)) != Reshaped("a"):
                    assert not isinstance(event, Reshaped)
                while monitor._events:
                    assert await anext(stream) == Reshaped("a")
        await stream.aclose()
