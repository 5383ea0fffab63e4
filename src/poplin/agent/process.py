"""A process that serves until it is told to end."""

import asyncio
import signal
from collections.abc import Awaitable
from contextlib import suppress


async def serve_until_signal(main: Awaitable[object]) -> None:
    """Await `main`, and cancel it at SIGTERM or SIGINT, which is no error. For the main task of a process."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  - a coroutine that runs is in one
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await main
