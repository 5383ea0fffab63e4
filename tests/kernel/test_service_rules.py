"""The writer of the Services' table: what the kernel holds after many changes, failures and large loads."""

import random
import secrets
import threading
from ipaddress import ip_address

import pytest

from kernel.topology import POD_A, POD_B, SERVICE, built
from poplin.agent.service_rules import KEY, ServiceInputs, ServiceRules
from poplin.compile.services.endpoints import Place
from poplin.compile.services.table import GROWS_TO, ServiceTable
from poplin.dataplane.netns import create_netns, delete_netns, entered
from poplin.dataplane.nftables.socket import NftSocket
from poplin.model.cluster import Node, TransportProtocol
from poplin.model.errors import KernelError
from poplin.model.service import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort
from poplin.plan.nftables import FlushChain

TCP = TransportProtocol.TCP
TURNS = 60
OWN = Node("here", internal_addresses=(ip_address("192.0.2.1"), ip_address("2001:db8:2::1")))


@pytest.fixture
def rules():
    path = create_netns(f"poplin-rules-{secrets.token_hex(4)}")
    try:
        with path.open() as namespace, entered(namespace.fileno()):
            made = ServiceRules()
            yield made
            made.close()
    finally:
        delete_netns(path.name)


def wanted(number, endpoints, **changes):
    name = f"s{number}"
    service = Service(
        "shop",
        name,
        ports=(ServicePort("", TCP, 80, changes.pop("node_port", 0)),),
        cluster_ips=(ip_address((10 << 24) + (96 << 16) + number),),
        **changes,
    )
    ends = tuple(Endpoint(ip_address((10 << 24) + (244 << 16) + one), node_name="here") for one in endpoints)
    return service, (EndpointSlice("shop", name, name, (EndpointPort("", TCP, 8080),), ends),)


def inputs(changes):
    return ServiceInputs(None, OWN, {("shop", f"s{n}"): change for n, change in changes.items()})


def held():
    with NftSocket() as nft:
        return nft.read_table(KEY)


def fresh(services):
    table = ServiceTable(Place("here", "", OWN.internal_addresses, OWN.internal_addresses))
    for service, slices in services.values():
        table.put(service, slices)
    return table.table()


def test_any_changes_end_where_the_last_ones_lead(rules):
    """Shapes come and go, sets of affinity fill and empty, agents read anew: the kernel has what is wanted."""
    chance = random.Random(7)
    standing = {}
    for _ in range(300):
        changes = {}
        for _ in range(chance.randint(1, 5)):
            number = chance.randint(0, 30)
            if chance.random() < 0.2:
                changes[number] = None
                standing.pop(number, None)
                continue
            changes[number] = standing[number] = wanted(
                number,
                chance.sample(range(1, 60), chance.randint(0, 6)),
                node_port=chance.choice([0, 30_000 + number]),
                affinity_timeout_s=chance.choice([None, None, 30, 10_800]),
                external_local=chance.random() < 0.3,
                internal_local=chance.random() < 0.2,
            )
        if chance.random() < 0.05:
            rules.forget()
        outcome = rules.run(inputs(changes))
        assert not outcome.failures
    assert held() == fresh(standing)
    rules.forget()
    assert rules.run(inputs({})).changes == 0


def test_a_set_that_outgrows_its_size_is_made_anew(rules):
    """Over the boundary and back: each time the kernel has every element, and of a set of the right size."""
    some = {number: wanted(number, [1]) for number in range(GROWS_TO)}
    assert not rules.run(inputs(some)).failures
    for more in (wanted(GROWS_TO, [1]), None, wanted(GROWS_TO, [2])):
        assert not rules.run(inputs({GROWS_TO: more})).failures
        now = {**some, **({GROWS_TO: more} if more else {})}
        assert held() == fresh(now)


def test_a_transaction_that_the_kernel_refuses_is_made_good_for(rules, monkeypatch):
    assert not rules.run(inputs({1: wanted(1, [1])})).failures
    apply = NftSocket.apply

    def refuse(*_):
        raise KernelError("no memory", errno=12)

    monkeypatch.setattr(NftSocket, "apply", refuse)
    assert rules.run(inputs({2: wanted(2, [1, 2])})).failures
    monkeypatch.setattr(NftSocket, "apply", apply)
    assert not rules.run(inputs({})).failures
    assert held() == fresh({1: wanted(1, [1]), 2: wanted(2, [1, 2])})


def test_a_load_that_broke_off_is_finished(rules):
    """An agent that dies between the transactions of a load leaves a table without rules."""
    assert not rules.run(inputs({1: wanted(1, [1])})).failures
    with NftSocket() as nft:
        nft.apply([FlushChain(KEY, chain.name) for chain in held().chains])
    rules.forget()
    assert not rules.run(inputs({})).failures
    assert held() == fresh({1: wanted(1, [1])})


@pytest.mark.parametrize("version", [4, 6])
def test_no_connection_fails_while_endpoints_change(version):
    """One of two endpoints comes and goes all the while, and clients of both hooks connect."""
    ports = (EndpointPort("", TCP, 8080),)
    service = Service(
        "shop", "s", ports=(ServicePort("", TCP, 80),), cluster_ips=(ip_address(SERVICE[version]),)
    )
    with built() as world:
        with world.node.entered():
            rules = ServiceRules()
        for pod in (world.a, world.b):
            pod.listen(version, 8080).listen(4096)

        def serve(*addresses):
            ends = tuple(Endpoint(ip_address(one[version])) for one in addresses)
            changed = {("shop", "s"): (service, (EndpointSlice("shop", "s", "s", ports, ends),))}
            return rules.run(ServiceInputs(None, OWN, changed)).failures

        assert not serve(POD_A, POD_B)
        done = threading.Event()
        failures, turns = [], 0

        def change():
            nonlocal turns
            while not done.is_set():
                failures.extend([*serve(POD_A), *serve(POD_B), *serve(POD_A, POD_B)])
                turns += 1

        changing = threading.Thread(target=change)
        changing.start()
        try:
            while changing.is_alive() and turns < TURNS:
                for client in (world.a, world.b, world.node):
                    client.connect(SERVICE[version], 80).close()
                    client.sockets.pop()
        finally:
            done.set()
            changing.join()
            rules.close()
        assert not failures
        assert turns >= TURNS
