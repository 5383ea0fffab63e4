import json
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.cni.error import CniError
from poplin.cni.protocol import PodArgs, answer_version, parse_args, parse_request
from poplin.model.attachment import Limit, PortMapping
from poplin.model.cluster import TransportProtocol

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}


def parse(config=None, **environment):
    text = json.dumps({"cniVersion": "1.1.0", "name": "poplin"} | (config or {})).encode()
    return parse_request(ENVIRONMENT | environment, text)


def failure(config=None, **environment):
    with pytest.raises(CniError) as error:
        parse(config, **environment)
    return error.value


def test_all_that_a_runtime_may_pass_is_read():
    request = parse(
        {
            "capabilities": {"ips": True, "mac": True},
            "runtimeConfig": {
                "ips": ["fd00::5/64", "10.0.0.5"],
                "ipRanges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "gateway": "10.0.0.1"}]],
                "mac": "C2:11:22:33:44:55",
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
                    {"hostPort": 0, "containerPort": 81, "protocol": "udp"},
                ],
                "bandwidth": {"ingressRate": 1000, "ingressBurst": 2000},
                "io.kubernetes.cri.pod-annotations": {"a": "b"},
                "cgroupPath": "/kubepods",
            },
            "somebody's": ["own", {"member": None}],
        },
        CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=i;K8S_POD_UID=u",
    )
    assert request.requested_addresses == (ip_address("10.0.0.5"), ip_address("fd00::5"))
    assert request.address_ranges == ((ip_address("10.0.0.9"), ip_address("10.0.0.255")),)
    assert request.requested_mac == "c2:11:22:33:44:55"
    assert request.port_mappings == (PortMapping(TransportProtocol.TCP, 8080, 80, ip_address("192.0.2.1")),)
    assert (request.ingress, request.egress) == (Limit(1000, 2000), None)
    assert request.pod == PodArgs("ns", "web", "u", "i")
    assert (request.network, request.netns, request.previous_result) == ("poplin", "/run/netns/x", None)


def test_null_members_are_absent_members():
    members = ("capabilities", "runtimeConfig", "prevResult", "cni.dev/valid-attachments")
    assert parse(dict.fromkeys(members)) == parse()
    assert parse({"runtimeConfig": {"ips": None, "portMappings": None, "bandwidth": None}}) == parse()


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ({"ips": ["10.0.0.5", "10.0.0.6"]}, 7),
        ({"ips": ["10.0.0.500"]}, 7),
        ({"ips": "10.0.0.5"}, 6),
        ({"ips": [5]}, 6),
        ({"ipRanges": [{"subnet": "10.0.0.0/24"}]}, 6),
        ({"ipRanges": [[{"rangeStart": "10.0.0.1"}]]}, 6),
        ({"ipRanges": [[{"subnet": "10.0.0.0"}, {"subnet": "fd00::/64"}]]}, 7),
        ({"mac": "01:00:5e:00:00:01"}, 7),
        ({"mac": "00:00:00:00:00:00"}, 7),
        ({"mac": "0a:00:00:00:00"}, 7),
        ({"mac": "0a:00:00:00:00:01\n"}, 7),
        ({"portMappings": [{"hostPort": "80", "containerPort": 80}]}, 6),
        ({"portMappings": [{"hostPort": 65536, "containerPort": 80}]}, 7),
        ({"bandwidth": {"ingressRate": -1}}, 7),
    ],
)
def test_wrong_requests_of_the_runtime(runtime, code):
    assert failure({"runtimeConfig": runtime}).code == code


def test_no_capability_keeps_a_pod_from_being_deleted():
    runtime = {"portMappings": [{"hostPort": 65536, "containerPort": 80}], "bandwidth": {"egressRate": -1}}
    request = parse({"runtimeConfig": runtime}, CNI_COMMAND="DEL")
    assert (request.port_mappings, request.ingress, request.egress) == ((), None, None)


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_commands_about_no_container_need_no_container(command):
    config = b'{"cniVersion":"1.1.0","name":"poplin","cni.dev/valid-attachments":[]}'
    assert parse_request({"CNI_COMMAND": command}, config).command == command


def test_gc_without_a_list_is_an_error_and_an_empty_list_is_not():
    absent = failure(CNI_COMMAND="GC")
    assert (absent.code, absent.msg) == (7, "GC needs cni.dev/valid-attachments")
    for empty in ([], None):
        assert parse({"cni.dev/valid-attachments": empty}, CNI_COMMAND="GC").valid_attachments == frozenset()
    found = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "a", "ifname": "net1"}]
    request = parse({"cni.dev/valid-attachments": found}, CNI_COMMAND="GC")
    assert request.valid_attachments == {("a", "eth0"), ("a", "net1")}


def test_check_needs_the_result_of_the_add():
    assert failure(CNI_COMMAND="CHECK").code == 7
    request = parse({"prevResult": {"ips": [{"address": "10.0.0.1/32"}]}}, CNI_COMMAND="CHECK")
    assert [str(ip.address) for ip in request.previous_result.ips] == ["10.0.0.1/32"]


def test_del_needs_no_namespace_and_no_previous_result():
    assert parse(CNI_COMMAND="DEL", CNI_NETNS="").netns == ""


def test_version_is_echoed_whatever_it_is():
    for config, version in ((b"", "1.1.0"), (b"{}", "1.1.0"), (b'{"cniVersion":"0.2.0"}', "0.2.0")):
        request = parse_request({"CNI_COMMAND": "VERSION"}, config)
        assert json.loads(answer_version(request.cni_version)) == {
            "cniVersion": version,
            "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        }


@pytest.mark.parametrize(
    ("text", "pod"),
    [
        ("", PodArgs()),
        ("K8S_POD_NAME=a=b", PodArgs(name="a=b")),
        ("K8S_POD_NAME=", PodArgs()),
        ("IgnoreUnknown=true;X=1;K8S_POD_UID=u", PodArgs(uid="u")),
        ("X=1;IgnoreUnknown=1", PodArgs()),
    ],
)
def test_args(text, pod):
    assert parse_args(text) == pod


@pytest.mark.parametrize(
    "text", ["X=1", "X=1;IgnoreUnknown=0", "IgnoreUnknown=1;X", ";", "=1", "IgnoreUnknown=1;"]
)
def test_wrong_args_are_code_4(text):
    assert failure(CNI_ARGS=text).code == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
MEMBERS = st.sampled_from(
    [
        "cniVersion",
        "name",
        "prevResult",
        "runtimeConfig",
        "ips",
        "mac",
        "interfaces",
        "cni.dev/valid-attachments",
        "dns",
    ]
)
CONFIGS = st.dictionaries(
    MEMBERS, JSON | st.dictionaries(MEMBERS, JSON) | st.sampled_from(["1.1.0", "poplin", "1.0.0"])
)
COMMANDS = st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"])


@given(
    command=COMMANDS | st.text(),
    config=st.binary() | CONFIGS.map(lambda value: json.dumps(value).encode()),
    environment=st.dictionaries(st.sampled_from([*ENVIRONMENT, "CNI_ARGS"]), st.text()),
)
def test_whatever_comes_is_a_request_or_one_of_four_errors(command, config, environment):
    try:
        request = parse_request(ENVIRONMENT | environment | {"CNI_COMMAND": command}, config)
    except CniError as error:
        assert error.code in (1, 4, 6, 7)  # noqa: PT017  - either outcome is right, each in its form
    else:
        assert request.command == command
