"""Network namespaces: entering them, and named ones as `ip netns` keeps them (man 8 ip-netns).

A namespace belongs to a thread. Nothing here may be awaited between going in and coming back, or another
task of the loop would run in the wrong namespace.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from poplin.model.errors import InvalidInputError, KernelError

T = TypeVar("T")

NAMED: Final = Path("/run/netns")
"""Where `ip netns` looks for names."""

_OWN: Final = "/proc/thread-self/ns/net"
_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2
_libc: Final = ctypes.CDLL(None, use_errno=True)


def open_netns(path: str | Path) -> int:
    """A descriptor of the namespace at `path`; the caller closes it. Raises KernelError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(
            f"cannot open the network namespace: {error.strerror}", errno=error.errno or 0, where=str(path)
        ) from error


@contextmanager
def entered(netns_fd: int) -> Iterator[None]:
    """The thread in another namespace, and back. Raises KernelError where `netns_fd` is not one (EINVAL)."""
    home = open_netns(_OWN)
    try:
        _call("setns", netns_fd, _CLONE_NEWNET, where="entering a network namespace")
        try:
            yield
        finally:
            _call("setns", home, _CLONE_NEWNET, where="leaving a network namespace")
    finally:
        os.close(home)


def in_namespace(netns_fd: int, function: Callable[[], T]) -> T:
    """What `function` returns in the namespace: a socket made there stays there."""
    with entered(netns_fd):
        return function()


def create_netns(name: str) -> Path:
    """Make a namespace that `ip netns` knows by `name`, its loopback down. Raises KernelError (EEXIST).

    The directory is a shared mount, as iproute2 makes it, so that the name is seen in every mount namespace.
    """
    path = _path(name)
    _share_directory()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except FileExistsError as error:
        raise KernelError(
            "the name is taken", errno=error.errno or 0, where=f"network namespace {name}"
        ) from error
    home = open_netns(_OWN)
    try:
        _call("unshare", _CLONE_NEWNET, where=f"network namespace {name}")
        try:
            _mount(_OWN, path, _MS_BIND)
        finally:
            _call("setns", home, _CLONE_NEWNET, where="leaving a network namespace")
    except KernelError:
        path.unlink()
        raise
    finally:
        os.close(home)
    return path


def delete_netns(name: str) -> None:
    """Take the name away; the namespace goes when nothing uses it any more. A name that is not there is success."""
    path = _path(name)
    # Not a mount (EINVAL) or not there (ENOENT): what remains to do is to remove the file.
    with suppress(KernelError):
        _call("umount2", bytes(path), _MNT_DETACH, where=f"network namespace {name}")
    path.unlink(missing_ok=True)


def _path(name: str) -> Path:
    if name in {"", ".", ".."} or "/" in name:
        raise InvalidInputError("not a name for a network namespace", where=repr(name))
    return NAMED / name


def _share_directory() -> None:
    NAMED.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        _mount("", NAMED, _MS_SHARED | _MS_REC)
    except KernelError:
        # Only a mount can be shared: it becomes one of its own.
        _mount(NAMED, NAMED, _MS_BIND | _MS_REC)
        _mount("", NAMED, _MS_SHARED | _MS_REC)


def _mount(source: str | Path, target: Path, flags: int) -> None:
    _call(
        "mount", os.fsencode(source), bytes(target), b"none", ctypes.c_ulong(flags), None, where=str(target)
    )


def _call(name: str, *arguments: object, where: str) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"{name}: {os.strerror(number)}", errno=number, where=where)
