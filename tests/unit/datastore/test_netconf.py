"""net-conf.json: every key, and every mistake named by file and key with what to do."""

import json
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.datastore.netconf import BACKEND_KEYS, NETWORK_KEYS, parse_netconf
from poplin.model.errors import InvalidInputError
from poplin.model.netconf import Backend, BackendType, NetConf

V4, V6 = ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48")
NETWORK = {"Network": "10.244.0.0/16"}
BOTH = {**NETWORK, "EnableIPv6": True, "IPv6Network": "fd00:10:244::/48"}


def parse(**keys):
    return parse_netconf(json.dumps({**NETWORK, **keys}))


def backend(**keys):
    return parse(Backend=keys).backend


@pytest.mark.parametrize(
    ("raw", "networks"),
    [
        (NETWORK, (V4,)),
        (BOTH, (V4, V6)),
        ({**BOTH, "EnableIPv4": False}, (V6,)),
        ({**BOTH, "EnableIPv6": False}, (V4,)),
        ({**BOTH, "EnableIPv6": None}, (V4,)),
        ({**NETWORK, "EnableIPv4": True, "IPv6Network": ""}, (V4,)),
        ({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:10:244::/48"}, (V6,)),
        ({**NETWORK, "Backend": {}}, (V4,)),
        ({**NETWORK, "Backend": None, "NonMasqueradeCIDRs": None}, (V4,)),
    ],
)
def test_networks_are_those_of_the_families_that_are_on(raw, networks):
    assert parse_netconf(json.dumps(raw)) == NetConf(networks)


def test_what_flannel_installs_is_read():
    text = """{
      "Network": "10.244.0.0/16",
      "EnableNFTables": false,
      "Backend": { "Type": "vxlan" }
    }
    """
    assert parse_netconf(text) == parse_netconf(text.encode()) == NetConf((V4,))


def test_every_key_of_flannel_is_read_and_subnets_decide_nothing():
    conf = parse(
        SubnetLen=24,
        SubnetMin="10.244.1.0",
        SubnetMax="10.244.9.0",
        IPv6SubnetLen=64,
        IPv6SubnetMin="fd00:10:244:1::",
        IPv6SubnetMax="fd00:10:244:9::",
        EnableNFTables=True,
    )
    assert conf == NetConf((V4,))


def test_vxlan_with_every_key():
    raw = {"Type": "vxlan", "VNI": 4096, "Port": 4789, "MTU": 9000, "GBP": True, "Learning": True}
    assert backend(**raw, DirectRouting=True, MacPrefix="0E-2A") == Backend(
        BackendType.VXLAN, 9000, 4096, 4789, direct_routing=True, learning=True, gbp=True
    )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, Backend()),
        ({"Type": None}, Backend()),
        ({"Type": "vxlan"}, Backend()),
        ({"VNI": None, "Port": None, "MTU": None, "Learning": None}, Backend()),
        ({"Port": 0, "MTU": 0}, Backend()),
        ({"VNI": 1 << 23, "Port": 65535, "MTU": 65535}, Backend(mtu_bytes=65535, vni=1 << 23, port=65535)),
        ({"VNI": (1 << 24) - 1, "Port": 1, "MTU": 1350}, Backend(mtu_bytes=1350, vni=(1 << 24) - 1, port=1)),
        ({"Type": "host-gw"}, Backend(BackendType.HOST_GW)),
        ({"Type": "host-gw", "MTU": 1400}, Backend(BackendType.HOST_GW, 1400)),
    ],
)
def test_backends_and_defaults(raw, expected):
    assert backend(**raw) == expected


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.swapcase])
def test_keys_match_without_regard_to_case(spell):
    raw = {**BOTH, "NonMasqueradeCIDRs": ["10.0.0.0/8"]}
    inner = {spell(k): v for k, v in {"Type": "vxlan", "VNI": 7, "DirectRouting": True}.items()}
    outer = {spell(k): v for k, v in raw.items()}
    assert parse_netconf(json.dumps({**outer, spell("Backend"): inner})) == NetConf(
        (V4, V6), Backend(vni=7, direct_routing=True), (ip_network("10.0.0.0/8"),)
    )


@pytest.mark.parametrize(
    "cidrs",
    [[], ["10.0.0.0/8"], ["10.0.0.0/8", "fd00::/8", "192.168.0.0/16"], ["10.0.0.0/9", "10.128.0.0/9"]],
)
def test_non_masquerade_cidrs(cidrs):
    assert parse(NonMasqueradeCIDRs=cidrs).non_masquerade == tuple(ip_network(c) for c in cidrs)


def test_a_networks_family_finds_it():
    conf = parse_netconf(json.dumps(BOTH))
    assert conf.network(ip_network("10.244.1.0/24")) == V4
    assert conf.network(ip_network("fd00:10:244:1::/64")) == V6
    assert NetConf((V4,)).network(V6) is None


SYNTAX = [b"", b" ", b"{", b"[", b'{"Network"}', b"\xff\xfe", b'"\xff"', b"{} {}", b"nul", b"'"]
NOT_OBJECTS = [b"null", b"[]", b'"10.244.0.0/16"', b"1", b"true"]


@pytest.mark.parametrize("text", [*SYNTAX, *NOT_OBJECTS])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(InvalidInputError) as caught:
        parse_netconf(text, where="/etc/poplin/net-conf.json")
    assert caught.value.where == "/etc/poplin/net-conf.json"
    assert ("not JSON" if text in SYNTAX else "must be a JSON object") in caught.value.what
    assert caught.value.remedy


MISTAKES = [
    ({"Network": None}, "Network", "missing"),
    ({"Network": ""}, "Network", "missing"),
    ({"Network": "10.244.0.1/16"}, "Network", "host bits"),
    ({"Network": "10.244.0.0/33"}, "Network", "10.244.0.0/33"),
    ({"Network": "10.244.0/24"}, "Network", "10.244.0/24"),
    ({"Network": "10.244.0.0"}, "Network", "has no prefix length"),
    ({"Network": "10.244.0.0/"}, "Network", "has no prefix length"),
    ({"Network": "10.244.0.0/255.255.0.0"}, "Network", "has no prefix length"),
    ({"Network": "fd00::/48"}, "Network", "is IPv6"),
    ({"Network": 1}, "Network", "must be a string"),
    ({"Network": ["10.244.0.0/16"]}, "Network", "must be a string"),
    ({"EnableIPv6": True}, "IPv6Network", "missing"),
    ({"EnableIPv6": True, "IPv6Network": "10.0.0.0/8"}, "IPv6Network", "is IPv4"),
    ({"EnableIPv6": True, "IPv6Network": "fd00::1/48"}, "IPv6Network", "host bits"),
    ({"EnableIPv6": "true"}, "EnableIPv6", "must be true or false"),
    ({"EnableIPv4": 1}, "EnableIPv4", "must be true or false"),
    ({"EnableIPv4": False}, "", "both families are off"),
    ({"Netwrok": "10.244.0.0/16"}, "", "unknown key 'Netwrok'"),
    ({"": 1}, "", "unknown key ''"),
    ({"network": "10.0.0.0/8"}, "network", "stands twice"),
    ({"Backend": "vxlan"}, "Backend", "must be an object"),
    ({"Backend": []}, "Backend", "must be an object"),
    ({"Backend": {"Type": "wireguard"}}, "Backend: Type", "unknown backend 'wireguard'"),
    ({"Backend": {"Type": ""}}, "Backend: Type", "unknown backend ''"),
    ({"Backend": {"Type": "VXLAN"}}, "Backend: Type", "unknown backend 'VXLAN'"),
    ({"Backend": {"Type": 1}}, "Backend: Type", "must be a string"),
    ({"Backend": {"Type": ["vxlan"]}}, "Backend: Type", "must be a string"),
    ({"Backend": {"VNID": 1}}, "Backend", "unknown key 'VNID'"),
    ({"Backend": {"VNI": 1, "vni": 2}}, "Backend: vni", "stands twice"),
    ({"Backend": {"Type": "host-gw", "VNI": 1}}, "Backend", "unknown key 'VNI'"),
    ({"Backend": {"VNI": 0}}, "Backend: VNI", "0 is out of range"),
    ({"Backend": {"VNI": -1}}, "Backend: VNI", "-1 is out of range"),
    ({"Backend": {"VNI": 1 << 24}}, "Backend: VNI", "16777216 is out of range"),
    ({"Backend": {"VNI": True}}, "Backend: VNI", "must be a whole number"),
    ({"Backend": {"VNI": 1.5}}, "Backend: VNI", "must be a whole number"),
    ({"Backend": {"VNI": "1"}}, "Backend: VNI", "must be a whole number"),
    ({"Backend": {"VNI": 10**30}}, "Backend: VNI", "out of range"),
    ({"Backend": {"GBP": [10**30]}}, "Backend: GBP", "must be true or false"),
    ({"Backend": {"Port": 65536}}, "Backend: Port", "65536 is out of range"),
    ({"Backend": {"Port": -1}}, "Backend: Port", "-1 is out of range"),
    ({"Backend": {"Port": False}}, "Backend: Port", "must be a whole number"),
    ({"Backend": {"MTU": 1349}}, "Backend: MTU", "1349 is out of range"),
    ({"Backend": {"MTU": 65536}}, "Backend: MTU", "65536 is out of range"),
    ({"Backend": {"Type": "host-gw", "MTU": 1279}}, "Backend: MTU", "1279 is out of range"),
    ({"Backend": {"GBP": 0}}, "Backend: GBP", "must be true or false"),
    ({"Backend": {"Learning": "no"}}, "Backend: Learning", "must be true or false"),
    ({"Backend": {"DirectRouting": []}}, "Backend: DirectRouting", "must be true or false"),
    ({"NonMasqueradeCIDRs": "10.0.0.0/8"}, "NonMasqueradeCIDRs", "must be a list"),
    ({"NonMasqueradeCIDRs": {}}, "NonMasqueradeCIDRs", "must be a list"),
    ({"NonMasqueradeCIDRs": ["10.0.0.1/8"]}, "NonMasqueradeCIDRs", "host bits"),
    ({"NonMasqueradeCIDRs": ["10.0.0.0/8", "x/8"]}, "NonMasqueradeCIDRs", "'x/8'"),
    ({"NonMasqueradeCIDRs": [1]}, "NonMasqueradeCIDRs", "must be a string"),
    ({"NonMasqueradeCIDRs": [True]}, "NonMasqueradeCIDRs", "must be a string"),
    ({"NonMasqueradeCIDRs": [None]}, "NonMasqueradeCIDRs", "must be a string"),
    ({"NonMasqueradeCIDRs": [["10.0.0.0", 8]]}, "NonMasqueradeCIDRs", "must be a string"),
    ({"NonMasqueradeCIDRs": ["10.0.0.0/8", "10.0.0.0/8"]}, "NonMasqueradeCIDRs", "overlaps"),
    ({"NonMasqueradeCIDRs": ["10.1.0.0/16", "10.0.0.0/8"]}, "NonMasqueradeCIDRs", "overlaps 10.1.0.0/16"),
    ({"NonMasqueradeCIDRs": ["fd00::/8", "fd00::/16"]}, "NonMasqueradeCIDRs", "overlaps fd00::/8"),
]


@pytest.mark.parametrize(("keys", "where", "words"), MISTAKES)
def test_a_mistake_is_named(keys, where, words):
    with pytest.raises(InvalidInputError) as caught:
        parse_netconf(json.dumps({**NETWORK, **keys}), where="here")
    assert caught.value.where == (f"here: {where}" if where else "here")
    assert words in caught.value.what
    assert caught.value.remedy


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["vxlan", "host-gw", "10.0.0.0/8", "fd00::/8", "10.0.0.1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted(BACKEND_KEYS[BackendType.VXLAN])) | st.text(), inner, max_size=3
        )
    ),
    max_leaves=8,
)
plausible = st.dictionaries(st.sampled_from(sorted(NETWORK_KEYS)), json_values).map(
    lambda raw: {**NETWORK, **raw}
)


def read_or_refuse(text):
    try:
        outcome = parse_netconf(text, where="here")
    except InvalidInputError as error:
        outcome = error
    if isinstance(outcome, NetConf):
        assert outcome.networks
    else:
        assert outcome.where.startswith("here")
        assert outcome.remedy


@given(st.binary())
def test_any_bytes_are_read_or_refused(text):
    read_or_refuse(text)


@given(st.text(st.characters()))
def test_any_text_is_read_or_refused(text):
    read_or_refuse(f'{{"Network": "{text}"}}')


@given(json_values | plausible)
def test_any_json_is_read_or_refused(value):
    read_or_refuse(json.dumps(value))


@given(st.integers(2, 3000))
def test_depth_is_refused(depth):
    read_or_refuse(b'{"Backend":' + b"[" * depth + b"]" * depth + b"}")
