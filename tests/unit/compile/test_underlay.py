from ipaddress import ip_address, ip_interface

from poplin.compile.underlay import Underlay, find_underlays
from poplin.model.kernel import Address, Link, Scope

LINKS = {
    "lo": Link("lo"),
    "eth0": Link("eth0", mtu_bytes=1500),
    "eth1": Link("eth1", mtu_bytes=9000),
}
V4 = Address("eth0", ip_interface("192.168.0.1/24"))
V6 = Address("eth0", ip_interface("fd00::1/64"))
OTHER = Address("eth1", ip_interface("172.16.0.1/16"))
LOCAL = Address("eth0", ip_interface("fe80::1/64"), Scope.LINK)
ADDRESSES = [LOCAL, V4, V6, OTHER]
NODE = [ip_address("192.168.0.1"), ip_address("fd00::1")]


def test_each_family_is_carried_by_the_interface_that_holds_the_nodes_address():
    assert find_underlays(LINKS, ADDRESSES, NODE) == (
        Underlay("eth0", 1500, ip_address("192.168.0.1"), (V4,)),
        Underlay("eth0", 1500, ip_address("fd00::1"), (V6,)),
    )


def test_a_family_without_an_address_on_any_interface_has_no_underlay():
    (found,) = find_underlays(LINKS, ADDRESSES, [ip_address("172.16.0.1"), ip_address("fd00::9")])
    assert found == Underlay("eth1", 9000, ip_address("172.16.0.1"), (OTHER,))


def test_the_first_of_the_wanted_addresses_that_is_held_decides():
    (found,) = find_underlays(LINKS, ADDRESSES, [ip_address("172.16.0.1"), NODE[0]])
    assert found.link == "eth1"


def test_an_interface_that_was_named_serves_with_its_own_address():
    (found,) = find_underlays(LINKS, ADDRESSES, NODE, interface="eth1")
    assert (found.link, found.address) == ("eth1", ip_address("172.16.0.1"))


def test_link_local_addresses_carry_nothing():
    assert find_underlays(LINKS, [LOCAL], [ip_address("fe80::1")]) == ()


def test_an_address_on_a_link_that_is_gone_is_passed_over():
    assert find_underlays({}, ADDRESSES, NODE) == ()


def test_what_is_on_the_link_is_reached_directly():
    (v4, _) = find_underlays(LINKS, ADDRESSES, NODE)
    assert v4.reaches_directly(ip_address("192.168.0.200"))
    assert not v4.reaches_directly(ip_address("192.168.1.1"))
    assert not v4.reaches_directly(ip_address("fd00::2"))
