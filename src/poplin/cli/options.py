"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

# Not `readable`: who may not read them is told by the command itself, which knows why.
StateDir = Annotated[Path, typer.Option(readable=False, help="Attachments and addresses; survives restarts.")]
RunDir = Annotated[Path, typer.Option(readable=False, help="The agent's sockets.")]
CniConfDir = Annotated[
    Path, typer.Option(readable=False, help="Where the container runtime looks for its network.")
]
