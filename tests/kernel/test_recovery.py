"""What an agent makes of a store that is damaged or lost, and of one whose pods a boot of the machine has ended."""

import sqlite3
from contextlib import closing

import pytest

from kernel.nodes import cluster, kernel_state, probe_pairs, wait_for

PORTS = {
    "capabilities": {"portMappings": True, "bandwidth": True},
    "runtimeConfig": {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 81, "protocol": "udp", "hostIP": "192.0.2.1"},
        ],
        "bandwidth": {"ingressRate": 8_000_000, "egressRate": 4_000_000},
    },
}


def overwrite(path):
    path.write_bytes(b"not a database " * 1000)


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def empty(path):
    lose(path)
    path.touch()


def garble(path):
    with closing(sqlite3.connect(path)) as store:
        store.execute("UPDATE attachment SET state = 'nonsense'")
        store.commit()


def lose(path):
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


@pytest.mark.parametrize("harm", [overwrite, cut, empty, garble, lose])
def test_pods_outlive_their_store(tmp_path, harm):
    with cluster(tmp_path, nodes=2) as c:
        node, far = c.nodes
        far.add_pod()
        plain, rich, leaves = node.add_pod(), node.add_pod(**PORTS), node.add_pod()
        kept = {address for pod in node.pods for address in pod.addresses.values()}
        node.quiet()
        before = kernel_state(node)
        inside = [kernel_state(pod) for pod in node.pods]
        node.kill()
        store = node.state_dir / "attachments.db"
        harm(store)
        node.start()
        node.wait_ready(peers=1)
        report = node.quiet()
        assert report["pods"] == 3
        assert kernel_state(node) == before
        assert [kernel_state(pod) for pod in node.pods] == inside
        aside = store.with_name("attachments.db.damaged")
        told = [text for text in report["problems"] if "was damaged and is set aside" in text]
        assert aside.exists() == (harm is not lose)
        assert bool(told) == (harm is not lose)
        assert probe_pairs(c.pods, c.versions) == []

        # The runtime knows them by ids that the kernel does not show.
        assert node.cni("CHECK", rich, prevResult=rich.result).output == ""
        assert (
            node.cni("ADD", plain)
            .json["msg"]
            .startswith(f"container {plain.container_id}: eth0 has been added")
        )
        new = node.add_pod()
        assert kept.isdisjoint(new.addresses.values())
        node.remove_pod(leaves)
        valid = [{"containerID": p.container_id, "ifname": "eth0"} for p in (plain, new)]
        config = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}
        assert node.cni("GC", **config).output == ""
        wait_for(lambda: rich.host_link not in node.links(), "GC takes what is not named")
        assert node.status()["pods"] == 2
        assert "8080" not in node.run("nft", "list", "ruleset")
        node.drop(rich)

        # It is mended like any other pod, on both sides.
        node.ip_do(f"link set {plain.host_link} down")
        plain.run("ip", "link", "set", "eth0", "down")
        wait_for(lambda: probe_pairs([plain, new], c.versions) == [], "the pod is mended")
        aside.unlink(missing_ok=True)
        assert not any("set aside" in text for text in node.status()["problems"])
        node.kill()
        node.start()
        node.wait_ready(peers=1)
        assert node.quiet()["pods"] == 2
        assert probe_pairs(c.pods, c.versions) == []


def reboot(node):
    """Leave of a node what a boot leaves: its uplink, and the files that are not in /run."""
    node.kill()
    links = [f"link del {link}" for link in node.links() - {"lo", "eth0"}]
    for pod in list(node.pods):
        node.drop(pod)
    wait_for(lambda: not any(link.startswith("pop") for link in node.links()), "the pods' links go")
    node.ip_do(*(line for line in links if line.split()[-1] in node.links()))
    for family in ("-4", "-6"):
        node.run("ip", family, "route", "flush", "proto", "112")
    node.run("nft", "flush", "ruleset")
    node.run("sysctl", "-w", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    for path in node.run_dir.iterdir():
        path.unlink()
    with closing(sqlite3.connect(node.state_dir / "attachments.db")) as store:
        store.execute("UPDATE boot SET boot_id = 'the one before'")
        store.commit()


@pytest.mark.parametrize("harm", [None, cut])
def test_after_a_boot_the_agent_starts_clean_and_pods_come_back(tmp_path, harm):
    with cluster(tmp_path, nodes=2) as c:
        node, far = c.nodes
        far.add_pod()
        node.wait_ready(peers=1)
        podless = kernel_state(node)
        old = [node.add_pod(), node.add_pod(**PORTS), node.add_pod()]
        reboot(node)
        if harm is not None:
            harm(node.state_dir / "attachments.db")
        # The kubelet finds its pods without sandboxes: some it ends before the agent is there, others after.
        assert node.cni("DEL", old[0]).status == 0
        node.start()
        node.wait_ready(peers=1)
        assert node.quiet()["pods"] == 0
        assert kernel_state(node) == podless
        assert [node.cni("DEL", pod).status for pod in old[1:]] == [0, 0]
        new = [node.add_pod(), node.add_pod(**PORTS), node.add_pod()]
        assert len({address for pod in new for address in pod.addresses.values()}) == len(new) * len(
            c.versions
        )
        assert probe_pairs(c.pods, c.versions) == []
        assert node.cni("CHECK", new[1], prevResult=new[1].result).output == ""
        assert list((node.state_dir / "deleted").iterdir()) == []
