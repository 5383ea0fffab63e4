"""Containerd on a node of a test cluster, as a lab runs it, and what it must leave behind: nothing."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from kernel.nodes import Node, wait_for
from poplin.agent.install import install_shim
from poplin.lab.cri.containerd import CGROUPS, Containerd
from poplin.lab.cri.image import PAUSE, lab_images, make_archive
from poplin.lab.cri.store import load_images

BECOME = """
import sys
from pathlib import Path
from poplin.lab.cri.containerd import Containerd
paths, texts = sys.argv[1:5], sys.argv[5:]
directory, netns, cni_conf, cni_bin = map(Path, paths)
hostname, cgroup, image = texts
Containerd(directory, netns, hostname, cni_conf, cni_bin, cgroup, image).become()
"""


@dataclass
class RunningContainerd:
    """A containerd whose processes are all in a PID namespace of their own, as a lab's are."""

    containerd: Containerd
    log: Path
    init: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        c = self.containerd
        given = [c.directory, c.netns, c.cni_conf, c.cni_bin, c.hostname, c.cgroup, c.sandbox_image]
        # sh stays process 1 and starts containerd again when it dies, as the lab's init does.
        again = 'while :; do "$@" & wait $!; done'
        line = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", again, "init"]
        line += [sys.executable, "-c", BECOME, *map(str, given)]
        with self.log.open("ab") as log:
            self.init = subprocess.Popen(line, stdout=log, stderr=log)
        wait_for(self.answers, "containerd answers")

    def answers(self) -> bool:
        line = ["ctr", "--address", str(self.containerd.address), "version"]
        return subprocess.run(line, capture_output=True, check=False).returncode == 0

    def processes(self, name: str) -> list[int]:
        """The processes of that name that have this containerd's directory in their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            mine = any(str(self.containerd.directory).encode() in word for word in words)
            if mine and Path(words[0].decode()).name == name:
                found.append(int(path.parent.name))
        return found

    def kill(self) -> None:
        """End every process at once, as a crash of the lab would."""
        if self.init is not None:
            self.init.send_signal(signal.SIGKILL)
            self.init.wait()
            self.init = None
            gone = "containerd", "containerd-shim-runc-v2"
            wait_for(lambda: not any(map(self.processes, gone)), "its processes end")

    def traces(self) -> list[str]:
        """What is left of it on the machine."""
        name, cgroup = str(self.containerd.directory), self.containerd.cgroup.lstrip("/")
        left = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
        left += [str(path) for path in (CGROUPS, *CGROUPS.iterdir()) if (path / cgroup).exists()]
        for place in (Path("/run/containerd"), Path("/var/lib/cni")):
            left += [str(path) for path in place.rglob("*") if _names(path, name)]
        return left + ([name] if self.containerd.directory.exists() else [])


def _names(path: Path, word: str) -> bool:
    """Whether a file, which others may be removing, has the word in it."""
    try:
        return path.is_file() and word.encode() in path.read_bytes()
    except FileNotFoundError:
        return False


@contextmanager
def running_containerd(node: Node, archive: Path | None = None) -> Iterator[RunningContainerd]:
    """Containerd on the node, with the lab's images; gone again on the way out, without a trace."""
    install_shim(node.directory / "bin")
    containerd = Containerd(
        directory=node.directory / "c",
        netns=Path("/run/netns") / node.name,
        hostname=node.node_name,
        cni_conf=node.directory / "net.d",
        cni_bin=node.directory / "bin",
        cgroup=f"/{node.name}",
        sandbox_image=PAUSE,
    )
    assert len(fields(containerd)) == 7, "BECOME passes all of them"
    containerd.prepare()
    running = RunningContainerd(containerd, node.directory / "containerd.log")
    try:
        running.start()
        if archive is None:
            archive = node.directory / "images.tar"
            archive.write_bytes(make_archive(lab_images()))
        load_images([containerd], archive)
        yield running
    finally:
        running.kill()
        containerd.remove()
    traces = running.traces()
    assert not traces, traces
