from ipaddress import ip_address

import msgspec
import pytest

from poplin.lab.addressing import Addressing
from poplin.lab.kubelet.command import expand, find_arguments, make_environment, references
from poplin.lab.kubelet.document import Pod
from poplin.lab.kubelet.files import make_hosts, make_resolv_conf
from poplin.model.errors import TemporaryError

POD = msgspec.convert(
    {
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "uid": "u-1",
            "labels": {"app": "web"},
            "annotations": {"note": "n"},
        },
        "spec": {"nodeName": "node-1", "hostAliases": [{"ip": "10.0.0.9", "hostnames": ["db", "store"]}]},
    },
    Pod,
)
ADDRESSES = [ip_address("10.0.0.1"), ip_address("fd00::1")]
HOST = [ip_address("172.18.0.2")]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$(C)", "$(C)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A", "$A"),
        ("$(A", "$(A"),
        ("", ""),
    ],
)
def test_references_are_expanded_as_kubernetes_documents_it(text, expanded):
    assert expand(text, {"A": "1", "B": "2"}) == expanded


@pytest.mark.parametrize(
    ("container", "arguments"),
    [
        ({}, ()),
        ({"command": ["sh", "-c", "echo $(A)"]}, ("sh", "-c", "echo 1")),
        ({"command": ["sh"], "args": ["-c", "true"]}, ("sh", "-c", "true")),
        ({"args": ["sleep", "1"]}, ("sleep", "1")),
        ({"command": ["/no/such/program"]}, ()),
        ({"args": ["--port=80"]}, ()),
    ],
)
def test_what_can_be_run_here(container, arguments):
    assert find_arguments(container, {"A": "1"}) == arguments


def environment(container, objects=None, services=None):
    return make_environment(
        POD, container, ADDRESSES, HOST, lambda kind, name: (objects or {}).get((kind, name)), services or {}
    )


def test_services_are_there_for_references_and_give_way_to_the_containers_own():
    container = {
        "env": [{"name": "URL", "value": "http://$(DB_SERVICE_HOST)"}, {"name": "A", "value": "own"}]
    }
    services = {"DB_SERVICE_HOST": "10.96.0.5", "A": "service"}
    assert environment(container, services=services) == {**services, "URL": "http://10.96.0.5", "A": "own"}


def field(path):
    return {"env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}]}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "web"),
        ("metadata.namespace", "shop"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['note']", "n"),
        ("metadata.labels['none']", ""),
        ("spec.nodeName", "node-1"),
        ("status.podIP", "10.0.0.1"),
        ("status.podIPs", "10.0.0.1,fd00::1"),
        ("status.hostIP", "172.18.0.2"),
    ],
)
def test_fields_of_the_pod(path, value):
    assert environment(field(path)) == {"X": value}


def test_a_field_that_is_not_known_is_an_error():
    with pytest.raises(TemporaryError, match=r"metadata\.nothing"):
        environment(field("metadata.nothing"))


def test_variables_see_those_before_them():
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(C)"}, {"name": "C", "value": "3"}]
    assert environment({"env": env}) == {"A": "1", "B": "1$(C)", "C": "3"}


def test_whole_objects_and_single_keys():
    container = {
        "envFrom": [{"configMapRef": {"name": "m"}, "prefix": "P_"}, {"secretRef": {"name": "s"}}],
        "env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
    }
    assert references(container) == {("configmaps", "m"), ("secrets", "s")}
    objects = {("configmaps", "m"): {"a": "1"}, ("secrets", "s"): {"k": "v"}}
    assert environment(container, objects) == {"P_a": "1", "k": "v", "K": "v"}


@pytest.mark.parametrize("missing", [{"name": "m", "key": "x"}, {"name": "none", "key": "x"}])
def test_what_is_missing_is_an_error_unless_it_is_optional(missing):
    objects = {("configmaps", "m"): {"a": "1"}}
    reference = {"env": [{"name": "K", "valueFrom": {"configMapKeyRef": missing}}]}
    with pytest.raises(TemporaryError, match=missing["name"]):
        environment(reference, objects)
    optional = {"env": [{"name": "K", "valueFrom": {"configMapKeyRef": {**missing, "optional": True}}}]}
    assert environment(optional, objects) == {}


def test_the_hosts_file_has_the_pod_and_its_aliases():
    lines = make_hosts(POD, ADDRESSES).splitlines()
    assert lines[-3:] == ["10.0.0.1\tweb", "fd00::1\tweb", "10.0.0.9\tdb store"]


def test_the_resolver_is_the_clusters_unless_the_pod_says_otherwise():
    text = make_resolv_conf(POD, Addressing((4, 6)))
    assert text == (
        "nameserver 10.96.0.10\nnameserver fd00:10:96::a\n"
        "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )


SEARCH = "search shop.svc.cluster.local svc.cluster.local cluster.local"
RESOLVERS = [
    ({"dnsPolicy": "Default"}, None),
    ({"hostNetwork": True}, None),
    ({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}, ["nameserver 10.96.0.10", SEARCH, "options ndots:5"]),
    (
        {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.2.3.4"], "options": [{"name": "edns0"}]}},
        ["nameserver 1.2.3.4", "options edns0"],
    ),
    ({"dnsPolicy": "None"}, [""]),
    (
        {
            "dnsConfig": {
                "nameservers": ["10.96.0.10", "1.1.1.1", "2.2.2.2", "3.3.3.3"],
                "searches": ["example.org", "cluster.local"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "use-vc"}],
            }
        },
        [
            "nameserver 10.96.0.10", "nameserver 1.1.1.1", "nameserver 2.2.2.2",
            f"{SEARCH} example.org", "options ndots:2 use-vc",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "lines"), RESOLVERS)
def test_a_pod_may_have_another_resolver(spec, lines):
    text = make_resolv_conf(msgspec.structs.replace(POD, spec=spec), Addressing((4,)))
    assert text == (None if lines is None else "\n".join(lines) + "\n")
