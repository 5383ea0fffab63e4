"""The image stores of a lab's nodes: what is put there, and how."""

import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from poplin.lab.cri.containerd import Containerd, find_program
from poplin.lab.cri.image import lab_images, make_archive
from poplin.model.errors import PoplinError, TemporaryError

CRI_NAMESPACE: Final = "k8s.io"
"""containerd's own namespace for what comes by CRI."""
TIMEOUT_S: Final = 300.0
READY_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02


def load_lab_images(containerds: Sequence[Containerd]) -> None:
    """Give every node the images that every lab has. Raises PoplinError."""
    archive = containerds[0].directory / "images.tar"
    archive.write_bytes(make_archive(lab_images()))
    try:
        load_images(containerds, archive)
    finally:
        archive.unlink()


def load_images(containerds: Sequence[Containerd], archive: Path) -> None:
    """Put an image archive (OCI's or docker's) into all stores, at once. Blocks. Raises PoplinError."""
    ctr = find_program("ctr")
    deadline = time.monotonic() + READY_TIMEOUT_S
    for containerd in containerds:
        while not _listens(containerd.address):
            if time.monotonic() > deadline:
                raise TemporaryError("containerd does not start", where=str(containerd.directory))
            time.sleep(POLL_S)
    started = []
    for containerd in containerds:
        command = [ctr, "--address", str(containerd.address), "--namespace", CRI_NAMESPACE]
        # All platforms: an archive made for this machine alone may not name it.
        command += ["images", "import", "--all-platforms", str(archive)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, text=True))
    failures = [_wait(process, archive) for process in started]
    for failure in failures:
        if failure is not None:
            raise failure


def _listens(address: Path) -> bool:
    """Whether somebody serves the socket, which may be what an earlier life has left."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(address))
    except OSError:
        return False
    return True


def _wait(process: "subprocess.Popen[str]", archive: Path) -> PoplinError | None:
    """What was wrong, None for nothing."""
    try:
        _, errors = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return TemporaryError(f"not imported within {TIMEOUT_S:g} s", where=str(archive))
    if process.returncode != 0:
        return TemporaryError(f"cannot import: {errors.strip()}", where=str(archive))
    return None
