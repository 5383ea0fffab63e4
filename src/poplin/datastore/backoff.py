"""How long to wait before the next attempt: pure, so that its tests need no clock."""

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Pace:
    """Every interval and size of a reflector. The defaults suit a cluster; tests make them short.

    `page_size` is how many objects a list asks for at once. A watch is asked to end after between
    `watch_s` and twice that, so that the watches of many nodes, begun together, do not end together.
    A watch silent for `idle_s` is taken for hung: the API server sends bookmarks about once a minute.
    One that has still to send its initial objects may be silent for `initial_idle_s`. A watch resumed
    after a failure counts as standing when it is accepted and silent for `settle_s`: an expired
    resourceVersion is told inside the stream, at once.
    """

    page_size: int = 500
    watch_s: float = 300
    idle_s: float = 150
    initial_idle_s: float = 10
    settle_s: float = 1
    backoff_first_s: float = 0.5
    backoff_max_s: float = 30
    refused_retry_s: float = 30


class Backoff:
    """Waits that double with each failure in a row, jittered, up to a bound."""

    def __init__(self, pace: Pace, random: Random) -> None:
        self._pace = pace
        self._random = random
        self._failures = 0

    def after_success_s(self, elapsed_s: float) -> float:
        """The wait after an attempt that ended well: none, but attempts begin no closer than the first wait."""
        self._failures = 0
        return max(0.0, self._pace.backoff_first_s - elapsed_s)

    def after_failure_s(self, elapsed_s: float, *, at_least_s: float = 0) -> float:
        """The wait after an attempt that failed when it had lasted `elapsed_s`."""
        if elapsed_s > self._pace.backoff_max_s:
            self._failures = 0
        wait_s = min(self._pace.backoff_max_s, self._pace.backoff_first_s * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return max(wait_s, at_least_s) * self._random.uniform(1.0, 1.5)
