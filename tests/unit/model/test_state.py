"""States united and shared."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from poplin.model.kernel import Address, FdbEntry, Neighbour, Route
from poplin.model.state import NetworkState, share


def made():
    """A state, of fresh objects at each call."""
    return NetworkState(
        addresses=frozenset({Address("eth0", ip_interface("192.168.0.1/24"))}),
        routes=frozenset({Route(ip_network("10.244.1.0/24"), ip_address("10.244.1.0"), "flannel.1")}),
        neighbours=frozenset({Neighbour("flannel.1", ip_address("10.244.1.0"), "0a:00:00:00:00:01")}),
        fdb=frozenset({FdbEntry("flannel.1", "0a:00:00:00:00:01", ip_address("192.168.0.2"))}),
    )


def test_sharing_takes_the_others_objects_and_changes_no_value():
    state, other = made(), made()
    more = Route(ip_network("10.244.9.0/24"), link="eth0")
    shared = share(replace(state, routes=state.routes | {more}), other)
    assert shared == replace(state, routes=state.routes | {more})
    for kind in ("routes", "neighbours", "fdb"):
        theirs = set(map(id, getattr(other, kind)))
        assert theirs <= set(map(id, getattr(shared, kind)))
    assert more in shared.routes


def test_sharing_adds_nothing():
    assert share(NetworkState(), made()) == NetworkState()


def test_an_address_keeps_who_made_it():
    other = made()
    mine = frozenset({replace(a, protocol=0) for a in other.addresses})
    assert [a.protocol for a in share(replace(other, addresses=mine), other).addresses] == [0]
