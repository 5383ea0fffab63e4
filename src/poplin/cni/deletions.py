"""Notes that poplin-cni leaves for an agent that was not there: attachments deleted in the meantime.

A note is an empty file STATE_DIR/deleted/CONTAINERID:IFNAME; ':' occurs in neither name.
"""

from pathlib import Path

from poplin.model.errors import PoplinError


def read_deletions(state_dir: Path) -> list[tuple[str, str]]:
    """(container id, interface name) of every note, in no particular order.

    A shim that found nobody listening may write its note a moment after the agent has come up, so the agent
    reads them at its start and again at each audit.
    """
    try:
        names = [path.name for path in (state_dir / "deleted").iterdir()]
    except FileNotFoundError:
        return []
    return [
        (container_id, ifname) for container_id, colon, ifname in (n.partition(":") for n in names) if colon
    ]


def is_deleted(state_dir: Path, container_id: str, ifname: str) -> bool:
    """Tell whether there is a note of the attachment."""
    return (state_dir / "deleted" / f"{container_id}:{ifname}").exists()


def forget_deletion(state_dir: Path, container_id: str, ifname: str) -> None:
    """Take the note away, after the deletion. None there is success. Raises PoplinError."""
    try:
        (state_dir / "deleted" / f"{container_id}:{ifname}").unlink(missing_ok=True)
    except OSError as error:
        raise PoplinError(
            f"cannot remove the note of a deletion: {error.strerror}",
            where=str(state_dir / "deleted"),
            remedy="make the directory writable",
        ) from error
