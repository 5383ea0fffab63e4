"""Waiting for what other tasks and threads do."""

import asyncio

BOUND_S = 11


async def until(condition):
    """Wait until the condition holds; nothing tells of it, so it is looked at."""
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110  - the things under test have no event for it
            await asyncio.sleep(0.001)
