"""The configuration in force: a bad one never takes a good one's place, and what is away comes back."""

import asyncio

import pytest

from poplin.agent import configuration as module
from poplin.agent.configuration import Configuration
from poplin.datastore.source import Deleted, Put, Replaced, Resumed, Unavailable
from poplin.model.cluster import ConfigMap
from poplin.model.errors import TemporaryError
from poplin.model.netconf import BackendType
from unit.agent.waiting import until

GOOD = '{"Network": "10.244.0.0/16"}'
OTHER = '{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}'
BAD = '{"Network": 7}'


def config_map(text, key="net-conf.json"):
    return ConfigMap("kube-flannel", "kube-flannel-cfg", {key: text})


class StandInSource:
    def __init__(self, events):
        self._events = events

    async def watch(self, resource, *, namespace=None, field_selector=None):
        assert (namespace, field_selector) == ("kube-flannel", "metadata.name=kube-flannel-cfg")
        for event in self._events:
            yield event


async def follow(*events):
    """The configuration after these events, and how often it said that it had changed."""
    changes = []
    configuration = Configuration(lambda: changes.append(1))
    await configuration.follow_map(StandInSource(events), "kube-flannel", "kube-flannel-cfg")
    return configuration, len(changes)


PRESENT = Replaced((config_map(GOOD),), ())
GONE = Deleted("kube-flannel", "kube-flannel-cfg")
AWAY = Unavailable(TemporaryError("the API server is away"))


@pytest.mark.parametrize(
    ("events", "backend", "problem", "changes"),
    [
        ([PRESENT], BackendType.VXLAN, "", 1),
        ([PRESENT, Put(config_map(GOOD))], BackendType.VXLAN, "", 1),
        ([PRESENT, Put(config_map(OTHER))], BackendType.HOST_GW, "", 2),
        ([PRESENT, Put(config_map(BAD))], BackendType.VXLAN, "must be a string", 2),
        ([PRESENT, Put(config_map(BAD)), Put(config_map(GOOD))], BackendType.VXLAN, "", 3),
        ([PRESENT, GONE], BackendType.VXLAN, "does not exist", 2),
        ([PRESENT, GONE, Put(config_map(GOOD))], BackendType.VXLAN, "", 3),
        ([PRESENT, Put(config_map(GOOD, "other")), PRESENT], BackendType.VXLAN, "", 3),
        ([Replaced((), ())], None, "does not exist", 1),
        ([Replaced((config_map(GOOD, "other"),), ())], None, "has no net-conf.json", 1),
        ([AWAY], None, "the API server is away", 1),
        ([AWAY, PRESENT], BackendType.VXLAN, "", 2),
        ([PRESENT, AWAY, Resumed()], BackendType.VXLAN, "", 1),
    ],
)
async def test_a_map_that_is_followed(events, backend, problem, changes):
    configuration, changed = await follow(*events)
    assert (configuration.conf.backend.type if configuration.conf else None) == backend
    assert problem in str(configuration.problem)
    assert (configuration.problem is None) == (problem == "")
    assert changed == changes


async def test_a_file_that_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_POLL_S", 0.001)
    path = tmp_path / "net-conf.json"
    configuration = Configuration(lambda: None)
    task = asyncio.create_task(configuration.follow_file(path))

    async def becomes(backend, problem):
        def found():
            in_force = configuration.conf.backend.type if configuration.conf else None
            said = "" if configuration.problem is None else str(configuration.problem)
            return in_force == backend and problem in said and bool(said) == bool(problem)

        await until(found)

    try:
        await becomes(None, f"{path}: cannot read: No such file")
        path.write_text(GOOD)
        await becomes(BackendType.VXLAN, "")
        path.write_text(BAD)
        await becomes(BackendType.VXLAN, f"{path}: Network")
        path.write_text(OTHER)
        await becomes(BackendType.HOST_GW, "")
        path.unlink()
        await becomes(BackendType.HOST_GW, "No such file")
        path.write_text(OTHER)
        await becomes(BackendType.HOST_GW, "")
        path.write_bytes(b"\xff\xfe")
        await becomes(BackendType.HOST_GW, "cannot read")
    finally:
        task.cancel()
        await asyncio.wait([task])
