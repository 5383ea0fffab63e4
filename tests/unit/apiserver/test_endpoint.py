"""Where the API is for pods, and the ranges that its address comes from."""

from ipaddress import ip_address, ip_network

import pytest

from poplin.apiserver.endpoint import make_endpoint, parse_service_networks
from poplin.model.errors import InvalidInputError

V4, V6 = ip_network("10.96.0.0/16"), ip_network("fd00:10:96::/112")


def test_the_api_has_the_first_address_of_the_first_range():
    addresses = [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
    endpoint = make_endpoint((V6, V4), addresses, 6443)
    assert (endpoint.cluster_ip, endpoint.addresses) == ("fd00:10:96::1", ["2001:db8::1"])
    assert {"kubernetes.default.svc", "fd00:10:96::1", "2001:db8::1"} <= set(endpoint.names())
    with pytest.raises(InvalidInputError, match="no IPv4 address"):
        make_endpoint((V4,), addresses[1:], 6443)


def test_ranges_are_one_of_each_family_and_have_room():
    assert parse_service_networks("10.96.0.0/16, fd00:10:96::/112") == (V4, V6)
    for wrong in ("", "10.96.0.0", "10.96.0.1/16", "10.96.0.0/31", "10.96.0.0/16,10.97.0.0/16"):
        with pytest.raises(InvalidInputError):
            parse_service_networks(wrong)
