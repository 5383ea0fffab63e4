"""networking.k8s.io/v1 NetworkPolicy: what is read, what is not, and what that costs."""

from ipaddress import ip_network

import pytest

from poplin.datastore.network_policy import NETWORK_POLICIES
from poplin.datastore.parse import InvalidObjectError, convert_object
from poplin.model.cluster import NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule, TransportProtocol
from poplin.model.selector import EVERYTHING
from poplin.model.selector_text import parse_selector


def read(spec):
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": spec,
    }
    return convert_object(NETWORK_POLICIES, document).value


def test_everything_that_a_policy_can_say():
    policy = read(
        {
            "podSelector": {
                "matchLabels": {"app": "db"},
                "matchExpressions": [
                    {"key": "tier", "operator": "In", "values": ["b", "a"]},
                    {"key": "env", "operator": "NotIn", "values": ["test"]},
                    {"key": "live", "operator": "Exists"},
                    {"key": "old", "operator": "DoesNotExist"},
                ],
            },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [
                        {"podSelector": {"matchLabels": {"app": "web"}}},
                        {"namespaceSelector": {"matchLabels": {"team": "red"}}},
                        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}},
                        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                    ],
                    "ports": [
                        {"port": 80},
                        {"protocol": "UDP", "port": "dns"},
                        {"protocol": "SCTP", "port": 100, "endPort": 200},
                        {"protocol": "TCP"},
                    ],
                }
            ],
            "egress": [{}],
        }
    )
    assert policy.problems == ()
    assert policy.pod_selector == parse_selector(
        "app == 'db' && tier in {'a', 'b'} && env != 'test' && has(live) && !has(old)"
    )
    own = "projectcalico.org/namespace == 'shop'"
    assert policy.ingress == (
        NetworkPolicyRule(
            0,
            (
                NetworkPolicyPeer(parse_selector(f"app == 'web' && {own}")),
                NetworkPolicyPeer(parse_selector("has(projectcalico.org/namespace) && pcns.team == 'red'")),
                NetworkPolicyPeer(parse_selector("has(projectcalico.org/namespace) && app == 'web'")),
                NetworkPolicyPeer(block=ip_network("10.0.0.0/8"), excepts=(ip_network("10.1.0.0/16"),)),
            ),
            (
                NetworkPolicyPort(TransportProtocol.TCP, 80),
                NetworkPolicyPort(TransportProtocol.UDP, "dns"),
                NetworkPolicyPort(TransportProtocol.SCTP, 100, 200),
                NetworkPolicyPort(TransportProtocol.TCP),
            ),
        ),
    )
    assert policy.egress == (NetworkPolicyRule(0),)


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ({}, True, False),
        ({"egress": [{}]}, True, True),
        ({"egress": []}, True, False),
        ({"policyTypes": []}, True, False),
        ({"policyTypes": ["Egress"]}, False, True),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, False, True),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, True, False),
    ],
)
def test_the_directions_of_a_policy(spec, ingress, egress):
    policy = read(spec)
    assert (policy.ingress is not None, policy.egress is not None) == (ingress, egress)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"from": [{}]}, "ingress[0].from[0]: {} is not a podSelector"),
        (
            {"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]},
            "ipBlock: '10.0.0.0/8' is not allowed",
        ),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}, "ipBlock.cidr: '10.0.0.0' is not a CIDR"),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}, "is not a CIDR"),
        (
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]},
            "except[0]: '11.0.0.0/16' is not within 10.0.0.0/8",
        ),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/16"]}}]}, "is not within"),
        ({"ports": [{"port": 90, "endPort": 80}]}, "ports[0].endPort: 80 is not a port from 90"),
        ({"ports": [{"endPort": 80}]}, "endPort: 80 is not allowed without"),
        ({"ports": [{"port": "http", "endPort": 80}]}, "endPort: 80 is not allowed without"),
        ({"ports": [{"port": 0}]}, "port: 0 is not a port"),
        ({"ports": [{"port": 65536}]}, "port: 65536 is not a port"),
        ({"ports": [{"port": "no_such-"}]}, "is not a port's number or name"),
        ({"ports": [{"protocol": "tcp", "port": 1}]}, "protocol: 'tcp' is not TCP, UDP or SCTP"),
        (
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}]},
            "operator: 'Is' is not In, NotIn, Exists or DoesNotExist",
        ),
        (
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]},
            "values: [] is not enough for In",
        ),
        ({"from": [{"podSelector": {"matchLabels": {"a b": "c"}}}]}, "'a b' is not a label's key"),
        ({"from": [{"podSelector": {"matchLabels": {"a": "b c"}}}]}, "'b c' is not a label's value"),
    ],
)
def test_a_rule_with_a_mistake_allows_nothing_and_the_others_stand(rule, words):
    policy = read({"ingress": [rule, {"ports": [{"port": 80}]}]})
    assert [one.index for one in policy.ingress] == [1]
    (problem,) = policy.problems
    assert words in problem
    assert problem.endswith("; this rule allows nothing")


def test_a_pod_selector_with_a_mistake_closes_the_namespace():
    policy = read(
        {
            "podSelector": {"matchExpressions": [{"key": "a", "operator": "?"}]},
            "ingress": [{}],
            "egress": [{}],
        }
    )
    assert policy.pod_selector == EVERYTHING
    assert (policy.ingress, policy.egress) == ((), ())
    assert policy.problems[0].endswith("; every pod of the namespace is closed")


def test_bits_beyond_the_prefix_are_told_of_and_say_nothing():
    policy = read({"ingress": [{"from": [{"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.2.3.4/16"]}}]}]})
    (peer,) = policy.ingress[0].peers
    assert (peer.block, peer.excepts) == (ip_network("10.0.0.0/8"), (ip_network("10.2.0.0/16"),))
    assert [problem.split(":")[0] for problem in policy.problems] == [
        "spec.ingress[0].from[0].ipBlock.cidr",
        "spec.ingress[0].from[0].ipBlock.except",
    ]


def test_what_is_no_policy_at_all_is_refused():
    assert isinstance(read({"podSelector": []}), InvalidObjectError)
    assert isinstance(read({"ingress": [{"ports": [{"port": 1.5}]}]}), InvalidObjectError)
