"""Kernel parameters of the network namespace in which the thread is (man 5 proc, /proc/sys/net).

Keys are paths below /proc/sys, "net/ipv4/conf/eth0.100/rp_filter": a dot is part of an interface's name.
"""

from pathlib import Path
from typing import Final

from poplin.model.errors import InvalidInputError, KernelError

_ROOT: Final = Path("/proc/sys")


def read_sysctl(key: str) -> str:
    """The value as the kernel prints it, without the line's end. Raises KernelError (ENOENT for no such key)."""
    try:
        return _path(key).read_text().strip()
    except OSError as error:
        raise KernelError(
            f"cannot read: {error.strerror}", errno=error.errno or 0, where=f"sysctl {key}"
        ) from error


def write_sysctl(key: str, value: str | int) -> bool:
    """Set a value where it is another; whether it was. Raises KernelError with key and value."""
    text = str(value)
    if read_sysctl(key).split() == text.split():
        return False
    try:
        _path(key).write_text(text)
    except OSError as error:
        raise KernelError(
            f"cannot set to {text}: {error.strerror}", errno=error.errno or 0, where=f"sysctl {key}"
        ) from error
    return True


def _path(key: str) -> Path:
    parts = key.split("/")
    if parts[0] != "net" or len(parts) < 2 or any(part in {"", ".", ".."} for part in parts):
        raise InvalidInputError(
            "not a network parameter",
            where=f"sysctl {key!r}",
            remedy='write it as a path: "net/ipv4/ip_forward"',
        )
    return _ROOT / key
