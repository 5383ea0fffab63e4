"""Events live for an hour after they were last told (kube-apiserver's --event-ttl)."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

from poplin.apiserver.collection import Object
from poplin.apiserver.deletion import DeleteOptions
from poplin.apiserver.lifecycle import Lifecycle

EVENTS: Final = "/events"
LIFETIME: Final = timedelta(hours=1)
SWEEP_PERIOD_S: Final = 60.0


async def sweep_events(lifecycle: Lifecycle) -> None:
    """Delete old events for as long as the server runs."""
    while True:
        await delete_expired(lifecycle, datetime.now(UTC))
        await asyncio.sleep(SWEEP_PERIOD_S)


async def delete_expired(lifecycle: Lifecycle, now: datetime) -> None:
    resource = lifecycle.registry.stored_as(EVENTS)
    if resource is None:
        return
    entries = lifecycle.collection(resource).slice(None)
    old = [entry for entry in entries if now - last_told(entry.decode(), now) > LIFETIME]
    await lifecycle.delete_all(resource, old, DeleteOptions())


def last_told(event: Object, now: datetime) -> datetime:
    """When a stored event was last told; `now` for one that does not say."""
    series = event.get("series") or {}
    said = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    moments = [*said, event["metadata"].get("creationTimestamp")]
    return max((datetime.fromisoformat(moment) for moment in moments if moment), default=now)
