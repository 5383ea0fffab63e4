"""An agent that may do no more than it needs: two capabilities of all that root has."""

from pathlib import Path

import pytest

from kernel.nodes import cluster, ip_batch, kernel_state, probe_icmp, probe_pairs, probe_tcp, wait_for

CAPABILITIES = {"net_admin": 12, "sys_admin": 21}
"""Numbers of linux/capability.h."""

WITHOUT_OTHERS = [
    "setpriv",
    f"--bounding-set=-all,+{',+'.join(CAPABILITIES)}",
    "--inh-caps=-all",
    "--ambient-caps=-all",
    "--no-new-privs",
]
LIMITS = {
    "ingressRate": 100_000_000,
    "ingressBurst": 1_000_000,
    "egressRate": 100_000_000,
    "egressBurst": 1_000_000,
}


@pytest.fixture(scope="module", params=["vxlan", "host-gw"])
def two(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("capabilities")
    with cluster(directory, nodes=2, backend={"Type": request.param}, started=False) as c:
        for node in c.nodes:
            node.wrapper = WITHOUT_OTHERS
        c.start()
        yield c


def capabilities_of(process):
    """Effective, permitted and bounding set of a process (man 5 proc_pid_status)."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t") for line in lines if line.startswith("Cap"))
    return {fields[name] for name in ("CapEff", "CapPrm", "CapBnd")}


def test_two_capabilities_are_enough(two):
    wanted = f"{sum(1 << number for number in CAPABILITIES.values()):016x}"
    for node in two.nodes:
        assert capabilities_of(node.process) == {wanted}
        node.add_pod()
        mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
        node.add_pod(runtimeConfig={"portMappings": [mapping], "bandwidth": LIMITS})
    assert probe_pairs(two.pods, two.versions) == []
    for version in two.versions:
        probe_icmp(two.pods[0], two.outside.addresses[version])
        assert probe_tcp(two.pods[0], two.outside, version) == two.nodes[0].addresses[version]


def test_what_breaks_is_mended_and_what_goes_is_taken_away(two):
    node = two.nodes[0]
    pod = node.add_pod()
    before = kernel_state(node)
    ip_batch(node.name, f"route del {pod.addresses[4]}/32")
    ip_batch(pod.name, "link set eth0 down")
    wait_for(lambda: kernel_state(node) == before, "the route and the pod's side come back")
    wait_for(lambda: probe_pairs([pod, two.pods[0]], two.versions) == [], "packets pass again")
    assert node.cni("CHECK", pod, prevResult=pod.result).status == 0
    node.kill()
    node.start()
    node.wait_ready(peers=1)
    assert probe_pairs(two.pods, two.versions) == []
    for one in list(node.pods):
        node.remove_pod(one)
    assert node.status()["pods"] == 0
