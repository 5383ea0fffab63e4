"""Whatever an API server or a kubeconfig says ends in a value or in a typed error."""

import json

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from poplin.datastore.access import Access
from poplin.datastore.core import CONFIG_MAPS, NAMESPACES, NODES, PODS
from poplin.datastore.kubeconfig import read_kubeconfig
from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.datastore.parse import InvalidObjectError, convert_object, parse_object
from poplin.datastore.service import ENDPOINT_SLICES, SERVICES
from poplin.model.errors import PoplinError
from unit.datastore.mutation import mutated

METADATA = {
    "name": "one",
    "namespace": "default",
    "uid": "u",
    "resourceVersion": "1",
    "labels": {"app": "web", "kubernetes.io/service-name": "web"},
    "annotations": {"flannel.alpha.coreos.com/public-ip": "192.168.0.2"},
    "deletionTimestamp": "2026-01-02T03:04:05Z",
}
SELECTOR = {
    "matchLabels": {"app": "web"},
    "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}],
}
PEERS = [
    {"podSelector": SELECTOR, "namespaceSelector": SELECTOR},
    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
]
OBJECTS = [
    (NAMESPACES, {"metadata": METADATA}),
    (CONFIG_MAPS, {"metadata": METADATA, "data": {"net-conf.json": "{}"}}),
    (
        NODES,
        {
            "metadata": METADATA,
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00::/64"]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.168.0.2"}],
                "conditions": [{"type": "NetworkUnavailable", "status": "False"}],
            },
        },
    ),
    (
        PODS,
        {
            "metadata": METADATA,
            "spec": {
                "nodeName": "n1",
                "serviceAccountName": "default",
                "hostNetwork": False,
                "initContainers": [{"restartPolicy": "Always", "ports": [{"containerPort": 1}]}],
                "containers": [
                    {
                        "ports": [
                            {
                                "containerPort": 80,
                                "protocol": "TCP",
                                "name": "http",
                                "hostPort": 8080,
                                "hostIP": "0.0.0.0",
                            }
                        ]
                    }
                ],
            },
            "status": {"phase": "Running", "podIP": "10.244.1.2", "podIPs": [{"ip": "10.244.1.2"}]},
        },
    ),
    (
        SERVICES,
        {
            "metadata": METADATA,
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.1",
                "clusterIPs": ["10.96.0.1", "fd00:96::1"],
                "externalIPs": ["203.0.113.1"],
                "ports": [
                    {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "nodePort": 30080}
                ],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}},
                "internalTrafficPolicy": "Local",
                "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 32000,
                "loadBalancerSourceRanges": ["203.0.113.0/24"],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}},
        },
    ),
    (
        ENDPOINT_SLICES,
        {
            "metadata": METADATA,
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": ["10.244.1.2"],
                    "conditions": {"ready": True, "serving": True, "terminating": False},
                    "nodeName": "n1",
                    "zone": "a",
                    "hints": {"forZones": [{"name": "a"}]},
                }
            ],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        },
    ),
    (
        NETWORK_POLICIES,
        {
            "metadata": METADATA,
            "spec": {
                "podSelector": SELECTOR,
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": PEERS, "ports": [{"protocol": "TCP", "port": 80, "endPort": 90}]}],
                "egress": [{"to": PEERS, "ports": [{"port": "http"}]}],
            },
        },
    ),
]
RESOURCES = [resource for resource, _ in OBJECTS]


@pytest.mark.parametrize(("resource", "valid"), OBJECTS, ids=lambda value: getattr(value, "kind", ""))
def test_the_objects_are_read_before_they_are_damaged(resource, valid):
    value = parse_object(resource, json.dumps(valid).encode()).value
    assert not isinstance(value, InvalidObjectError)
    assert value == convert_object(resource, valid).value


@pytest.mark.parametrize(("resource", "valid"), OBJECTS, ids=lambda value: getattr(value, "kind", ""))
@given(data=st.data())
def test_a_damaged_object_is_a_value_or_names_its_field(resource, valid, data):
    document = data.draw(mutated(valid))
    good = type(parse_object(resource, json.dumps(valid).encode()).value)
    for parse, form in ((parse_object, json.dumps(document).encode()), (convert_object, document)):
        try:
            value = parse(resource, form).value
        except msgspec.DecodeError:
            continue  # not even its metadata can be read
        assert isinstance(value, good | InvalidObjectError)
        if isinstance(value, InvalidObjectError):
            assert value.what
            assert value.where


@given(st.sampled_from(RESOURCES), st.binary(max_size=200))
def test_any_bytes_are_no_object(resource, data):
    with pytest.raises(msgspec.DecodeError):
        parse_object(resource, data)


KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "one",
    "clusters": [
        {
            "name": "c",
            "cluster": {
                "server": "https://192.0.2.1:6443",
                "certificate-authority-data": "LS0tLS1CRUdJTg==",
                "tls-server-name": "kubernetes",
                "proxy-url": "http://192.0.2.2:3128",
                "insecure-skip-tls-verify": False,
                "extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}}],
            },
        }
    ],
    "users": [
        {"name": "u", "user": {"client-certificate-data": "LS0tLS1CRUdJTg==", "client-key": "key.pem"}},
        {
            "name": "v",
            "user": {
                "exec": {
                    "apiVersion": "client.authentication.k8s.io/v1",
                    "command": "login",
                    "args": ["--now"],
                    "env": [{"name": "A", "value": "b"}],
                    "provideClusterInfo": True,
                    "interactiveMode": "Never",
                }
            },
        },
        {"name": "w", "user": {"token": "secret"}},
    ],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("kubeconfig") / "config"


def of_user(user):
    """The kubeconfig whose current context is of that user."""
    context = {"cluster": "c", "user": user, "namespace": "default"}
    return KUBECONFIG | {"contexts": [{"name": "one", "context": context}]}


@pytest.mark.parametrize("user", ["u", "v", "w"])
@given(data=st.data())
def test_a_damaged_kubeconfig_is_an_access_or_a_typed_error(path, user, data):
    config = data.draw(mutated(of_user(user)))
    path.write_text(yaml.safe_dump(config) if data.draw(st.booleans()) else json.dumps(config))
    try:
        access = read_kubeconfig([path])
    except PoplinError:
        return
    assert isinstance(access, Access)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_typed_error(path, data):
    path.write_bytes(data)
    with pytest.raises(PoplinError):
        read_kubeconfig([path])
