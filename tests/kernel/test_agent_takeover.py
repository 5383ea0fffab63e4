"""A node where flanneld ran until now: the agent takes its device and routes over, and other devices stay."""

from kernel.nodes import cluster


def make_as_flanneld(node, peer):
    vtep, peer_vtep = (n.pod_cidrs[4].split("/")[0] for n in (node, peer))
    node.ip_do(
        f"link add flannel.1 address 0a:11:22:33:44:55 mtu 1450 type vxlan id 1 dev eth0 "
        f"local {node.addresses[4]} dstport 8472 nolearning",
        "link set flannel.1 up",
        f"addr add {vtep}/32 dev flannel.1",
        f"neigh add {peer_vtep} lladdr 0a:11:22:33:44:66 dev flannel.1 nud permanent",
        f"route add {peer.pod_cidrs[4]} via {peer_vtep} dev flannel.1 onlink",
        f"route add 10.244.200.0/24 via {peer_vtep} dev flannel.1 onlink",
        # Of the same kind, and another's.
        f"link add vxlan7 type vxlan id 7 dev eth0 local {node.addresses[4]} dstport 4790 nolearning",
        "link set vxlan7 up",
        "route add 10.77.0.0/16 dev vxlan7",
    )


def test_the_agent_takes_over_what_flanneld_left(tmp_path):
    with cluster(tmp_path, nodes=2, started=False) as c:
        first, second = c.nodes
        make_as_flanneld(first, second)
        index = first.ip("link", "show", "flannel.1")[0]["ifindex"]
        c.start()
        for node in c.nodes:
            node.wait_ready(peers=1)
        first.quiet()

        routes = {r["dst"]: r for r in first.ip("route", "show", "dev", "flannel.1")}
        assert routes.keys() == {second.pod_cidrs[4]}
        assert routes[second.pod_cidrs[4]]["protocol"] == "112"
        (neighbour,) = first.ip("neigh", "show", "dev", "flannel.1")
        assert neighbour["lladdr"] != "0a:11:22:33:44:66"
        # The device itself, with its traffic, was kept.
        (link,) = first.ip("link", "show", "flannel.1")
        assert link["ifindex"] == index
        assert first.status()["problems"] == []

        (stranger,) = first.ip("route", "show", "dev", "vxlan7")
        assert stranger["dst"] == "10.77.0.0/16"
