"""Pods on three nodes reach each other, in every family and backend, before and after every agent died."""

import socket

import pytest

from kernel.nodes import FORGED, cluster, ip_batch, nodad, probe_icmp, probe_pairs, probe_tcp, probe_udp

BACKENDS = {
    "vxlan": {"Type": "vxlan"},
    "vxlan-direct": {"Type": "vxlan", "DirectRouting": True},
    "host-gw": {"Type": "host-gw"},
}
RECEIVE_ERRORS = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
"""IP_RECVERR and IPV6_RECVERR (linux/in.h, in6.h): have every ICMP error from `recv`."""

FAMILIES = {"dual": (4, 6), "ipv4": (4,), "ipv6": (6,)}


@pytest.mark.parametrize("versions", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_every_pod_reaches_every_other_also_after_every_agent_died(tmp_path, backend, versions):
    with cluster(tmp_path, versions=versions, backend=backend) as c:
        pods = [c.nodes[0].add_pod(), *(node.add_pod() for node in c.nodes)]
        assert [sorted(pod.addresses) for pod in pods] == [list(versions)] * 4
        assert probe_pairs(pods, versions) == []

        # One connection in each family that must live through the death of all agents.
        kept = []
        for version in versions:
            listener = pods[2].listen(version, 7000)
            near = pods[1].connect(pods[2].addresses[version], 7000)
            far, _ = listener.accept()
            pods[2].sockets.append(far)
            kept.append((near, far))
        for node in c.nodes:
            node.kill()
        exchange(kept, b"without agents")
        assert probe_pairs(pods[:3], versions) == []
        c.start()
        exchange(kept, b"with new agents")
        pods.append(c.nodes[2].add_pod())
        assert probe_pairs(pods, versions) == []
        # What the dead agents had made was taken over as it stood: nothing was changed by their successors.
        for node in c.nodes[:2]:
            after = node.log.split('"agent started"')[-1]
            assert "kernel state changed" not in after
            assert "nftables table written" not in after


def exchange(connections, text):
    for near, far in connections:
        for one, other in ((near, far), (far, near)):
            one.settimeout(2)
            other.settimeout(2)
            one.sendall(text)
            assert other.recv(64) == text


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three nodes, a pod on each, that tests only look at."""
    with cluster(tmp_path_factory.mktemp("three")) as c:
        for node in c.nodes:
            node.add_pod()
        yield c


@pytest.fixture(params=[4, 6])
def version(request):
    return request.param


def test_nodes_reach_all_pods_and_pods_all_nodes(three, version):
    for node in three.nodes:
        for pod in three.pods:
            probe_tcp(node, pod, version)
            probe_udp(node, pod, version)
            probe_icmp(node, pod.addresses[version])
            # Pods are inside the cluster to their nodes: no address is translated on the way.
            if pod in node.pods:
                assert probe_tcp(pod, node, version) == pod.addresses[version]


def test_what_leaves_the_cluster_has_the_nodes_address(three, version):
    for node in three.nodes:
        [pod] = node.pods
        assert probe_tcp(pod, three.outside, version) == node.addresses[version]
        assert probe_udp(pod, three.outside, version) == node.addresses[version]
        probe_icmp(pod, three.outside.addresses[version])


def test_destinations_of_non_masquerade_cidrs_see_the_pods_own_address(tmp_path):
    conf = {"NonMasqueradeCIDRs": ["198.51.100.0/24", "2001:db8:100::/64"]}
    with cluster(tmp_path, nodes=1, conf=conf) as c:
        pod = c.nodes[0].add_pod()
        for version in c.versions:
            assert probe_tcp(pod, c.outside, version) == pod.addresses[version]
            # The rest of the world still sees the node.
            assert probe_tcp(pod, c.fabric, version) == c.nodes[0].addresses[version]


def test_a_forged_source_is_dropped(three, version):
    [pod], [other], [third] = (node.pods for node in three.nodes)
    bits = 32 if version == 4 else 128
    # An address that nobody has, and one that is another pod's; to another node and to the pod's own.
    for forged in (FORGED[version], third.addresses[version]):
        ip_batch(pod.name, f"addr add {forged}/{bits} dev eth0 {nodad(version)}")
        try:
            for target in (other, three.nodes[0]):
                receiver = target.udp(version, 9000, target.addresses[version])
                with receiver, pod.udp(version, 0, forged) as sender, pod.udp(version) as honest:
                    sender.sendto(b"forged", (target.addresses[version], 9000))
                    # What is sent later and arrives says that the first is not just late.
                    honest.sendto(b"honest", (target.addresses[version], 9000))
                    assert receiver.recv(64) == b"honest"
        finally:
            ip_batch(pod.name, f"addr del {forged}/{bits} dev eth0")


def test_an_address_that_no_pod_has_is_unreachable_at_once(three, version):
    pod = three.nodes[0].pods[0]
    for node in three.nodes:
        unassigned = {4: f"10.244.{node.index}.200", 6: f"fd00:10:244:{node.index}::c8"}[version]
        with pod.udp(version) as asking:
            asking.setsockopt(*RECEIVE_ERRORS[version], 1)
            asking.connect((unassigned, 80))
            asking.send(b"anyone there?")
            # A loop would end in "time exceeded", a hole in a timeout.
            with pytest.raises(OSError, match=r"No route to host|Network is unreachable"):
                asking.recv(64)
