"""fold: what is known of a namespace after operations that succeeded."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from poplin.model.kernel import Address, FdbEntry, Link, Neighbour, Route, RouteKind, Scope, Veth
from poplin.model.state import NetworkState
from poplin.plan.fold import fold
from poplin.plan.operation import Change, Put, Remove

ETH0 = Link("eth0", mac="0a:00:00:00:00:01", mtu_bytes=1500, index=2, carrier=True)
DEVICE = Link("flannel.1", kind="vxlan", mac="0a:00:00:00:00:02", mtu_bytes=1450, index=7, parent=2)
ADDRESS = Address("flannel.1", ip_interface("10.244.0.0/32"))
ROUTE = Route(ip_network("10.244.1.0/24"), ip_address("10.244.1.0"), "flannel.1", onlink=True)
NEIGHBOUR = Neighbour("flannel.1", ip_address("10.244.1.0"), "0a:00:00:00:00:03")
FDB = FdbEntry("flannel.1", "0a:00:00:00:00:03", ip_address("192.168.0.2"))
UNREACHABLE = Route(ip_network("10.244.0.0/24"), kind=RouteKind.UNREACHABLE, metric=9)
FULL = NetworkState(
    {"eth0": ETH0, "flannel.1": DEVICE},
    frozenset({ADDRESS, Address("eth0", ip_interface("192.168.0.1/24"), protocol=0)}),
    frozenset({ROUTE, UNREACHABLE}),
    frozenset({NEIGHBOUR}),
    frozenset({FDB}),
    {"net/ipv4/ip_forward": "1"},
)
OBJECTS = [
    (ADDRESS, "addresses", replace(ADDRESS, scope=Scope.LINK)),
    (ROUTE, "routes", replace(ROUTE, gateway=ip_address("192.168.0.2"), link="eth0", onlink=False)),
    (NEIGHBOUR, "neighbours", replace(NEIGHBOUR, mac="0a:00:00:00:00:04")),
    (FDB, "fdb", replace(FDB, destination=ip_address("192.168.0.3"))),
]


def test_no_operation_changes_nothing():
    assert fold(FULL, []) == FULL


def test_the_state_given_is_left_as_it_is():
    before = replace(FULL, links=dict(FULL.links))
    fold(FULL, [Remove(DEVICE), Change(replace(ETH0, mtu_bytes=9000)), Put(replace(ETH0, name="eth1"))])
    assert before == FULL


@pytest.mark.parametrize(("what", "kind", "other"), OBJECTS)
class TestObjects:
    def test_put_makes(self, what, kind, other):
        assert fold(NetworkState(), [Put(what)]) == replace(NetworkState(), **{kind: frozenset({what})})

    def test_put_keeps_what_else_stands(self, what, kind, other):
        without = getattr(FULL, kind) - {what}
        assert fold(replace(FULL, **{kind: without}), [Put(what)]) == FULL

    def test_put_of_what_stands_changes_nothing(self, what, kind, other):
        assert fold(FULL, [Put(what, replace=True)]) == FULL

    def test_replacing_put_takes_the_place_of_its_key(self, what, kind, other):
        expected = getattr(FULL, kind) - {what} | {other}
        assert getattr(fold(FULL, [Put(other, replace=True)]), kind) == expected

    def test_of_two_puts_of_one_key_the_later_stands(self, what, kind, other):
        assert getattr(fold(NetworkState(), [Put(other), Put(what, replace=True)]), kind) == {what}
        assert fold(FULL, [Put(other, replace=True), Put(what, replace=True)]) == FULL

    def test_remove_takes_away(self, what, kind, other):
        assert getattr(fold(FULL, [Remove(what)]), kind) == getattr(FULL, kind) - {what}

    def test_remove_of_what_is_gone_changes_nothing(self, what, kind, other):
        assert fold(FULL, [Remove(other)]) == FULL

    def test_put_after_remove_stands(self, what, kind, other):
        assert fold(FULL, [Remove(what), Put(what)]) == FULL

    def test_remove_after_put_takes_away(self, what, kind, other):
        assert fold(NetworkState(), [Put(what), Remove(what)]) == NetworkState()

    def test_goes_with_its_link(self, what, kind, other):
        assert what not in getattr(fold(FULL, [Remove(DEVICE)]), kind)
        assert fold(NetworkState(), [Put(what), Remove(DEVICE)]) == NetworkState()

    def test_made_after_its_link_was_made_anew_stands(self, what, kind, other):
        after = fold(FULL, [Remove(DEVICE), Put(DEVICE), Put(what)])
        assert what in getattr(after, kind)
        assert after.links == FULL.links


def test_what_is_on_other_links_stays_when_a_link_goes():
    after = fold(FULL, [Remove(DEVICE)])
    assert after == NetworkState(
        {"eth0": ETH0},
        frozenset({Address("eth0", ip_interface("192.168.0.1/24"), protocol=0)}),
        frozenset({UNREACHABLE}),
        sysctls=FULL.sysctls,
    )


def test_an_ipv6_address_gives_way_whatever_its_prefix():
    standing, wanted = (Address("eth0", ip_interface(f"fd00::1/{bits}")) for bits in (64, 128))
    state = NetworkState(addresses=frozenset({standing}))
    assert fold(state, [Put(wanted, replace=True)]).addresses == {wanted}


def test_an_ipv4_address_stands_once_for_each_prefix():
    standing, wanted = (Address("eth0", ip_interface(f"10.0.0.1/{bits}")) for bits in (24, 32))
    state = NetworkState(addresses=frozenset({standing}))
    assert fold(state, [Put(wanted, replace=True)]).addresses == {standing, wanted}


def test_change_sets_what_the_link_says_and_keeps_what_the_kernel_decides():
    wanted = Link("flannel.1", kind="vxlan", mtu_bytes=1400, alias="poplin: overlay", group=3, up=False)
    changed = fold(FULL, [Change(wanted)]).links["flannel.1"]
    assert changed == replace(DEVICE, mtu_bytes=1400, alias="poplin: overlay", group=3, up=False)


def test_change_of_a_link_that_is_gone_makes_none():
    assert fold(NetworkState(), [Change(DEVICE)]) == NetworkState()


def test_of_a_veth_pair_only_the_host_side_is_in_this_namespace():
    host, peer = Link("pop0", kind="veth"), Link("eth0", kind="veth")
    made = fold(NetworkState(), [Put(Veth(host, peer, netns_fd=3))])
    assert made == NetworkState({"pop0": host})
    assert fold(made, [Remove(Veth(host, peer, netns_fd=3))]) == NetworkState()
