"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

StateDir = Annotated[Path, typer.Option(help="Attachments and addresses; survives restarts.")]
RunDir = Annotated[Path, typer.Option(help="The agent's sockets.")]
CniConfDir = Annotated[Path, typer.Option(help="Where the container runtime looks for its network.")]
