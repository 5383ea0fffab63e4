"""Three that must agree on every packet: the evaluator, the compiled table, and a naive reading of the YAML."""

from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from poplin.compile.policy.compiler import PolicyCompiler, compile_policy
from poplin.compile.policy.network_policy import translate
from poplin.compile.policy.world import PolicyState, build_world
from poplin.datastore.core import NAMESPACES, NODES, PODS
from poplin.datastore.file import select
from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.model.kernel import POD_LINK_GROUP
from poplin.model.policy import PROTOCOLS, Packet, Reason
from poplin.plan.nftables import plan_table
from property.naive_policy import naive_allows, of_kind, pod_of
from property.nft_interpreter import Case, Machine
from property.policy_cases import NODES as NODE_ADDRESSES
from property.policy_cases import OUTSIDE, PORTS, clusters
from property.policy_cases import PROTOCOLS as PROTOCOL_NAMES
from unit.plan.test_nftables import Kernel


def read(objects):
    """The cluster's objects as the agent reads them."""
    found = [
        tuple(select(objects, resource, None, None).values())
        for resource in (NAMESPACES, PODS, NODES, NETWORK_POLICIES)
    ]
    return PolicyState(*found)


def packets(objects, version):
    """Every pair of addresses, with each port and protocol."""
    addresses = [entry["ip"] for pod in of_kind(objects, "Pod") for entry in pod["status"]["podIPs"]]
    addresses += [*NODE_ADDRESSES.values(), *OUTSIDE]
    same = [address for address in addresses if ip_address(address).version == version]
    pods = {address for address in same if pod_of(objects, address)}
    return [
        (source, destination, protocol, port)
        for source in same
        for destination in same
        if source in pods or destination in pods
        for protocol in PROTOCOL_NAMES
        for port in PORTS
    ]


def to_packet(source, destination, protocol, port):
    return Packet(ip_address(source), ip_address(destination), PROTOCOLS[protocol], port, 40000)


@settings(max_examples=40)
@given(clusters(), st.sampled_from([4, 6]))
def test_the_evaluator_is_the_naive_reading(objects, version):
    world = build_world(read(objects))
    for one in packets(objects, version):
        explanation = world.evaluate(to_packet(*one))
        assert (explanation.egress.allowed, explanation.ingress.allowed) == naive_allows(objects, *one), one


@settings(max_examples=40)
@given(clusters(), st.sampled_from([4, 6]))
def test_a_verdict_names_what_decides(objects, version):
    world = build_world(read(objects))
    for one in packets(objects, version):
        explanation = world.evaluate(to_packet(*one))
        for verdict in (explanation.egress, explanation.ingress):
            assert bool(verdict.policies) == (verdict.reason in {Reason.RULE, Reason.NO_RULE})
            assert (verdict.rule is not None) == (verdict.reason is Reason.RULE)
            assert verdict.allowed == (verdict.reason is not Reason.NO_RULE)


def machine_allows(machines, objects, one):
    """The verdicts of the tables of both nodes, as the packet passes them."""
    source, destination, protocol, port = one
    client, server = pod_of(objects, source), pod_of(objects, destination)
    if client is server and client is not None:
        return True, True
    homes = [pod["spec"]["nodeName"] if pod else None for pod in (client, server)]
    group = POD_LINK_GROUP
    number = PROTOCOLS[protocol]
    ends = (ip_address(source), ip_address(destination), number, 40000, port)
    if homes[0] is not None and homes[0] == homes[1]:
        both = machines[homes[0]].passes("forward", Case(*ends, iifgroup=group, oifgroup=group))
        return both, both
    egress = ingress = True
    if homes[0] is not None:
        local = NODE_ADDRESSES[homes[0]] == destination
        egress = machines[homes[0]].passes("input" if local else "forward", Case(*ends, iifgroup=group))
    if homes[1] is not None:
        local = NODE_ADDRESSES[homes[1]] == source
        ingress = machines[homes[1]].passes("output" if local else "forward", Case(*ends, oifgroup=group))
    return egress, ingress


@settings(max_examples=40)
@given(clusters(), st.sampled_from([4, 6]))
def test_the_table_decides_as_the_evaluator(objects, version):
    state = read(objects)
    world = build_world(state)
    machines = {name: Machine(compile_policy(state, name)) for name in NODE_ADDRESSES}
    for one in packets(objects, version):
        explanation = world.evaluate(to_packet(*one))
        egress, ingress = machine_allows(machines, objects, one)
        assert (egress and ingress) == explanation.allowed, (one, explanation)


@settings(max_examples=40)
@given(clusters(), clusters(), st.randoms(use_true_random=False))
def test_changes_in_any_order_lead_where_the_whole_state_does(before, after, random):
    """But for the numbers of identities: so what the table decides is compared, not what it is.

    And every table is what the plans so far have made of an empty kernel.
    """
    compiler = Followed("n1")
    old, new = read(before), read(after)
    put_all(compiler, old, random)
    compiler.table()
    steps = [lambda key=policy: compiler.delete_policy(translate(key).key) for policy in old.network_policies]
    steps += [
        lambda one=pod: compiler.delete_pod(one.namespace, one.name)
        for pod in old.pods
        if random.random() < 0.5
    ]
    random.shuffle(steps)
    for step in steps:
        step()
        if random.random() < 0.3:
            compiler.table()
    put_all(compiler, new, random)
    table = compiler.table()
    fresh = compile_policy(new, "n1")
    assert {chain.name for chain in table.chains} == {chain.name for chain in fresh.chains}
    assert {one.name: len(one.elements) for one in table.sets} == {
        one.name: len(one.elements) for one in fresh.sets
    }
    one, other = Machine(table), Machine(fresh)
    for packet in packets(after, 4):
        for groups in ((POD_LINK_GROUP, 0), (0, POD_LINK_GROUP)):
            case = Case(*map(ip_address, packet[:2]), PROTOCOLS[packet[2]], 40000, packet[3], *groups)
            assert one.passes("forward", case) == other.passes("forward", case), packet


class Followed(PolicyCompiler):
    """A compiler whose tables a kernel in miniature follows, plan by plan."""

    def __init__(self, node):
        super().__init__(node)
        self.kernel, self.last = Kernel(None), None

    def table(self):
        made = super().table()
        self.kernel.apply(plan_table(made, self.last))
        assert self.kernel.table() == made
        self.last = made
        return made


def put_all(compiler, state, random):
    steps = [lambda one=one: compiler.put_namespace(one) for one in state.namespaces]
    steps += [lambda one=one: compiler.put_pod(one) for one in state.pods]
    steps += [lambda one=one: compiler.put_policy(translate(one)) for one in state.network_policies]
    random.shuffle(steps)
    for step in steps:
        step()
        if random.random() < 0.2:
            compiler.table()
