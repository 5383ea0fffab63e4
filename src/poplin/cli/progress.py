"""Steps of something that takes seconds, shown while it goes on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


class Progress:
    """A line for each step and its time; on a terminal it stands there while the step goes on.

    No thread may turn a wheel here: steps fork.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """A step."""
        with self.counted(what):
            yield

    @contextmanager
    def counted(self, what: str) -> Iterator[Callable[[str], None]]:
        """A step that tells how far it is; what it told last stays in the line."""
        began, told = time.monotonic(), ""

        def tell(how_far: str) -> None:
            nonlocal told
            told = f" [dim]{how_far}[/]"
            if self._console.is_terminal:
                self._console.print(f"[dim]…[/] {what}{told}", end="\r", soft_wrap=True)

        if self._console.is_terminal:
            self._console.print(f"[dim]…[/] {what}", end="\r")
        try:
            yield tell
        except BaseException:
            self._console.print(f"[red]✗[/] {what}{told}", soft_wrap=True)
            raise
        spent_s = time.monotonic() - began
        self._console.print(f"[green]✓[/] {what}{told} [dim]{spent_s:.2f} s[/]", soft_wrap=True)
