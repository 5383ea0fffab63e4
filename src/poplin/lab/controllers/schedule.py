"""Schedules in cron's notation: "*/15 8-18 * * mon-fri" (Kubernetes documentation, "CronJob", schedule syntax)."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final

MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
HORIZON_DAYS: Final = 366 * 8 + 1
"""Beyond the longest time between two 29ths of February: what does not come by then never does."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The minutes, hours, days, months and weekdays (0 is Sunday) that fit.

    `any_day` and `any_weekday` tell that the field was "*". A day fits by either where both are restricted.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool

    def fits_day(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        by_day, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return by_day and by_weekday
        return by_day or by_weekday

    def times(self, after: datetime, zone: tzinfo = UTC) -> Iterator[datetime]:
        """The instants later than `after`, in order, read off a clock in `zone`.

        A time that the clock jumps over in spring does not come; one that it shows twice comes once.
        """
        local = after.astimezone(zone)
        day = local.date()
        for _ in range(HORIZON_DAYS):
            if self.fits_day(day):
                for hour in self.hours:
                    for minute in self.minutes:
                        instant = datetime(
                            day.year, day.month, day.day, hour, minute, tzinfo=zone
                        ).astimezone(UTC)
                        shown = instant.astimezone(zone)
                        if instant > after and (shown.hour, shown.minute) == (hour, minute):
                            yield instant
            day += timedelta(days=1)


def parse_schedule(text: str) -> Schedule:
    """Raises ValueError for what is no schedule."""
    fields = MACROS.get(text.strip(), text).lower().split()
    if len(fields) != 5:
        raise ValueError(f"{text!r} has not five fields")
    minute, hour, day, month, weekday = fields
    return Schedule(
        minutes=tuple(sorted(_parse_field(minute, 0, 59))),
        hours=tuple(sorted(_parse_field(hour, 0, 23))),
        days=frozenset(_parse_field(day, 1, 31)),
        months=frozenset(_parse_field(month, 1, 12, MONTHS, first_name=1)),
        weekdays=frozenset(one % 7 for one in _parse_field(weekday, 0, 7, WEEKDAYS)),
        any_day=day[0] in "*?",
        any_weekday=weekday[0] in "*?",
    )


def _parse_field(
    text: str, low: int, high: int, names: tuple[str, ...] = (), *, first_name: int = 0
) -> set[int]:
    """One field: a list of numbers, names and ranges, each perhaps with a step."""
    values: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        step = _parse_number(step_text, 1, high, (), 0) if slash else 1
        if span in {"*", "?"}:
            first, last = low, min(high, 6) if names == WEEKDAYS else high
        else:
            begin, dash, end = span.partition("-")
            first = _parse_number(begin, low, high, names, first_name)
            # "5/15" means from 5 on.
            last = _parse_number(end, low, high, names, first_name) if dash else high if slash else first
        if first > last:
            raise ValueError(f"{part!r} ends before it begins")
        values.update(range(first, last + 1, step))
    return values


def _parse_number(text: str, low: int, high: int, names: tuple[str, ...], first_name: int) -> int:
    number = names.index(text) + first_name if text in names else int(text) if text.isdecimal() else -1
    if not low <= number <= high:
        raise ValueError(f"{text!r} is not from {low} to {high}")
    return number
