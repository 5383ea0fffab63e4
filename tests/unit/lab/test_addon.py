"""Cluster DNS as objects."""

import msgspec
import pytest

from poplin.lab.addon import make_deployment, make_service, program_directories
from poplin.lab.settings import Backend, Settings, make_net_conf


def settings(*versions):
    return Settings("lab", 3, versions, make_net_conf(versions, Backend.VXLAN))


@pytest.mark.parametrize(
    ("versions", "addresses", "policy"),
    [
        ((4,), ["10.96.0.10"], "SingleStack"),
        ((6,), ["fd00:10:96::a"], "SingleStack"),
        ((4, 6), ["10.96.0.10", "fd00:10:96::a"], "PreferDualStack"),
    ],
)
def test_the_service_has_the_addresses_that_pods_ask(versions, addresses, policy):
    spec = make_service(settings(*versions))["spec"]
    assert (spec["clusterIP"], spec["clusterIPs"], spec["ipFamilyPolicy"]) == (
        addresses[0],
        addresses,
        policy,
    )


def test_the_deployment_is_selected_and_finds_its_program():
    service, deployment = make_service(settings(4)), make_deployment(settings(4))
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    [container] = template["spec"]["containers"]
    assert {port["name"] for port in container["ports"]} == {
        p["targetPort"] for p in service["spec"]["ports"]
    }
    mounted = [one["mountPath"] for one in container["volumeMounts"]]
    assert any(container["command"][0].startswith(path) for path in mounted)
    assert [one["hostPath"]["path"] for one in template["spec"]["volumes"]] == mounted
    assert msgspec.json.encode(deployment)


def test_no_directory_is_mounted_into_another():
    paths = program_directories()
    assert not [1 for one in paths for other in paths if one != other and one.is_relative_to(other)]
