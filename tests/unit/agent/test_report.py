"""The agent's state as JSON, which `poplin status` and people's scripts read."""

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

from poplin.agent.report import Condition, Report, encode_report, from_error
from poplin.compile.lease import Endpoint, Lease
from poplin.compile.network import Network
from poplin.model.errors import TemporaryError
from poplin.model.kernel import Link, Route
from poplin.model.state import NetworkState

CIDR = ip_network("10.244.1.0/24")
NETWORK = Network(
    lease=Lease("n1", "vxlan", (Endpoint(ip_address("192.0.2.1"), CIDR, "02:00:00:00:00:01", 1),)),
    pod_cidrs=(CIDR,),
    pod_mtu_bytes=1450,
    state=NetworkState(links={"flannel.1": Link("flannel.1")}, routes=frozenset({Route(CIDR)})),
)
REPORT = Report("n1", (Condition("cluster in sync", ok=True),), NETWORK, 3, 7, ("node n9: is odd",))


def test_a_condition_holds_where_there_is_no_error():
    assert from_error("x", None) == Condition("x", ok=True, reason="")
    error = TemporaryError("away", where="API server", remedy="wait")
    assert from_error("x", error) == Condition("x", ok=False, reason="API server: away; wait")


def test_one_condition_that_does_not_hold_makes_the_node_unready():
    assert REPORT.ready
    assert not replace(REPORT, conditions=(*REPORT.conditions, Condition("y", ok=False))).ready


def test_the_report_as_json():
    assert json.loads(encode_report(REPORT)) == {
        "node": "n1",
        "ready": True,
        "conditions": [{"name": "cluster in sync", "ok": True, "reason": ""}],
        "network": {
            "backend": "vxlan",
            "podMTU": 1450,
            "families": [
                {
                    "podCIDR": "10.244.1.0/24",
                    "publicIP": "192.0.2.1",
                    "vtepMAC": "02:00:00:00:00:01",
                    "vni": 1,
                }
            ],
            "links": ["flannel.1"],
            "routes": 1,
        },
        "pods": 3,
        "passes": 7,
        "problems": ["node n9: is odd"],
    }


def test_an_audit_adds_what_it_mended():
    assert json.loads(encode_report(REPORT, mended=2)) == {**json.loads(encode_report(REPORT)), "mended": 2}


def test_a_node_without_a_network_has_none_in_its_report():
    assert json.loads(encode_report(replace(REPORT, network=None)))["network"] is None
