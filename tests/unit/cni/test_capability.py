from decimal import Decimal
from ipaddress import ip_address

import pytest

from poplin.cni.capability import (
    EGRESS_BANDWIDTH,
    INGRESS_BANDWIDTH,
    Bandwidth,
    HostPort,
    IPRange,
    decode_member,
    parse_quantity,
    read_limits,
    read_port_mappings,
    read_ranges,
)
from poplin.cni.error import CniError
from poplin.model.attachment import Limit, PortMapping
from poplin.model.cluster import TransportProtocol

TCP, UDP, SCTP = TransportProtocol.TCP, TransportProtocol.UDP, TransportProtocol.SCTP


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ()),
        ([HostPort(0, 80)], ()),
        ([HostPort(8080, 80)], (PortMapping(TCP, 8080, 80),)),
        ([HostPort(8080, 80, "UDP")], (PortMapping(UDP, 8080, 80),)),
        ([HostPort(65535, 1, "sctp", "::")], (PortMapping(SCTP, 65535, 1, ip_address("::")),)),
        ([HostPort(8080, 80), HostPort(8080, 80, "TCP", "")], (PortMapping(TCP, 8080, 80),)),
        (
            [HostPort(8080, 80, "tcp", "192.0.2.1"), HostPort(8080, 81, "tcp", "192.0.2.2")],
            (
                PortMapping(TCP, 8080, 80, ip_address("192.0.2.1")),
                PortMapping(TCP, 8080, 81, ip_address("192.0.2.2")),
            ),
        ),
    ],
)
def test_port_mappings(given, expected):
    assert read_port_mappings(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
        {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "192.0.2.1"},  # containerd's
    ],
)
def test_a_member_is_decoded_whatever_the_case_of_its_names(given):
    assert decode_member(given, HostPort) == HostPort(8080, 80, "tcp", "192.0.2.1")
    assert decode_member({"IngressRate": 1000, "ingressBurst": 2}, Bandwidth) == Bandwidth(1000, 2)


@pytest.mark.parametrize("given", [{}, {"hostPort": 1}, {"hostPort": "1", "containerPort": 1}])
def test_a_member_that_cannot_be_decoded(given):
    with pytest.raises(CniError, match="cannot decode") as error:
        decode_member(given, HostPort)
    assert error.value.code == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([HostPort(-1, 80)], "-1 is no port"),
        ([HostPort(65536, 80)], "65536 is no port"),
        ([HostPort(80, 0)], "host port 80: 0 is no port"),
        ([HostPort(80, 80, "icmp")], "'icmp' is none of tcp, udp and sctp"),
        ([HostPort(80, 80, "")], "'' is none of"),
        ([HostPort(80, 80, "tcp", "localhost")], "hostIP: 'localhost' does not appear"),
        ([HostPort(80, 80), HostPort(80, 81)], "host port 80/TCP leads to two ports of the pod"),
        ([HostPort(80, 80), HostPort(80, 80, "tcp", "::1")], "leads to two ports"),
    ],
)
def test_wrong_port_mappings(given, said):
    with pytest.raises(CniError, match=said) as error:
        read_port_mappings(given)
    assert error.value.code == 7


@pytest.mark.parametrize(
    ("bandwidth", "annotations", "expected"),
    [
        (None, {}, (None, None)),
        (Bandwidth(), {}, (None, None)),
        (Bandwidth(1000, 2000, 3000, 4000), {}, (Limit(1000, 2000), Limit(3000, 4000))),
        (Bandwidth(egress_rate=10**6), {}, (None, Limit(10**6))),
        # What containerd and cri-o pass for a burst that nobody chose, and the dockershim before them.
        (Bandwidth(10**6, 2**32 - 1, 10**6, 2**31 - 1), {}, (Limit(10**6), Limit(10**6))),
        # The kernel counts bytes: less than one is one.
        (Bandwidth(ingress_rate=1), {}, (Limit(8), None)),
        (None, {INGRESS_BANDWIDTH: "10M"}, (Limit(10**7), None)),
        (None, {EGRESS_BANDWIDTH: "1Gi", "other": "10M"}, (None, Limit(2**30))),
        (Bandwidth(5000), {INGRESS_BANDWIDTH: "10M", EGRESS_BANDWIDTH: "nonsense"}, (Limit(5000), None)),
    ],
)
def test_limits(bandwidth, annotations, expected):
    assert read_limits(bandwidth, annotations) == expected


@pytest.mark.parametrize(
    ("bandwidth", "annotations", "said"),
    [
        (Bandwidth(-1), {}, "ingress: neither"),
        (Bandwidth(0, 0, 1000, -5), {}, "egress: neither"),
        (
            None,
            {INGRESS_BANDWIDTH: "fast"},
            "annotation kubernetes.io/ingress-bandwidth: 'fast' is no quantity",
        ),
        (None, {EGRESS_BANDWIDTH: "999"}, "is not from 1k to 1P bits per second"),
        (None, {EGRESS_BANDWIDTH: "1001T"}, "is not from 1k to 1P"),
        (None, {EGRESS_BANDWIDTH: "-10M"}, "is no quantity"),
    ],
)
def test_wrong_limits(bandwidth, annotations, said):
    with pytest.raises(CniError, match=said) as error:
        read_limits(bandwidth, annotations)
    assert error.value.code == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("+10M", 10**7),
        ("1.5G", 1_500_000_000),
        (".5k", 500),
        ("5.", 5),
        ("1e6", 10**6),
        ("1E6", 10**6),
        ("2E", 2 * 10**18),
        ("1Ki", 1024),
        ("1.5Mi", 1_572_864),
        ("1500m", Decimal("1.5")),
    ],
)
def test_quantities(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text", ["", "M", "1 M", "1MB", "1K", "1e", "1e6M", "0x10", "1_000", "1\n", "\u0661"]
)
def test_what_is_no_quantity(text):
    with pytest.raises(ValueError, match="is no quantity"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([[]], []),
        ([[IPRange("10.0.0.0/30")]], [("10.0.0.0", "10.0.0.3")]),
        ([[IPRange("10.0.0.0/24", "10.0.0.9")]], [("10.0.0.9", "10.0.0.255")]),
        (
            [
                [IPRange("fd00::/64", "", "fd00::5")],
                [IPRange("10.0.0.0/24", "10.0.0.9", "10.0.0.9"), IPRange("10.1.0.0/31")],
            ],
            [("fd00::", "fd00::5"), ("10.0.0.9", "10.0.0.9"), ("10.1.0.0", "10.1.0.1")],
        ),
    ],
)
def test_ranges(given, expected):
    assert [(str(first), str(last)) for first, last in read_ranges(given)] == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([[IPRange("10.0.0.1/24")]], "has host bits set"),
        ([[IPRange("")]], "ipRanges: ''"),
        ([[IPRange("10.0.0.0/24", "here")]], "'here' does not appear"),
        ([[IPRange("10.0.0.0/24", "10.0.1.0")]], "10.0.1.0 is not in 10.0.0.0/24"),
        ([[IPRange("10.0.0.0/24", "", "fd00::1")]], "fd00::1 is not in"),
        ([[IPRange("10.0.0.0/24", "10.0.0.9", "10.0.0.8")]], "10.0.0.9 comes after 10.0.0.8"),
        ([[IPRange("10.0.0.0/24"), IPRange("fd00::/64")]], "both families"),
        ([[IPRange("10.0.0.0/24")], [IPRange("10.1.0.0/24")]], "two lists are of one family"),
    ],
)
def test_wrong_ranges(given, said):
    with pytest.raises(CniError, match=said) as error:
        read_ranges(given)
    assert error.value.code == 7
