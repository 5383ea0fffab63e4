"""EndpointSlices: which endpoints, in which slices, by how few writes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.lab.controllers.controller import make_store
from poplin.lab.controllers.endpoint import make_endpoints, make_hints, read_ports, write_ports
from poplin.lab.controllers.endpoint_slice import ENDPOINT_SLICE, LIMIT, reconcile
from poplin.lab.controllers.object import ENDPOINT_SLICES, NODES, PODS, SERVICES
from poplin.lab.controllers.write import Create, Delete, Patch
from unit.lab.controllers.objects import NOW, altered, creates, deletes, make, make_node, make_pod, patches

PORTS = [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]


def service(name="web", **spec):
    spec = {
        "selector": {"app": "web"},
        "ports": PORTS,
        "ipFamilies": ["IPv4"],
        "clusterIP": "10.96.0.9",
    } | spec
    return make(SERVICES, name, spec=spec, uid="uid-service")


def pod(name, *addresses, ready=True, node="node-1", uid=None, **more):
    status = {"podIPs": [{"ip": one} for one in addresses or ("10.244.1.5",)]}
    return make_pod(
        name, node=node, phase="Running", ready=ready, status=status, uid=uid or f"uid-{name}", **more
    )


def endpoints(one, *pods, family="IPv4", zone=""):
    found = make_endpoints(one, pods, family, lambda _: zone)
    return [endpoint for part in found.values() for endpoint in part]


STATES = [
    # ready, deleting, publishNotReadyAddresses -> conditions
    (True, False, False, (True, True, False)),
    (False, False, False, (False, False, False)),
    (None, False, False, (False, False, False)),
    (True, True, False, (False, True, True)),
    (False, True, False, (False, False, True)),
    (False, False, True, (True, False, False)),
    (False, True, True, (True, False, True)),
]


@pytest.mark.parametrize(("ready", "deleting", "published", "wanted"), STATES)
def test_conditions(ready, deleting, published, wanted):
    [made] = endpoints(service(publishNotReadyAddresses=published), pod("a", ready=ready, deleting=deleting))
    conditions = made["conditions"]
    assert (conditions["ready"], conditions["serving"], conditions["terminating"]) == wanted


def test_who_is_an_endpoint():
    finished = make_pod("b", node="n", phase="Succeeded", status={"podIPs": [{"ip": "10.244.1.6"}]})
    addressless = make_pod("c", node="n", phase="Pending")
    made = endpoints(service(), pod("a"), finished, addressless)
    assert made == [
        {
            "addresses": ["10.244.1.5"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "a", "uid": "uid-a"},
            "nodeName": "node-1",
        }
    ]


def test_families_are_told_apart():
    both = pod("a", "10.244.1.5", "fd00::5")
    assert [one["addresses"] for one in endpoints(service(), both, family="IPv6")] == [["fd00::5"]]
    assert endpoints(service(), pod("a", "10.244.1.5"), family="IPv6") == []


def test_hostname_is_told_where_it_is_a_name_below_the_service():
    named = {"hostname": "web-0", "subdomain": "web"}
    assert endpoints(service(), pod("a", spec=named))[0]["hostname"] == "web-0"
    for spec in ({"hostname": "web-0"}, {"subdomain": "web"}, {"hostname": "web-0", "subdomain": "other"}):
        assert "hostname" not in endpoints(service(), pod("a", spec=spec))[0]


@pytest.mark.parametrize(
    ("distribution", "zone", "hints"),
    [
        (None, "a", {}),
        ("PreferClose", "a", {"forZones": [{"name": "a"}]}),
        ("PreferSameZone", "a", {"forZones": [{"name": "a"}]}),
        ("PreferSameZone", "", {}),
        ("PreferSameNode", "a", {"forZones": [{"name": "a"}], "forNodes": [{"name": "n"}]}),
        ("PreferSameNode", "", {"forNodes": [{"name": "n"}]}),
    ],
)
def test_hints(distribution, zone, hints):
    assert make_hints(distribution, "n", zone) == hints
    near = service(trafficDistribution="PreferClose")
    assert "hints" not in endpoints(near, pod("a", ready=False), zone="a")[0]


def container(name, number, protocol="TCP"):
    return {
        "name": "c",
        "image": "i",
        "ports": [{"name": name, "containerPort": number, "protocol": protocol}],
    }


def test_named_ports_are_those_of_each_pod():
    named = service(ports=[{"name": "http", "port": 80, "targetPort": "web", "appProtocol": "h2c"}])
    pods = [
        pod("a", "10.244.1.5", spec={"containers": [container("web", 8080)]}),
        pod("b", "10.244.1.6", spec={"containers": [container("web", 9090)]}),
        pod("c", "10.244.1.7", spec={"containers": [container("web", 9090, "UDP")]}),
        pod(
            "d",
            "10.244.1.8",
            spec={"initContainers": [{**container("web", 7070), "restartPolicy": "Always"}]},
        ),
    ]
    found = make_endpoints(named, pods, "IPv4", lambda _: "")
    assert {ports: [one["targetRef"]["name"] for one in part] for ports, part in found.items()} == {
        (("http", "TCP", 8080, "h2c"),): ["a"],
        (("http", "TCP", 9090, "h2c"),): ["b"],
        (): ["c"],
        (("http", "TCP", 7070, "h2c"),): ["d"],
    }
    for ports in found:
        assert read_ports(write_ports(ports)) == ports


class Slices:
    """The slices of one Service as the API would have them after each step."""

    def __init__(self, one):
        self.service = one
        self.slices = {}
        self.writes = []

    def step(self, pods):
        wanted = make_endpoints(self.service, pods, "IPv4", lambda _: "")
        self.writes = reconcile(self.service, "IPv4", wanted, list(self.slices.values()))
        for write in self.writes:
            match write:
                case Create(body=body):
                    name = f"web-{len(self.slices)}-{random.random()}"
                    fields = {key: body[key] for key in ("endpoints", "ports", "addressType")}
                    labels = body["metadata"]["labels"]
                    self.slices[name] = make(
                        ENDPOINT_SLICES, name, labels=labels, owner=self.service, **fields
                    )
                case Patch(key=(_, name), body=body):
                    changes = {key: body[key] for key in ("endpoints", "ports") if key in body}
                    self.slices[name] = altered(self.slices[name], **changes)
                case Delete(key=(_, name)):
                    del self.slices[name]

    def names(self):
        return sorted(e["targetRef"]["name"] for one in self.slices.values() for e in one.endpoints)

    def sizes(self):
        return sorted(len(one.endpoints) for one in self.slices.values())


def crowd(*numbers):
    return [pod(f"p{n:03}", f"10.244.{n // 250}.{n % 250 + 1}") for n in numbers]


def test_slices_hold_a_hundred():
    slices = Slices(service())
    slices.step(crowd(*range(250)))
    assert slices.sizes() == [50, 100, 100]
    slices.step(crowd(*range(251)))
    assert (len(slices.writes), slices.sizes()) == (1, [51, 100, 100])
    # One that goes, in place; the others stay where they are.
    slices.step(crowd(*range(1, 251)))
    assert (len(slices.writes), slices.sizes()) == (1, [51, 99, 100])
    # One that goes and one that comes: one write.
    slices.step(crowd(*range(2, 252)))
    assert (len(slices.writes), slices.sizes()) == (1, [51, 99, 100])
    slices.step([])
    assert slices.sizes() == [0]
    slices.step([])
    assert slices.writes == []
    slices.step(crowd(1))
    assert [type(write) for write in slices.writes] == [Patch]


def test_nobody_is_said_by_an_empty_slice():
    slices = Slices(service())
    slices.step([])
    assert [type(write) for write in slices.writes] == [Create]
    assert slices.sizes() == [0]


@given(st.lists(st.sets(st.integers(0, 320), max_size=300), min_size=1, max_size=6))
@settings(deadline=None, max_examples=30)
def test_whatever_happened_before_the_slices_hold_what_is_wanted(steps):
    slices = Slices(service())
    for numbers in steps:
        pods = crowd(*sorted(numbers))
        slices.step(pods)
        assert slices.names() == [one.name for one in pods]
        assert all(size <= LIMIT for size in slices.sizes())
        assert slices.sizes() == [0] or 0 not in slices.sizes()
        touched = [write for write in slices.writes if isinstance(write, Patch | Delete)]
        assert len({write.key for write in touched}) == len(touched)
        slices.step(pods)
        assert slices.writes == []


def cluster(*objects):
    stores = {resource: make_store(resource) for resource in ENDPOINT_SLICE.reads}
    kinds = {"Service": SERVICES, "Pod": PODS, "EndpointSlice": ENDPOINT_SLICES, "Node": NODES}
    for one in objects:
        stores[kinds[one.kind]].created(one)
    return stores


def decide(*objects):
    return ENDPOINT_SLICE.decide(cluster(*objects), ("default", "web"), NOW)


def test_a_slice_is_the_services_and_is_found_by_its_label():
    dual = service(ipFamilies=["IPv4", "IPv6"], clusterIP="None", trafficDistribution="PreferClose")
    zone = {"topology.kubernetes.io/zone": "z"}
    made = creates(
        decide(dual, pod("a", "10.244.1.5", "fd00::5"), make_node("node-1", labels=zone)), ENDPOINT_SLICES
    )
    assert [one.body["addressType"] for one in made] == ["IPv4", "IPv6"]
    metadata = made[0].body["metadata"]
    assert metadata["labels"] == {
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "service.kubernetes.io/headless": "",
    }
    assert metadata["ownerReferences"][0]["uid"] == "uid-service"
    endpoint = made[0].body["endpoints"][0]
    assert (endpoint["zone"], endpoint["hints"]) == ("z", {"forZones": [{"name": "z"}]})


def test_services_without_selectors_and_slices_of_others_are_left_alone():
    theirs = make(ENDPOINT_SLICES, "theirs", labels={"kubernetes.io/service-name": "web"}, addressType="IPv4")
    assert decide(service(selector=None), pod("a"), theirs).writes == ()
    assert decide(service(type="ExternalName"), pod("a")).writes == ()
    outcome = decide(service(), pod("a"), theirs)
    assert not deletes(outcome, ENDPOINT_SLICES)
    assert not patches(outcome, ENDPOINT_SLICES)


def test_a_family_that_the_service_has_no_more_loses_its_slices():
    old = make(ENDPOINT_SLICES, "old", owner=service(), addressType="IPv6", endpoints=[])
    assert deletes(decide(service(), old), ENDPOINT_SLICES) == ["old"]


def test_who_hears_of_what():
    one, other = service(), make(SERVICES, "other", spec={"selector": {"app": "db"}})
    narrow = make(SERVICES, "narrow", spec={"selector": {"app": "web", "tier": "front"}})
    mine = make(ENDPOINT_SLICES, "s", owner=one)
    stores = cluster(one, other, narrow, make(SERVICES, "bare"), pod("a", node="node-1"), mine)

    def affected(resource, changed):
        return set(ENDPOINT_SLICE.affected(stores, resource, changed))

    key = {("default", "web")}
    assert affected(PODS, pod("b")) == key
    front = pod("b", labels={"a": "b", "app": "web", "tier": "front"})
    assert affected(PODS, front) == key | {("default", "narrow")}
    assert affected(PODS, pod("b", labels={})) == set()
    assert affected(PODS, pod("b", labels={"app": "else"})) == set()
    assert affected(NODES, make_node("node-1")) == key
    assert affected(NODES, make_node("node-2")) == set()
    assert affected(ENDPOINT_SLICES, mine) == key
    assert affected(ENDPOINT_SLICES, make(ENDPOINT_SLICES, "theirs")) == set()
