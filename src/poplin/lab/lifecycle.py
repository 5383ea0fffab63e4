"""A lab from nothing to ready, and to nothing again.

`bring_up` on a lab that stands starts what is missing; `take_down` needs nothing but the lab's name, so it
works however the lab came to its end.
"""

import fcntl
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from poplin.agent.install import install_shim
from poplin.dataplane.netns import delete_netns
from poplin.lab.addressing import API_PORT
from poplin.lab.cri.containerd import lab_cgroup, node_containerd, remove_cgroup
from poplin.lab.cri.store import load_lab_images
from poplin.lab.directory import LABS, Directory
from poplin.lab.fabric import listen_in_fabric, make_fabric, make_node
from poplin.lab.init import Init
from poplin.lab.isolation import (
    ProcessIdentity,
    close_all_but,
    fork_first_of_pid_namespace,
    identify,
    read_identity,
    redirect_output,
    set_process_name,
)
from poplin.lab.message import SERVER, Question, agent_name, containerd_name
from poplin.lab.mounts import allow_programs, unmount_below
from poplin.lab.report import kubeconfig_path, last_line, wait_until_ready
from poplin.lab.runtime import ask
from poplin.lab.settings import Runtime, Settings, read_settings, write_settings
from poplin.model.errors import InvalidInputError, PoplinError, TemporaryError

START_TIMEOUT_S: Final = 30.0
READY_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.01

Step = Callable[[str], AbstractContextManager[None]]
"""Shows that a step is under way, and what it took."""


@contextmanager
def held(directory: Directory) -> Iterator[None]:
    """Nobody else makes or unmakes the lab meanwhile. Raises TemporaryError where somebody does."""
    LABS.mkdir(parents=True, exist_ok=True, mode=0o700)
    with directory.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A `down` that ended between our opening and locking it has removed the file, and its lock with it.
            if os.fstat(file.fileno()).st_ino != directory.lock.stat().st_ino:
                raise BlockingIOError
        except OSError as error:
            raise TemporaryError(
                "another command is making or unmaking it",
                where=f"lab {directory.name}",
                remedy="wait for it to end",
            ) from error
        try:
            yield
        finally:
            if not directory.root.exists():
                directory.lock.unlink()


def read_init(directory: Directory) -> ProcessIdentity | None:
    """The lab's init, None where none lives."""
    try:
        identity = msgspec.json.decode(directory.init_pid.read_bytes(), type=ProcessIdentity)
    except (OSError, msgspec.DecodeError):
        return None
    return identity if identity.lives() else None


def bring_up(settings: Settings, step: Step) -> bool:
    """Make the lab and start its server and agents; tell whether it was to be made.

    One that stands has its missing parts started, with the settings it has. Raises PoplinError, and leaves
    nothing of a lab that was not there before.
    """
    directory = Directory(settings.name)
    with held(directory):
        if directory.settings.exists():
            _revive(directory, settings, step)
            return False
        # What is there without settings is what a `down` or `up` left that was killed.
        _remove(directory)
        try:
            with step(f"fabric and {settings.nodes} nodes"):
                _make(directory, settings)
            _start(directory, settings, step)
            _wait_for_nodes(directory, settings, step)
            write_settings(directory.settings, settings)
        except BaseException:
            _remove(directory)
            raise
    return True


def take_down(name: str) -> bool:
    """Remove a lab, or what is left of one; tell whether there was any. Raises PoplinError."""
    directory = Directory(name)
    with held(directory):
        existed = directory.root.exists() or bool(directory.namespaces())
        _remove(directory)
    return existed


def require(name: str) -> tuple[Directory, Settings]:
    """A lab that stands. Raises InvalidInputError where there is none of the name."""
    directory = Directory(name)
    if not directory.settings.exists():
        raise InvalidInputError(
            "there is no such lab", where=f"lab {name}", remedy="make it with `poplin lab up`"
        )
    return directory, read_settings(directory.settings)


def _make(directory: Directory, settings: Settings) -> None:
    for path in (
        directory.root,
        directory.sandboxes,
        directory.pods,
        directory.scratch,
        directory.log("x").parent,
    ):
        path.mkdir(mode=0o700, parents=True)
    allow_programs(directory.root)
    directory.net_conf.write_text(settings.net_conf)
    make_fabric(directory, settings)
    for number, node in enumerate(settings.node_names(), start=1):
        make_node(directory, settings, number)
        # The runtime needs it with the first pod, which may come before the agent has put it there.
        install_shim(directory.node(node).cni_bin)
        if settings.runtime is Runtime.CONTAINERD:
            node_containerd(directory, node).prepare()


def _revive(directory: Directory, settings: Settings, step: Step) -> None:
    standing = read_settings(directory.settings)
    if standing != settings:
        raise InvalidInputError(
            "it stands, and was made with other options",
            where=f"lab {settings.name}",
            remedy="take it down first, or choose another --name",
        )
    if read_init(directory) is None:
        _start(directory, standing, step)
    _wait_for_nodes(directory, standing, step)


def _wait_for_nodes(directory: Directory, settings: Settings, step: Step) -> None:
    """Without kubelet or controllers of ours nobody knows who makes the nodes ready, and when."""
    if settings.kubelet and settings.controllers:
        with step(f"{settings.nodes} nodes ready"):
            wait_until_ready(directory, settings, READY_TIMEOUT_S)


def _start(directory: Directory, settings: Settings, step: Step) -> None:
    """Start the lab's processes, and wait until its API answers."""
    listeners = _listen(directory, settings)
    try:
        with step("processes"):
            _fork_init(directory, settings, listeners)
            if settings.runtime is Runtime.CONTAINERD:
                for node in settings.node_names():
                    ask(directory.socket, Question(0, start=containerd_name(node)))
            ask(directory.socket, Question(0, start=SERVER))
            _wait_for_server(directory, settings)
            for node in settings.node_names():
                ask(directory.socket, Question(0, start=agent_name(node)))
        if settings.runtime is Runtime.CONTAINERD:
            with step("images"):
                load_lab_images([node_containerd(directory, node) for node in settings.node_names()])
    finally:
        for listener in listeners:
            listener.close()


def _listen(directory: Directory, settings: Settings) -> list[socket.socket]:
    """The API's sockets, made once for all lives of the server: clients that come meanwhile wait in the queue."""
    listeners = []
    if not settings.kubeconfig:
        listeners.append(socket.create_server(("127.0.0.1", _api_port(directory)), backlog=1024))
    listeners.append(listen_in_fabric(directory, settings.addressing.api_address(), API_PORT))
    return listeners


def _api_port(directory: Directory) -> int:
    """The port that people's kubeconfig names already, 0 for any free one."""
    with suppress(OSError):
        for line in directory.kubeconfig.read_text().splitlines():
            if "server: https://127.0.0.1:" in line:
                return int(line.rpartition(":")[2])
    return 0


def _fork_init(directory: Directory, settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Start the init and wait until it listens. The caller has one thread."""
    directory.socket.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(directory.socket))
        control.listen(64)
        sys.stdout.flush()
        sys.stderr.flush()
        if fork_first_of_pid_namespace() == 0:
            _become_init(directory, settings, control, listeners)


def _become_init(
    directory: Directory, settings: Settings, control: socket.socket, listeners: Sequence[socket.socket]
) -> None:
    from poplin.lab.daemon import make_daemons  # noqa: PLC0415  - half a second, and for this process alone

    try:
        # Before anything else: who kills the caller now can still take the lab down.
        directory.init_pid.write_bytes(msgspec.json.encode(identify(os.getpid())))
        keep = {listener.fileno() for listener in listeners}
        # The lock of the command that starts us is not for us to hold.
        close_all_but({control.fileno(), *keep})
        os.setsid()
        set_process_name(f"lab-{settings.name}")
        redirect_output(directory.log("init"))
        os.chdir("/")
        Init(control, make_daemons(directory, settings, listeners), keep).run()
    except BaseException:  # noqa: BLE001  - its log is the only place left to say it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def _wait_for_server(directory: Directory, settings: Settings) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    kubeconfigs = (directory.fabric_kubeconfig, kubeconfig_path(directory, settings))
    while not all(path.exists() for path in kubeconfigs):
        server = next(state for state in ask(directory.socket, Question(0)) if state.id == SERVER)
        if server.code is not None or time.monotonic() > deadline:
            word = last_line(directory.log(SERVER))
            raise TemporaryError(f"the server does not start: {word}", where=f"lab {directory.name}")
        time.sleep(POLL_S)


def _remove(directory: Directory) -> None:
    """Remove everything: processes first, all of which die with the init, then namespaces, then files."""
    init = read_init(directory)
    if init is not None:
        _kill(init)
    for name in directory.namespaces():
        delete_netns(name)
    # What containerd's mounts of its own do not take along.
    unmount_below(directory.root)
    remove_cgroup(lab_cgroup(directory))
    if directory.root.exists():
        shutil.rmtree(directory.root)


def _kill(init: ProcessIdentity) -> None:
    # It handles SIGTERM like anyone; as process 1 it takes its PID namespace along, whatever it dies of.
    os.kill(init.pid, signal.SIGKILL)
    deadline = time.monotonic() + START_TIMEOUT_S
    while Path(f"/proc/{init.pid}").exists() and read_identity(init.pid) == init:
        if time.monotonic() > deadline:
            raise PoplinError("does not die", where=f"process {init.pid}")
        time.sleep(POLL_S)
    with suppress(ChildProcessError):
        os.waitpid(init.pid, 0)
