"""Namespaces of a process: its own process ids, mounts, host name (man 7 namespaces), and its identity.

os.unshare and os.setns came with Python 3.12, mount(2) and pivot_root(2) never did.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from poplin.model.errors import KernelError

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SLAVE: Final = 1 << 19

_MNT_DETACH: Final = 2
_PR_SET_NAME: Final = 15
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
_libc: Final = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for new ones. Raises KernelError."""
    _call("unshare", flags)


def setns(descriptor: int, flags: int) -> None:
    """Enter the namespace behind a descriptor. Raises KernelError."""
    _call("setns", descriptor, flags)


def fork_first_of_pid_namespace() -> int:
    """Fork a child that is process 1 of a new PID namespace: when it dies, all that it started dies too.

    The child's id as the caller sees it, 0 in the child. For callers with a single thread, as any fork.
    """
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    pid = -1
    try:
        unshare(CLONE_NEWPID)
        pid = os.fork()
    finally:
        # The caller's further children are born where the caller is, and until then it can start no thread.
        if pid != 0:
            setns(home, CLONE_NEWPID)
        os.close(home)
    return pid


def mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    """Mount a file system: see man 2 mount. Raises KernelError."""
    arguments = (os.fsencode(source), bytes(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _call("mount", *arguments, where=str(target))


def pivot_root(root: Path) -> None:
    """Make a mount point the root, and let go of everything that was mounted before (man 2 pivot_root)."""
    os.chdir(root)
    number = _SYS_PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise KernelError("the number of pivot_root is not known on this machine", errno=38)
    _call("syscall", ctypes.c_long(number), b".", b".", where=str(root))
    _call("umount2", b".", _MNT_DETACH, where=str(root))
    os.chdir("/")


def close_all_but(keep: Iterable[int]) -> None:
    """Let go of the descriptors of a parent, save the standard ones and `keep`."""
    low = 3
    for descriptor in sorted(keep):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def enter_options(pid: int) -> list[str]:
    """What nsenter needs for all namespaces of a container's process, its root included."""
    return [f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]


def set_process_name(name: str) -> None:
    """What `ps -e` and `top` call the process (15 bytes)."""
    _call("prctl", _PR_SET_NAME, name.encode()[:15], 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process for good: numbers are used again, a number with its start time is not.

    `pid` is as the machine sees it, whichever PID namespace the process is in; `started` is field 22 of
    /proc/PID/stat, in clock ticks since boot.
    """

    pid: int
    started: int

    def lives(self) -> bool:
        """Whether it runs still; a zombie does not."""
        return read_identity(self.pid) == self


def read_identity(pid: int) -> ProcessIdentity | None:
    """The identity of the process that has this number now, None for none. A zombie counts as none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses and may hold anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else ProcessIdentity(pid, int(fields[19]))


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a process that is called `pid` in the caller's own PID namespace, None where it is gone.

    /proc shows the machine's numbers, and so does the entry of a pidfd there (man 2 pidfd_open).
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    finally:
        os.close(descriptor)
    number = int(text.partition("Pid:")[2].split()[0])
    return read_identity(number) if number > 0 else None


def _call(name: str, *arguments: object, where: str = "") -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"{name}: {os.strerror(number)}", errno=number, where=where)


def redirect_output(path: Path) -> None:
    """Send standard output and error to a file, and read standard input from nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(file)
