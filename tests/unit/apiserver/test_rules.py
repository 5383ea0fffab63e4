import copy

import pytest

from poplin.apiserver.defaults import derive
from poplin.apiserver.podrules import selects
from poplin.apiserver.rules import validate
from poplin.apiserver.syntax import check, check_labels, check_metadata, check_qualified

NETWORK = "networking.k8s.io"


def faults(group: str, document: dict, old: dict | None = None) -> dict[str, str]:
    return {cause.field: cause.reason for cause in validate(group, document["kind"], document, old)}


def pod(**spec: object) -> dict:
    return {
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "a", "image": "i"}], **spec},
    }


def service(**spec: object) -> dict:
    return {
        "kind": "Service",
        "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 80, "protocol": "TCP"}], **spec},
    }


def policy(**spec: object) -> dict:
    return {"kind": "NetworkPolicy", "metadata": {"name": "n"}, "spec": spec}


def deployment(selector: dict, labels: dict) -> dict:
    template = {"metadata": {"labels": labels}, "spec": pod()["spec"]}
    return {
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {"selector": selector, "template": template},
    }


def peer(**block: object) -> dict:
    return policy(ingress=[{"from": [{"ipBlock": block}]}])


CASES = [
    ("", pod(), {}),
    ("", pod(containers=[{"name": "A", "image": "i"}]), {"spec.containers[0].name": "FieldValueInvalid"}),
    ("", pod(containers=[{"name": "a"}]), {"spec.containers[0].image": "FieldValueRequired"}),
    (
        "",
        pod(containers=[{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]),
        {"spec.containers[1].name": "FieldValueDuplicate"},
    ),
    (
        "",
        pod(containers=[{"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/"}]}]),
        {"spec.containers[0].volumeMounts[0].name": "FieldValueNotFound"},
    ),
    (
        "",
        pod(
            containers=[
                {
                    "name": "a",
                    "image": "i",
                    "ports": [{"name": "x", "containerPort": 1}, {"name": "x", "containerPort": 2}],
                }
            ]
        ),
        {"spec.containers[0].ports[1].name": "FieldValueDuplicate"},
    ),
    ("apps", deployment({"matchLabels": {"a": "b"}}, {"a": "b", "c": "d"}), {}),
    (
        "apps",
        deployment({"matchLabels": {"a": "b"}}, {"a": "c"}),
        {"spec.template.metadata.labels": "FieldValueInvalid"},
    ),
    ("apps", deployment({}, {"a": "b"}), {"spec.selector": "FieldValueInvalid"}),
    ("", service(), {}),
    ("", service(ports=[]), {"spec.ports": "FieldValueRequired"}),
    ("", service(ports=[], clusterIP="None"), {}),
    ("", service(ports=[], type="ExternalName"), {"spec.externalName": "FieldValueRequired"}),
    ("", service(ports=[{"port": 80, "targetPort": 0}]), {"spec.ports[0].targetPort": "FieldValueInvalid"}),
    (
        "",
        service(ports=[{"port": 80, "targetPort": "-x"}]),
        {"spec.ports[0].targetPort": "FieldValueInvalid"},
    ),
    (
        "",
        service(
            ports=[{"name": "a", "port": 1, "protocol": "TCP"}, {"name": "b", "port": 1, "protocol": "TCP"}]
        ),
        {"spec.ports[1]": "FieldValueDuplicate"},
    ),
    (
        "",
        service(
            ports=[{"name": "a", "port": 1, "protocol": "TCP"}, {"name": "b", "port": 1, "protocol": "UDP"}]
        ),
        {},
    ),
    (
        "",
        service(ports=[{"name": "a", "port": 1}, {"name": "a", "port": 2}]),
        {"spec.ports[1].name": "FieldValueDuplicate"},
    ),
    ("", service(externalIPs=["1.2.3"]), {"spec.externalIPs[0]": "FieldValueInvalid"}),
    (
        "",
        service(loadBalancerSourceRanges=["1.2.3.4"], type="LoadBalancer"),
        {"spec.loadBalancerSourceRanges[0]": "FieldValueInvalid"},
    ),
    ("", service(externalIPs=["127.0.0.1"]), {"spec.externalIPs[0]": "FieldValueInvalid"}),
    ("", service(loadBalancerClass="a/b"), {"spec.loadBalancerClass": "FieldValueForbidden"}),
    ("", service(healthCheckNodePort=30001), {"spec.healthCheckNodePort": "FieldValueForbidden"}),
    ("", service(externalTrafficPolicy="Local"), {"spec.externalTrafficPolicy": "FieldValueInvalid"}),
    ("", service(trafficDistribution="PreferClose"), {}),
    ("", service(trafficDistribution="Near"), {"spec.trafficDistribution": "FieldValueNotSupported"}),
    ("", service(ports=[{"port": 80, "nodePort": 30001}]), {"spec.ports[0].nodePort": "FieldValueForbidden"}),
    (NETWORK, policy(podSelector={}), {}),
    (NETWORK, policy(policyTypes=["Both"]), {"spec.policyTypes[0]": "FieldValueNotSupported"}),
    (NETWORK, peer(cidr="10.0.0.0/8"), {}),
    (NETWORK, peer(cidr="2001:db8::/32", **{"except": ["2001:db8:1::/48"]}), {}),
    (NETWORK, peer(cidr="10.0.0.0/33"), {"spec.ingress[0].from[0].ipBlock.cidr": "FieldValueInvalid"}),
    (NETWORK, peer(cidr="10.0.0.0"), {"spec.ingress[0].from[0].ipBlock.cidr": "FieldValueInvalid"}),
    (
        NETWORK,
        peer(cidr="10.0.0.0/8", **{"except": ["11.0.0.0/16", "10.0.0.0/8", "2001:db8::/64"]}),
        {f"spec.ingress[0].from[0].ipBlock.except[{index}]": "FieldValueInvalid" for index in range(3)},
    ),
    (NETWORK, policy(egress=[{"to": [{}]}]), {"spec.egress[0].to[0]": "FieldValueRequired"}),
    (
        NETWORK,
        policy(egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]),
        {"spec.egress[0].to[0]": "FieldValueForbidden"},
    ),
    (NETWORK, policy(ingress=[{"ports": [{"port": 80, "endPort": 90}]}]), {}),
    (
        NETWORK,
        policy(ingress=[{"ports": [{"port": 80, "endPort": 79}]}]),
        {"spec.ingress[0].ports[0].endPort": "FieldValueInvalid"},
    ),
    (
        NETWORK,
        policy(ingress=[{"ports": [{"port": "http", "endPort": 79}]}]),
        {"spec.ingress[0].ports[0].endPort": "FieldValueInvalid"},
    ),
    (
        NETWORK,
        policy(ingress=[{"ports": [{"port": 70000}]}]),
        {"spec.ingress[0].ports[0].port": "FieldValueInvalid"},
    ),
]


@pytest.mark.parametrize(("group", "document", "expected"), CASES)
def test_what_a_new_object_may_say(group, document, expected):
    assert faults(group, document) == expected


def test_a_pod_may_change_its_image_and_be_bound_but_no_more():
    old = pod()
    for change, expected in (
        ({"containers": [{"name": "a", "image": "other"}]}, {}),
        ({"nodeName": "n"}, {}),
        ({"tolerations": [{"key": "x"}]}, {}),
        ({"hostNetwork": True}, {"spec": "FieldValueForbidden"}),
        ({"containers": [{"name": "b", "image": "i"}]}, {"spec": "FieldValueForbidden"}),
    ):
        new = copy.deepcopy(old)
        new["spec"].update(change)
        assert faults("", new, old) == expected
    bound = pod(nodeName="n")
    assert faults("", pod(nodeName="m"), bound) == {"spec": "FieldValueForbidden"}


def test_a_cluster_ip_is_given_once():
    old = service(clusterIP="10.0.0.1", clusterIPs=["10.0.0.1"])
    assert faults("", old, service()) == {}
    assert faults("", service(clusterIP="10.0.0.2", clusterIPs=["10.0.0.2"]), old) == {
        "spec.clusterIPs[0]": "FieldValueInvalid"
    }


def test_a_marked_config_map_does_not_change():
    old = {"kind": "ConfigMap", "metadata": {}, "data": {"a": "b"}, "immutable": True}
    assert faults("", {**old, "data": {"a": "c"}}, old) == {"data": "FieldValueForbidden"}
    assert faults("", {**old, "data": {"a": "c"}}, {**old, "immutable": False}) == {}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
    ],
)
def test_label_selectors_of_objects(selector, expected):
    assert selects(selector, {"a": "1"}) is expected


DERIVED = [
    ("", service(), lambda spec: spec["ports"][0]["targetPort"], 80),
    ("", service(), lambda spec: spec["internalTrafficPolicy"], "Cluster"),
    ("", service(type="NodePort"), lambda spec: spec["externalTrafficPolicy"], "Cluster"),
    (
        "",
        service(sessionAffinity="ClientIP"),
        lambda spec: spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"],
        10800,
    ),
    ("", pod(), lambda spec: spec["containers"][0]["imagePullPolicy"], "Always"),
    (
        "",
        pod(containers=[{"name": "a", "image": "r:5000/i:1"}]),
        lambda spec: spec["containers"][0]["imagePullPolicy"],
        "IfNotPresent",
    ),
    (
        "",
        pod(containers=[{"name": "a", "image": "r:5000/i"}]),
        lambda spec: spec["containers"][0]["imagePullPolicy"],
        "Always",
    ),
    (
        "",
        pod(containers=[{"name": "a", "image": "i@sha256:0"}]),
        lambda spec: spec["containers"][0]["imagePullPolicy"],
        "IfNotPresent",
    ),
    ("", pod(), lambda spec: spec["serviceAccountName"], "default"),
    ("", pod(tolerations=[{"operator": "Exists"}]), lambda spec: len(spec["tolerations"]), 1),
    ("", pod(), lambda spec: len(spec["tolerations"]), 2),
    (NETWORK, policy(), lambda spec: spec["policyTypes"], ["Ingress"]),
    (NETWORK, policy(egress=[{}]), lambda spec: spec["policyTypes"], ["Ingress", "Egress"]),
]


@pytest.mark.parametrize(("group", "document", "read", "expected"), DERIVED)
def test_defaults_that_depend_on_other_fields(group, document, read, expected):
    document = copy.deepcopy(document)
    derive(group, document["kind"], document)
    assert read(document["spec"]) == expected
    again = copy.deepcopy(document)
    derive(group, document["kind"], again)
    assert again == document


@pytest.mark.parametrize(
    ("value", "rule", "good"),
    [
        ("a", "label", True),
        ("a-1", "label", True),
        ("1a", "label", True),
        ("1a", "label1035", False),
        ("A", "label", False),
        ("-a", "label", False),
        ("a.b", "label", False),
        ("a" * 63, "label", True),
        ("a" * 64, "label", False),
        ("a\n", "label", False),
        ("a.b-c.d", "subdomain", True),
        ("a..b", "subdomain", False),
        ("http", "port", True),
        ("80", "port", False),
        ("a--b", "port", False),
        ("a" * 16, "port", False),
        ("", "value", True),
        ("A_b.c-1", "value", True),
        ("_a", "value", False),
    ],
)
def test_spelling(value, rule, good):
    assert (list(check(value, rule, "f")) == []) is good


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("a", True),
        ("example.org/a", True),
        ("/a", False),
        ("a/", False),
        ("A B", False),
        ("x_y/a", False),
        ("a/b/c", False),
    ],
)
def test_qualified_names(key, good):
    assert (list(check_qualified(key, "f")) == []) is good
    assert (list(check_labels({key: "v"}, "f")) == []) is good


def test_metadata_is_checked_as_a_whole():
    reference = {"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u", "controller": True}
    metadata = {
        "name": "Bad",
        "labels": {"a": "_"},
        "annotations": {"b": "x" * 300_000},
        "ownerReferences": [reference] * 2,
    }
    fields = [cause.field for cause in check_metadata(metadata, "", "ConfigMap")]
    assert fields == ["metadata.name", "metadata.labels", "metadata.annotations", "metadata.ownerReferences"]
    assert list(check_metadata({"name": "system:node"}, "rbac.authorization.k8s.io", "ClusterRole")) == []
