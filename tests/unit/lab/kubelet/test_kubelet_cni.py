"""Plugins are called as the specification says, here scripts that write down what they got."""

import json

import pytest

from poplin.lab.kubelet import cni
from poplin.model.errors import TemporaryError

PLUGIN = """#!/bin/sh
config=$(cat)
echo "$CNI_COMMAND $(basename "$0") $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS $config" >> LOG
case "$CNI_COMMAND" in ADD) ANSWER ;; esac
"""
ATTACHMENT = cni.Attachment(
    "c0ffee", "/run/netns/x", "shop", "web", "u-1", {"portMappings": [{"hostPort": 80}], "mac": "x"}
)
ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=u-1"


@pytest.fixture
def plugins(tmp_path):
    log = tmp_path / "log"

    def make(name, answer):
        path = tmp_path / name
        path.write_text(PLUGIN.replace("LOG", str(log)).replace("ANSWER", answer))
        path.chmod(0o755)

    def calls():
        lines = [line.split(" ", 6) for line in log.read_text().splitlines()]
        return [(words[0], words[1], words[2:6], json.loads(words[6])) for words in lines]

    make("first", """echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/32"}]}'""")
    make("second", """echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/32"}]}'""")
    make("broken", """echo '{"code":7,"msg":"no","details":"never"}'; exit 1""")
    return tmp_path, calls


def conflist(*kinds):
    plugins = [
        {"type": kind, "own": kind, "capabilities": {"portMappings": True, "ips": True}} for kind in kinds
    ]
    return {"cniVersion": "1.0.0", "name": "net", "plugins": plugins}


def test_each_plugin_gets_what_the_one_before_made(plugins):
    directory, calls = plugins
    result = cni.add(conflist("first", "second"), ATTACHMENT, [directory])
    assert result["ips"] == [{"address": "10.0.0.2/32"}]
    one, two = calls()
    assert one[:3] == ("ADD", "first", ["c0ffee", "/run/netns/x", "eth0", ARGS])
    assert one[3] == {
        "type": "first",
        "own": "first",
        "cniVersion": "1.0.0",
        "name": "net",
        "runtimeConfig": {"portMappings": [{"hostPort": 80}]},
    }
    assert two[3]["prevResult"]["ips"] == [{"address": "10.0.0.1/32"}]


def test_deletion_goes_backwards_with_the_last_result(plugins):
    directory, calls = plugins
    assert cni.delete(conflist("first", "second"), ATTACHMENT, [directory], {"ips": []}) == []
    assert [(command, kind) for command, kind, *_ in calls()] == [("DEL", "second"), ("DEL", "first")]
    assert all(config["prevResult"] == {"ips": []} for *_, config in calls())


def test_a_chain_that_breaks_is_undone_and_says_why(plugins):
    directory, calls = plugins
    with pytest.raises(TemporaryError, match="CNI plugin broken, ADD: no: never"):
        cni.add(conflist("first", "broken", "second"), ATTACHMENT, [directory])
    done = [(command, kind) for command, kind, *_ in calls()]
    assert done == [
        ("ADD", "first"),
        ("ADD", "broken"),
        ("DEL", "second"),
        ("DEL", "broken"),
        ("DEL", "first"),
    ]


def test_a_plugin_that_is_not_installed_is_named(plugins):
    directory, _ = plugins
    with pytest.raises(TemporaryError, match="CNI plugin absent not found"):
        cni.add(conflist("absent"), ATTACHMENT, [directory])


def test_the_first_configuration_by_name_counts(tmp_path):
    assert cni.find_conflist(tmp_path / "absent") is None
    for name in ("20-b.conflist", "10-a.conflist", "00-note.txt"):
        (tmp_path / name).write_text("{}")
    assert cni.find_conflist(tmp_path) == tmp_path / "10-a.conflist"


def test_a_single_plugins_configuration_is_a_list_of_one(tmp_path):
    path = tmp_path / "a.conf"
    path.write_text(json.dumps({"cniVersion": "0.4.0", "name": "n", "type": "first"}))
    read = cni.read_conflist(path)
    assert (read["cniVersion"], read["name"], [p["type"] for p in read["plugins"]]) == (
        "0.4.0",
        "n",
        ["first"],
    )
    path.write_text("{")
    with pytest.raises(TemporaryError, match=r"a\.conf"):
        cni.read_conflist(path)
