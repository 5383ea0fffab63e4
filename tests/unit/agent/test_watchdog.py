"""Which kernel notifications make the agent look again, and at what."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface

import pytest

from poplin.agent.watchdog import Watchdog
from poplin.compile.pod import compile_pod
from poplin.dataplane.netlink.monitor import Configured, Elsewhere, Gone, Overrun, Seen
from poplin.model.attachment import Attachment
from poplin.model.kernel import POD_LINK_GROUP, Address, FdbEntry, Link, Neighbour, Route
from poplin.model.state import NetworkState

POD = Attachment(
    "c1", "eth0", "/run/netns/c1", (IPv4Address("10.244.1.5"),), "02:00:00:00:00:05", 1450, "pop0123456789ab"
)
WIRING = compile_pod(POD)
HOST = replace(WIRING.host.links[POD.host_link], carrier=True, parent_nsid=3, parent=2)
POD_SIDE = replace(WIRING.pod.links["eth0"], index=2)
[POD_ADDRESS], [POD_DEFAULT], [POD_GATEWAY] = (
    [replace(thing, link="2") for thing in things]
    for things in (WIRING.pod.addresses, WIRING.pod.routes, WIRING.pod.neighbours)
)
OVERLAY = Link("flannel.1", "vxlan")
FDB = FdbEntry("flannel.1", POD.mac, IPv4Address("192.0.2.2"))
DESIRED = NetworkState({OVERLAY.name: OVERLAY}, fdb=frozenset({FDB}))
ETH0 = Link("eth0")
POD_ROUTE = next(iter(WIRING.host.routes))
POD_NEIGHBOUR = next(iter(WIRING.host.neighbours))
OTHER_ROUTE = Route(IPv4Network("203.0.113.0/24"), link="eth0", protocol=4)
GATEWAY = Address(POD.host_link, IPv6Interface("fe80::1/64"))
MAKING = "popffffffffffff"


class StandInLoop:
    def __init__(self):
        self.asked = []

    def suspect(self, pods=()):
        self.asked.append(tuple(pods))

    def look_at(self, pods):
        self.asked.append(("look", *pods))

    def wake(self):
        self.asked.append("wake")

    def audit(self):
        self.asked.append("audit")


def judge(*events, reads=None, left=None):
    loop = StandInLoop()

    def links():
        if reads is not None:
            reads.append(len(reads))
        return [Link("lo"), HOST]

    now = iter(range(0, 10_000, 1))
    watchdog = Watchdog(
        loop, {POD.host_link: POD}.get, links, lambda: DESIRED, left or (lambda: None), lambda: next(now) / 10
    )
    for event in events:
        watchdog.judge(event)
    return loop.asked


ALL = ()
THE_POD = (POD.host_link,)

JUDGEMENTS = {
    "too much happened": ([Overrun()], ["audit"]),
    "pod's link as it was made": ([Seen(HOST)], []),
    "pod's link down": ([Seen(replace(HOST, up=False, carrier=False))], [THE_POD]),
    "pod's link with another MTU": ([Seen(replace(HOST, mtu_bytes=1400))], [THE_POD]),
    "pod's link with another MAC": ([Seen(replace(HOST, mac="02:00:00:00:00:99"))], [THE_POD]),
    "pod's link out of the group": ([Seen(replace(HOST, group=0))], [THE_POD]),
    "pod's link with another alias": ([Seen(replace(HOST, alias="x"))], [THE_POD]),
    "pod's side down": ([Seen(replace(HOST, carrier=False))], [THE_POD]),
    "pod's side down and up": ([Seen(replace(HOST, carrier=False)), Seen(HOST)], [THE_POD, THE_POD]),
    "pod's side up for long": ([Seen(replace(HOST, carrier=False)), Seen(HOST), Seen(HOST)], [THE_POD] * 2),
    "pod's link gone": ([Gone(HOST)], [THE_POD]),
    "pod's route gone": ([Gone(POD_ROUTE)], [THE_POD]),
    "pod's route changed": ([Seen(replace(POD_ROUTE, metric=5))], [THE_POD]),
    "pod's neighbour gone": ([Gone(POD_NEIGHBOUR)], [THE_POD]),
    "gateway's address gone": ([Gone(GATEWAY)], [THE_POD]),
    "gateway's address made": ([Seen(GATEWAY)], []),
    "kernel's address on a pod's link gone": ([Gone(replace(GATEWAY, protocol=3))], []),
    "link of a pod that is being made": ([Seen(replace(HOST, name=MAKING))], []),
    "link of a pod that is being unmade": ([Gone(replace(HOST, name=MAKING))], []),
    "route of a pod that is being unmade": ([Gone(replace(POD_ROUTE, link=MAKING))], []),
    "unknown link in the pods' group": ([Seen(Link("veth7", "veth", group=POD_LINK_GROUP))], []),
    "overlay changed": ([Seen(OVERLAY)], [ALL]),
    "overlay gone": ([Gone(OVERLAY)], [ALL]),
    "underlay changed": ([Seen(ETH0)], [ALL]),
    "underlay's address": ([Seen(Address("eth0", IPv4Interface("192.0.2.1/24"), protocol=0))], [ALL]),
    "underlay's address gone": ([Gone(Address("eth0", IPv4Interface("192.0.2.1/24"), protocol=0))], [ALL]),
    "route gone": ([Gone(replace(POD_ROUTE, link="flannel.1"))], [ALL]),
    "neighbour gone": ([Gone(replace(POD_NEIGHBOUR, link="flannel.1"))], [ALL]),
    "forwarding entry gone": ([Gone(FDB)], [ALL]),
    "forwarding entry made, as it should be": ([Seen(FDB)], []),
    "forwarding entry to another place": ([Seen(replace(FDB, destination=IPv4Address("192.0.2.3")))], [ALL]),
    "old forwarding entry gone": ([Gone(replace(FDB, destination=IPv4Address("192.0.2.3")))], []),
    "forwarding entry of another's bridge": ([Seen(replace(FDB, link="docker0"))], []),
    "neighbour changed": ([Seen(Neighbour("flannel.1", IPv4Address("10.244.2.0"), POD.mac))], [ALL]),
}


LOOK = ("look", POD.host_link)
INSIDE = {
    "pod's side as it was made": (Seen(POD_SIDE), []),
    "pod's side down": (Seen(replace(POD_SIDE, up=False)), [LOOK]),
    "pod's side with another MAC": (Seen(replace(POD_SIDE, mac="02:00:00:00:00:99")), [LOOK]),
    "pod's side with another MTU": (Seen(replace(POD_SIDE, mtu_bytes=1300)), [LOOK]),
    "pod's side with another name": (Seen(replace(POD_SIDE, name="x")), [LOOK]),
    "pod's side gone": (Gone(POD_SIDE), []),  # the node's side goes with it
    "another link of the pod": (Seen(replace(POD_SIDE, index=9, name="net1")), []),
    "address gone": (Gone(POD_ADDRESS), [LOOK]),
    "address made": (Seen(POD_ADDRESS), []),
    "another address gone": (Gone(replace(POD_ADDRESS, interface=IPv4Interface("10.9.9.9/24"))), []),
    "default route gone": (Gone(POD_DEFAULT), [LOOK]),
    "default route made": (Seen(POD_DEFAULT), []),
    "default route led elsewhere": (Seen(replace(POD_DEFAULT, gateway=IPv4Address("10.9.9.9"))), [LOOK]),
    "route of the pod's own": (Gone(replace(OTHER_ROUTE, link="2")), []),
    "route without a link": (Gone(replace(OTHER_ROUTE, link="")), []),
    "gateway's entry gone": (Gone(POD_GATEWAY), [LOOK]),
    "gateway's entry made": (Seen(POD_GATEWAY), []),
    "gateway's entry with another MAC": (Seen(replace(POD_GATEWAY, mac=POD.mac)), [LOOK]),
    "another neighbour gone": (Gone(replace(POD_GATEWAY, address=IPv4Address("10.9.9.9"))), []),
}


@pytest.mark.parametrize(("event", "asked"), INSIDE.values(), ids=INSIDE)
def test_what_happens_in_a_pods_namespace_is_judged(event, asked):
    assert judge(Elsewhere(3, event)) == asked
    # In another namespace the same index is another link, and nobody's.
    assert judge(Elsewhere(4, event)) == []


def test_an_unknown_namespace_has_the_links_read_seldom():
    reads = []
    judge(*[Elsewhere(4, Gone(POD_ADDRESS))] * 100, reads=reads)
    assert 0 < len(reads) <= 20
    # What the host link's own event told is known without that.
    reads.clear()
    moved = replace(HOST, parent_nsid=7, parent=5)
    inside = Elsewhere(7, Gone(replace(POD_ADDRESS, link="5")))
    assert judge(Seen(moved), inside, reads=reads) == [LOOK]
    assert reads == []


def test_a_parameter_that_somebody_set_wakes_the_loop_unless_it_is_a_pods():
    assert judge(Configured("all"), Configured("eth0"), Configured(POD.host_link)) == ["wake", "wake"]


@pytest.mark.parametrize(("events", "asked"), JUDGEMENTS.values(), ids=JUDGEMENTS)
def test_an_event_is_judged(events, asked):
    assert judge(*events) == asked


def test_a_new_link_of_a_pods_name_starts_with_its_carrier_unknown():
    down = Seen(replace(HOST, carrier=False))
    assert judge(down, Gone(HOST), Seen(HOST)) == [THE_POD, THE_POD]
    assert judge(Seen(OTHER_ROUTE)) == [ALL]


def test_an_address_that_the_node_has_no_more_is_told_at_once():
    underlay = Address("eth0", IPv4Interface("192.0.2.1/24"), protocol=0)
    for events, times in (([Seen(underlay), Gone(GATEWAY)], 0), ([Gone(underlay)], 1), ([Overrun()], 1)):
        left = []
        judge(*events, left=lambda: left.append(1))  # noqa: B023  - called here
        assert len(left) == times
