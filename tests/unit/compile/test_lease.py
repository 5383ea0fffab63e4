"""Leases and flannel's annotations, byte for byte."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.compile.lease import Endpoint, Lease, annotate, overwritten_public_ip, read_lease
from poplin.model.errors import InvalidInputError

V4 = Endpoint(ip_address("192.168.0.1"), ip_network("10.244.0.0/24"), "0a:00:00:00:00:01", 1)
V6 = Endpoint(ip_address("fd00::1"), ip_network("fd00:10:244::/64"), "0a:00:00:00:00:02", 2)
PLAIN4 = Endpoint(V4.public_ip, V4.pod_cidr)
PLAIN6 = Endpoint(V6.public_ip, V6.pod_cidr)
F = "flannel.alpha.coreos.com/"
ANNOTATIONS_4 = {
    F + "public-ip": "192.168.0.1",
    F + "backend-data": '{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}',
}
ANNOTATIONS_6 = {
    F + "public-ipv6": "fd00::1",
    F + "backend-v6-data": '{"VNI":2,"VtepMAC":"0a:00:00:00:00:02"}',
}
VXLAN = {F + "kube-subnet-manager": "true", F + "backend-type": "vxlan"}
HOST_GW = {F + "kube-subnet-manager": "true", F + "backend-type": "host-gw"}

LEASES = [
    pytest.param(Lease("a", "vxlan", (V4,)), {**VXLAN, **ANNOTATIONS_4}, id="vxlan-ipv4"),
    pytest.param(Lease("a", "vxlan", (V6,)), {**VXLAN, **ANNOTATIONS_6}, id="vxlan-ipv6"),
    pytest.param(Lease("a", "vxlan", (V4, V6)), {**VXLAN, **ANNOTATIONS_4, **ANNOTATIONS_6}, id="vxlan-dual"),
    pytest.param(
        Lease("a", "host-gw", (PLAIN4, PLAIN6)),
        {
            **HOST_GW,
            F + "public-ip": "192.168.0.1",
            F + "backend-data": "null",
            F + "public-ipv6": "fd00::1",
            F + "backend-v6-data": "null",
        },
        id="host-gw-dual",
    ),
]


@pytest.mark.parametrize(("lease", "annotations"), LEASES)
class TestLease:
    def test_is_published_as_flannel_does(self, lease, annotations):
        assert annotate(lease) == annotations

    def test_is_read_back(self, lease, annotations):
        cidrs = [e.pod_cidr for e in lease.endpoints]
        assert read_lease("a", annotations, cidrs) == lease
        assert read_lease("a", annotations, cidrs[::-1]) == lease

    def test_has_no_endpoint_without_a_pod_cidr(self, lease, annotations):
        assert read_lease("a", annotations, []) == Lease("a", lease.backend_type, ())


addresses = {4: st.ip_addresses(v=4, network="192.168.0.0/16"), 6: st.ip_addresses(v=6, network="fd00::/16")}
cidrs = {
    4: st.integers(0, 255).map(lambda n: ip_network(f"10.244.{n}.0/24")),
    6: st.integers(0, 65535).map(lambda n: ip_network(f"fd01:{n:x}::/64")),
}
macs = st.binary(min_size=5, max_size=5).map(lambda octets: (b"\x0a" + octets).hex(":"))


@given(st.data(), st.sets(st.sampled_from([4, 6])))
def test_every_lease_is_read_back(data, versions):
    endpoints = tuple(
        Endpoint(
            data.draw(addresses[v]),
            data.draw(cidrs[v]),
            data.draw(macs),
            data.draw(st.integers(1, 2**24 - 1)),
        )
        for v in sorted(versions)
    )
    lease = Lease("a", "vxlan", endpoints)
    assert read_lease("a", annotate(lease), [e.pod_cidr for e in endpoints]) == lease


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {**ANNOTATIONS_4, F + "backend-type": "vxlan"},
        {**VXLAN, **ANNOTATIONS_4, F + "kube-subnet-manager": "false"},
    ],
)
def test_a_node_without_the_mark_of_the_subnet_manager_has_no_lease(annotations):
    assert read_lease("a", annotations, [V4.pod_cidr]) is None


@pytest.mark.parametrize(
    "missing",
    [
        {F + "public-ip": ""},
        {F + "backend-data": "null"},
    ],
)
def test_a_family_not_yet_published_has_no_endpoint(missing):
    annotations = {**VXLAN, **ANNOTATIONS_4, **ANNOTATIONS_6, **missing}
    assert read_lease("a", annotations, [V4.pod_cidr, V6.pod_cidr]) == Lease("a", "vxlan", (V6,))


@pytest.mark.parametrize("backend_type", ["wireguard", "ipip", "", "extension"])
def test_another_backend_is_read_with_its_endpoints(backend_type):
    annotations = {**VXLAN, **ANNOTATIONS_4, F + "backend-type": backend_type}
    assert read_lease("a", annotations, [V4.pod_cidr]) == Lease("a", backend_type, (PLAIN4,))


@pytest.mark.parametrize("text", ['{"VtepMAC":"0A:00:00:00:00:01", "VNI": 1, "More": []}'])
def test_any_order_case_and_further_keys_are_read(text):
    annotations = {**VXLAN, **ANNOTATIONS_4, F + "backend-data": text}
    assert read_lease("a", annotations, [V4.pod_cidr]) == Lease("a", "vxlan", (V4,))


MALFORMED = [
    ("backend-data", ""),
    ("backend-data", "{"),
    ("backend-data", "[]"),
    ("backend-data", '"0a:00:00:00:00:01"'),
    ("backend-data", "{}"),
    ("backend-data", '{"VNI":"1","VtepMAC":"0a:00:00:00:00:01"}'),
    ("backend-data", '{"VNI":1.5,"VtepMAC":"0a:00:00:00:00:01"}'),
    ("backend-data", '{"VNI":1,"VtepMAC":null}'),
    ("backend-data", '{"VNI":1,"VtepMAC":""}'),
    ("backend-data", '{"VNI":1,"VtepMAC":"0a:00:00:00:00"}'),
    ("backend-data", '{"VNI":1,"VtepMAC":"0a:00:00:00:00:01\\n"}'),
    ("backend-data", '{"VNI":1,"VtepMAC":"0a-00-00-00-00-01"}'),
    ("backend-data", '{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}'),
    ("backend-data", '{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}'),
    ("backend-data", '{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}'),
    ("public-ip", "192.168.0"),
    ("public-ip", "192.168.0.1/24"),
    ("public-ip", "node-a"),
    ("public-ip", "fd00::1"),
    ("public-ip", "0.0.0.0"),
    ("public-ip", "127.0.0.1"),
    ("public-ip", "224.0.0.1"),
    ("public-ip", "255.255.255.255"),
    ("public-ipv6", "192.168.0.1"),
    ("public-ipv6", "::"),
    ("public-ipv6", "::1"),
    ("public-ipv6", "ff02::1"),
    ("public-ipv6", "fe80::1"),
    ("public-ipv6", "fe80::1%eth0"),
]


@pytest.mark.parametrize(("key", "text"), MALFORMED)
def test_what_cannot_be_read_is_named(key, text):
    annotations = {**VXLAN, **ANNOTATIONS_4, **ANNOTATIONS_6, F + key: text}
    with pytest.raises(InvalidInputError) as caught:
        read_lease("a", annotations, [V4.pod_cidr, V6.pod_cidr])
    assert caught.value.where == f"node a: annotation {F}{key}"
    assert "remove the annotation" in caught.value.remedy


def test_a_public_ip_is_overwritten_for_each_family():
    annotations = {F + "public-ip-overwrite": "203.0.113.1", F + "public-ipv6-overwrite": "2001:db8::1"}
    assert overwritten_public_ip("a", annotations, 4) == ip_address("203.0.113.1")
    assert overwritten_public_ip("a", annotations, 6) == ip_address("2001:db8::1")
    assert overwritten_public_ip("a", {}, 4) is None
    assert overwritten_public_ip("a", {F + "public-ip-overwrite": ""}, 4) is None


def test_an_overwrite_that_cannot_be_read_is_named():
    with pytest.raises(InvalidInputError) as caught:
        overwritten_public_ip("a", {F + "public-ipv6-overwrite": "203.0.113.1"}, 6)
    assert caught.value.where == f"node a: annotation {F}public-ipv6-overwrite"
