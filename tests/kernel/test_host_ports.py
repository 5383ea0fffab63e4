"""Host ports with real packets, through real agents: who reaches them, as whom they come, and what remains."""

import signal
import socket
import subprocess
from contextlib import closing, suppress
from ipaddress import ip_address

import pytest

from kernel.nodes import cluster, nodad, run, wait_for
from poplin.agent.host_ports import HostPorts
from poplin.dataplane.conntrack import ConntrackSocket
from poplin.dataplane.netns import entered
from poplin.model.attachment import Attachment, PortMapping
from poplin.model.cluster import TransportProtocol

TABLE = ("nft", "list", "table", "inet", "poplin-hostport")

both_families = pytest.mark.parametrize("version", [4, 6])


def mapping(host_port, container_port, protocol="tcp", host_ip=""):
    return {
        "hostPort": host_port,
        "containerPort": container_port,
        "protocol": protocol,
        "hostIP": host_ip,
    }


def mappings(*given):
    return {"runtimeConfig": {"portMappings": list(given)}}


def listed(node):
    """The table as nft prints it, "" where there is none."""
    done = subprocess.run(
        ["ip", "netns", "exec", node.name, *TABLE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or "No such file" in done.stderr, done.stderr
    return done.stdout


def add(node, *given):
    """A pod that has these mappings, or none, and hears what is sent to it.

    The kernel makes an IPv6 address local a moment after it is set, by a task of its own.
    """
    pod = node.add_pod(**(mappings(*given) if given else {}))
    wait_for(lambda: pod.ip("-6", "route", "show", "table", "local", pod.addresses[6]), "a local address")
    return pod


def ask_tcp(client, version, address, port, server, server_port, bind=""):
    """Connect, say something and have it back; whom the pod saw. Raises OSError."""
    with (
        server.listen(version, server_port, bind) as listener,
        client.connect(address, port) as near,
        listener.accept()[0] as far,
    ):
        near.settimeout(2)
        near.sendall(b"there")
        assert far.recv(16) == b"there"
        far.sendall(b"and back")
        assert near.recv(16) == b"and back"
        return far.getpeername()[0]


def ask_udp(client, version, address, port, server, server_port):
    with (
        server.udp(version, server_port) as far,
        client.open(version, socket.SOCK_DGRAM) as near,
    ):
        near.connect((address, port))
        near.send(b"there")
        data, peer = far.recvfrom(64)
        assert data == b"there"
        far.sendto(b"and back", peer)
        assert near.recv(64) == b"and back"
        return peer[0]


ASK = {"tcp": ask_tcp, "udp": ask_udp}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("two"), nodes=2) as c:
        yield c


@pytest.fixture
def node(two):
    node = two.nodes[0]
    yield node
    two.close_sockets()
    for one in two.nodes:
        for pod in list(one.pods):
            one.remove_pod(pod)
    assert listed(node) == ""


@both_families
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_who_reaches_a_host_port_and_as_whom(two, node, version, protocol):
    other = two.nodes[1]
    pod = add(node, mapping(8080, 80, protocol))
    beside, far = add(node), add(other)
    address = node.addresses[version]

    def seen_from(client, to=address):
        return ASK[protocol](client, version, to, 8080, pod, 80)

    assert seen_from(two.outside) == two.outside.addresses[version]
    assert seen_from(other) == other.addresses[version]
    assert seen_from(node) == address
    assert seen_from(beside) == beside.addresses[version]
    # Another node's pod leaves its node's network, and comes as that node.
    assert seen_from(far) == other.addresses[version]
    # The pod itself comes as the node: it would not answer its own address over the wire.
    assert seen_from(pod) not in {pod.addresses[version], beside.addresses[version]}
    # Every address of the node, its own in the pods' network among them.
    assert seen_from(beside, {4: "10.244.1.0", 6: "fd00:10:244:1::"}[version]) == beside.addresses[version]
    # Not the same port elsewhere, nor another protocol's.
    for client, to in ((beside, other.addresses[version]), (two.outside, pod.addresses[version])):
        with pytest.raises(OSError, match=r"timed out|refused|unreachable|No route"):
            seen_from(client, to)
    with pytest.raises(OSError, match=r"timed out|refused"):
        ASK["udp" if protocol == "tcp" else "tcp"](two.outside, version, address, 8080, pod, 80)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_nodes_loopback_is_a_client(node, protocol):
    pod = add(node, mapping(8080, 80, protocol))
    assert ASK[protocol](node, 4, "127.0.0.1", 8080, pod, 80) == node.addresses[4]
    assert ASK[protocol](node, 4, "127.9.9.9", 8080, pod, 80) == node.addresses[4]
    # And what the node itself serves on its loopback stays its own; all of IPv6's does.
    assert ask_tcp(node, 4, "127.0.0.1", 8081, node, 8081, "127.0.0.1") == "127.0.0.1"
    assert ask_tcp(node, 6, "::1", 8080, node, 8080, "::1") == "::1"


def test_a_pod_with_a_host_port_does_not_reach_the_nodes_loopback(node):
    pod = add(node, mapping(8080, 80))
    receiver = node.udp(4, 9999, "127.0.0.1")
    assert node.run("sysctl", "-n", f"net.ipv4.conf.{pod.host_link}.route_localnet") == "1\n"
    # What a pod with NET_ADMIN could do.
    run("ip", "-n", pod.name, "route", "flush", "table", "local", "root", "127.0.0.0/8")
    run("ip", "-n", pod.name, "route", "add", "127.0.0.0/8", "via", "169.254.1.1", "dev", "eth0", "onlink")
    pod.run("sysctl", "-q", "-w", "net.ipv4.conf.eth0.route_localnet=1")
    sender = pod.udp(4)
    sender.sendto(b"x", ("127.0.0.1", 9999))
    with pytest.raises(TimeoutError):
        receiver.recv(16)
    assert "packets 1 " in next(line for line in listed(node).splitlines() if "counter" in line)
    # It is the guard that keeps it away.
    node.process.send_signal(signal.SIGSTOP)
    try:
        node.run("nft", "flush", "chain", "inet", "poplin-hostport", "loopback")
        sender.sendto(b"x", ("127.0.0.1", 9999))
        assert receiver.recv(16) == b"x"
    finally:
        node.process.send_signal(signal.SIGCONT)
    node.quiet()


@both_families
def test_a_mapping_of_one_address_is_served_there_alone_and_first(two, node, version):
    extra, bits = {4: ("192.0.2.111", 32), 6: ("2001:db8:2::111", 128)}[version]
    node.ip_do(f"addr add {extra}/{bits} dev eth0 {nodad(version)}")
    try:
        host = node.addresses[version]
        one = add(node, mapping(8080, 80, host_ip=extra))
        two_pod = add(node, mapping(8080, 80, host_ip=host))
        assert ask_tcp(two.outside, version, host, 8080, two_pod, 80) == two.outside.addresses[version]
        with suppress(OSError):
            two.outside.connect(
                extra, 8080
            ).close()  # learns nothing: a refusal shows who would have answered
        assert ask_tcp(two.nodes[1], version, extra, 8080, one, 80) == two.nodes[1].addresses[version]
        answer = node.cni("ADD", node.new_pod(), **mappings(mapping(8080, 81)))
        assert (answer.status, answer.json["code"]) == (1, 11)
    finally:
        node.ip_do(f"addr del {extra}/{bits} dev eth0")


@both_families
def test_an_unspecified_address_is_every_one_of_its_family(two, node, version):
    any_of = {4: "0.0.0.0", 6: "::"}
    pod = add(node, mapping(8080, 80, host_ip=any_of[version]))
    assert ask_tcp(two.outside, version, node.addresses[version], 8080, pod, 80)
    other = 10 - version
    with pytest.raises(ConnectionRefusedError):
        two.outside.connect(node.addresses[other], 8080)
    # So the other family's may be another pod's.
    second = add(node, mapping(8080, 80, host_ip=any_of[other]))
    assert ask_tcp(two.outside, other, node.addresses[other], 8080, second, 80)


def test_a_port_that_is_taken_is_refused_and_nothing_is_left_of_the_attempt(node):
    first = add(node, mapping(8080, 80), mapping(8053, 53, "udp"))
    before = (listed(node), node.ip("link"), node.status()["pods"])
    second = node.new_pod()
    for given in (mapping(8080, 81), mapping(8080, 80, host_ip="192.0.2.1"), mapping(8053, 53, "udp")):
        answer = node.cni("ADD", second, **mappings(mapping(9000, 90), given))
        assert (answer.status, answer.json["code"]) == (1, 11)
        port = f"{given['hostPort']}/{given['protocol'].upper()}"
        assert f"host port {port} belongs to default/{first.container_id}" in answer.json["msg"]
        assert (listed(node), node.ip("link"), node.status()["pods"]) == before
    # The other protocol's port is another port, and a pod may have many.
    node.attach(second, **mappings(mapping(8080, 80, "udp"), mapping(8053, 53), mapping(9000, 90, "sctp")))
    assert "sctp . 9000" in listed(node)
    answer = node.cni("ADD", node.new_pod(), **mappings(mapping(9000, 1, "sctp")))
    assert answer.status == 1
    # One that goes frees its ports at once.
    node.remove_pod(first)
    add(node, mapping(8080, 80))


def test_a_pod_that_fails_to_be_wired_leaves_no_mapping(node):
    pod = node.new_pod()
    run("ip", "-n", pod.name, "link", "add", "eth0", "type", "bridge")
    answer = node.cni("ADD", pod, **mappings(mapping(8080, 80)))
    assert answer.status == 1
    assert listed(node) == ""
    run("ip", "-n", pod.name, "link", "del", "eth0")
    node.attach(pod, **mappings(mapping(8080, 80)))


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_mappings_outlive_the_agent(two, node, how):
    pod = add(node, mapping(8080, 80), mapping(8443, 443, host_ip="192.0.2.1"))
    before = listed(node)
    getattr(node, how)()
    assert ask_tcp(two.outside, 4, "192.0.2.1", 8080, pod, 80) == two.outside.addresses[4]
    # Whatever becomes of the table meanwhile, the agent knows what it was.
    node.run("nft", "delete", "table", "inet", "poplin-hostport")
    node.start()
    node.wait_ready(peers=1)
    assert listed(node) == before
    for version in (4, 6):
        assert ask_tcp(two.outside, version, node.addresses[version], 8080, pod, 80)
    assert ask_tcp(two.outside, 4, "192.0.2.1", 8443, pod, 443)
    answer = node.cni("ADD", node.new_pod(), **mappings(mapping(8443, 443)))
    assert (answer.status, answer.json["code"]) == (1, 11)


@pytest.mark.parametrize(
    "damage",
    [
        "delete table inet poplin-hostport",
        "flush map inet poplin-hostport port-4",
        "flush chain inet poplin-hostport mapping",
        "add element inet poplin-hostport port-6 { tcp . 22 : fd00:: . 22 }",
    ],
)
def test_a_damaged_table_is_mended(node, damage):
    add(node, mapping(8080, 80))
    before = listed(node)
    node.run("nft", damage)
    wait_for(lambda: listed(node) == before, "the table is back", 5)


def test_check_passes_on_a_pod_with_mappings(node):
    pod = add(node, mapping(8080, 80), mapping(8053, 53, "udp", "192.0.2.1"))
    answer = node.cni("CHECK", pod, prevResult=pod.result)
    assert (answer.status, answer.output) == (0, "")


def test_mappings_that_the_kernel_lacks_are_named(netns):
    namespace = netns()
    attachment = Attachment(
        *("c", "eth0", "/run/netns/c", (ip_address("10.244.1.5"),), "02:00:00:00:00:05", 1450, "pop0"),
        port_mappings=(PortMapping(TransportProtocol.TCP, 8080, 80),),
    )
    with entered(namespace.fd):
        host_ports = HostPorts(lambda: [attachment])
    with closing(host_ports):
        assert host_ports.missing(attachment) == ["missing: host ports of pop0"]
        assert host_ports.apply() > 0
        assert host_ports.missing(attachment) == []
        assert host_ports.apply() == 0
        for damage in ("flush map inet poplin-hostport port-4", "flush chain inet poplin-hostport output"):
            namespace.run("nft", damage)
            assert host_ports.missing(attachment) == ["missing: host ports of pop0"]
            host_ports.forget()
            assert host_ports.apply() > 0


def test_deletion_and_garbage_collection_take_the_mappings_away(node):
    kept, gone, stale = (add(node, mapping(port, 80)) for port in (8001, 8002, 8003))
    node.remove_pod(gone)
    assert "8001" in listed(node)
    assert "8002" not in listed(node)
    valid = [{"containerID": kept.container_id, "ifname": "eth0"}]
    answer = node.cni("GC", cniVersion="1.1.0", **{"cni.dev/valid-attachments": valid})
    assert answer.status == 0, answer
    assert "8001" in listed(node)
    assert "8003" not in listed(node)
    # What was deleted while no agent ran goes when one starts.
    node.kill()
    assert node.cni("DEL", kept).status == 0
    assert "8001" in listed(node)
    node.start()
    node.wait_ready(peers=1)
    assert listed(node) == ""
    node.attach(stale, **mappings(mapping(8003, 80)))


@both_families
def test_udp_clients_follow_the_mapping(two, node, version):
    address = node.addresses[version]
    client = two.outside.open(version, socket.SOCK_DGRAM)
    client.connect((address, 5300))

    def say():
        with suppress(ConnectionRefusedError):
            client.send(b"x")

    for _ in range(2):  # before anybody listens: the kernel remembers the flow, to the node itself
        say()
    for _ in range(2):  # a pod that has the port, and another after it
        pod = add(node, mapping(5300, 53, "udp"))
        receiver = pod.udp(version, 53)
        for _ in range(3):
            say()
        assert receiver.recv(16) == b"x"
        receiver.close()
        node.remove_pod(pod)
        with node.entered(), ConntrackSocket() as conntrack:
            assert not [
                c for c in conntrack.read() if c.reply.source_port == 53 and c.original.protocol == 17
            ]


def test_cleanup_takes_the_table_and_what_limits(tmp_path):
    with cluster(tmp_path, nodes=1) as c:
        [node] = c.nodes
        limits = {"ingressRate": 10**7, "egressRate": 10**7}
        node.add_pod(runtimeConfig={"portMappings": [mapping(8080, 80)], "bandwidth": limits})
        assert listed(node)
        assert node.ip("link", "show", "type", "ifb")
        node.stop()
        answer = node.poplin(
            "cleanup", "--state-dir", str(node.state_dir), "--cni-conf-dir", str(node.conflist.parent)
        )
        assert answer.status == 0, answer
        assert "removed nftables table inet poplin-hostport" in answer.output
        assert listed(node) == ""
        assert node.ip("link", "show", "type", "ifb") == []


def test_a_host_address_of_a_family_that_the_pod_lacks_is_refused(tmp_path):
    with cluster(tmp_path, nodes=1, versions=(4,)) as c:
        [node] = c.nodes
        answer = node.cni("ADD", node.new_pod(), **mappings(mapping(8080, 80, host_ip="2001:db8::1")))
        assert (answer.status, answer.json["code"]) == (1, 7)
        assert "the pod has no IPv6 address" in answer.json["msg"]
        assert listed(node) == ""
        pod = node.add_pod(**mappings(mapping(8080, 80)))
        assert ask_tcp(c.outside, 4, node.addresses[4], 8080, pod, 80)
        assert node.status()["pods"] == 1
