"""plan_network against a namespace in miniature that applies operations as the kernel does."""

import errno
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from poplin.compile.backend import compile_backend, compile_peers
from poplin.compile.lease import Endpoint, Lease
from poplin.compile.pod import compile_pod
from poplin.compile.underlay import Underlay
from poplin.model.attachment import Attachment
from poplin.model.kernel import Address, FdbEntry, Link, Neighbour, Route, RouteKind, Scope
from poplin.model.netconf import Backend, BackendType
from poplin.model.state import NetworkState, unite
from poplin.plan.fold import fold
from poplin.plan.key import address_key, fdb_key, neighbour_key, route_key
from poplin.plan.network import plan_network
from poplin.plan.operation import Change, Put, Remove

KINDS = {
    Address: ("addresses", address_key),
    Route: ("routes", route_key),
    Neighbour: ("neighbours", neighbour_key),
    FdbEntry: ("fdb", fdb_key),
}


@dataclass
class Namespace:
    """The kernel's rules: one object for each key, objects only on links that exist and gone with them."""

    links: dict = field(default_factory=dict)
    objects: dict = field(default_factory=lambda: {kind: {} for kind in KINDS})
    indexes: count = field(default_factory=lambda: count(1))

    def apply(self, operations):
        for operation in operations:
            match operation:
                case Put(Link() as link):
                    self._make_link(link)
                case Put(what, replace=replaces):
                    self._put(what, replaces=replaces)
                case Change(link):
                    self._change(link)
                case Remove(Link() as link):
                    self._remove_link(link.name)
                case Remove(what):
                    standing, key = self.objects[type(what)], KINDS[type(what)][1](what)
                    if standing.get(key) == what:
                        del standing[key]
        return self

    def state(self):
        held = {name: frozenset(self.objects[kind].values()) for kind, (name, _) in KINDS.items()}
        return NetworkState(dict(self.links), **held)

    def _make_link(self, link):
        if link.name in self.links:
            raise OSError(errno.EEXIST, link.name)
        mac, mtu_bytes = link.mac or "02:00:00:00:00:01", link.mtu_bytes or 1500
        index = next(self.indexes)
        self.links[link.name] = replace(link, mac=mac, mtu_bytes=mtu_bytes, index=index, carrier=True)

    def _change(self, link):
        standing = self.links[link.name]
        if (link.kind, link.vxlan) != (standing.kind, standing.vxlan):
            raise OSError(errno.EOPNOTSUPP, link.name)
        self.links[link.name] = replace(
            link,
            mac=link.mac or standing.mac,
            mtu_bytes=link.mtu_bytes or standing.mtu_bytes,
            alias=link.alias or standing.alias,
            index=standing.index,
            carrier=standing.carrier,
        )

    def _remove_link(self, name):
        self.links.pop(name, None)
        for standing in self.objects.values():
            for key in [key for key, one in standing.items() if one.link == name]:
                del standing[key]

    def _put(self, what, *, replaces):
        if what.link not in self.links and getattr(what, "kind", None) is not RouteKind.UNREACHABLE:
            raise OSError(errno.ENODEV, what.link)
        standing, key = self.objects[type(what)], KINDS[type(what)][1](what)
        if key in standing and not replaces:
            raise OSError(errno.EEXIST, str(what))
        if key in standing and leads_astray(standing[key], what):
            raise OSError(errno.EINVAL, f"{what}: its gateway is behind {standing[key]}")
        if key in standing and isinstance(what, Address):
            # Replacing an address does not change its scope, nor the prefix of an IPv6 one.
            what = replace(standing[key], protocol=what.protocol)
        standing[key] = what


def leads_astray(old, new):
    """Whether a route is one that an IPv6 route cannot replace: it leads to that one's gateway by another link."""
    return (
        isinstance(old, Route)
        and old.destination.version == 6
        and old.link != new.link
        and new.gateway is not None
        and new.gateway in old.destination
    )


def namespace_of(*states):
    return Namespace().apply(
        [
            Put(one)
            for state in states
            for one in (
                *state.links.values(),
                *state.addresses,
                *state.routes,
                *state.neighbours,
                *state.fdb,
            )
        ]
    )


def seen(state):
    """What can be compared: without what the kernel alone decides, and without sysctls."""
    links = {name: replace(link, index=0, parent=0, carrier=False) for name, link in state.links.items()}
    return replace(state, links=links, sysctls={})


OTHERS = NetworkState(
    {
        "lo": Link("lo", mac="00:00:00:00:00:00", mtu_bytes=65536),
        "eth0": Link("eth0", mac="02:00:00:00:01:00", mtu_bytes=1500),
        "cni0": Link("cni0", kind="bridge", mac="02:00:00:00:01:01", mtu_bytes=1450, alias="poplin"),
        "veth1": Link("veth1", kind="veth", mac="02:00:00:00:01:02", mtu_bytes=1450),
        "vxlan.calico": Link("vxlan.calico", kind="vxlan", mac="02:00:00:00:01:03", mtu_bytes=1450),
    }
)
LINKS = tuple(OTHERS.links)
ADDRESSES = [
    Address("eth0", ip_interface("192.168.7.1/24"), protocol=0),
    Address("eth0", ip_interface("fe80::7/64"), scope=Scope.LINK, protocol=3),
    Address("cni0", ip_interface("10.9.0.1/24"), protocol=0),
]
ROUTES = [
    Route(ip_network("192.168.7.0/24"), link="eth0", scope=Scope.LINK, protocol=2),
    Route(ip_network("0.0.0.0/0"), ip_address("192.168.7.254"), "eth0", protocol=3),
    Route(ip_network("10.244.9.0/24"), ip_address("192.168.7.9"), "eth0", protocol=3),
    Route(ip_network("10.244.1.0/24"), ip_address("192.168.7.9"), "eth0", metric=50, protocol=4),
    Route(ip_network("10.244.1.0/24"), ip_address("192.168.7.9"), "eth0", table=100, protocol=112 + 1),
    Route(ip_network("fd00:9::/64"), kind=RouteKind.UNREACHABLE, protocol=4),
]
NEIGHBOURS = [
    Neighbour("eth0", ip_address("192.168.7.2"), "02:00:00:00:02:02", protocol=0),
    Neighbour("veth1", ip_address("10.9.0.2"), "02:00:00:00:02:03", protocol=0),
]
FDB = [
    FdbEntry("vxlan.calico", "02:00:00:00:02:04", ip_address("192.168.7.2")),
    FdbEntry("cni0", "02:00:00:00:02:05", ip_address("192.168.7.3")),
]
others = st.builds(
    lambda addresses, routes, neighbours, fdb: replace(
        OTHERS, addresses=addresses, routes=routes, neighbours=neighbours, fdb=fdb
    ),
    *(st.frozensets(st.sampled_from(pool)) for pool in (ADDRESSES, ROUTES, NEIGHBOURS, FDB)),
)

NODES = range(4)
FAMILIES = [(4,), (6,), (4, 6)]


def lease(node, versions, mac):
    cidr = {4: f"10.244.{node}.0/24", 6: f"fd00:10:244:{node}::/64"}
    ip = {4: f"192.168.7.{node + 1}", 6: f"fd00:7::{node + 1}"}
    vtep = f"0a:00:00:00:{mac:02x}:{node:02x}"
    return Lease(
        f"node{node}",
        "vxlan",
        tuple(Endpoint(ip_address(ip[v]), ip_network(cidr[v]), vtep, 1) for v in versions),
    )


@st.composite
def overlays(draw):
    """What a node of some cluster wants beside its pods."""
    versions = draw(st.sampled_from(FAMILIES))
    backend = draw(
        st.builds(
            Backend,
            type=st.sampled_from(BackendType),
            mtu_bytes=st.sampled_from([0, 1400]),
            vni=st.sampled_from([1, 2]),
            port=st.sampled_from([8472, 4789]),
            direct_routing=st.booleans(),
        )
    )
    own = draw(st.sampled_from(NODES))
    peers = draw(st.sets(st.sampled_from(NODES))) - {own}
    near = {4: draw(st.sampled_from([24, 31])), 6: 64}
    underlays = []
    for endpoint in lease(own, versions, 0).endpoints:
        ip = endpoint.public_ip
        held = Address("eth0", ip_interface(f"{ip}/{near[ip.version]}"))
        underlays.append(Underlay("eth0", 1500, ip, (held,)))
    macs = st.integers(0, 1)
    node = compile_backend(backend, lease(own, versions, draw(macs)), underlays)
    others = [e for peer in sorted(peers) for e in lease(peer, versions, draw(macs)).endpoints]
    reached = [
        compile_peers(backend, [e for e in others if e.public_ip.version == u.address.version], u)
        for u in underlays
    ]
    return unite([node, *reached])


@st.composite
def pods(draw):
    """The host sides of some pods. A pod's addresses are its own, but not its link's: containers restart."""
    states = []
    wired = draw(st.dictionaries(st.integers(2, 5), st.sampled_from(FAMILIES), max_size=4))
    generation = draw(st.integers(0, 1))
    for number, versions in wired.items():
        addresses = {4: f"10.244.0.{number}", 6: f"fd00:10:244::{number}"}
        attachment = Attachment(
            f"container{number}",
            "eth0",
            "/run/netns/x",
            tuple(ip_address(addresses[v]) for v in versions),
            f"0a:00:00:01:{generation:02x}:{number:02x}",
            draw(st.sampled_from([1450, 1400])),
            f"pop{(number + generation) % 4}",
            "default",
            f"pod{number}",
        )
        states.append(compile_pod(attachment).host)
    return unite(states)


desired_states = st.builds(lambda *states: unite(states), overlays(), pods())


@st.composite
def debris(draw):
    """What an earlier agent, flanneld or a person left on and beside links of ours."""
    links = ("flannel.1", "flannel-v6.1", "pop1")
    made = {
        "flannel.1": Link("flannel.1", kind="vxlan", mac="02:00:00:00:03:01", mtu_bytes=1450),
        "flannel-v6.1": Link(
            "flannel-v6.1", alias="poplin: overlay", mac="02:00:00:00:03:02", mtu_bytes=1430
        ),
        "pop1": Link("pop1", kind="veth", group=0x706F, mac="02:00:00:00:03:03", mtu_bytes=1450),
    }
    link = st.sampled_from(links)
    addresses = st.builds(
        Address,
        link,
        st.sampled_from([ip_interface(a) for a in ("10.244.0.0/32", "10.244.3.0/24", "fe80::1/128")]),
        st.sampled_from([Scope.UNIVERSE, Scope.LINK]),
    )
    destinations = st.sampled_from([ip_network(n) for n in ("10.244.1.0/24", "10.244.0.2/32", "10.1.0.0/16")])
    routes = st.builds(Route, destinations, link=link, mtu_bytes=st.sampled_from([0, 1300]))
    neighbours = st.builds(
        Neighbour,
        link,
        st.sampled_from([ip_address("10.244.1.0"), ip_address("10.244.0.2")]),
        st.just("0a:0:0"),
    )
    fdb = st.builds(FdbEntry, link, st.just("0a:00:00:00:00:01"), st.just(ip_address("192.0.2.1")))

    def some(one, key):
        return frozenset(draw(st.lists(one, max_size=3, unique_by=key)))

    return NetworkState(
        made,
        some(addresses, address_key),
        some(routes, route_key),
        some(neighbours, neighbour_key),
        frozenset(e for e in some(fdb, fdb_key) if e.link == "flannel.1"),
    )


@given(others, desired_states, desired_states)
def test_the_plan_gives_what_is_desired_and_leaves_what_is_not_ours(foreign, before, desired):
    kernel = namespace_of(foreign, before)
    kernel.apply(plan_network(desired, kernel.state()))
    assert seen(kernel.state()) == seen(unite([foreign, desired]))


@given(others, debris(), desired_states)
def test_what_was_left_behind_gives_way(foreign, left, desired):
    kernel = namespace_of(foreign, left)
    kernel.apply(plan_network(desired, kernel.state()))
    after = kernel.state()
    assert plan_network(desired, after) == []
    if "flannel.1" in desired.links:
        assert seen(after) == seen(unite([foreign, desired]))
    else:
        # Without our alias, and not wanted: it is somebody else's.
        assert after.links.keys() == unite([foreign, desired]).links.keys() | {"flannel.1"}


@given(others, desired_states, desired_states)
def test_what_was_and_will_be_routed_is_routed_all_the_time(foreign, before, desired):
    kernel = namespace_of(foreign, before)
    operations = plan_network(desired, kernel.state())
    renewed = {o.what.name for o in operations if isinstance(o, Remove) and isinstance(o.what, Link)}
    old = {r.destination for r in before.routes if r.link not in renewed & desired.links.keys()}
    lasting = old & {r.destination for r in desired.routes}
    lasting -= {new.destination for new in desired.routes for r in before.routes if leads_astray(r, new)}
    for operation in operations:
        kernel.apply([operation])
        assert lasting <= {r.destination for r in kernel.state().routes}


@given(others, desired_states, desired_states)
def test_a_second_plan_is_empty(foreign, before, desired):
    kernel = namespace_of(foreign, before)
    kernel.apply(plan_network(desired, kernel.state()))
    assert plan_network(desired, kernel.state()) == []


@given(others, desired_states, desired_states)
def test_a_change_and_its_reverse_give_the_original(foreign, before, desired):
    kernel = namespace_of(foreign, before)
    original = seen(kernel.state())
    kernel.apply(plan_network(desired, kernel.state()))
    kernel.apply(plan_network(before, kernel.state()))
    assert seen(kernel.state()) == original


@given(others, st.lists(desired_states, min_size=2, max_size=5))
def test_the_end_does_not_depend_on_the_path(foreign, path):
    walked, straight = namespace_of(foreign), namespace_of(foreign)
    for desired in path:
        walked.apply(plan_network(desired, walked.state()))
    straight.apply(plan_network(path[-1], straight.state()))
    assert seen(walked.state()) == seen(straight.state())


@given(others, desired_states, desired_states)
def test_no_operation_names_an_object_of_others(foreign, before, desired):
    not_ours = {
        *foreign.links.values(),
        *foreign.addresses,
        *foreign.routes,
        *foreign.neighbours,
        *foreign.fdb,
    }
    kernel = namespace_of(foreign, before)
    operations = plan_network(desired, kernel.state())
    assert not not_ours & {o.link if isinstance(o, Change) else o.what for o in operations}


@given(others, desired_states, desired_states, st.sets(st.sampled_from([f"pop{n}" for n in range(4)])))
def test_claimed_links_and_what_is_on_them_stay(foreign, before, desired, claimed):
    kernel = namespace_of(foreign, before)
    old = kernel.state()
    new = kernel.apply(plan_network(desired, old, claimed=claimed)).state()
    for name in claimed:
        assert new.links.get(name) == old.links.get(name)
    for kind, _ in KINDS.values():
        assert {o for o in getattr(new, kind) if o.link in claimed} == {
            o for o in getattr(old, kind) if o.link in claimed
        }
    # Given back, they come to what is desired.
    kernel.apply(plan_network(desired, new))
    assert seen(kernel.state()) == seen(unite([foreign, desired]))


@given(others, desired_states, desired_states)
def test_folding_the_plan_gives_what_the_kernel_holds(foreign, before, desired):
    kernel = namespace_of(foreign, before)
    old = kernel.state()
    operations = plan_network(desired, old)
    assert seen(fold(old, operations)) == seen(kernel.apply(operations).state())


@given(others, debris(), desired_states)
def test_folding_the_plan_over_debris_gives_what_the_kernel_holds(foreign, left, desired):
    kernel = namespace_of(foreign, left)
    old = kernel.state()
    operations = plan_network(desired, old)
    assert seen(fold(old, operations)) == seen(kernel.apply(operations).state())
