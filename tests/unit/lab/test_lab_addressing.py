from ipaddress import ip_address, ip_network

import pytest

from poplin.datastore.netconf import parse_netconf
from poplin.lab.addressing import MAX_NODES, UNDERLAY, Addressing, check_services, parse_families, parse_pool
from poplin.lab.directory import Directory
from poplin.lab.settings import (
    Backend,
    Settings,
    check_name,
    check_nodes,
    make_net_conf,
    read_settings,
    write_settings,
)
from poplin.model.errors import InvalidInputError
from poplin.model.netconf import NetConf


@pytest.mark.parametrize("versions", [(4,), (6,), (4, 6)])
def test_every_node_and_gateway_has_addresses_of_its_own(versions):
    addressing = Addressing(versions)
    hosts = [addressing.gateways(), *(addressing.node(n) for n in range(1, MAX_NODES + 1))]
    addresses = [interface.ip for host in hosts for interface in host]
    assert len(set(addresses)) == len(addresses) == (MAX_NODES + 1) * len(versions)
    assert all(interface.network == UNDERLAY[interface.version] for host in hosts for interface in host)
    assert [network.version for network in addressing.pod_networks()] == list(versions)


def test_the_api_is_at_the_first_familys_gateway():
    assert Addressing((4, 6)).api_address() == ip_address("172.18.0.1")
    assert Addressing((6,)).api_address() == ip_address("fd00:10:18::1")


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "dual"])
@pytest.mark.parametrize("backend", list(Backend))
def test_the_net_conf_is_one_that_an_agent_reads(family, backend):
    versions = parse_families(family)
    conf = parse_netconf(make_net_conf(versions, backend), "test")
    assert isinstance(conf, NetConf)
    assert conf.backend.type == backend.value


@pytest.mark.parametrize("name", ["lab", "a", "a-b", "lab2", "x" * 20])
def test_names_of_labs(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a--b", "a/b", "a.b", "x" * 21, "a\n"])
def test_what_cannot_be_a_labs_name(name):
    with pytest.raises(InvalidInputError, match="--name"):
        check_name(name)


@pytest.mark.parametrize("nodes", [0, -1, MAX_NODES + 1])
def test_what_cannot_be_a_number_of_nodes(nodes):
    with pytest.raises(InvalidInputError, match="--nodes"):
        check_nodes(nodes)


def test_no_lab_takes_anothers_namespaces_for_its_own():
    assert not Directory("a-b").fabric_namespace().startswith(Directory("a").prefix)


def test_settings_are_read_as_they_were_written(tmp_path):
    settings = Settings("lab", 3, (4, 6), "{}\n", "/etc/kubeconfig", controllers=False)
    write_settings(tmp_path / "lab.json", settings)
    assert read_settings(tmp_path / "lab.json") == settings
    (tmp_path / "lab.json").write_text("{")
    with pytest.raises(InvalidInputError, match="poplin lab down"):
        read_settings(tmp_path / "lab.json")


def test_services_have_the_usual_ranges_or_those_that_are_given():
    assert [str(one) for one in Addressing((4, 6)).dns_addresses()] == ["10.96.0.10", "fd00:10:96::a"]
    given = (ip_network("fd00:5::/112"), ip_network("10.5.0.0/24"))
    services = check_services(given, (4, 6))
    assert [str(one) for one in Addressing((4, 6), services).dns_addresses()] == ["10.5.0.10", "fd00:5::a"]
    assert check_services((), (4,)) == ()


@pytest.mark.parametrize(
    ("text", "versions"), [("fd00:5::/112", (4,)), ("10.244.8.0/24", (4,)), ("fd00:5::/112", (4, 6))]
)
def test_ranges_that_a_lab_cannot_have_are_refused(text, versions):
    with pytest.raises(InvalidInputError, match="--service-cidr"):
        check_services((ip_network(text),), versions)


def test_load_balancers_have_a_pool():
    assert [str(one) for one in Addressing((4,)).load_balancer_pool()] == ["172.19.0.0/24"]
    assert parse_pool("", (4,)) == ()
    assert [str(one) for one in parse_pool("192.0.2.0/28, 198.51.100.0/28", (4,))] == [
        "192.0.2.0/28",
        "198.51.100.0/28",
    ]
    for wrong in ("x", "192.0.2.1/24", "fd00::/64", "172.18.4.0/24"):
        with pytest.raises(InvalidInputError, match="--load-balancer-pool"):
            parse_pool(wrong, (4,))
