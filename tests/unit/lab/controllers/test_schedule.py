"""Cron's notation."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poplin.lab.controllers.schedule import parse_schedule

START = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)  # a Wednesday


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("* * * * *", "2026-03-04 12:01", "2026-03-04 12:02"),
        ("*/15 * * * *", "2026-03-04 12:15", "2026-03-04 12:30"),
        ("5/20 * * * *", "2026-03-04 12:05", "2026-03-04 12:25"),
        ("0 8-18/5 * * *", "2026-03-04 13:00", "2026-03-04 18:00"),
        ("30 4 * * *", "2026-03-05 04:30", "2026-03-06 04:30"),
        ("0 0 * * mon-fri", "2026-03-05 00:00", "2026-03-06 00:00"),
        ("0 0 * * 0", "2026-03-08 00:00", "2026-03-15 00:00"),
        ("0 0 * * 7", "2026-03-08 00:00", "2026-03-15 00:00"),
        ("0 0 * * 5-7", "2026-03-06 00:00", "2026-03-07 00:00"),
        ("0 0 13 * 5", "2026-03-06 00:00", "2026-03-13 00:00"),  # the 13th, or a Friday
        ("0 0 13 * ?", "2026-03-13 00:00", "2026-04-13 00:00"),
        ("0 0 1 JAN,Jul *", "2026-07-01 00:00", "2027-01-01 00:00"),
        ("0 0 31 * *", "2026-03-31 00:00", "2026-05-31 00:00"),
        ("0 0 29 2 *", "2028-02-29 00:00", "2032-02-29 00:00"),
        ("@hourly", "2026-03-04 13:00", "2026-03-04 14:00"),
        ("@weekly", "2026-03-08 00:00", "2026-03-15 00:00"),
    ],
)
def test_the_next_times(text, first, second):
    times = [one.strftime("%Y-%m-%d %H:%M") for one in islice(parse_schedule(text).times(START), 2)]
    assert times == [first, second]


def test_a_time_that_never_comes():
    assert next(parse_schedule("0 0 30 2 *").times(START), None) is None


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "*/0 * * * *", "9-5 * * * *",
     "a * * * *", "1,,2 * * * *", "* * * * funday", "@reboot", "-1 * * * *"],
)  # fmt: skip
def test_nonsense(text):
    with pytest.raises(ValueError, match=r"."):
        parse_schedule(text)


def test_the_clock_of_a_zone():
    berlin = ZoneInfo("Europe/Berlin")
    times = parse_schedule("30 2 * * *").times(datetime(2026, 3, 28, 0, 0, tzinfo=UTC), berlin)
    # On the 29th there is no half past two.
    assert [one.isoformat() for one in islice(times, 2)] == [
        "2026-03-28T01:30:00+00:00",
        "2026-03-30T00:30:00+00:00",
    ]
    times = parse_schedule("30 2 * * *").times(datetime(2026, 10, 24, 12, 0, tzinfo=UTC), berlin)
    # On the 25th there are two; the first counts.
    assert [one.isoformat() for one in islice(times, 2)] == [
        "2026-10-25T00:30:00+00:00",
        "2026-10-26T01:30:00+00:00",
    ]


@given(
    st.sampled_from(["*/7 * * * *", "3 */5 * * 1-3", "0 12 */10 * *", "59 23 28-31 * sun"]),
    st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001  - bounds
)
def test_the_next_time_is_the_first_minute_that_fits(text, after):
    schedule = parse_schedule(text)
    following = next(schedule.times(after))
    minute = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while not (
        schedule.fits_day(minute.date())
        and minute.hour in schedule.hours
        and minute.minute in schedule.minutes
    ):
        if schedule.fits_day(minute.date()):
            minute += timedelta(minutes=1)
        else:
            minute = minute.replace(minute=0) + timedelta(hours=1)
    assert following == minute
