"""A pod's spec in the runtime's terms."""

from pathlib import Path

import pytest

from poplin.lab.container import Binding
from poplin.lab.cri.message import (
    Capability,
    Int64Value,
    KeyValue,
    LinuxContainerResources,
    Mount,
    NamespaceMode,
    PortMapping,
    Protocol,
)
from poplin.lab.cri.pod import (
    MASKED,
    make_container_config,
    make_resources,
    make_sandbox_config,
)
from poplin.lab.kubelet.runtime import ContainerOrder
from unit.lab.pods import make_pod


def sandbox(pod):
    return make_sandbox_config(pod, attempt=1, log_directory="/logs", cgroup="/lab")


def config(container, stand_in=False, **spec):
    given = {"name": "main", "image": "app:1", **container}
    environment = {"WHO": "world"}
    bindings = [Binding("/node/x", "/x", read_only=True)]
    order = ContainerOrder(given, 2, environment, bindings, Path(), stand_in)
    return make_container_config(make_pod("web", given, **spec), order, "main/2.log")


def test_a_sandbox():
    ports = [
        {"containerPort": 80, "hostPort": 8080},
        {"containerPort": 81},
        {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
    ]
    made = sandbox(make_pod("web", {"name": "main", "ports": ports}))
    assert (made.metadata.name, made.metadata.uid, made.metadata.namespace, made.metadata.attempt) == (
        "web",
        "uid-web",
        "default",
        1,
    )
    assert made.hostname == "web"
    assert made.port_mappings == (
        PortMapping(Protocol.TCP, 80, 8080),
        PortMapping(Protocol.UDP, 53, 53, "127.0.0.1"),
    )
    assert made.linux.cgroup_parent == "/lab/poduid-web"
    assert made.linux.security_context.namespace_options.pid is NamespaceMode.CONTAINER


def test_a_sandbox_on_the_nodes_network():
    made = sandbox(
        make_pod(
            "web",
            {"name": "main", "ports": [{"containerPort": 80, "hostPort": 80}]},
            hostNetwork=True,
            hostPID=True,
        )
    )
    assert (made.hostname, made.port_mappings) == ("", ())
    options = made.linux.security_context.namespace_options
    assert (options.network, options.pid, options.ipc) == (
        NamespaceMode.NODE,
        NamespaceMode.NODE,
        NamespaceMode.POD,
    )


def test_a_container():
    made = config({"command": ["hello", "$(WHO)"], "args": ["$$(WHO)"], "workingDir": "/x", "tty": True})
    assert (made.command, made.args) == (("hello", "world"), ("$(WHO)",))
    assert (made.working_dir, made.tty, made.image.image, made.log_path) == (
        "/x",
        True,
        "app:1",
        "main/2.log",
    )
    assert made.envs == (KeyValue("WHO", "world"),)
    assert made.mounts == (Mount("/x", "/node/x", readonly=True),)
    assert (made.metadata.name, made.metadata.attempt) == ("main", 2)


def test_the_echo_server_stands_in_as_root_and_with_the_ports():
    ports = [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]
    container = {
        "command": ["app"],
        "args": ["x"],
        "workingDir": "/app",
        "ports": ports,
        "securityContext": {"runAsUser": 7},
    }
    made = config(container, stand_in=True)
    assert made.command[1:] == ("80/TCP", "53/UDP")
    assert (made.args, made.working_dir) == ((), "")
    assert made.linux.security_context.run_as_user is None


def test_the_containers_security_goes_before_the_pods():
    context = {
        "runAsUser": 0,
        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
        "allowPrivilegeEscalation": False,
    }
    made = config(
        {"securityContext": context}, securityContext={"runAsUser": 5, "runAsGroup": 6, "fsGroup": 9}
    )
    security = made.linux.security_context
    assert (security.run_as_user, security.run_as_group) == (Int64Value(0), Int64Value(6))
    assert security.capabilities == Capability(("NET_ADMIN",), ("ALL",))
    assert security.no_new_privs
    assert security.supplemental_groups == (9,)
    assert security.masked_paths == MASKED


def test_a_privileged_container_sees_all():
    security = config({"securityContext": {"privileged": True}}).linux.security_context
    assert (security.privileged, security.masked_paths, security.readonly_paths) == (True, (), ())


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, LinuxContainerResources(cpu_shares=2)),
        ({"requests": {"cpu": "500m"}}, LinuxContainerResources(cpu_shares=512)),
        (
            {"limits": {"cpu": "250m", "memory": "32Mi"}},
            LinuxContainerResources(100_000, 25_000, 256, 32 << 20),
        ),
        ({"limits": {"cpu": 2}, "requests": {"cpu": "1"}}, LinuxContainerResources(100_000, 200_000, 1024)),
    ],
)
def test_resources(resources, expected):
    assert make_resources(resources) == expected
