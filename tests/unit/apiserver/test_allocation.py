"""Addresses and node ports of Services, as the server's hook gives them."""

import asyncio
import contextlib
import copy
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.apiserver.allocation import Pool, ServiceAllocator, address_span
from poplin.apiserver.deletion import DeleteOptions
from poplin.apiserver.lifecycle import Lifecycle
from poplin.apiserver.options import Options
from poplin.apiserver.resource import Registry
from poplin.apiserver.status import StatusError
from poplin.apiserver.store import Store

V4, V6 = ip_network("10.96.0.0/24"), ip_network("fd00:96::/120")
PORTS = [{"port": 80}]


class Services:
    """Services of one namespace behind the server's rules."""

    def __init__(self, store, networks):
        registry = Registry()
        self.lifecycle = Lifecycle(store, registry)
        self.allocator = ServiceAllocator(self.lifecycle, networks)
        self.lifecycle.hooks.append(self.allocator)
        self.allocator.load()
        self.resource = registry.find("", "v1", "services")
        self.namespaces = registry.find("", "v1", "namespaces")

    async def create(self, name, *, dry_run=False, **spec):
        body = copy.deepcopy({"metadata": {"name": name}, "spec": {"ports": PORTS, **spec}})
        made = await self.lifecycle.create(self.resource, "default", body, Options(dry_run=dry_run))
        return made.decode()["spec"]

    async def patch(self, name, **spec):
        """Change keys of the spec; None removes one."""

        def change(document):
            after = {**document["spec"], **spec}
            document["spec"] = {key: value for key, value in after.items() if value is not None}
            return document

        made = await self.lifecycle.update(self.resource, ("default", name), change, Options())
        return made.decode()["spec"]

    async def delete(self, name):
        await self.lifecycle.delete(self.resource, ("default", name), DeleteOptions())


@contextlib.asynccontextmanager
async def cluster(*networks, path=":memory:"):
    store = Store(path)
    services = Services(store, networks or (V4, V6))
    if not services.lifecycle.collection(services.namespaces).entries:
        await services.lifecycle.create(services.namespaces, "", {"metadata": {"name": "default"}}, Options())
    try:
        yield services
    finally:
        await store.close()


async def refusal(attempt):
    """{field: message} of what is refused."""
    with pytest.raises(StatusError) as caught:
        await attempt
    assert caught.value.code == 422, caught.value
    return {cause["field"]: cause["message"] for cause in caught.value.details["causes"]}


def families(spec):
    return [f"IPv{ip_address(text).version}" for text in spec.get("clusterIPs", ())]


BOTH = ["IPv4", "IPv6"]
WANTED = [
    # networks, spec -> families of the addresses, ipFamilies, policy
    ((V4, V6), {}, ["IPv4"], ["IPv4"], "SingleStack"),
    ((V6, V4), {}, ["IPv6"], ["IPv6"], "SingleStack"),
    ((V4, V6), {"ipFamilies": ["IPv6"]}, ["IPv6"], ["IPv6"], "SingleStack"),
    ((V4, V6), {"ipFamilyPolicy": "PreferDualStack"}, BOTH, BOTH, "PreferDualStack"),
    ((V4,), {"ipFamilyPolicy": "PreferDualStack"}, ["IPv4"], ["IPv4"], "PreferDualStack"),
    ((V4, V6), {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}, BOTH[::-1], BOTH[::-1], "RequireDualStack"),
    ((V4, V6), {"clusterIP": "fd00:96::77"}, ["IPv6"], ["IPv6"], "SingleStack"),
    ((V4, V6), {"clusterIP": "10.96.0.7", "ipFamilyPolicy": "PreferDualStack"}, BOTH, BOTH, "PreferDualStack"),
]  # fmt: skip


@pytest.mark.parametrize(("networks", "spec", "addresses", "wanted", "policy"), WANTED)
async def test_a_new_service_gets_the_families_it_asks_for(networks, spec, addresses, wanted, policy):
    async with cluster(*networks) as services:
        made = await services.create("a", **spec)
        assert families(made) == addresses
        assert (made["ipFamilies"], made["ipFamilyPolicy"]) == (wanted, policy)
        assert made["clusterIP"] == made["clusterIPs"][0]
        for text in made["clusterIPs"]:
            assert any(ip_address(text) in network for network in networks)


HEADLESS = [
    ((V4,), {"selector": {"a": "b"}}, ["IPv4"], "SingleStack"),
    ((V4,), {}, BOTH, "RequireDualStack"),
    ((V4, V6), {"selector": {"a": "b"}, "ipFamilyPolicy": "PreferDualStack"}, BOTH, "PreferDualStack"),
]


@pytest.mark.parametrize(("networks", "spec", "wanted", "policy"), HEADLESS)
async def test_a_headless_service_has_families_and_no_address(networks, spec, wanted, policy):
    async with cluster(*networks) as services:
        made = await services.create("a", clusterIP="None", **spec)
        assert made["clusterIPs"] == ["None"]
        assert (made["ipFamilies"], made["ipFamilyPolicy"]) == (wanted, policy)


REFUSED = [
    ({"clusterIP": "10.97.0.1"}, "spec.clusterIPs", "The range of valid IPs is 10.96.0.0/24"),
    ({"clusterIP": "10.96.0.0"}, "spec.clusterIPs", "not in the valid range"),
    ({"clusterIP": "10.96.0.255"}, "spec.clusterIPs", "not in the valid range"),
    ({"clusterIP": "10.96.0.5"}, "spec.clusterIPs", "already allocated"),
    ({"clusterIP": "fd00:96::5"}, "spec.clusterIPs[0]", "IPv6 is not configured on this cluster"),
    ({"clusterIP": "nonsense"}, "spec.clusterIPs[0]", "must be a valid IP address"),
    ({"clusterIP": "10.96.0.9", "ipFamilies": ["IPv6"]}, "spec.clusterIPs[0]", "expected an IPv6 value"),
    ({"clusterIPs": ["10.96.0.9"]}, "spec.clusterIPs", "must be empty when `clusterIP` is not specified"),
    ({"clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.9"]}, "spec.clusterIPs", "first value must match"),
    ({"ipFamilies": ["IPv6"]}, "spec.ipFamilies[0]", "not configured on this cluster"),
    ({"ipFamilies": ["IPv4", "IPv4"]}, "spec.ipFamilies[1]", "Duplicate value"),
    ({"ipFamilyPolicy": "RequireDualStack"}, "spec.ipFamilyPolicy", "not configured for dual-stack"),
    ({"ipFamilies": BOTH, "ipFamilyPolicy": "SingleStack"}, "spec.ipFamilyPolicy", "multiple IP families"),
    ({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}, "spec.ports[0].nodePort", "valid ports is 30000-32767"),
    ({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30005}]}, "spec.ports[0].nodePort", "already allocated"),
    ({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30006}]}, "spec.ports[0].nodePort", "already allocated"),
    ({"type": "ClusterIP", "ports": [{"port": 1, "nodePort": 30009}]}, "spec.ports[0].nodePort", "may not be used"),
    ({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30005}, "spec.healthCheckNodePort", "already allocated"),
    ({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.0.9"}, "spec.clusterIPs", "may not be set"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "field", "why"), REFUSED)
async def test_what_cannot_be_had_is_refused_with_its_path(spec, field, why):
    async with cluster(V4) as services:
        await services.create(
            "held",
            clusterIP="10.96.0.5",
            type="LoadBalancer",
            externalTrafficPolicy="Local",
            healthCheckNodePort=30006,
            ports=[{"port": 80, "nodePort": 30005}],
        )
        faults = await refusal(services.create("a", **spec))
        assert why in faults[field]


async def test_an_address_is_free_again_when_its_service_goes_and_not_before(tmp_path):
    async with cluster(V4, path=tmp_path / "db") as services:
        await services.create("a", clusterIP="10.96.0.5", type="NodePort")
        await refusal(services.create("b", clusterIP="10.96.0.5"))
    # A restart forgets nothing.
    async with cluster(V4, path=tmp_path / "db") as services:
        await refusal(services.create("b", clusterIP="10.96.0.5"))
        await services.delete("a")
        assert (await services.create("b", clusterIP="10.96.0.5"))["clusterIP"] == "10.96.0.5"


async def test_what_is_refused_or_tried_takes_nothing():
    async with cluster(V4) as services:
        assert (await services.create("a", dry_run=True, clusterIP="10.96.0.5"))["clusterIP"] == "10.96.0.5"
        await refusal(services.create("a", clusterIP="10.96.0.5", externalIPs=["x"]))
        await services.create("b", clusterIP="10.96.0.5")
        with pytest.raises(StatusError, match="already exists"):
            await services.create("b")
        assert len({(await services.create(f"s{n}"))["clusterIP"] for n in range(20)}) == 20


async def test_a_range_is_used_to_its_last_address_and_then_refused():
    async with cluster(ip_network("10.96.0.0/28")) as services:
        made = await asyncio.gather(*(services.create(f"s{n}") for n in range(14)))
        assert {spec["clusterIP"] for spec in made} == {f"10.96.0.{n}" for n in range(1, 15)}
        with pytest.raises(StatusError, match="failed to allocate a serviceIP: range is full"):
            await services.create("one-more")
        await services.delete("s3")
        assert (await services.create("again"))["clusterIP"] == made[3]["clusterIP"]


async def test_types_change_and_what_they_need_comes_and_goes():
    async with cluster(V4, V6) as services:
        first = await services.create("a")
        assert "nodePort" not in first["ports"][0]
        exposed = await services.patch("a", type="NodePort")
        number = exposed["ports"][0]["nodePort"]
        assert 30000 <= number <= 32767
        balanced = await services.patch("a", type="LoadBalancer", externalTrafficPolicy="Local")
        assert balanced["ports"][0]["nodePort"] == number
        assert 30000 <= balanced["healthCheckNodePort"] <= 32767
        plain = await services.patch("a", type="ClusterIP")
        assert plain["clusterIP"] == first["clusterIP"]
        gone = {"externalTrafficPolicy", "healthCheckNodePort", "allocateLoadBalancerNodePorts"}
        assert not gone & plain.keys()
        assert "nodePort" not in plain["ports"][0]
        named = await services.patch("a", type="ExternalName", externalName="example.org")
        assert not {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"} & named.keys()
        await services.create("b", clusterIP=first["clusterIP"])
        again = await services.patch("a", type="ClusterIP", externalName=None)
        assert again["clusterIP"] not in {first["clusterIP"], ""}


async def test_a_second_family_comes_and_goes_with_the_policy():
    async with cluster(V4, V6) as services:
        first = await services.create("a")
        both = await services.patch("a", ipFamilyPolicy="PreferDualStack")
        assert families(both) == both["ipFamilies"] == BOTH
        assert both["clusterIPs"][0] == first["clusterIP"]
        wrong = await refusal(services.patch("a", clusterIPs=both["clusterIPs"][:1]))
        assert wrong["spec.ipFamilyPolicy"].endswith(
            "must be 'SingleStack' to release the secondary cluster IP"
        )
        one = await services.patch("a", ipFamilyPolicy="SingleStack")
        assert (one["clusterIPs"], one["ipFamilies"]) == ([first["clusterIP"]], ["IPv4"])
        assert await services.create("b", clusterIP=both["clusterIPs"][1])


async def test_a_preference_is_not_acted_upon_by_itself():
    async with cluster(V4) as services:
        made = await services.create("a", ipFamilyPolicy="PreferDualStack")
        services.allocator.__init__(services.lifecycle, (V4, V6))
        services.allocator.load()
        assert (await services.patch("a", selector={"a": "b"}))["clusterIPs"] == made["clusterIPs"]


async def test_what_a_service_has_does_not_change():
    async with cluster(V4, V6) as services:
        spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerClass": "a/b"}
        made = await services.create("a", **spec)
        other = 30001 if made["healthCheckNodePort"] != 30001 else 30002
        for change, field in (
            ({"clusterIP": "10.96.0.250", "clusterIPs": None}, "spec.clusterIPs[0]"),
            ({"ipFamilies": ["IPv6"]}, "spec.clusterIPs[0]"),
            ({"healthCheckNodePort": other}, "spec.healthCheckNodePort"),
            ({"loadBalancerClass": "a/c"}, "spec.loadBalancerClass"),
        ):
            if change.get("clusterIP") == made["clusterIP"]:
                continue
            assert field in await refusal(services.patch("a", **change)), change


async def test_one_number_serves_a_port_over_all_protocols():
    ports = [
        {"port": 53, "protocol": "UDP", "name": "a"},
        {"port": 53, "protocol": "TCP", "name": "b"},
        {"port": 54, "protocol": "TCP", "name": "c"},
    ]
    async with cluster(V4) as services:
        numbers = [
            port["nodePort"] for port in (await services.create("a", type="NodePort", ports=ports))["ports"]
        ]
        assert numbers[0] == numbers[1] != numbers[2]
        none = await services.create("b", type="LoadBalancer", allocateLoadBalancerNodePorts=False)
        assert "nodePort" not in none["ports"][0]


async def test_writes_at_once_never_share():
    async with cluster(V4, V6) as services:
        made = await asyncio.gather(
            *(
                services.create(f"s{n}", type="NodePort", ipFamilyPolicy="RequireDualStack")
                for n in range(100)
            )
        )
        addresses = [text for spec in made for text in spec["clusterIPs"]]
        ports = [spec["ports"][0]["nodePort"] for spec in made]
        assert (len(addresses), len(set(addresses)), len(set(ports))) == (200, 200, 100)


@given(st.integers(20, 120), st.sets(st.integers(0, 127)), st.integers(0, 40))
@settings(deadline=None)
def test_a_pool_gives_free_numbers_only_and_the_upper_ones_first(size, held, band):
    span = range(1, size + 1)
    band = min(band, size)
    taken = {number for number in held if number in span}
    pool = Pool(span, band, lambda key, _: key[1] == "lives")
    for number in span:
        pool.claim(number, ("", "lives" if number in taken else "gone"))
    chosen = pool.choose(())
    free = set(span) - taken
    if not free:
        assert chosen is None
        return
    assert chosen in free
    upper = {number for number in free if number > band}
    assert not upper or chosen in upper


def test_the_ends_of_a_range():
    assert address_span(ip_network("10.96.0.0/16")) == (range(0x0A600001, 0x0A60FFFF), 256)
    span, band = address_span(V6)
    assert (len(span), band) == (255, 16)
