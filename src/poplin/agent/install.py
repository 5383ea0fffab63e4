"""What the agent puts on its node's disk: the CNI configuration, and the plugin where it is asked to."""

import fcntl
import os
import socket
import tempfile
from pathlib import Path

from poplin import cni
from poplin.model.errors import PoplinError


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> bool:
    """Write a file by renaming one made beside it; tell whether it was different.

    A runtime that watches the directory (containerd 1.6) notices a rename within it, not one into it.
    Raises PoplinError.
    """
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(name).chmod(mode)
            Path(name).rename(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PoplinError(
            f"cannot write: {error.strerror}", where=str(path), remedy="make the directory writable"
        ) from error
    return True


def shim_path() -> Path:
    """Give the path of the compiled poplin-cni that this package carries. Raises PoplinError."""
    path = Path(cni.__file__).parent / "poplin-cni"
    if not path.exists():
        raise PoplinError("poplin-cni is not built", where=str(path), remedy="run `make setup`")
    return path


def install_shim(directory: Path) -> bool:
    """Put poplin-cni where the runtime looks for plugins; tell whether it was another one, or none."""
    return write_atomically(directory / "poplin-cni", shim_path().read_bytes(), 0o755)


def lock_namespace() -> socket.socket:
    """Hold the network namespace: two agents would undo each other's routes, whatever their directories.

    An abstract name of a unix socket belongs to the network namespace (man 7 unix), and goes with the socket.
    Raises PoplinError.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind("\0poplin-agent")
    except OSError as error:
        lock.close()
        raise PoplinError(
            "another agent runs in this network namespace",
            remedy="stop it first (`ss -xlp src @poplin-agent` names it)",
        ) from error
    return lock


def lock_state_dir(directory: Path) -> int:
    """Make the state directory and hold it: two agents on one state would give addresses twice.

    The lock goes with the descriptor that is returned. Raises PoplinError.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PoplinError(
            f"cannot use the state directory: {error.strerror}",
            where=str(directory),
            remedy="run as root, or give another directory with --state-dir",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise PoplinError(
            "another agent uses this state directory",
            where=str(directory),
            remedy="stop that agent, or give this one another --state-dir",
        ) from error
    return descriptor


def make_run_dir(directory: Path) -> None:
    """Make the directory of the agent's sockets, for root alone. Raises PoplinError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as error:
        raise PoplinError(
            f"cannot make the directory of the sockets: {error.strerror}",
            where=str(directory),
            remedy="run as root, or give another directory with --run-dir",
        ) from error
