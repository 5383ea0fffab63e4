"""What the evaluator says of a cluster: the same one that the agents' tables are compiled with."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Final, TypeVar

from poplin.compile.policy.world import Explanation, PolicyState, World, build_world
from poplin.datastore.core import NAMESPACES, NODES, PODS
from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.datastore.parse import InvalidObjectError, convert_object
from poplin.datastore.resource import ClusterObject, Resource
from poplin.lab.conformance.case import Case, Json, Question
from poplin.lab.conformance.cluster import Objects, collect, give_addresses, pods_of, resolved, take_step
from poplin.lab.conformance.table import Table, differing, read_table
from poplin.model.kernel import IPAddress, IPNetwork
from poplin.model.policy import ICMP, ICMPV6, PROTOCOLS, IcmpKind, Packet

T = TypeVar("T", bound=ClusterObject)

ECHO_REQUEST: Final = {4: IcmpKind(8, 0), 6: IcmpKind(128, 0)}


def world_of(objects: Iterable[Json]) -> World:
    """The world of API objects; other kinds than policy asks for are passed over. Raises PoplinError."""
    every = list(objects)
    return build_world(
        PolicyState(
            namespaces=_read(NAMESPACES, every),
            pods=_read(PODS, every),
            nodes=_read(NODES, every),
            network_policies=_read(NETWORK_POLICIES, every),
        )
    )


def _read(resource: Resource[T], objects: Iterable[Json]) -> tuple[T, ...]:
    values = []
    for one in objects:
        if one["kind"] == resource.kind:
            value = convert_object(resource, one).value
            if isinstance(value, InvalidObjectError):
                raise value
            values.append(value)
    return tuple(values)


def ask(world: World, source: IPAddress, destination: IPAddress, question: Question) -> Explanation:
    """What becomes of a connection's first packet."""
    if question.protocol == "ICMP":
        protocol = ICMP if source.version == 4 else ICMPV6
        return world.evaluate(Packet(source, destination, protocol, icmp=ECHO_REQUEST[source.version]))
    return world.evaluate(Packet(source, destination, PROTOCOLS[question.protocol], question.port))


def evaluate(objects: Objects, question: Question, version: int) -> Table:
    """The table of the objects' pods. The pods have addresses."""
    world, pods = world_of(objects.values()), pods_of(objects)
    address = {
        f"{namespace}/{name}": next(one for one in endpoint.addresses if one.version == version)
        for (namespace, name), endpoint in world.endpoints.items()
    }
    return {
        (source, destination): ask(world, address[source], address[destination], question).allowed
        for source, destination in product(pods, pods)
    }


def judge(case: Case, world: Iterable[Json], networks: Sequence[IPNetwork]) -> list[str]:
    """Run a case through the evaluator; what is not as it should be, a line each. Raises InvalidInputError."""
    faults = []
    for place, (objects, tables) in enumerate(walk(case, collect(world), networks), start=1):
        for question, expected in tables.items():
            for network in networks:
                found = evaluate(objects, question, network.version)
                faults += [
                    f"step {place}, {question}, IPv{network.version}: {source} to {destination} "
                    f"is {'allowed' if found[source, destination] else 'denied'}"
                    for source, destination in differing(expected, found)
                ]
    return faults


def walk(
    case: Case, world: Objects, networks: Sequence[IPNetwork]
) -> list[tuple[Objects, dict[Question, Table]]]:
    """Each step's objects, in a cluster that nobody runs, and the tables that shall hold."""
    steps, objects = [], give_addresses(world, networks)
    for place, step in enumerate(case.steps, start=1):
        where = f"{case.where}, step {place}"
        objects = give_addresses(take_step(objects, step, where), networks)
        pods = pods_of(objects)
        tables = {one: read_table(text, pods, where) for one, text in step.tables(where).items()}
        steps.append((resolved(objects, networks, where), tables))
    return steps
