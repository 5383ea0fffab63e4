"""What a fault's repair is, and how it is waited for."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from poplin.lab.snapshot import NodeNetwork, Snapshot
from poplin.model.attachment import Attachment
from poplin.model.errors import PoplinError, TemporaryError

REPAIR_TIMEOUT_S: Final = 90.0
"""More than the 60 s between two audits, which find what the kernel tells nobody."""

POLL_S: Final = 0.002

REST_S: Final = 1.0
REST_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class FaultReport:
    """One fault and its repair: seconds from the damage until all stood as before, None where it never did."""

    kind: str
    node: str
    what: str
    repair_s: float | None


def stands(network: NodeNetwork, attachments: Iterable[Attachment], before: Snapshot) -> bool:
    """Tell whether all is as it was on the node and in these pods. Raises KernelError."""
    return network.read(attachments) == before


async def wait_for_rest(networks: Iterable[NodeNetwork]) -> None:
    """Return when nothing has changed on any node for REST_S, or after REST_TIMEOUT_S.

    What changes by itself, as pods that come up do, would be taken for a fault's doing.
    """
    networks = list(networks)
    seen: list[Snapshot | None] = []
    began_s = time.monotonic()
    while time.monotonic() - began_s < REST_TIMEOUT_S:
        before, seen = seen, [_read_all(network) for network in networks]
        if seen == before and None not in seen:
            return
        await asyncio.sleep(REST_S)


def _read_all(network: NodeNetwork) -> Snapshot | None:
    try:
        return network.read(network.attachments())
    except PoplinError:
        return None


async def wait_until(done: Callable[[], bool], began_s: float) -> float | None:
    """Give the seconds from `began_s` (time.monotonic) until `done`, None where REPAIR_TIMEOUT_S pass before."""
    while time.monotonic() - began_s < REPAIR_TIMEOUT_S:
        try:
            if done():
                return time.monotonic() - began_s
        except TemporaryError:
            pass  # what is being made anew changes while it is read
        await asyncio.sleep(POLL_S)
    return None
