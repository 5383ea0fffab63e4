"""What changes cost, what stays as it is, and who an address belongs to."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from poplin.compile.policy.compiler import PolicyCompiler, held_numbers
from poplin.compile.policy.network_policy import close_namespace, translate
from poplin.model.cluster import (
    Namespace,
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyRule,
    Pod,
    PodPhase,
)
from poplin.model.policy import Direction, Packet
from poplin.model.selector_text import parse_selector
from poplin.plan.nftables import plan_table


def pod(name, number, node="n1", **more):
    labels = more.pop("labels", {})
    return Pod(
        "shop",
        name,
        labels=labels,
        node_name=node,
        phase=PodPhase.RUNNING,
        addresses=(ip_address(f"10.244.1.{number}"),),
        **more,
    )


def policy(name="p", pods="app == 'db'", peers="role == 'client'"):
    peer = NetworkPolicyPeer(parse_selector(f"projectcalico.org/namespace == 'shop' && {peers}"))
    return NetworkPolicy("shop", name, parse_selector(pods), (NetworkPolicyRule(0, (peer,)),))


DB = pod("db", 1, labels={"app": "db"})
CLIENT = pod("client", 2, "n2", labels={"role": "client"})
OTHER = pod("other", 3, "n2", labels={"role": "none"})


@pytest.fixture
def compiler():
    made = PolicyCompiler("n1")
    made.put_policy(translate(policy()))
    for one in (DB, CLIENT, OTHER):
        made.put_pod(one)
    return made


def changed(compiler, before):
    """The elements that differ, by set, where chains do not."""
    after = compiler.table()
    assert after.chains == before.chains
    return {operation.set.name: len(operation.elements) for operation in plan_table(after, before)}


def allows(compiler, source, target, direction=Direction.INGRESS):
    packet = Packet(source.addresses[0], target.addresses[0], port=80)
    return all(verdict.allowed for verdict in compiler.verdicts(packet, [direction]))


def test_a_replica_is_one_element(compiler):
    before = compiler.table()
    compiler.put_pod(pod("client-2", 4, "n2", labels={"role": "client"}))
    assert changed(compiler, before) == {"identity-4": 1}


def test_a_pod_that_no_rule_means_is_none(compiler):
    before = compiler.table()
    compiler.put_pod(pod("x", 4, "n2", labels={"unasked": "for"}))
    assert changed(compiler, before) == {}


def test_labels_that_nobody_asks_for_change_nothing(compiler):
    before = compiler.table()
    compiler.put_pod(replace(CLIENT, labels={"role": "client", "hash": "1"}))
    assert changed(compiler, before) == {}


def test_a_second_policy_of_the_same_shape_changes_no_number(compiler):
    before = compiler.table()
    compiler.put_policy(translate(policy("q")))
    after = compiler.table()
    numbers = {one.name: one for one in before.sets}["identity-4"]
    assert {one.name: one for one in after.sets}["identity-4"] == numbers


def test_an_agent_that_starts_takes_up_the_numbers(compiler):
    before = compiler.table()
    again = PolicyCompiler("n1", held_numbers(before))
    for one in (OTHER, CLIENT, DB):
        again.put_pod(one)
    again.put_policy(translate(policy()))
    assert again.table() == before


def test_the_last_policy_leaves_nothing(compiler):
    empty = PolicyCompiler("n1")
    for one in (DB, CLIENT, OTHER):
        empty.put_pod(one)
    compiler.table()
    compiler.delete_policy(translate(policy()).key)
    left, fresh = compiler.table(), empty.table()
    assert left.chains == fresh.chains
    assert [one.name for one in left.sets] == [one.name for one in fresh.sets]


def test_namespace_labels_count(compiler):
    compiler.put_policy(translate(policy(peers="pcns.team == 'red'")))
    compiler.table()
    assert not allows(compiler, CLIENT, DB)
    compiler.put_namespace(Namespace("shop", {"team": "red"}))
    compiler.table()
    assert allows(compiler, CLIENT, DB)
    compiler.delete_namespace("shop")
    compiler.table()
    assert not allows(compiler, CLIENT, DB)


def test_of_two_pods_with_one_address_the_living_has_it_then_the_one_whose_status_says_so(compiler):
    impostor = replace(OTHER, name="a", addresses=CLIENT.addresses, announced=True)
    compiler.put_pod(impostor)
    compiler.table()
    assert allows(compiler, CLIENT, DB)
    compiler.put_pod(replace(CLIENT, deleting=True))
    compiler.table()
    assert not allows(compiler, CLIENT, DB)
    compiler.delete_pod("shop", "a")
    compiler.table()
    assert allows(compiler, CLIENT, DB)


def test_a_pod_of_this_node_that_nobody_has_told_of_is_closed(compiler):
    compiler.table()
    stranger = pod("stranger", 99)
    assert not allows(compiler, CLIENT, stranger)
    compiler.put_pod(stranger)
    compiler.table()
    assert allows(compiler, CLIENT, stranger)


def test_a_policy_that_cannot_be_read_closes_the_pods_of_its_namespace(compiler):
    elsewhere = replace(pod("x", 50), namespace="other")
    compiler.put_pod(elsewhere)
    compiler.put_policy(close_namespace("shop", "p", "spec: expected `object`"))
    compiler.table()
    assert not allows(compiler, CLIENT, DB)
    assert not allows(compiler, DB, CLIENT, Direction.EGRESS)
    assert allows(compiler, CLIENT, elsewhere)


def test_finished_and_host_network_pods_are_nobody(compiler):
    compiler.put_pod(replace(CLIENT, phase=PodPhase.SUCCEEDED))
    compiler.table()
    assert not allows(compiler, CLIENT, DB)
    compiler.put_pod(replace(CLIENT, host_network=True))
    compiler.table()
    assert not allows(compiler, CLIENT, DB)
    compiler.put_pod(CLIENT)
    compiler.table()
    assert allows(compiler, CLIENT, DB)
