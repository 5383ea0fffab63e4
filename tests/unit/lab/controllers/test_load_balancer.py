"""Addresses of load balancers."""

from ipaddress import ip_network

import pytest

from poplin.lab.controllers.load_balancer import CLASS, allot
from poplin.lab.controllers.object import SERVICES
from poplin.lab.controllers.write import Tell
from unit.lab.controllers.objects import ago, make, patches

POOL = (ip_network("172.19.0.0/29"), ip_network("fd00:19::/125"))


def balancer(name, *given, families=("IPv4",), minutes=1, **spec):
    status = {"loadBalancer": {"ingress": [{"ip": one, "ipMode": "VIP"} for one in given]}} if given else {}
    spec = {"type": "LoadBalancer", "ipFamilies": list(families), **spec}
    return make(SERVICES, name, spec=spec, status=status, created=ago(minutes=minutes))


def addresses(writes):
    return {
        one.key[1]: [entry["ip"] for entry in one.body["status"]["loadBalancer"]["ingress"] or ()]
        for one in patches(writes, SERVICES, "status")
    }


def test_the_lowest_free_address_of_each_family():
    services = [
        balancer("old", "172.19.0.1", minutes=3),
        balancer("new", families=("IPv6", "IPv4")),
        balancer("newer", minutes=0),
    ]
    assert addresses(allot(services, POOL)) == {"new": ["fd00:19::1", "172.19.0.2"], "newer": ["172.19.0.3"]}


CASES = [
    (balancer("a", "172.19.0.5"), {}),
    (balancer("a", "10.9.9.9"), {"a": ["172.19.0.1"]}),
    (balancer("a", "172.19.0.5", type="ClusterIP"), {"a": []}),
    (balancer("a", loadBalancerClass="example.org/other"), {}),
    (balancer("a", "192.0.2.1", loadBalancerClass="example.org/other"), {}),
    (balancer("a", loadBalancerClass=CLASS), {"a": ["172.19.0.1"]}),
    (balancer("a", loadBalancerIP="172.19.0.4"), {"a": ["172.19.0.4"]}),
    (balancer("a", "172.19.0.2", "fd00:19::2", families=("IPv4",)), {"a": ["172.19.0.2"]}),
]


@pytest.mark.parametrize(("service", "wanted"), CASES)
def test_what_a_service_gets(service, wanted):
    assert addresses(allot([service], POOL)) == wanted


def test_an_address_is_one_services():
    writes = allot([balancer("a", "172.19.0.1", minutes=2), balancer("b", "172.19.0.1")], POOL)
    assert addresses(writes) == {"b": ["172.19.0.2"]}


@pytest.mark.parametrize("asked", ["172.19.0.1", "10.0.0.1", "nonsense"])
def test_one_that_cannot_be_served_is_told_and_the_others_are_served(asked):
    services = [balancer("a", "172.19.0.1", minutes=2), balancer("b", loadBalancerIP=asked), balancer("c")]
    writes = allot(services, POOL)
    assert addresses(writes) == {"c": ["172.19.0.2"]}
    assert [one.event.about.name for one in writes if isinstance(one, Tell)] == ["b"]


def test_a_pool_is_used_to_its_last_address():
    writes = allot([balancer(f"s{number}") for number in range(8)], POOL)
    assert len({one for found in addresses(writes).values() for one in found}) == 6
    assert sum(isinstance(one, Tell) for one in writes) == 2
