"""`-o`: how a command prints what it has found."""

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """Text for people, JSON for programs."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[Format, typer.Option("-o", "--output", help="text or json.")]
