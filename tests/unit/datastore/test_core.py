"""Objects of the core group: what is read of their JSON, and what is said of fields that make no sense."""

import json
from ipaddress import ip_address, ip_network

import msgspec
import pytest

from poplin.datastore.core import CONFIG_MAPS, NAMESPACES, NODES, PODS
from poplin.datastore.parse import InvalidObjectError, convert_object, parse_object
from poplin.model.cluster import (
    ConditionStatus,
    ConfigMap,
    ContainerPort,
    Namespace,
    Node,
    Pod,
    PodPhase,
    TransportProtocol,
)

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "worker-1",
        "uid": "u1",
        "resourceVersion": "7",
        "labels": {"zone": "a"},
        "annotations": {"flannel.alpha.coreos.com/backend-type": "vxlan"},
        "managedFields": [{"manager": "kubelet"}],
    },
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"], "taints": []},
    "status": {
        "addresses": [
            {"type": "InternalIP", "address": "192.0.2.11"},
            {"type": "Hostname", "address": "worker-1"},
            {"type": "InternalIP", "address": "2001:db8::11"},
            {"type": "ExternalIP", "address": "203.0.113.5"},
        ],
        "conditions": [
            {"type": "NetworkUnavailable", "status": "False"},
            {"type": "Ready", "status": "True"},
        ],
        "nodeInfo": {"architecture": "amd64"},
    },
}

POD = {
    "metadata": {
        "name": "web-1",
        "namespace": "shop",
        "uid": "u2",
        "labels": {"app": "web"},
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{...}",
            "cni.projectcalico.org/ipAddrs": "[]",
        },
        "deletionTimestamp": "2026-01-02T03:04:05Z",
    },
    "spec": {
        "nodeName": "worker-1",
        "serviceAccountName": "web",
        "hostNetwork": True,
        "initContainers": [
            {"name": "once", "ports": [{"containerPort": 1}]},
            {
                "name": "sidecar",
                "restartPolicy": "Always",
                "ports": [{"containerPort": 15090, "name": "stats"}],
            },
        ],
        "containers": [
            {
                "ports": [
                    {"containerPort": 8080, "name": "http", "protocol": "TCP"},
                    {"containerPort": 53, "protocol": "UDP", "hostPort": 53, "hostIP": "192.0.2.11"},
                    {"containerPort": 54, "hostPort": 54, "hostIP": "0.0.0.0"},
                ]
            },
            {"name": "portless"},
        ],
    },
    "status": {
        "phase": "Running",
        "podIP": "10.244.1.5",
        "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00:1::5"}],
    },
}


def parse(resource, document):
    """By JSON and from plain values: both must say the same."""
    metadata, value = parse_object(resource, json.dumps(document).encode())
    converted = convert_object(resource, document)
    assert str(value) == str(converted.value)
    assert metadata == converted.metadata
    return value


def test_node():
    assert parse(NODES, NODE) == Node(
        name="worker-1",
        uid="u1",
        labels={"zone": "a"},
        annotations={"flannel.alpha.coreos.com/backend-type": "vxlan"},
        pod_cidrs=(ip_network("10.244.1.0/24"), ip_network("fd00:1::/64")),
        internal_addresses=(ip_address("192.0.2.11"), ip_address("2001:db8::11")),
        external_addresses=(ip_address("203.0.113.5"),),
        network_unavailable=ConditionStatus.FALSE,
    )


def test_node_of_one_family_and_of_none():
    assert parse(NODES, {"metadata": {"name": "n"}, "spec": {"podCIDR": "fd00::/64"}}).pod_cidrs == (
        ip_network("fd00::/64"),
    )
    assert parse(NODES, {"metadata": {"name": "n"}}) == Node(name="n")


def test_bits_beyond_the_prefix_are_cleared():
    node = parse(NODES, {"metadata": {"name": "n"}, "spec": {"podCIDR": "10.244.1.7/24"}})
    assert node.pod_cidrs == (ip_network("10.244.1.0/24"),)


def test_pod():
    assert parse(PODS, POD) == Pod(
        namespace="shop",
        name="web-1",
        uid="u2",
        labels={"app": "web"},
        annotations={"cni.projectcalico.org/ipAddrs": "[]"},
        node_name="worker-1",
        service_account="web",
        host_network=True,
        phase=PodPhase.RUNNING,
        deleting=True,
        addresses=(ip_address("10.244.1.5"), ip_address("fd00:1::5")),
        ports=(
            ContainerPort(8080, name="http"),
            ContainerPort(53, TransportProtocol.UDP, host_port=53, host_address=ip_address("192.0.2.11")),
            ContainerPort(54, host_port=54),
            ContainerPort(15090, name="stats"),
        ),
    )


def test_pod_before_it_has_anything():
    for status in ({}, {"status": {}}, {"status": {"podIPs": [{}], "podIP": ""}}, {"status": None}):
        pod = parse(PODS, {"metadata": {"name": "p", "namespace": "d"}, "spec": {}} | status)
        assert pod == Pod(namespace="d", name="p")


def test_pod_of_one_address():
    pod = parse(PODS, {"metadata": {"name": "p"}, "spec": {}, "status": {"podIP": "10.244.1.9"}})
    assert pod.addresses == (ip_address("10.244.1.9"),)


@pytest.mark.parametrize(
    ("phase", "finished"), [("Pending", False), ("Running", False), ("Succeeded", True), ("Failed", True)]
)
def test_finished(phase, finished):
    pod = parse(PODS, {"metadata": {"name": "p"}, "spec": {}, "status": {"phase": phase}})
    assert pod.finished is finished


def test_nulls_mean_absent():
    document = {
        "metadata": {"name": "p", "labels": None, "annotations": None, "deletionTimestamp": None},
        "spec": {"containers": None, "nodeName": None, "hostNetwork": None},
        "status": {"podIPs": None, "phase": None},
    }
    assert parse(PODS, document) == Pod(namespace="", name="p")
    assert parse(CONFIG_MAPS, {"metadata": {"name": "c"}, "data": None}) == ConfigMap("", "c")


def test_namespace_and_config_map():
    metadata = {"name": "shop", "labels": {"team": "a"}, "annotations": {"x": "y"}}
    assert parse(NAMESPACES, {"metadata": metadata}) == Namespace("shop", {"team": "a"}, {"x": "y"})
    document = {"metadata": {"name": "c", "namespace": "d"}, "data": {"k": "v"}, "binaryData": {"b": "AA=="}}
    assert parse(CONFIG_MAPS, document) == ConfigMap("d", "c", {"k": "v"})


def test_replicas_share_their_labels():
    one, other = (
        parse(PODS, {"metadata": {"name": name, "labels": {"app": "shared"}}, "spec": {}}) for name in "ab"
    )
    assert one.labels is other.labels


def test_a_heartbeat_is_no_change():
    beat = json.loads(json.dumps(NODE))
    beat["metadata"]["resourceVersion"] = "8"
    beat["status"]["conditions"][1]["lastHeartbeatTime"] = "2026-01-02T03:04:05Z"
    assert parse(NODES, NODE) == parse(NODES, beat)


@pytest.mark.parametrize(
    ("resource", "document", "expected"),
    [
        (NODES, {"spec": {"podCIDRs": ["10.0.0.0/24", "x"]}}, "spec.podCIDRs[1]: 'x' is not a CIDR"),
        (NODES, {"spec": {"podCIDRs": ["10.0.0.1"]}}, "spec.podCIDRs[0]: '10.0.0.1' is not a CIDR"),
        (
            NODES,
            {"status": {"addresses": [{"type": "InternalIP", "address": "a.b"}]}},
            "status.addresses[0].address: 'a.b' is not an IP address",
        ),
        (NODES, {"status": {"conditions": [{"type": "Ready", "status": "Yes"}]}}, "conditions[0].status"),
        (PODS, {}, "object missing required field `spec`"),
        (PODS, {"spec": []}, "spec: expected `object`, got `array`"),
        (PODS, {"spec": {"containers": [{"ports": [{}]}]}}, "spec.containers[0].ports[0]: object missing"),
        (
            PODS,
            {"spec": {"containers": [{"ports": [{"containerPort": 70000}]}]}},
            "spec.containers[0].ports[0].containerPort: 70000 is not a port",
        ),
        (
            PODS,
            {"spec": {"containers": [{"ports": [{"containerPort": 1, "hostIP": "x"}]}]}},
            "spec.containers[0].ports[0].hostIP: 'x' is not an IP address",
        ),
        (PODS, {"spec": {}, "status": {"phase": "Dozing"}}, "status.phase: invalid enum value 'Dozing'"),
        (CONFIG_MAPS, {"data": {"a": 1}}, "data[...]: expected `str`, got `int`"),
    ],
)
def test_fields_that_make_no_sense(resource, document, expected):
    error = parse(resource, {"metadata": {"name": "x", "namespace": "d"}} | document)
    assert isinstance(error, InvalidObjectError)
    assert expected in str(error)
    assert str(error).startswith(f"{resource.kind} d/x: ")


@pytest.mark.parametrize(
    "document", [b"[]", b"{}", b'{"metadata": {}}', b"rubbish", b'{"metadata": 1, "data": 1}']
)
def test_what_has_no_name_is_no_object(document):
    with pytest.raises(msgspec.DecodeError):
        parse_object(CONFIG_MAPS, document)


@pytest.mark.parametrize(
    ("resource", "arguments", "path"),
    [
        (PODS, {}, "/api/v1/pods"),
        (PODS, {"namespace": "d"}, "/api/v1/namespaces/d/pods"),
        (PODS, {"namespace": "d", "name": "p"}, "/api/v1/namespaces/d/pods/p"),
        (NODES, {"name": "n", "subresource": "status"}, "/api/v1/nodes/n/status"),
        (NODES, {"namespace": "ignored"}, "/api/v1/nodes"),
    ],
)
def test_paths(resource, arguments, path):
    assert resource.path(**arguments) == path
