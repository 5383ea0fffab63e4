"""Services and EndpointSlices: what is read of their JSON, and what is said of fields that make no sense."""

import json
from ipaddress import ip_address, ip_network

import pytest

from poplin.datastore.parse import InvalidObjectError, parse_object
from poplin.datastore.service import ENDPOINT_SLICES, SERVICES
from poplin.model.cluster import TransportProtocol
from poplin.model.service import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort

TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
METADATA = {"namespace": "shop", "name": "web", "uid": "u1", "creationTimestamp": "2026-01-02T03:04:05Z"}


def read(resource, **document):
    metadata = {**METADATA, **document.pop("metadata", {})}
    return parse_object(resource, json.dumps({"metadata": metadata, **document}).encode()).value


def service(spec, **document):
    return read(SERVICES, spec=spec, **document)


def test_a_service_with_everything():
    made = service(
        {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "externalIPs": ["198.51.100.1"],
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP"},
            ],
            "loadBalancerSourceRanges": [" 192.0.2.0/24", "2001:db8::/32"],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}},
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30999,
            "selector": {"app": "web"},
        },
        status={"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"hostname": "lb.example"}]}},
    )
    assert made == Service(
        "shop",
        "web",
        uid="u1",
        created="2026-01-02T03:04:05Z",
        ports=(ServicePort("http", TCP, 80, 30080), ServicePort("dns", UDP, 53)),
        cluster_ips=(ip_address("10.96.0.1"), ip_address("fd00:96::1")),
        external_ips=(ip_address("198.51.100.1"),),
        load_balancer_ips=(ip_address("203.0.113.1"),),
        source_ranges=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
        affinity_timeout_s=30,
        internal_local=True,
        external_local=True,
        health_check_node_port=30999,
    )


ROWS = [
    ({"clusterIP": "None"}, {"cluster_ips": ()}),
    ({"clusterIP": "None", "clusterIPs": ["None"]}, {"cluster_ips": ()}),
    ({"clusterIP": ""}, {"cluster_ips": ()}),
    ({"clusterIP": "10.96.0.1"}, {"cluster_ips": (ip_address("10.96.0.1"),)}),
    ({"type": "ExternalName"}, {"served_elsewhere": True}),
    ({"sessionAffinity": "ClientIP"}, {"affinity_timeout_s": 10_800}),
    ({"sessionAffinity": "None"}, {"affinity_timeout_s": None}),
    ({"type": "ClusterIP", "externalTrafficPolicy": "Local"}, {"external_local": False}),
    ({"type": "NodePort", "externalTrafficPolicy": "Local"}, {"external_local": True}),
    ({"type": "NodePort", "externalTrafficPolicy": "Cluster"}, {"external_local": False}),
    ({"type": "ClusterIP", "loadBalancerSourceRanges": ["192.0.2.0/24"]}, {"source_ranges": ()}),
    ({"ports": None, "externalIPs": None}, {"ports": (), "external_ips": ()}),
]


@pytest.mark.parametrize(("spec", "expected"), ROWS)
def test_what_fields_mean(spec, expected):
    made = service(spec)
    assert {name: getattr(made, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("kind", "ingress", "expected"),
    [
        ("LoadBalancer", {"ip": "203.0.113.1", "ipMode": "VIP"}, (ip_address("203.0.113.1"),)),
        ("LoadBalancer", {"ip": "203.0.113.1", "ipMode": "Proxy"}, ()),
        ("ClusterIP", {"ip": "203.0.113.1"}, ()),
    ],
)
def test_which_ingress_is_ours(kind, ingress, expected):
    made = service({"type": kind}, status={"loadBalancer": {"ingress": [ingress]}})
    assert made.load_balancer_ips == expected


def test_a_service_of_another_proxy():
    labels = {"service.kubernetes.io/service-proxy-name": "other"}
    assert service({}, metadata={"labels": labels}).served_elsewhere


BAD_SERVICES = [
    ({"ports": [{"port": 0}]}, "spec.ports[0].port: 0 is not"),
    ({"ports": [{"port": 80, "nodePort": 65536}]}, "spec.ports[0].nodePort: 65536"),
    ({"clusterIPs": ["10.96.0.256"]}, "spec.clusterIPs[0]: '10.96.0.256'"),
    ({"externalIPs": ["web"]}, "spec.externalIPs[0]: 'web'"),
    ({"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0"]}, "spec.loadBalancerSourceRanges[0]"),
    (
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0",
    ),
    ({"ports": [{"port": 80, "protocol": "ICMP"}]}, "spec.ports[0].protocol"),
]


@pytest.mark.parametrize(("spec", "message"), BAD_SERVICES)
def test_what_is_wrong_with_a_service(spec, message):
    error = service(spec)
    assert isinstance(error, InvalidObjectError)
    assert message in str(error)


def endpoint_slice(*endpoints, kind="IPv4", **document):
    document.setdefault("metadata", {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}})
    return read(ENDPOINT_SLICES, addressType=kind, endpoints=list(endpoints), **document)


def test_a_slice():
    made = endpoint_slice(
        {
            "addresses": ["10.244.1.1", "10.244.1.2"],
            "conditions": {"ready": False, "serving": True, "terminating": True},
            "nodeName": "worker-1",
            "zone": "a",
            "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "worker-1"}]},
        },
        ports=[{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "any"}],
    )
    endpoint = Endpoint(ip_address("10.244.1.1"), False, True, True, "worker-1", ("a", "b"), ("worker-1",))
    assert made == EndpointSlice(
        "shop", "web-1", "web", (EndpointPort("http", TCP, 8080),), endpoints=(endpoint,)
    )


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": True, "terminating": True}, (True, True, True)),
        ({"ready": False, "serving": True}, (False, True, False)),
    ],
)
def test_conditions_that_nobody_has_set(conditions, expected):
    [endpoint] = endpoint_slice({"addresses": ["10.244.1.1"], "conditions": conditions}).endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == expected


@pytest.mark.parametrize(
    "labels", [{}, {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}]
)
def test_slices_of_no_service_that_a_node_serves(labels):
    made = endpoint_slice({"addresses": ["10.244.1.1"]}, metadata={"labels": labels})
    assert made.service == ""


def test_names_are_no_endpoints():
    assert endpoint_slice({"addresses": ["web.example"]}, kind="FQDN").endpoints == ()


def test_an_endpoint_without_addresses_is_none():
    assert endpoint_slice({"addresses": []}).endpoints == ()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("fd00::1", "endpoints[0].addresses[0]: 'fd00::1' is not an IPv4 address"),
        ("10.244.1", "endpoints[0].addresses[0]: '10.244.1' is not an IP address"),
        ("127.0.0.1", "is not an address that another host can have"),
        ("0.0.0.0", "is not an address that another host can have"),
        ("169.254.169.254", "is not an address that another host can have"),
    ],
)
def test_what_is_wrong_with_an_endpoint(address, message):
    error = endpoint_slice({"addresses": [address]})
    assert isinstance(error, InvalidObjectError)
    assert message in str(error)
