"""Limits of bandwidth through real agents: what passes, what stands in the kernel, and what becomes of it."""

import json
import signal
import socket
import subprocess
import threading
import time
from ipaddress import ip_address

import pytest

from kernel.nodes import cluster, ip_batch, run, wait_for
from poplin.agent.wiring import Wirer, differences
from poplin.dataplane.netns import entered
from poplin.model.attachment import Attachment, Limit

MEGABIT = 10**6
RATE = 20 * MEGABIT
SECONDS = 0.8

both_families = pytest.mark.parametrize("version", [4, 6])


def limits(ingress=0, egress=0, **more):
    found = {"ingressRate": ingress, "egressRate": egress, **more}
    return {"runtimeConfig": {"bandwidth": {key: rate for key, rate in found.items() if rate}}}


def tc(node, *arguments):
    return json.loads(run("tc", "-n", node.name, "-j", *arguments) or "[]")


def qdiscs(node):
    """What shapes in the namespace, without what the kernel puts on every link by itself."""
    return [
        (one["kind"], one["dev"], one.get("handle"), one["options"])
        for one in tc(node, "qdisc", "show")
        if one["kind"] not in {"noqueue", "noop"}
    ]


def shaping(node):
    there = {link["ifname"] for link in node.ip("link", "show")}
    filters = [
        run("tc", "-n", node.name, "filter", "show", "dev", pod.host_link, "ingress")
        for pod in node.pods
        if pod.host_link in there
    ]
    links = [
        (o["ifname"], o["group"], o["ifalias"], "UP" in o["flags"])
        for o in node.ip("link", "show", "type", "ifb")
    ]
    return qdiscs(node), filters, links


def sent(source, target, version, seconds=SECONDS):
    """Bits per second that come through one TCP connection."""
    with (
        target.listen(version, 0) as listener,
        source.connect(target.addresses[version], listener.getsockname()[1]) as near,
        listener.accept()[0] as far,
    ):
        near.settimeout(5)
        far.settimeout(5)
        end = time.monotonic() + seconds
        stopped = threading.Event()

        def send():
            data = bytes(1 << 16)
            while not stopped.is_set():
                try:
                    near.sendall(data)
                except OSError:
                    return

        sender = threading.Thread(target=send)
        sender.start()
        got = 0
        try:
            while time.monotonic() < end:
                got += len(far.recv(1 << 16))
        finally:
            stopped.set()
            far.shutdown(socket.SHUT_RDWR)
            far.close()
            sender.join()
        return got * 8 / seconds


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("two"), nodes=2) as c:
        c.nodes[1].far = c.nodes[1].add_pod()
        yield c


@pytest.fixture
def node(two):
    node = two.nodes[0]
    yield node
    two.close_sockets()
    for pod in list(node.pods):
        node.remove_pod(pod)
    wait_for(lambda: shaping(node) == ([], [], []), "nothing shapes any more")


def settled(pod):
    wait_for(lambda: pod.ip("-6", "route", "show", "table", "local", pod.addresses[6]), "a local address")
    return pod


@both_families
def test_each_way_has_its_limit(two, node, version):
    far = settled(two.nodes[1].far)
    pod = settled(node.add_pod(**limits(ingress=RATE, egress=RATE // 2)))
    beside = settled(node.add_pod())
    assert 0.5 * RATE < sent(far, pod, version) < 1.3 * RATE
    assert 0.5 * RATE / 2 < sent(pod, far, version) < 1.3 * RATE / 2
    assert 0.5 * RATE < sent(beside, pod, version) < 1.3 * RATE
    assert 0.5 * RATE / 2 < sent(pod, beside, version) < 1.3 * RATE / 2
    assert 0.5 * RATE / 2 < sent(pod, node, version) < 1.3 * RATE / 2
    # One that has no limit has none.
    assert sent(beside, far, version, 0.3) > 3 * RATE
    assert sent(far, beside, version, 0.3) > 3 * RATE


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_one_way_leaves_the_other_alone(two, node, way):
    far = two.nodes[1].far
    pod = node.add_pod(**limits(**{way: RATE}))
    to, of = sent(far, pod, 4), sent(pod, far, 4)
    limited, free = (to, of) if way == "ingress" else (of, to)
    assert 0.5 * RATE < limited < 1.3 * RATE
    assert free > 3 * RATE


def test_a_burst_passes_at_once_and_a_burst_that_nobody_chose_is_short(two, node):
    far = two.nodes[1].far
    rate = 2 * MEGABIT
    chosen = node.add_pod(**limits(ingress=rate, ingressBurst=6 * MEGABIT))
    assert sent(far, chosen, 4, 0.5) > 2.5 * rate
    containerd = node.add_pod(**limits(ingress=rate, ingressBurst=2**32 - 1))
    assert sent(far, containerd, 4) < 1.5 * rate


def test_what_stands_for_a_pod_with_limits(node):
    pod = node.add_pod(**limits(ingress=RATE, egress=RATE))
    ifb = "ifb" + pod.host_link[3:]
    found, [filters], links = shaping(node)
    assert {(kind, dev, handle) for kind, dev, handle, _ in found} == {
        ("tbf", pod.host_link, "706f:"),
        ("tbf", ifb, "706f:"),
        ("clsact", pod.host_link, "ffff:"),
    }
    for kind, _, _, options in found:
        if kind == "tbf":
            assert options["rate"] == RATE // 8
    assert f"mirred (Egress Redirect to device {ifb}) stolen" in filters
    assert filters.count("match 00000000/00000000 at 0") == 1
    assert links == [(ifb, "28783", f"poplin: default/{pod.container_id} eth0", True)]


def test_a_pod_without_limits_has_nothing_of_it(node):
    node.add_pod(**limits())
    node.add_pod()
    assert shaping(node) == ([], ["", ""], [])


def test_the_annotations_count_where_no_capability_came(node):
    pod = node.add_pod(
        runtimeConfig={
            "io.kubernetes.cri.pod-annotations": {
                "kubernetes.io/ingress-bandwidth": "20M",
                "kubernetes.io/egress-bandwidth": "1G",
            }
        }
    )
    rates = {dev: options["rate"] for kind, dev, _, options in qdiscs(node) if kind == "tbf"}
    assert rates == {pod.host_link: RATE // 8, "ifb" + pod.host_link[3:]: 10**9 // 8}


def on_node(*lines):
    def damage(node, pod):
        for line in lines:
            words = line.format(pod=pod.host_link, ifb="ifb" + pod.host_link[3:]).split()
            run(words[0], "-n", node.name, *words[1:])

    return damage


DAMAGES = {
    "ingress queue": on_node("tc qdisc del dev {pod} root"),
    "ingress queue's rate": on_node(
        "tc qdisc change dev {pod} root handle 706f: tbf rate 1gbit burst 1mb limit 1mb"
    ),
    "another's queue": on_node("tc qdisc replace dev {pod} root handle 1: htb"),
    "egress queue": on_node("tc qdisc del dev {ifb} root"),
    "redirect": on_node("tc filter del dev {pod} ingress"),
    "all of the ingress": on_node("tc qdisc del dev {pod} clsact"),
    "ifb": on_node("ip link del {ifb}"),
    "ifb down": on_node("ip link set {ifb} down"),
    "host link": on_node("ip link del {pod}"),
    "both": on_node("ip link del {pod}", "ip link del {ifb}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_comes_back(two, node, damage):
    pod = node.add_pod(**limits(ingress=RATE, egress=RATE))
    node.quiet()

    def indexless():
        found, filters, links = shaping(node)
        return sorted(map(str, found)), [text.split("index")[0] for text in filters], links

    before = indexless()
    node.process.send_signal(signal.SIGSTOP)
    try:
        damage(node, pod)
        assert indexless() != before
    finally:
        node.process.send_signal(signal.SIGCONT)
    wait_for(lambda: indexless() == before, "all is back", 5)
    far = two.nodes[1].far
    wait_for(lambda: pod.ip("-4", "route", "show", "default"), "the pod's side is back", 5)
    assert 0.5 * RATE < sent(pod, far, 4, 0.5) < 1.5 * RATE
    assert 0.5 * RATE < sent(far, pod, 4, 0.5) < 1.5 * RATE
    passes = node.quiet()["passes"]
    time.sleep(0.3)
    assert node.status()["passes"] == passes


def test_limits_outlive_the_agent_and_go_with_the_pod(two, node):
    pod = node.add_pod(**limits(ingress=RATE, egress=RATE))
    node.quiet()
    before = shaping(node)
    node.kill()
    node.start()
    node.wait_ready(peers=1)
    node.quiet()
    assert shaping(node) == before
    node.kill()
    run("tc", "-n", node.name, "qdisc", "del", "dev", pod.host_link, "root")
    node.start()
    wait_for(lambda: sorted(map(str, qdiscs(node))) == sorted(map(str, before[0])), "the queue is back")
    node.wait_ready(peers=1)
    assert 0.5 * RATE < sent(pod, two.nodes[1].far, 4) < 1.3 * RATE


def test_a_pod_with_every_capability_cannot_lift_its_limits(two, node):
    pod = node.add_pod(**limits(egress=RATE))
    for interface in ("eth0", "lo"):
        subprocess.run(["tc", "-n", pod.name, "qdisc", "del", "dev", interface, "root"], check=False)
    ip_batch(pod.name, "link set eth0 txqueuelen 10000")
    assert 0.5 * RATE < sent(pod, two.nodes[1].far, 4) < 1.3 * RATE


def test_check_names_the_limits_that_are_missing(netns):
    node, pod = netns(), netns()
    attachment = Attachment(
        *("c", "eth0", pod.path, (ip_address("10.244.1.5"),), "02:00:00:00:00:05", 1450, "pop0"),
        ingress=Limit(RATE),
        egress=Limit(RATE),
    )
    with entered(node.fd):
        wirer = Wirer(1)
        wirer.wire(attachment, pod.fd)
        wirer._sockets.get().close()
        assert differences(attachment, pod.fd) == []
        node.run("tc", "qdisc", "del", "dev", "pop0", "root")
        node.run("tc", "qdisc", "del", "dev", "pop0", "clsact")
        assert sorted(differences(attachment, pod.fd)) == [
            "missing: qdisc tbf rate 20000000bit dev pop0",
            "missing: redirect of dev pop0 to ifb0",
        ]
        node.run("ip", "link", "del", "ifb0")
        assert len(differences(attachment, pod.fd)) == 4


def test_an_add_that_fails_leaves_no_device(node):
    pod = node.new_pod()
    ip_batch(pod.name, "link add eth0 type bridge")
    assert node.cni("ADD", pod, **limits(egress=RATE)).status == 1
    assert (qdiscs(node), node.ip("link", "show", "type", "ifb")) == ([], [])
    ip_batch(pod.name, "link del eth0")
    node.attach(pod, **limits(egress=RATE))


def test_pods_of_limits_come_and_go_at_once(node):
    pods = [node.add_pod(**limits(ingress=RATE, egress=RATE)) for _ in range(8)]
    assert len(qdiscs(node)) == 3 * len(pods)
    for pod in pods[:4]:
        node.remove_pod(pod)
    wait_for(lambda: len(qdiscs(node)) == 3 * 4, "four are left")
    node.quiet()
    assert len(qdiscs(node)) == 3 * 4
