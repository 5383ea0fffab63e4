from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.ipam.pool import REST_S, AddressInUseError, NodePool, PoolExhaustedError
from poplin.model.errors import InvalidInputError


def pool(*cidrs, rest_s=REST_S):
    return NodePool([ip_network(cidr) for cidr in cidrs], rest_s=rest_s)


def texts(addresses):
    return [str(address) for address in addresses]


def test_addresses_go_out_in_turn_and_come_back_last():
    node = pool("10.0.0.0/29")
    first = node.allocate("a", now_s=0)
    assert texts(first) == ["10.0.0.1"]
    node.release(first, now_s=0)
    # It has rested long since, but others have waited longer.
    given_out = [texts(node.allocate(f"b{n}", now_s=100))[0] for n in range(6)]
    assert given_out == [f"10.0.0.{n}" for n in (2, 3, 4, 5, 6, 1)]


def test_the_first_and_the_last_address_are_never_given():
    for cidr, size in (("10.0.0.0/24", 254), ("10.0.0.0/30", 2), ("fd00::/126", 2)):
        node = pool(cidr)
        given_out = {node.allocate(f"{n}", now_s=0)[0] for n in range(size)}
        network = ip_network(cidr)
        assert given_out == set(network) - {network[0], network[-1]}
        with pytest.raises(PoolExhaustedError):
            node.allocate("one more", now_s=0)


def test_exhaustion_says_which_cidr_its_size_and_what_to_do():
    node = pool("10.0.0.0/30", "10.0.1.0/30", "fd00::/64")
    for n in range(4):
        node.allocate(f"{n}", now_s=0)
    with pytest.raises(PoolExhaustedError) as error:
        node.allocate("one more", now_s=0)
    assert str(error.value) == (
        "10.0.0.0/30, 10.0.1.0/30: no IPv4 address is free: 4 of 4 are in use; "
        "move pods to other nodes, or give this node a larger pod CIDR"
    )
    # The IPv6 address was not taken either.
    assert len(node.owners()) == 8


def test_a_freed_address_rests_and_is_reused_sooner_oldest_first_rather_than_failing():
    node = pool("10.0.0.0/29")
    held = [node.allocate(f"{n}", now_s=0) for n in range(5)]
    node.release(held[3], now_s=1)
    node.release(held[1], now_s=2)
    assert texts(node.allocate("the last free one", now_s=3)) == ["10.0.0.6"]
    assert texts(node.allocate("early", now_s=3)) == texts(held[3])
    assert texts(node.allocate("early", now_s=3)) == texts(held[1])


def test_the_oldest_of_several_cidrs_is_reused_first():
    node = pool("10.0.0.0/30", "10.0.1.0/30")
    held = [node.allocate(f"{n}", now_s=0) for n in range(4)]
    for now_s, address in enumerate((held[2], held[0], held[3])):
        node.release(address, now_s=now_s)
    assert [node.allocate("again", now_s=5) for _ in range(3)] == [held[2], held[0], held[3]]


def test_dual_stack_gives_one_of_each_family_in_one_order():
    for cidrs in (("10.0.0.0/24", "fd00::/64"), ("fd00::/64", "10.0.0.0/24")):
        assert texts(pool(*cidrs).allocate("a", now_s=0)) == ["10.0.0.1", "fd00::1"]
    assert texts(pool("fd00::/64").allocate("a", now_s=0)) == ["fd00::1"]


@pytest.mark.parametrize(("cidr", "other"), [("10.0.0.0/24", "10.0.0.9"), ("fd00::/64", "fd00::dead:beef")])
def test_an_address_that_is_asked_for_is_given_once(cidr, other):
    node = pool(cidr)
    wanted = ip_address(other)
    assert node.allocate("a", now_s=0, requested=[wanted]) == (wanted,)
    with pytest.raises(AddressInUseError, match="in use by a"):
        node.allocate("b", now_s=0, requested=[wanted])
    node.release([wanted], now_s=0)
    assert node.allocate("b", now_s=0, requested=[wanted]) == (wanted,)


@pytest.mark.parametrize("address", ["10.0.0.0", "10.0.0.255", "10.0.1.1", "fd00::1"])
def test_an_address_that_the_node_cannot_give_is_invalid_input(address):
    node = pool("10.0.0.0/24")
    with pytest.raises(InvalidInputError):
        node.allocate("a", now_s=0, requested=[ip_address(address)])
    assert node.owners() == {}


@pytest.mark.parametrize(
    "cidrs", [["10.0.0.0/31"], ["10.0.0.0/32"], ["fd00::/127"], ["10.0.0.0/16", "10.0.3.0/24"]]
)
def test_cidrs_too_small_or_overlapping_are_invalid_input(cidrs):
    with pytest.raises(InvalidInputError):
        pool(*cidrs)


def test_an_ipv6_64_is_as_quick_as_it_is_large():
    node = pool("fd00::/64")
    assert node.free_count(6) == 2**64 - 2
    last = ip_address("fd00::ffff:ffff:ffff:fffe")
    node.allocate("a", now_s=0, requested=[last])
    assert texts(node.allocate("b", now_s=0)) == ["fd00::1"]


def test_releasing_what_is_not_held_changes_nothing():
    node = pool("10.0.0.0/30")
    node.release([ip_address("10.0.0.1"), ip_address("192.0.2.1"), ip_address("fd00::1")], now_s=0)
    assert texts(node.allocate("a", now_s=0)) == ["10.0.0.1"]


def test_a_restored_pool_keeps_owners_and_the_rest_that_is_left():
    owners = {
        ip_address("10.0.0.1"): "a",
        ip_address("10.9.9.9"): "of a CIDR we had",
        ip_address("10.0.0.3"): "c",
    }
    freed = [(ip_address("10.0.0.2"), 25.0), (ip_address("10.0.0.4"), 5.0)]
    node = NodePool.restore([ip_network("10.0.0.0/29")], owners, freed, now_s=1000)
    assert set(node.owners().values()) == {"a", "c"}
    assert texts(node.allocate("x", now_s=1000)) == ["10.0.0.5"]
    assert texts(node.allocate("x", now_s=1000)) == ["10.0.0.6"]
    assert texts(node.allocate("x", now_s=1005)) == ["10.0.0.2"]
    assert texts(node.allocate("x", now_s=1005)) == ["10.0.0.4"]


CIDRS = st.sampled_from(
    [("10.0.0.0/29",), ("10.0.0.0/30", "10.0.1.0/29"), ("fd00::/64",), ("10.0.0.0/29", "fd00::/125")]
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "free", "want"]), st.integers(0, 9), st.integers(0, 20)), max_size=60
)


@given(cidrs=CIDRS, steps=STEPS)
def test_no_address_has_two_owners_none_is_lost_and_none_returns_early_without_need(cidrs, steps):
    node = pool(*cidrs)
    capacity = {version: node.free_count(version) for version in (4, 6)}
    held: dict[str, tuple] = {}
    freed_at: dict = {}
    now_s = 0.0
    for number, (action, which, wait) in enumerate(steps):
        now_s += wait
        if action == "free" and held:
            owner = sorted(held)[which % len(held)]
            addresses = held.pop(owner)
            node.release(addresses, now_s=now_s)
            freed_at.update(dict.fromkeys(addresses, now_s))
        elif action != "free":
            # A /30 has fewer than eight: some wishes lie outside, some are its first or last.
            requested = [ip_network(cidrs[0])[0] + which % 8] if action == "want" else []
            in_use = {address for addresses in held.values() for address in addresses}
            try:
                addresses = node.allocate(str(number), now_s=now_s, requested=requested)
            except PoolExhaustedError:
                versions = {ip_network(cidr).version for cidr in cidrs}
                assert any(sum(a.version == v for a in in_use) == capacity[v] for v in versions)
                continue
            except AddressInUseError:
                assert set(requested) <= in_use
                continue
            except InvalidInputError:
                networks = [
                    ip_network(cidr) for cidr in cidrs if ip_network(cidr).version == requested[0].version
                ]
                assert not any(network[0] < requested[0] < network[-1] for network in networks)
                continue
            assert not in_use & set(addresses)
            assert set(requested) <= set(addresses)
            for address in addresses:
                rests = {
                    a for a, at in freed_at.items() if a.version == address.version and now_s - at < REST_S
                }
                if address in rests and address not in requested:
                    in_family = sum(a.version == address.version for a in in_use)
                    assert in_family + len(rests) == capacity[address.version]
                    assert freed_at[address] == min(freed_at[a] for a in rests)
                freed_at.pop(address, None)
            held[str(number)] = addresses
        owners = {address: owner for owner, addresses in held.items() for address in addresses}
        assert node.owners() == owners
        for version in (4, 6):
            assert node.free_count(version) == capacity[version] - sum(a.version == version for a in owners)


def spans(*texts_):
    return [tuple(map(ip_address, text.split("-"))) for text in texts_]


def test_an_address_comes_from_the_ranges_alone_in_turn_and_again_when_it_must():
    node = pool("10.0.0.0/24", "fd00::/64")
    within = spans("10.0.0.254-10.0.1.9", "10.0.0.7-10.0.0.8")
    taken = [node.allocate(f"{n}", now_s=0, within=within) for n in range(3)]
    assert [str(a) for a, _ in taken] == ["10.0.0.254", "10.0.0.7", "10.0.0.8"]
    assert [str(b) for _, b in taken] == ["fd00::1", "fd00::2", "fd00::3"]
    with pytest.raises(PoolExhaustedError, match=r"10\.0\.0\.7-10\.0\.0\.8: every IPv4 address"):
        node.allocate("more", now_s=0, within=within)
    assert len(node.owners()) == 6
    node.release(taken[1], now_s=1)
    node.release(node.allocate("elsewhere", now_s=1), now_s=0)
    assert str(node.allocate("early", now_s=2, within=within)[0]) == "10.0.0.7"


@pytest.mark.parametrize(
    "span", ["10.0.1.0-10.0.1.9", "10.0.0.0-10.0.0.0", "10.0.0.255-10.0.0.255", "fd00::-fd00::9"]
)
def test_ranges_that_the_node_has_nothing_of_are_invalid_input(span):
    node = pool("10.0.0.0/24")
    with pytest.raises(InvalidInputError):
        node.allocate("a", now_s=0, within=spans(span))
    assert node.owners() == {}


SPAN = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)


@given(asked=st.lists(st.lists(SPAN, max_size=3), max_size=20))
def test_whoever_asks_for_ranges_gets_what_is_free_there(asked):
    base = ip_network("10.0.0.0/28")
    node = pool(str(base))
    free = {base[n] for n in range(1, 15)}
    for number, offsets in enumerate(asked):
        within = [(base[0] + first, base[0] + last) for first, last in offsets]
        meant = {a for a in free if not within or any(first <= a <= last for first, last in within)}
        try:
            [address] = node.allocate(f"{number}", now_s=0, within=within)
        except (PoolExhaustedError, InvalidInputError):
            assert not meant
        else:
            assert address in meant
            free.remove(address)
