"""A containerd for each node: in the node's network namespace, with mounts and well-known paths of its own.

It runs in a mount namespace of its own, so that what it mounts (layers, shared memory) goes with its last
process, however that ends; only the names of the pods' network namespaces are seen outside, where the agent
looks for them. Over paths that shims and libcni have built in lie the node's own directories, so that neither
another node's containerd nor the machine's is in the way.

Seen with Debian 12's containerd 1.6.20 and runc 1.1.5, on kernel 6.18:
- The cgroups are version 1 (with an empty version 2 at `unified`), mounted writable below /sys/fs/cgroup, and
  there is no systemd: the cgroupfs driver. `ip netns exec` would hide them under a fresh /sys, so the network
  namespace is entered by setns(2).
- Without CAP_SYS_RESOURCE no process may lower its oom_score_adj, and every sandbox asks for -998:
  `restrict_oom_score_adj` makes that the lowest that is allowed.
- The overlayfs snapshotter works, on ext4 as on tmpfs; native would copy every layer for each container.
- It has its own idea of a loopback: the plugin `loopback` must be in `bin_dir`, or no sandbox comes up.
"""

import os
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from poplin.dataplane.netns import NAMED, open_netns
from poplin.lab.cri.image import PAUSE
from poplin.lab.directory import Directory
from poplin.lab.isolation import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    MS_SLAVE,
    mount,
    setns,
    unshare,
)
from poplin.lab.mounts import read_mounts, share_directory, unmount_below
from poplin.model.errors import PoplinError

CGROUPS: Final = Path("/sys/fs/cgroup")

ENDING_S: Final = 5.0
"""The longest that killed processes are waited for."""
POLL_S: Final = 0.005

_BUILT_IN: Final = {"run": Path("/run/containerd"), "cni": Path("/var/lib/cni")}
"""Where shims make their sockets and runc keeps its state, and where libcni keeps results, whatever the
configuration says; by the directory of ours that is seen there. The places stay, empty, on the machine."""
_LOOPBACK: Final = (Path("/usr/lib/cni/loopback"), Path("/opt/cni/bin/loopback"))


@dataclass(frozen=True, slots=True)
class Containerd:
    """One node's containerd. `cgroup` is the parent of all its pods' cgroups, a path below each hierarchy.

    `hostname` is what pods on the node's network are called.
    """

    directory: Path
    netns: Path
    hostname: str
    cni_conf: Path
    cni_bin: Path
    cgroup: str
    sandbox_image: str

    @property
    def address(self) -> Path:
        """Where it serves CRI: a unix socket."""
        return self.directory / "containerd.sock"

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def netns_names(self) -> Path:
        """Where the names of pods' network namespaces are mounted."""
        return self.state / "io.containerd.grpc.v1.cri" / "netns"

    def make_config(self) -> str:
        """The text of its configuration (containerd's docs/cri/config.md, version 2)."""
        return f"""\
version = 2
root = "{self.directory}/root"
state = "{self.state}"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]

[grpc]
  address = "{self.address}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{self.sandbox_image}"
  restrict_oom_score_adj = {"false" if _may_lower_oom_score() else "true"}
  netns_mounts_under_state_dir = true
  disable_apparmor = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{self.cni_bin}"
    conf_dir = "{self.cni_conf}"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""

    def prepare(self) -> None:
        """Make its files on the node. What an earlier life left stays. Raises PoplinError where programs are missing."""
        find_program("containerd")
        find_program("runc")
        own = [self.directory / name for name in _BUILT_IN]
        for path in (self.netns_names, self.cni_conf, self.cni_bin, *own):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.config.write_text(self.make_config())
        loopback = next((path for path in _LOOPBACK if path.exists()), None)
        if loopback is None:
            raise PoplinError(
                "the CNI plugin `loopback` is not here, and containerd makes no pod without it",
                where=", ".join(map(str, _LOOPBACK)),
                remedy="install containernetworking-plugins",
            )
        if not (self.cni_bin / loopback.name).exists():
            shutil.copy(loopback, self.cni_bin)
        share_directory(self.netns_names)

    def become(self) -> NoReturn:
        """Become it, in a child with one thread, after `prepare`. Never returns; raises OSError or KernelError."""
        program = find_program("containerd")
        setns(open_netns(self.netns), CLONE_NEWNET)
        unshare(CLONE_NEWNS | CLONE_NEWUTS)
        socket.sethostname(self.hostname)
        for one in read_mounts():
            # A mount that was unmounted meanwhile, or lies under another, needs no care.
            if one.shared and not one.path.is_relative_to(self.netns_names):
                with suppress(PoplinError):
                    mount("", one.path, "", MS_SLAVE)
        # Which processes there are is a question of the PID namespace, which the child may have of its own.
        mount("proc", Path("/proc"), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        for name, path in _BUILT_IN.items():
            path.mkdir(exist_ok=True, mode=0o711)
            mount(str(self.directory / name), path, "", MS_BIND | MS_REC)
        os.chdir("/")
        os.execv(program, [program, "--config", str(self.config)])  # noqa: S606  - no shell is wanted

    def remove(self) -> None:
        """Remove what is left when its processes are gone: names of namespaces, cgroups, files."""
        unmount_below(self.directory)
        remove_cgroup(self.cgroup)
        shutil.rmtree(self.directory, ignore_errors=True)


def node_containerd(directory: Directory, node: str) -> Containerd:
    """The containerd of a lab's node."""
    files = directory.node(node)
    return Containerd(
        directory=files.root / "containerd",
        netns=NAMED / directory.node_namespace(node),
        hostname=node,
        cni_conf=files.cni_conf,
        cni_bin=files.cni_bin,
        cgroup=f"{lab_cgroup(directory)}/{node}",
        sandbox_image=PAUSE,
    )


def lab_cgroup(directory: Directory) -> str:
    """The cgroup of all pods of a lab."""
    return f"/poplin-lab-{directory.name}"


def find_program(name: str) -> str:
    """The path of a program. Raises PoplinError."""
    path = shutil.which(name)
    if path is None:
        raise PoplinError(f"{name} is not installed", remedy="install Debian's packages containerd and runc")
    return path


def read_cgroup(name: str) -> list[int]:
    """The processes of a cgroup, as this process' PID namespace numbers them."""
    for hierarchy in (CGROUPS, *CGROUPS.iterdir()):
        with suppress(OSError):
            if pids := (hierarchy / name.lstrip("/") / "cgroup.procs").read_text().split():
                return [int(pid) for pid in pids]
    return []


def remove_cgroup(name: str) -> None:
    """Remove an own cgroup and all below it, in every hierarchy.

    Its processes have been killed. Those that are still ending keep it from going, and are waited for.
    """
    deadline_s = time.monotonic() + ENDING_S
    for hierarchy in (CGROUPS, *CGROUPS.iterdir()):
        top = hierarchy / name.lstrip("/")
        while top.exists():
            for directory, _, _ in os.walk(top, topdown=False):
                with suppress(OSError):
                    os.rmdir(directory)  # noqa: PTH106  - os.walk gives text
            if time.monotonic() > deadline_s:
                break
            time.sleep(POLL_S)


def _may_lower_oom_score() -> bool:
    """Whether CAP_SYS_RESOURCE (bit 24, linux/capability.h) is among our capabilities."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return bool(effective >> 24 & 1)
