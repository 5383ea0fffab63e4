"""What becomes of a forked child: a container with its own processes, mounts, host name and file system.

The file system is the machine's own, seen through a layer in memory that takes every write: a container has
all programs of the machine, and none of its files to spoil (kernel documentation, filesystems/overlayfs). That
is against accidents: it is still root with all capabilities, and a lab is no place for what nobody trusts.
"""

import os
import socket
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from poplin.dataplane.netns import open_netns
from poplin.lab import echo
from poplin.lab.isolation import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SLAVE,
    mount,
    pivot_root,
    set_process_name,
    setns,
    unshare,
)
from poplin.lab.stdio import ChildEnds
from poplin.model.errors import InvalidInputError

CANNOT_START: Final = 128
"""The exit code of a child that did not become a container."""

_MAX_STEPS: Final = 256

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SEPARATE: Final = ("usr", "opt", "home", "root", "lib", "lib64", "bin", "sbin", "var")
"""Directories with programs that may be mounts of their own, which a layer over the root does not show."""

_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty", "ptmx")


class EchoPort(msgspec.Struct, frozen=True):
    """A port that the echo server serves. `protocol` is TCP or UDP."""

    port: int
    protocol: str = "TCP"


class Binding(msgspec.Struct, frozen=True, rename="camel"):
    """A file or directory of the machine that a container sees at `target`, an absolute path."""

    source: str
    target: str
    read_only: bool = False


class ContainerSpec(msgspec.Struct, frozen=True, rename="camel"):
    """A container to be started.

    `netns` is a path. `arguments` empty means the echo server on `ports`. `bindings` are files and directories
    of the machine that it has at other places. `scratch` is an existing directory that the container hides under its own mounts.
    `tty` gives it a terminal, `stdin` an input that can be written to (see `stdio`).
    """

    netns: str
    hostname: str
    log: str
    scratch: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    directory: str = ""
    bindings: tuple[Binding, ...] = ()
    ports: tuple[EchoPort, ...] = ()
    tty: bool = False
    stdin: bool = False


def become_container(spec: ContainerSpec, ready: int, streams: ChildEnds) -> NoReturn:
    """Become the container, in a child that is process 1 of its PID namespace. Never returns.

    Closing `ready`, or the exec that does, says that it runs; before that its reason for failing is written
    there.
    """
    try:
        try:
            _isolate(spec, streams)
            if spec.arguments:
                environment = {
                    "PATH": DEFAULT_PATH,
                    "HOSTNAME": spec.hostname,
                    "HOME": "/root",
                    **({"TERM": "xterm"} if spec.tty else {}),
                    **spec.environment,
                }
                os.chdir(spec.directory or "/")
                os.execvpe(spec.arguments[0], spec.arguments, environment)  # noqa: S606  - no shell is wanted
            set_process_name("echo")
            sockets = echo.listen((port.port, port.protocol) for port in spec.ports)
        except BaseException as error:  # noqa: BLE001  - whatever it is, the parent is told
            os.write(ready, (getattr(error, "strerror", None) or str(error) or repr(error)).encode())
            os._exit(CANNOT_START)
        os.close(ready)
        echo.serve(spec.hostname, sockets)
        os._exit(0)
    except BaseException:  # noqa: BLE001  - nothing of the parent's may go on in the child
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _isolate(spec: ContainerSpec, streams: ChildEnds) -> None:
    os.setsid()
    streams.adopt()
    netns = open_netns(spec.netns)
    unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC)
    setns(netns, CLONE_NEWNET)
    socket.sethostname(spec.hostname[:63])
    _mount_root(Path(spec.scratch), spec.bindings)
    os.close(netns)


def _mount_root(scratch: Path, bindings: Iterable[Binding]) -> None:
    # What the machine unmounts shall go here too: a namespace's name that stays mounted keeps it alive.
    mount("", Path("/"), "", MS_SLAVE | MS_REC)
    mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV)
    root = scratch / "root"
    root.mkdir()
    _mount_layer(Path("/"), root, scratch / "layer")
    for name in _SEPARATE:
        if os.path.ismount(f"/{name}"):
            _mount_layer(Path("/", name), root / name, scratch / f"layer-{name}")
    mount("proc", root / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", root / "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    _mount_devices(root / "dev")
    for name, mode in (("tmp", 0o1777), ("run", 0o755)):
        mount("tmpfs", root / name, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode:o}")
    for binding in bindings:
        _bind(root, binding)
    pivot_root(root)


def _bind(root: Path, binding: Binding) -> None:
    source, target = Path(binding.source), resolve_inside(root, binding.target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    mount(str(source), target, "", MS_BIND | MS_REC)
    if binding.read_only:
        mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY)


def resolve_inside(root: Path, path: str) -> Path:
    """Where `path` leads for who has `root` as its root: links, absolute ones too, are followed inside.

    Raises InvalidInputError for links that go round in circles.
    """
    found, left = root, list(Path(path).parts)
    for _ in range(_MAX_STEPS):
        if not left:
            return found
        part = left.pop(0)
        if part == "/":
            found = root
        elif part == "..":
            found = found.parent if found != root else root
        elif (found / part).is_symlink():
            left = [*(found / part).readlink().parts, *left]
        else:
            found /= part
    raise InvalidInputError("too many levels of symbolic links", where=path)


def _mount_layer(lower: Path, target: Path, layer: Path) -> None:
    """Show `lower` at `target`, with everything that is written kept in `layer`."""
    for name in ("upper", "work"):
        (layer / name).mkdir(parents=True)
    mount(
        "overlay",
        target,
        "overlay",
        0,
        f"lowerdir={lower},upperdir={layer / 'upper'},workdir={layer / 'work'}",
    )


def _mount_devices(directory: Path) -> None:
    """A /dev of its own: the machine's has its disks. Terminals are shared, for a container may be on one."""
    mount("tmpfs", directory, "tmpfs", MS_NOSUID, "mode=755")
    for name in _DEVICES:
        (directory / name).touch()
        mount(f"/dev/{name}", directory / name, "", MS_BIND)
    for name in ("pts", "shm"):
        (directory / name).mkdir()
    mount("/dev/pts", directory / "pts", "", MS_BIND)
    mount("tmpfs", directory / "shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (directory / name).symlink_to(f"/proc/self/fd{target}")
