"""Every case of `poplin lab conformance` by our evaluator, and its tables by one that shares nothing with it."""

from copy import deepcopy
from ipaddress import ip_network

import pytest

from poplin.lab.conformance.case import CASES, WORLD, Case, Step, read_given
from poplin.lab.conformance.cluster import addresses_of, collect
from poplin.lab.conformance.evaluation import judge, walk
from property.naive_policy import naive_allows

NETWORKS = [ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/56")]
GIVEN = read_given([CASES]).cases
OBJECTS = read_given([WORLD]).objects


@pytest.mark.parametrize("case", GIVEN, ids=lambda case: f"{case.group}/{case.name}")
def test_the_evaluator_agrees_with_the_tables(case):
    assert judge(case, OBJECTS, NETWORKS) == []


@pytest.mark.parametrize("case", GIVEN, ids=lambda case: f"{case.group}/{case.name}")
def test_the_tables_are_the_apis_meaning(case):
    for objects, tables in walk(case, collect(OBJECTS), NETWORKS):
        plain = [complete(one) for one in objects.values()]
        addresses = addresses_of(objects)
        for question, table in tables.items():
            for number, ((source, destination), expected) in enumerate(table.items()):
                # Both families have the same tables: each is asked of every other cell.
                client, server = (addresses[pod][number % 2] for pod in (source, destination))
                found = naive_allows(plain, str(client), str(server), question.protocol, question.port)
                assert all(found) == expected, (question, source, destination)


def complete(one):
    """The object with what the API server fills in."""
    one = deepcopy(one)
    one["metadata"].setdefault("labels", {})
    for container in one.get("spec", {}).get("containers", ()):
        for port in container["ports"]:
            port.setdefault("protocol", "TCP")
            port.setdefault("name", "")
    return one


def test_a_wrong_table_is_found():
    closed = {"policy": "x/closed", "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
    wrong = Case("wrong", [Step(expect={"TCP 80": "* XX. ... ..."}, apply=[closed])])
    faults = judge(wrong, OBJECTS, NETWORKS)
    assert len(faults) == 2 * 8
    assert faults[0] == "step 1, TCP 80, IPv4: x/a to x/c is denied"
