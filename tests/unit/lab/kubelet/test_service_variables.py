"""Services as variables."""

from poplin.lab.controllers.object import SERVICES
from poplin.lab.kubelet.service_variables import make_variables
from unit.lab.controllers.objects import make


def service(name, address, *ports):
    return make(SERVICES, name, spec={"clusterIP": address, "ports": list(ports)})


def test_a_service_is_told_of_as_documented():
    ports = (
        {"name": "main", "port": 6379, "protocol": "TCP"},
        {"name": "side-door", "port": 53, "protocol": "UDP"},
    )
    assert make_variables([service("redis-primary", "10.0.0.11", *ports)]) == {
        "REDIS_PRIMARY_SERVICE_HOST": "10.0.0.11",
        "REDIS_PRIMARY_SERVICE_PORT": "6379",
        "REDIS_PRIMARY_SERVICE_PORT_MAIN": "6379",
        "REDIS_PRIMARY_SERVICE_PORT_SIDE_DOOR": "53",
        "REDIS_PRIMARY_PORT": "tcp://10.0.0.11:6379",
        "REDIS_PRIMARY_PORT_6379_TCP": "tcp://10.0.0.11:6379",
        "REDIS_PRIMARY_PORT_6379_TCP_PROTO": "tcp",
        "REDIS_PRIMARY_PORT_6379_TCP_PORT": "6379",
        "REDIS_PRIMARY_PORT_6379_TCP_ADDR": "10.0.0.11",
        "REDIS_PRIMARY_PORT_53_UDP": "udp://10.0.0.11:53",
        "REDIS_PRIMARY_PORT_53_UDP_PROTO": "udp",
        "REDIS_PRIMARY_PORT_53_UDP_PORT": "53",
        "REDIS_PRIMARY_PORT_53_UDP_ADDR": "10.0.0.11",
    }


def test_addresses_of_ipv6_are_in_brackets_where_a_port_follows():
    told = make_variables([service("a", "fd00::1", {"port": 80})])
    assert (told["A_SERVICE_HOST"], told["A_PORT"]) == ("fd00::1", "tcp://[fd00::1]:80")


def test_headless_services_are_told_of_by_dns_alone():
    assert make_variables([service("a", "None", {"port": 80}), service("b", "", {"port": 80})]) == {}


def test_the_later_of_two_of_a_name_counts():
    told = make_variables([service("a", "10.0.0.1", {"port": 1}), service("a", "10.0.0.2", {"port": 2})])
    assert told["A_SERVICE_HOST"] == "10.0.0.2"
