"""Whatever is done to a node's kernel state under the agent: it comes back, and others' things stay."""

import time

import pytest

from kernel.nodes import (
    cluster,
    ip_batch,
    kernel_state,
    plant_strangers,
    probe_icmp,
    probe_pairs,
    run,
    wait_for,
)

BACK_S = 5.0
"""What the kernel tells of is mended within this: far from the 60 s of an audit."""

MENDED = (
    '"kernel state changed"',
    '"kernel parameter set"',
    '"nftables table written"',
    '"pod\'s interface mended"',
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two nodes with a pod each; on the first stand things of others."""
    with cluster(tmp_path_factory.mktemp("two"), nodes=2, started=False) as c:
        plant_strangers(c.nodes[0])
        c.start()
        for node in c.nodes:
            node.add_pod()
        yield c


def on_node(*lines):
    return lambda node, pod: node.ip_do(
        *(line.format(pod=pod.host_link, **{f"a{v}": a for v, a in pod.addresses.items()}) for line in lines)
    )


def by_nft(*commands):
    return lambda node, pod: [node.run("nft", command) for command in commands]


def in_pod(*lines):
    return lambda node, pod: ip_batch(pod.name, *lines)


def drop_one_rule(node, pod):
    listed = node.run("nft", "-a", "list", "table", "inet", "poplin")
    handle = next(line for line in listed.splitlines() if "fib saddr" in line).rsplit(" ", 1)[1]
    node.run("nft", f"delete rule inet poplin from-pods handle {handle}")


def drop_fdb(device):
    def drop(node, pod):
        [[_, mac, to]] = [entry for entry in kernel_state(node)["fdb"] if entry[0] == device]
        run("bridge", "-n", node.name, "fdb", "del", mac, "dev", device, "dst", to)

    return drop


DAMAGES = {
    "peer's route": on_node("route del 10.244.2.0/24"),
    "peer's IPv6 route": on_node("-6 route del fd00:10:244:2::/64"),
    "peer's route led elsewhere": on_node("route replace 10.244.2.0/24 via 192.0.2.254 proto 112"),
    "own CIDR's unreachable route": on_node("route del unreachable 10.244.1.0/24 metric 2147483647"),
    "own CIDR's unreachable IPv6 route": on_node("-6 route del unreachable fd00:10:244:1::/64"),
    "pod's route": on_node("route del {a4}/32"),
    "pod's IPv6 route": on_node("-6 route del {a6}/128"),
    "all routes of ours": on_node("route flush proto 112", "-6 route flush proto 112"),
    "neighbour": on_node("neigh del 10.244.2.0 dev flannel.1"),
    "IPv6 neighbour": on_node("neigh del fd00:10:244:2:: dev flannel-v6.1"),
    "neighbour's MAC": on_node("neigh replace 10.244.2.0 lladdr 02:00:00:00:00:01 dev flannel.1"),
    "pod's neighbour": on_node("neigh del {a4} dev {pod}"),
    "pod's IPv6 neighbour": on_node("neigh del {a6} dev {pod}"),
    "forwarding entry": drop_fdb("flannel.1"),
    "IPv6 forwarding entry": drop_fdb("flannel-v6.1"),
    "VTEP's address": on_node("addr del 10.244.1.0/32 dev flannel.1"),
    "VTEP's IPv6 address": on_node("addr del fd00:10:244:1::/128 dev flannel-v6.1"),
    "gateway's address": on_node("addr del fe80::1/64 dev {pod}"),
    "overlay": on_node("link del flannel.1"),
    "IPv6 overlay": on_node("link del flannel-v6.1"),
    "both overlays": on_node("link del flannel-v6.1", "link del flannel.1"),
    "overlay down": on_node("link set flannel.1 down"),
    "IPv6 overlay down": on_node("link set flannel-v6.1 down"),
    "overlay down and up": on_node("link set flannel.1 down", "link set flannel.1 up"),
    "overlay's MAC": on_node("link set flannel.1 address 02:00:00:00:00:02"),
    "overlay's MTU": on_node("link set flannel-v6.1 mtu 1300"),
    "overlay's alias": on_node("link set flannel.1 alias other"),
    "overlay renamed": on_node("link set flannel.1 name mine"),
    "overlay of other VNI": on_node(
        "link del flannel.1", "link add flannel.1 type vxlan id 9 dstport 8472 dev eth0"
    ),
    "pod's link": on_node("link del {pod}"),
    "pod's link down": on_node("link set {pod} down"),
    "pod's link down and up": on_node("link set {pod} down", "link set {pod} up"),
    "pod's link MTU": on_node("link set {pod} mtu 1290"),
    "pod's link MAC": on_node("link set {pod} address 02:00:00:00:00:03"),
    "pod's link group": on_node("link set {pod} group 0"),
    "pod's side down": in_pod("link set eth0 down"),
    "pod's side down and up": in_pod("link set eth0 down", "link set eth0 up"),
    "pod's side gone": in_pod("link del eth0"),
    "address in the pod": lambda node, pod: ip_batch(pod.name, f"addr del {pod.addresses[4]}/32 dev eth0"),
    "IPv6 address in the pod": lambda node, pod: ip_batch(
        pod.name, f"addr del {pod.addresses[6]}/128 dev eth0"
    ),
    "default route in the pod": in_pod("route del default"),
    "IPv6 default route in the pod": in_pod("-6 route del default"),
    "gateway's entry in the pod": in_pod("neigh del 169.254.1.1 dev eth0"),
    "gateway's IPv6 entry in the pod": in_pod("neigh del fe80::1 dev eth0"),
    "gateway's MAC in the pod": in_pod("neigh replace 169.254.1.1 lladdr 02:00:00:00:00:05 dev eth0"),
    "all in the pod": in_pod(
        "addr flush dev eth0 scope global", "route flush proto 112", "neigh flush dev eth0 nud permanent"
    ),
    "pod's side renamed": in_pod("link set eth0 down", "link set eth0 name mine", "link set mine up"),
    "pod's link renamed": on_node("link set {pod} down", "link set {pod} name mine", "link set mine up"),
    "forwarding": lambda node, pod: node.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0"),
    "IPv6 forwarding": lambda node, pod: node.run("sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=0"),
    "table": by_nft("delete table inet poplin"),
    "every table": by_nft("flush table inet poplin"),
    "one rule": drop_one_rule,
    "another's rule in our table": by_nft("insert rule inet poplin anti-spoofing counter drop"),
    "another's chain in our table": by_nft("add chain inet poplin other"),
    "set's element": by_nft("delete element inet poplin direct-4 { 10.244.0.0/16 }"),
    "route of our number": on_node("route add 10.244.9.0/24 via 192.0.2.254 proto 112"),
    "neighbour on our device": on_node("neigh add 10.244.9.0 lladdr 02:00:00:00:00:04 dev flannel.1"),
    "address on our device": on_node("addr add 10.244.9.0/32 dev flannel.1"),
}


def mendings(node):
    return sum(node.log.count(text) for text in MENDED)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_comes_back(two, damage):
    node = two.nodes[0]
    [pod] = node.pods
    node.quiet()
    before, in_pod_before, mended_before = kernel_state(node), kernel_state(pod), mendings(node)
    # Stopped, so that it cannot mend one half of the damage before the other is done.
    with node.stopped():
        damage(node, pod)
        assert (kernel_state(node), kernel_state(pod)) != (before, in_pod_before)
    wait_for(lambda: mendings(node) > mended_before, "the agent mends", BACK_S)
    deadline = time.monotonic() + BACK_S
    while (now := (kernel_state(node), kernel_state(pod))) != (before, in_pod_before):
        if time.monotonic() > deadline:
            assert now == (before, in_pod_before)
        time.sleep(0.05)
    assert probe_pairs(two.pods, two.versions) == []


def test_an_mtu_that_is_changed_in_a_pod_long_after_its_add_is_set_back(two):
    node = two.nodes[0]
    node.kill()
    node.start()  # to an agent that starts no pod is young
    node.wait_ready(peers=1)
    test_what_is_damaged_comes_back(two, in_pod("link set eth0 mtu 1300"))


def test_a_pass_after_a_mended_damage_changes_nothing_and_no_pass_follows_by_itself(two):
    node = two.nodes[0]
    node.quiet()
    node.ip_do("route del 10.244.2.0/24", "link del flannel-v6.1")
    node.run("nft", "delete table inet poplin")
    node.quiet()
    passes = node.status()["passes"]
    # Nothing to wait for: an agent that heeded its own changes would have run on by now.
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert node.status()["passes"] == passes
        time.sleep(0.05)


def test_others_links_that_come_and_go_change_nothing(two):
    node = two.nodes[0]
    node.quiet()
    mended = mendings(node)
    before = node.status()["passes"]
    node.ip_do("link add busy0 type veth peer name busy1", "link set busy0 up", "link del busy0")
    wait_for(lambda: node.status()["passes"] > before, "a look at what others did", BACK_S)
    node.quiet()
    assert mendings(node) == mended


def test_a_link_of_another_kind_under_our_name_is_refused_and_left_alone(two):
    node = two.nodes[0]
    node.quiet()
    before = kernel_state(node)
    with node.stopped():
        node.ip_do("link del flannel.1", "link add flannel.1 type bridge", "link set flannel.1 up")
        [index] = [link["ifindex"] for link in node.ip("link", "show", "flannel.1")]
    node.wait_condition("kernel programmed", "flannel.1", "'bridge' and not ours", ok=False)
    assert node.ip("link", "show", "flannel.1")[0]["ifindex"] == index
    node.ip_do("link set flannel.1 name mine")
    wait_for(lambda: "flannel.1" in node.links(), "ours is made", BACK_S)
    node.wait_condition("kernel programmed", ok=True)
    assert node.ip("link", "show", "mine")[0]["ifindex"] == index
    node.ip_do("link del mine")
    wait_for(lambda: kernel_state(node) == before, "all is back", BACK_S)
    assert probe_pairs(two.pods, two.versions) == []


def test_check_mends_what_the_kernel_does_not_tell_of(two):
    node = two.nodes[0]
    [pod] = node.pods
    node.quiet()
    pod.run("sysctl", "-q", "-w", "net.ipv6.conf.eth0.accept_ra=1")
    answer = node.poplin("check")
    assert (answer.status, answer.errors) == (1, "")
    assert "mended" in answer.output
    assert pod.run("sysctl", "-n", "net.ipv6.conf.eth0.accept_ra") == "0\n"
    again = node.poplin("check")
    assert (again.status, again.output) == (0, "node n1: all is as it should be, 1 pods\n")


def test_a_pod_that_has_its_default_route_led_elsewhere_keeps_it_and_its_node_stays_ready(two):
    node = two.nodes[0]
    [pod] = node.pods
    node.quiet()
    before = kernel_state(pod)
    ip_batch(pod.name, "route replace blackhole default", "neigh del fe80::1 dev eth0")
    node.get("/audit", "POST")
    assert kernel_state(pod)["neighbours"] == before["neighbours"]
    assert "blackhole" in str(pod.ip("route", "show"))
    report = node.status()
    assert report["ready"]
    assert any("0.0.0.0/0" in problem for problem in report["problems"])
    ip_batch(pod.name, "route del blackhole default")
    node.get("/audit", "POST")
    assert kernel_state(pod) == before
    assert node.status()["problems"] == []


def test_a_pod_whose_namespace_is_gone_waits_for_its_deletion(two):
    node = two.nodes[0]
    pod = node.add_pod()
    run("ip", "netns", "del", pod.name)  # and its veth with it
    wait_for(lambda: pod.host_link not in kernel_state(node)["links"], "the kernel takes the link")
    node.quiet()
    assert node.status()["pods"] == 2
    assert node.cni("DEL", pod).status == 0
    node.pods.remove(pod)
    node.quiet()
    assert node.status()["pods"] == 1


@pytest.fixture
def pair(tmp_path):
    with cluster(tmp_path, nodes=2) as c:
        for node in c.nodes:
            node.add_pod()
        yield c


def test_a_peer_that_leaves_takes_its_routes_and_one_that_comes_back_is_reached_again(pair):
    near, far = pair.nodes
    near.quiet()
    before = kernel_state(near)
    far.kill()
    objects = pair.read_state()
    left = [o for o in objects if o["metadata"]["name"] != far.node_name]
    pair.write_state(left)
    near.wait_ready(peers=0)
    alone = kernel_state(near)
    assert alone["fdb"] == set()
    assert not any("10.244.2.0" in str(thing) or "fd00:10:244:2:" in str(thing) for thing in alone["routes"])
    assert not any("10.244.2.0" in n or "fd00:10:244:2::" in n for n in alone["neighbours"])
    probe_icmp(near, near.pods[0].addresses[4])
    pair.write_state(objects)
    near.wait_ready(peers=1)
    assert kernel_state(near) == before
    assert probe_pairs(pair.pods, pair.versions) == []


def test_a_node_whose_address_changes_is_followed(pair):
    near, far = pair.nodes
    moved = {4: "192.0.2.77", 6: "2001:db8:2::77"}
    far.ip_do(f"addr add {moved[4]}/24 dev eth0", f"addr add {moved[6]}/64 dev eth0 nodad")
    objects = pair.read_state()
    for thing in objects:
        if thing["metadata"]["name"] == far.node_name:
            thing["status"]["addresses"] = [
                {"type": "InternalIP", "address": address} for address in moved.values()
            ]
    pair.write_state(objects)
    wait_for(lambda: {to for _, _, to in kernel_state(near)["fdb"]} == set(moved.values()), "the FDB follows")
    # The old address is not needed any more; without this, IPv4 addresses of one network go together.
    far.run("sysctl", "-q", "-w", "net.ipv4.conf.eth0.promote_secondaries=1")
    far.ip_do(f"addr del {far.addresses[4]}/24 dev eth0", f"addr del {far.addresses[6]}/64 dev eth0")
    far.ip_do("route replace default via 192.0.2.254", "-6 route replace default via 2001:db8:2::fe")
    wait_for(lambda: probe_pairs(pair.pods, pair.versions) == [], "pods talk over the new addresses")


def test_a_backend_that_is_changed_replaces_the_old_and_keeps_connections(pair):
    near, far = pair.nodes
    listener = far.pods[0].listen(4, 7000)
    a = near.pods[0].connect(far.pods[0].addresses[4], 7000)
    b, _ = listener.accept()
    far.pods[0].sockets.append(b)
    pair.conf["Backend"] = {"Type": "host-gw"}
    nodes = [o for o in pair.read_state() if o["kind"] == "Node"]
    pair.write_state([pair.objects()[0], *nodes])
    for node in pair.nodes:
        wait_for(lambda n=node: n.status()["network"]["backend"] == "host-gw", "the new backend")
        node.wait_ready(peers=1)
    for node in pair.nodes:
        assert not any(name.startswith("flannel") for name in kernel_state(node)["links"])
        assert kernel_state(node)["fdb"] == set()
    assert probe_pairs(pair.pods, pair.versions) == []
    a.settimeout(5)
    b.settimeout(5)
    a.sendall(b"still here")
    assert b.recv(64) == b"still here"


def test_routes_over_an_underlay_that_went_down_and_came_up_are_made_again(tmp_path):
    with cluster(tmp_path, nodes=2, backend={"Type": "host-gw"}) as c:
        for node in c.nodes:
            node.add_pod()
        node = c.nodes[0]
        node.quiet()
        before = kernel_state(node)
        # The kernel takes all routes with it, and the IPv6 addresses; a network daemon gives its own back.
        node.ip_do("link set eth0 down", "link set eth0 up")
        node.ip_do("addr add 2001:db8:2::1/64 dev eth0 nodad", "-6 route add default via 2001:db8:2::fe")
        node.ip_do("route add default via 192.0.2.254")
        wait_for(lambda: kernel_state(node) == before, "all is back", BACK_S)
        wait_for(lambda: probe_pairs(c.pods, c.versions) == [], "pods talk again")
