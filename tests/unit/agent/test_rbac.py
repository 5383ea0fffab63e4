"""deploy/rbac.yaml allows what the agent asks of the API server."""

import importlib
import pkgutil
from pathlib import Path

import pytest
import yaml

import poplin.agent
from poplin.datastore.resource import Resource

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
OBJECTS = [*yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text())]
RULES = [rule for one in OBJECTS if one["kind"] in {"ClusterRole", "Role"} for rule in one["rules"]]


def watched():
    """Every resource that a module of the agent names."""
    modules = [
        importlib.import_module(f"poplin.agent.{m.name}") for m in pkgutil.iter_modules(poplin.agent.__path__)
    ]
    return {
        (value.group, value.plural)
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Resource)
    }


def verbs(group, resource):
    return {
        verb
        for rule in RULES
        if group in rule["apiGroups"] and resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_agent_watches_nodes_and_its_configuration():
    assert {("", "nodes"), ("", "configmaps")} <= watched()


@pytest.mark.parametrize(("group", "resource"), sorted(watched()))
def test_what_the_agent_watches_may_be_watched(group, resource):
    assert {"list", "watch"} <= verbs(group, resource)


def test_what_the_agent_writes_may_be_written():
    assert "patch" in verbs("", "nodes/status")
    assert "patch" in verbs("", "pods/status")
    assert verbs("", "events") == {"create", "patch"}
