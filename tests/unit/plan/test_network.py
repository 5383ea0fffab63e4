"""plan_network by tables: which operations, in which order, and what is left alone."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from poplin.model.kernel import (
    POD_LINK_GROUP,
    Address,
    FdbEntry,
    Link,
    Neighbour,
    Route,
    RouteKind,
    Scope,
    Vxlan,
)
from poplin.model.state import NetworkState
from poplin.plan.network import find_strangers, is_ours, plan_network
from poplin.plan.operation import Change, Put, Remove

DEVICE = Link(
    "flannel.1",
    kind="vxlan",
    mac="0a:00:00:00:00:01",
    mtu_bytes=1450,
    alias="poplin: overlay",
    vxlan=Vxlan(1, 8472, "eth0", ip_address("192.168.0.1")),
)
ADDRESS = Address("flannel.1", ip_interface("10.244.0.0/32"))
NEIGHBOUR = Neighbour("flannel.1", ip_address("10.244.1.0"), "0a:00:00:00:00:02")
FDB = FdbEntry("flannel.1", "0a:00:00:00:00:02", ip_address("192.168.0.2"))
ROUTE = Route(ip_network("10.244.1.0/24"), ip_address("10.244.1.0"), "flannel.1", onlink=True)
DESIRED = NetworkState(
    {"flannel.1": DEVICE},
    frozenset({ADDRESS}),
    frozenset({ROUTE}),
    frozenset({NEIGHBOUR}),
    frozenset({FDB}),
)
ETH0 = Link("eth0", mac="0a:00:00:00:01:00", mtu_bytes=1500, index=2, carrier=True)
STANDING = replace(DEVICE, index=5, parent=2, carrier=True)
ACTUAL = replace(DESIRED, links={"eth0": ETH0, "flannel.1": STANDING})
POD = Link("pop1", kind="veth", mac="ee:ee:ee:ee:ee:ee", mtu_bytes=1450, group=POD_LINK_GROUP)


def test_all_is_made_in_the_order_in_which_it_can_stand():
    assert plan_network(DESIRED, NetworkState({"eth0": ETH0})) == [
        Put(DEVICE),
        Put(ADDRESS),
        Put(NEIGHBOUR, replace=True),
        Put(FDB, replace=True),
        Put(ROUTE),
    ]


def test_what_stands_is_left_alone():
    assert plan_network(DESIRED, ACTUAL) == []


def test_what_is_no_longer_wanted_goes_in_the_opposite_order():
    wanted = NetworkState({"flannel.1": DEVICE})
    assert plan_network(wanted, ACTUAL) == [Remove(ROUTE), Remove(FDB), Remove(NEIGHBOUR), Remove(ADDRESS)]


def test_a_link_takes_along_what_is_on_it():
    assert plan_network(NetworkState(), ACTUAL) == [Remove(STANDING)]


def test_new_is_made_before_old_is_removed():
    pod, moved = replace(POD, name="pop2"), Route(ip_network("10.244.0.5/32"), link="pop2")
    old = Route(ip_network("10.244.0.4/32"), link="pop1")
    actual = NetworkState({"pop1": POD}, routes=frozenset({old}))
    wanted = NetworkState({"pop2": pod}, routes=frozenset({moved}))
    assert plan_network(wanted, actual) == [Put(pod), Put(moved), Remove(POD)]


def test_a_route_moves_from_a_link_that_goes_without_a_gap():
    pod, old = replace(POD, name="pop2"), Route(ip_network("10.244.0.5/32"), link="pop1")
    new = replace(old, link="pop2")
    actual = NetworkState({"pop1": POD}, routes=frozenset({old}))
    assert plan_network(NetworkState({"pop2": pod}, routes=frozenset({new})), actual) == [
        Put(pod),
        Put(new, replace=True),
        Remove(POD),
    ]


@pytest.mark.parametrize(
    ("kind", "wanted", "standing"),
    [
        ("routes", ROUTE, replace(ROUTE, gateway=ip_address("10.244.1.9"))),
        ("routes", ROUTE, replace(ROUTE, mtu_bytes=1400)),
        ("routes", ROUTE, replace(ROUTE, protocol=3)),
        ("neighbours", NEIGHBOUR, replace(NEIGHBOUR, mac="0a:00:00:00:00:09")),
        ("fdb", FDB, replace(FDB, destination=ip_address("192.168.0.9"))),
    ],
)
def test_an_object_of_the_same_key_is_replaced(kind, wanted, standing):
    assert plan_network(DESIRED, replace(ACTUAL, **{kind: frozenset({standing})})) == [
        Put(wanted, replace=True)
    ]


def test_a_route_that_would_lead_to_the_gateway_of_the_next_goes_first():
    """In IPv6 alone: the kernel looks for the gateway there."""
    prefix = ip_network("fd00:10:244:1::/64")
    direct = Route(prefix, ip_address("fd00::2"), "eth0")
    tunnelled = Route(prefix, prefix.network_address, "flannel.1", onlink=True)
    with_one, with_other = (replace(ACTUAL, routes=frozenset({one})) for one in (direct, tunnelled))
    assert plan_network(with_other, with_one) == [Remove(direct), Put(tunnelled)]
    assert plan_network(with_one, with_other) == [Put(direct, replace=True)]
    old = replace(ROUTE, gateway=ip_address("192.168.0.2"), link="eth0", onlink=False)
    assert plan_network(DESIRED, replace(ACTUAL, routes=frozenset({old}))) == [Put(ROUTE, replace=True)]


def test_an_address_of_ours_needs_no_protocol():
    # Kernels before 5.18 do not keep one.
    standing = frozenset({replace(ADDRESS, protocol=0)})
    assert plan_network(DESIRED, replace(ACTUAL, addresses=standing)) == []


@pytest.mark.parametrize(
    "standing",
    [
        Address("pop1", ip_interface("fe80::1/128"), scope=Scope.LINK),
        Address("pop1", ip_interface("fe80::1/64"), scope=Scope.UNIVERSE),
    ],
)
def test_an_address_that_replacing_cannot_change_goes_first(standing):
    wanted = Address("pop1", ip_interface("fe80::1/64"), scope=Scope.LINK)
    state = NetworkState({"pop1": POD}, frozenset({wanted}))
    assert plan_network(state, replace(state, addresses=frozenset({standing}))) == [
        Remove(standing),
        Put(wanted),
    ]


@pytest.mark.parametrize(
    "standing",
    [
        replace(STANDING, mac="0a:00:00:00:00:09"),
        replace(STANDING, mtu_bytes=1400),
        replace(STANDING, alias=""),
        replace(STANDING, group=1),
        replace(STANDING, up=False),
    ],
)
def test_a_link_is_changed_where_it_can_be(standing):
    assert plan_network(DESIRED, replace(ACTUAL, links={"flannel.1": standing})) == [Change(DEVICE)]


@pytest.mark.parametrize(
    "field", [{"mac": "0a:00:00:00:00:09"}, {"mtu_bytes": 1400}, {"alias": "of a person"}]
)
def test_a_link_stays_as_it_is_where_nothing_is_said(field):
    said = {"mac": "", "mtu_bytes": 0, "alias": ""}
    wanted = replace(DEVICE, **{name: said[name] for name in field})
    standing = replace(STANDING, **field)
    assert plan_network(NetworkState({"flannel.1": wanted}), NetworkState({"flannel.1": standing})) == []


@pytest.mark.parametrize(
    "standing",
    [
        replace(STANDING, vxlan=replace(STANDING.vxlan, vni=2)),
        replace(STANDING, vxlan=replace(STANDING.vxlan, port=4789)),
        replace(STANDING, vxlan=replace(STANDING.vxlan, underlay="")),
        replace(STANDING, vxlan=replace(STANDING.vxlan, local=None)),
        replace(STANDING, vxlan=replace(STANDING.vxlan, learning=True)),
        replace(STANDING, vxlan=replace(STANDING.vxlan, gbp=True)),
        replace(STANDING, kind="bridge", vxlan=None),
    ],
)
def test_a_link_that_cannot_be_changed_is_made_anew_with_all_on_it(standing):
    actual = replace(ACTUAL, links={"eth0": ETH0, "flannel.1": standing})
    assert plan_network(DESIRED, actual) == [
        Remove(standing),
        Put(DEVICE),
        Put(ADDRESS),
        Put(NEIGHBOUR, replace=True),
        Put(FDB, replace=True),
        Put(ROUTE),
    ]


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("addresses", Address("eth0", ip_interface("10.244.0.0/32"), protocol=0)),
        ("addresses", Address("flannel.1", ip_interface("fe80::2/64"), Scope.LINK, protocol=3)),
        ("routes", Route(ip_network("10.9.0.0/16"), link="eth0", protocol=4)),
        ("routes", Route(ip_network("10.9.0.0/16"), kind=RouteKind.BLACKHOLE, protocol=186)),
        ("routes", Route(ip_network("fe80::/64"), link="flannel.1", metric=256, protocol=2)),
        ("routes", replace(ROUTE, metric=7, link="eth0", protocol=4)),
        ("neighbours", Neighbour("eth0", ip_address("10.244.1.0"), "0a:00:00:00:00:08", protocol=0)),
        ("neighbours", Neighbour("pop1", ip_address("10.244.0.9"), "0a:00:00:00:00:08", protocol=0)),
        ("fdb", FdbEntry("vxlan.calico", "0a:00:00:00:00:02", ip_address("192.168.0.2"))),
    ],
)
def test_objects_of_others_stay(kind, other):
    actual = replace(ACTUAL, **{kind: getattr(ACTUAL, kind) | {other}})
    assert plan_network(DESIRED, actual) == []


@pytest.mark.parametrize(
    ("kind", "stray"),
    [
        ("addresses", Address("eth0", ip_interface("10.244.9.0/32"))),
        ("addresses", Address("flannel.1", ip_interface("10.244.9.0/32"), protocol=0)),
        ("routes", Route(ip_network("10.244.9.0/24"), link="eth0")),
        ("routes", Route(ip_network("10.244.9.0/24"), link="flannel.1", protocol=3)),
        ("routes", Route(ip_network("10.244.9.0/24"), kind=RouteKind.UNREACHABLE, metric=9)),
        ("neighbours", Neighbour("pop1", ip_address("10.244.0.9"), "0a:00:00:00:00:08")),
        ("neighbours", Neighbour("flannel.1", ip_address("10.244.9.0"), "0a:00:00:00:00:08", protocol=0)),
        ("fdb", FdbEntry("flannel.1", "0a:00:00:00:00:08", ip_address("192.168.0.9"))),
    ],
)
def test_strays_of_ours_go(kind, stray):
    actual = replace(ACTUAL, **{kind: getattr(ACTUAL, kind) | {stray}})
    assert plan_network(DESIRED, actual) == [Remove(stray)]


def test_a_route_of_others_under_our_key_is_not_replaced():
    other = replace(ROUTE, link="eth0", protocol=4)
    assert plan_network(DESIRED, replace(ACTUAL, routes=frozenset({other}))) == [Put(ROUTE)]


class TestClaimed:
    pod = replace(POD, alias="poplin: default/a eth0")
    route = Route(ip_network("10.244.0.5/32"), link="pop1")
    full = NetworkState({"pop1": pod}, routes=frozenset({route}))

    def test_a_claimed_link_is_not_removed(self):
        assert plan_network(NetworkState(), self.full, claimed={"pop1"}) == []

    def test_a_claimed_link_is_not_made(self):
        assert plan_network(self.full, NetworkState(), claimed={"pop1"}) == []

    def test_a_claimed_link_is_not_changed(self):
        standing = replace(self.full, links={"pop1": replace(self.pod, mtu_bytes=1400)}, routes=frozenset())
        assert plan_network(self.full, standing, claimed={"pop1"}) == []

    def test_a_route_through_a_claimed_link_is_not_taken_over(self):
        wanted = NetworkState(
            {"pop2": replace(POD, name="pop2")}, routes=frozenset({replace(self.route, link="pop2")})
        )
        actual = NetworkState({**self.full.links, **wanted.links}, routes=self.full.routes)
        assert plan_network(wanted, actual, claimed={"pop1"}) == []
        assert plan_network(wanted, actual) == [Put(*wanted.routes, replace=True), Remove(self.pod)]


@pytest.mark.parametrize(
    ("standing", "strange"),
    [
        (Link("flannel.1", kind="bridge"), True),
        (Link("flannel.1"), True),
        (Link("flannel.1", kind="bridge", alias="poplin: overlay"), False),
        (Link("flannel.1", kind="vxlan"), False),
        (Link("other", kind="bridge"), False),
    ],
)
def test_a_link_of_another_kind_under_our_name_is_a_strangers(standing, strange):
    desired = NetworkState({"flannel.1": Link("flannel.1", kind="vxlan")})
    actual = NetworkState({standing.name: standing})
    assert find_strangers(desired, actual) == ([standing] if strange else [])


@pytest.mark.parametrize(
    ("link", "ours"),
    [
        (Link("flannel.1", kind="vxlan", alias="poplin: overlay"), True),
        (Link("pop1", kind="veth", group=POD_LINK_GROUP), True),
        (Link("pop1", kind="veth", alias="poplin: default/a eth0"), True),
        (Link("flannel.1", kind="vxlan"), False),
        (Link("eth0", group=POD_LINK_GROUP), False),
        (Link("cni0", kind="bridge", alias="poplin"), False),
        (Link("lo"), False),
    ],
)
def test_which_links_are_ours(link, ours):
    assert is_ours(link) is ours
