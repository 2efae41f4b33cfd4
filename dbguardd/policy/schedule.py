"""Parses schedules: "daily 01:00", "every 15min", "sun 02:00", "first sun 05:00" or five cron fields.

1. Clock times are wall times of a zone. A time that does not exist (spring) means the first instant after the gap; a
   time that exists twice (autumn) means the first of the two. Cron lines that run in every hour follow elapsed time
   instead: they run in both hours.
2. Intervals ("every", "hourly") are counted from 1970-01-01 00:00 UTC: a clock change, a restart or a long job does
   not shift them.
3. All results are in UTC, strictly increasing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice, pairwise
from typing import Annotated, Any

from cronsim import CronSim, CronSimError
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from dbguardd.frozen import frozen
from dbguardd.policy.units import format_duration, parse_duration, refuse

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_DAY_NAMES = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_ORDINALS = {"first": "#1", "second": "#2", "third": "#3", "fourth": "#4", "last": "L"}
_WORDS = ("hourly", "daily", "weekly", "monthly", "every", *_ORDINALS, *_DAYS)
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SOME_DAY = datetime(2024, 1, 1, tzinfo=UTC)
_LONGEST_SHIFT = timedelta(hours=25)  # Samoa once skipped a whole day
_SHORTEST_INTERVAL = timedelta(minutes=1)
_SAMPLE_DAYS = 366
_LONGEST_TEXT = 200
_NEVER = frozenset(("never", "off", "no", "none"))
_FORMS = '"daily 01:00", "every 15min", "sun 02:00", "mon..fri 02:30", "first sun 05:00" or five cron fields'


@frozen
class Schedule:
    """A parsed schedule: either an interval or a cron line. Made by parse_schedule()."""

    text: str
    every: timedelta | None = None
    cron: str = ""

    def after(self, moment: datetime, zone: tzinfo) -> Iterator[datetime]:
        """Yield every time strictly after `moment`, in UTC; end if none follows within 50 years."""
        if self.every is not None:
            count = (moment - _EPOCH) // self.every
            while True:
                count += 1
                yield _EPOCH + count * self.every
        yield from self._cron_after(moment, zone)

    def _cron_after(self, moment: datetime, zone: tzinfo) -> Iterator[datetime]:
        local = moment.astimezone(zone)
        if len(CronSim(self.cron, local).hours) == 24:
            yield from (time.astimezone(UTC) for time in CronSim(self.cron, local))
            return
        last = moment.astimezone(UTC)
        for wall in CronSim(self.cron, local.replace(tzinfo=None) - _LONGEST_SHIFT):
            instant = first_instant(wall, zone)
            if instant > last:
                last = instant
                yield instant

    def latest(self, moment: datetime, zone: tzinfo) -> datetime | None:
        """Return the last time at or before `moment`, in UTC; None if there is none in the 50 years before."""
        if self.every is not None:
            return _EPOCH + (moment - _EPOCH) // self.every * self.every
        local = moment.astimezone(zone)
        if len(CronSim(self.cron, local).hours) == 24:
            start = local.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
            return next((t.astimezone(UTC) for t in CronSim(self.cron, start.astimezone(zone), reverse=True)), None)
        start = local.replace(tzinfo=None, second=0, microsecond=0) + _LONGEST_SHIFT
        walls = CronSim(self.cron, start, reverse=True)
        return next((instant for wall in walls if (instant := first_instant(wall, zone)) <= moment), None)

    def gaps(self) -> tuple[timedelta, timedelta] | None:
        """Return the shortest and longest time between two runs, in a zone without DST; None if it runs only once.

        For a cron line they are those of a year of runs, or of its next runs if it runs more rarely.
        """
        return _gaps(self)

    def explain(self) -> str:
        """Return the schedule in words: "At 02:30 on Monday through Friday"."""
        if self.every is not None:
            return f"Every {format_duration(self.every)}, counted from midnight UTC"
        return str(CronSim(self.cron, _SOME_DAY).explain())


@lru_cache(maxsize=1024)  # it looks at each day of a year, and status needs it for every database
def _gaps(schedule: Schedule) -> tuple[timedelta, timedelta] | None:
    if schedule.every is not None:
        return schedule.every, schedule.every
    line = CronSim(schedule.cron, _SOME_DAY)
    days = (_SOME_DAY + timedelta(days=number) for number in range(_SAMPLE_DAYS))
    days_apart = [later - earlier for earlier, later in pairwise(day for day in days if _matches(line, day))]
    if not days_apart:
        runs = list(islice(schedule.after(_SOME_DAY, UTC), 3))
        lengths = [later - earlier for earlier, later in pairwise(runs)]
        return (min(lengths), max(lengths)) if lengths else None
    times = [timedelta(hours=hour, minutes=minute) for hour in sorted(line.hours) for minute in sorted(line.minutes)]
    night = times[-1] - times[0]
    lengths = [later - earlier for earlier, later in pairwise(times)] + [apart - night for apart in days_apart]
    return min(lengths), max(lengths)


def _matches(line: CronSim, day: datetime) -> bool:
    return day.month in line.months and bool(line.match_day(day.date()))


def first_instant(wall: datetime, zone: tzinfo) -> datetime:
    """Return the UTC instant of a naive wall time: the first of two, or the end of the gap that it falls into."""
    early = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if early.astimezone(zone).replace(tzinfo=None) == wall:
        return early
    after, before = early, wall.replace(tzinfo=zone, fold=1).astimezone(UTC)  # the clock change is between them
    offset = after.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) // 2
        middle = middle.replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after


def parse_schedule(value: Any) -> Schedule:
    """Return the schedule that a text names. Raises ValueError, also for one that never occurs."""
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, str):
        raise refuse(f"must be a schedule in quotes: {_FORMS}")
    words = value.lower().split()
    if len(value) > _LONGEST_TEXT:
        raise refuse(f"must be a schedule of at most {_LONGEST_TEXT} characters: {_FORMS}")
    schedule = _parse(value, words)
    if schedule.cron:
        _prove_that_it_comes(schedule)
    return schedule


def _parse(text: str, words: list[str]) -> Schedule:
    match words:
        case ["hourly"]:
            return Schedule(text, every=timedelta(hours=1))
        case ["every", *rest] if rest:
            return Schedule(text, every=_interval(text, " ".join(rest)))
        case [_, _, _, _, _]:
            return Schedule(text, cron=" ".join(words).upper())
        case ["daily" | "weekly" | "monthly" as word, *rest] if len(rest) <= 1:
            days = {"daily": "* * *", "weekly": "* * 1", "monthly": "1 * *"}[word]
            return Schedule(text, cron=f"{_time(text, rest[0] if rest else '00:00')} {days}")
        case [ordinal, day, time] if ordinal in _ORDINALS:
            return Schedule(text, cron=f"{_time(text, time)} * * {_day(text, day)}{_ORDINALS[ordinal]}")
        case [days, time]:
            week = _days(text, days)
            return Schedule(text, cron=f"{_time(text, time)} * * {week}")
    raise _unknown(text)


def _interval(text: str, duration: str) -> timedelta:
    try:
        every = parse_duration(duration)
    except PydanticCustomError as error:
        raise refuse(f'"{text}": "{duration}" is not an interval, such as "every 15min" or "every 6h"') from error
    if every < _SHORTEST_INTERVAL:
        raise refuse(f'"{text}" is more often than once a minute')
    return every


def _time(text: str, time: str) -> str:
    match = _TIME.fullmatch(time)
    if match is None:
        raise refuse(f'"{text}": "{time}" is not a time of day, such as 01:00 or 23:30')
    return f"{int(match[2])} {int(match[1])}"


def _day(text: str, day: str) -> int:
    for number, name in enumerate(_DAY_NAMES):
        if day in (_DAYS[number], name.lower()):
            return number
    raise _unknown(text)


def _days(text: str, days: str) -> str:
    numbers: set[int] = set()
    if days.count("..") == 1 and "," not in days:
        start, end = (_day(text, day) for day in days.split(".."))
        if start < end:
            return f"{start}-{end}"
    for term in days.split(","):
        first, dots, last = term.partition("..")
        start, end = _day(text, first), _day(text, last if dots else first)
        numbers.update(day % 7 for day in range(start, (end if end >= start else end + 7) + 1))
    return ",".join(str(number) for number in sorted(numbers))


def _unknown(text: str) -> PydanticCustomError:
    words = text.lower().split()
    close = get_close_matches(words[0], _WORDS, 1, 0.6) if words and words[0] not in _NEVER else []
    hint = f'"{" ".join([close[0], *words[1:]])}"' if close and close[0] != words[0] else ""
    return refuse(f'"{text}" is not a schedule: {_FORMS}', hint=hint)


def _prove_that_it_comes(schedule: Schedule) -> None:
    try:
        comes = next(schedule.after(_SOME_DAY, UTC), None)
    except CronSimError as error:
        raise refuse(f'"{schedule.text}" is not a schedule: {str(error).lower()}') from error
    if comes is None:
        raise refuse(f'"{schedule.text}" never comes')


Timetable = Annotated[
    Schedule,
    PlainValidator(parse_schedule),
    PlainSerializer(lambda schedule: schedule.text),
    WithJsonSchema(
        {
            "x-kind": "schedule",
            "type": "string",
            "examples": ["daily 01:00", "every 15min", "sun 02:00", "30 2 * * 1-5"],
        }
    ),
]
"""A schedule as a setting."""
