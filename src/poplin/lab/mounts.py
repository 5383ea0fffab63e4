"""The mounts of this mount namespace: which there are, and taking them away."""

import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from poplin.lab.isolation import MS_BIND, MS_NODEV, MS_NOSUID, MS_REMOUNT, mount
from poplin.model.errors import KernelError

MS_SHARED: Final = 1 << 20
"""What is mounted below is seen in every mount namespace that shares the mount, both ways."""

_MNT_DETACH: Final = 2
# Fields 5, 6 and the optional ones that end with a hyphen (man 5 proc, "/proc/pid/mountinfo").
_LINE: Final = re.compile(r"^\d+ \d+ \S+ \S+ (\S+) \S+ (.*?)- ", re.MULTILINE)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountPoint:
    """Something is mounted here; `shared` where mounts below are seen in other mount namespaces too."""

    path: Path
    shared: bool


def read_mounts() -> Iterator[MountPoint]:
    """All mounts, in the order in which they were made."""
    for target, options in _LINE.findall(Path("/proc/self/mountinfo").read_text()):
        path = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), target)
        yield MountPoint(Path(path), "shared:" in options)


def share_directory(path: Path) -> None:
    """Make a directory a shared mount of its own, once. Raises KernelError."""
    if any(one.path == path for one in read_mounts()):
        return
    mount(str(path), path, "", MS_BIND)
    mount("", path, "", MS_SHARED)


def allow_programs(directory: Path) -> None:
    """Let the programs in a directory be executed though its file system says noexec, as Debian's /run does.

    Raises KernelError.
    """
    if os.statvfs(directory).f_flag & os.ST_NOEXEC:
        mount(str(directory), directory, "", MS_BIND)
        mount("", directory, "", MS_BIND | MS_REMOUNT | MS_NOSUID | MS_NODEV)


def unmount_below(directory: Path) -> None:
    """Unmount everything at and below a directory, the latest first. Raises KernelError."""
    for one in reversed([one.path for one in read_mounts() if one.path.is_relative_to(directory)]):
        if _libc.umount2(bytes(one), _MNT_DETACH) != 0:
            number = ctypes.get_errno()
            raise KernelError(f"umount2: {os.strerror(number)}", errno=number, where=str(one))
