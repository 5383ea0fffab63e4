"""Podman with the CNI backend uses the conflist that the agent has written, under the name it has there."""

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from kernel.nodes import cluster, probe_pairs, probe_tcp, wait_for
from kernel.topology import Host
from poplin.agent.install import install_shim
from poplin.lab.cri.containerd import remove_cgroup
from poplin.lab.cri.image import BUSYBOX, Image, busybox_files, find_busybox, make_archive

# Podman's own ulimits are higher than a machine without CAP_SYS_RESOURCE can set.
CONF = """\
[containers]
log_driver = "none"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[network]
network_backend = "cni"
network_config_dir = "{conf}"
cni_plugin_dirs = ["{bin}", "/usr/lib/cni"]
"""


class Podman:
    """Podman on a node, with storage of its own."""

    def __init__(self, node, directory):
        self._node = node
        self._directory = directory
        install_shim(directory / "bin")
        conf = directory / "containers.conf"
        conf.write_text(CONF.format(conf=node.conflist.parent, bin=directory / "bin"))
        policy = directory / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._environment = {**os.environ, "CONTAINERS_CONF": str(conf)}

    def __call__(self, *arguments, check=True):
        # The copying driver: nothing of it stays mounted.
        own = [
            "--root",
            self._directory / "root",
            "--runroot",
            self._directory / "run",
            "--storage-driver",
            "vfs",
        ]
        own += ["--tmpdir", self._directory / "tmp"]
        line = self._node.inside("podman", *map(str, own), *map(str, arguments))
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=60, check=False, env=self._environment
        )
        assert not check or done.returncode == 0, (
            f"podman {arguments}: {done.stderr}\n{self._node.log[-2000:]}"
        )
        return done.stdout

    def start(self, name, *options):
        """A container that idles: what the kernel tests know as a host."""
        own = ["--name", name, "--network", "poplin", "--cgroup-parent", f"/{self._node.name}", *options]
        self("run", "--detach", *own, "busybox", "sleep", "1000")
        [found] = json.loads(self("inspect", name))
        network = found["NetworkSettings"]["Networks"]["poplin"]
        addresses = {4: network["IPAddress"], 6: network["GlobalIPv6Address"]}
        return Host(Path(found["NetworkSettings"]["SandboxKey"]).name, addresses)


@contextmanager
def podman_on(node):
    # Its paths may not be long.
    directory = Path(tempfile.mkdtemp(prefix="podman-"))
    podman = Podman(node, directory)
    try:
        files = busybox_files(find_busybox().read_bytes(), ["sh", "sleep"])
        archive = directory / "busybox.tar"
        archive.write_bytes(make_archive([Image([BUSYBOX], files, ["/bin/sh"])]))
        podman("load", "--quiet", "--input", archive)
        yield podman
    finally:
        podman("rm", "--all", "--force", "--time", "0", check=False)
        shutil.rmtree(directory)
        remove_cgroup(node.name)


def test_containers_of_podman_reach_each_other_and_pods_of_other_nodes(tmp_path):
    with cluster(tmp_path, nodes=2) as c, podman_on(c.nodes[0]) as podman:
        node, other = c.nodes
        first, second = podman.start("first"), podman.start("second", "--publish", "8080:80")
        pods = [first, second, node.add_pod(), other.add_pod()]
        assert all(pod.addresses[version] for pod in pods for version in c.versions)
        assert probe_pairs(pods, c.versions) == []
        # A published port is a mapping that the plugin is asked for (capability portMappings).
        with second.listen(4, 80), other.connect(node.addresses[4], 8080):
            pass
        podman("rm", "--force", "--time", "0", "first")
        wait_for(
            lambda: first.addresses[4] not in {route["dst"] for route in node.ip("route", "show")},
            "it is detached",
        )
        assert probe_tcp(second, other.pods[0], 4) == second.addresses[4]
