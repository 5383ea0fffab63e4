"""The user whom a command needs."""

import os

from poplin.model.errors import PoplinError


def require_root() -> None:
    """Return for root. Raises PoplinError for anyone else."""
    if os.geteuid() != 0:
        raise PoplinError("makes network namespaces and needs root", remedy="run it with sudo")
