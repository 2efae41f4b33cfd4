"""What is planned starts once at its time, whatever clocks, restarts and pauses do in between."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dbguardd.catalog import Catalog, Pause, Run, to_text
from dbguardd.daemon.clock import Clock
from dbguardd.daemon.events import Events
from dbguardd.daemon.scheduler import LONGEST_SLEEP, Planned, Scheduler
from dbguardd.errors import Busy, Interrupted, NoSpace, PolicyInvalid
from dbguardd.policy.schedule import parse_schedule
from dbguardd.rules.calendar import Timing
from tests.daemon.conftest import Told

BERLIN = ZoneInfo("Europe/Berlin")


class Bench:
    """A scheduler whose clocks the test moves; runs that start end at once, unless the test says otherwise."""

    def __init__(self, path: Path, start: datetime) -> None:
        self.path = path
        self.wall, self.steady = start, 1000.0
        self.log = Told()
        self.started: list[tuple[datetime, str, str]] = []
        self.ends = True
        self.error: Exception | None = None
        self.catalog = Catalog.open(path)
        self.scheduler = self.new()

    def new(self) -> Scheduler:
        events = Events(self.catalog, lambda: self.wall, self.log)
        return Scheduler(self.catalog, Clock(lambda: self.wall, lambda: self.steady), self.start, events)

    def restart(self, *planned: Planned) -> None:
        self.catalog.close()
        self.catalog = Catalog.open(self.path)
        self.scheduler = self.new()
        self.scheduler.plan(planned)

    def start(self, planned: Planned) -> None:
        if self.error is not None:
            raise self.error
        self.started.append((self.wall, planned.target, planned.verb))
        if self.ends:
            self.end(planned)

    def end(self, planned: Planned) -> None:
        memory = self.catalog.runs.get(planned.target, planned.verb)
        assert memory is not None
        self.catalog.runs.put(replace(memory, started_at=to_text(self.wall)))

    def set_clock(self, **parts: float) -> None:
        self.wall += timedelta(**parts)

    def go_on(self, seconds: float, tick: bool = True) -> None:
        """Let time pass, ticking when the scheduler asks for it."""
        end = self.steady + seconds
        while tick:
            wait = max(self.scheduler.tick(), 0.5)
            assert wait <= LONGEST_SLEEP
            if self.steady + wait > end:
                break
            self.steady += wait
            self.wall += timedelta(seconds=wait)
        self.wall += timedelta(seconds=end - self.steady)
        self.steady = end

    def times(self, target: str = "app") -> list[str]:
        return [f"{at:%d %H:%M:%S}" for at, name, _ in self.started if name == target]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "catalog.db", datetime(2026, 9, 12, 7, 0, tzinfo=UTC))
    yield bench
    bench.catalog.close()


def planned(text: str, verb: str = "backup", target: str = "app", **more: object) -> Planned:
    return Planned(target, verb, Timing(parse_schedule(text), BERLIN, **more))  # type: ignore[arg-type]


HOUR, DAY = 3600, 86400


def test_runs_start_at_their_time_in_the_zone_of_the_policy(bench: Bench) -> None:
    bench.scheduler.plan([planned("daily 01:00"), planned("every 6h", target="shop")])
    bench.go_on(2 * DAY)
    assert bench.times() == ["12 23:00:00", "13 23:00:00"]
    assert [time[:5] for time in bench.times("shop")] == [
        "12 12",
        "12 18",
        "13 00",
        "13 06",
        "13 12",
        "13 18",
        "14 00",
        "14 06",
    ]


def test_nothing_runs_just_because_it_is_new(bench: Bench) -> None:
    bench.scheduler.plan([planned("daily 01:00")])
    bench.go_on(15 * HOUR)
    assert bench.times() == []


@pytest.mark.parametrize(
    ("start", "days"),
    [(datetime(2026, 10, 24, 12, tzinfo=UTC), 2), (datetime(2026, 3, 28, 12, tzinfo=UTC), 2)],
)
def test_the_nights_when_clocks_change_leave_no_hole_and_no_double(tmp_path: Path, start: datetime, days: int) -> None:
    bench = Bench(tmp_path / "catalog.db", start)
    bench.scheduler.plan([planned("every 15min"), planned("daily 02:30", target="shop")])
    bench.go_on(days * DAY)
    ticks = [at for at, target, _ in bench.started if target == "app"]
    assert {(later - earlier).total_seconds() for earlier, later in zip(ticks, ticks[1:], strict=False)} == {900.0}
    local = [at.astimezone(BERLIN).date() for at, target, _ in bench.started if target == "shop"]
    assert len(local) == len(set(local)) == days
    bench.catalog.close()


def test_a_restart_forgets_nothing(bench: Bench) -> None:
    plan = planned("daily 01:00")
    bench.scheduler.plan([plan])
    bench.go_on(15 * HOUR)
    bench.restart(plan)
    bench.go_on(2 * HOUR)
    bench.restart(plan)
    bench.go_on(2 * HOUR)
    assert bench.times() == ["12 23:00:00"]


def test_missed_runs_are_made_up_for_once(bench: Bench) -> None:
    plan = planned("daily 01:00")
    bench.scheduler.plan([plan])
    bench.go_on(3 * DAY + 18 * HOUR, tick=False)  # the machine was off: 16 Sep 01:00 UTC, two hours after its time
    bench.restart(plan)
    bench.go_on(1)
    assert bench.times() == ["16 01:00:00"]
    [facts] = [facts for _, event, facts in bench.log.events if event == "run.started"]
    assert facts["missed"] == 3
    bench.go_on(DAY)
    assert bench.times() == ["16 01:00:00", "16 23:00:00"]


def test_missed_runs_can_be_skipped(bench: Bench) -> None:
    plan = planned("daily 01:00", missed="skip", window=timedelta(hours=1))
    bench.scheduler.plan([plan])
    bench.go_on(18 * HOUR, tick=False)
    bench.restart(plan)
    bench.go_on(DAY)
    assert bench.times() == ["13 23:00:00"]
    assert [event for _, event, _ in bench.log.events].count("run.skipped") <= 1


def test_a_run_that_never_ended_is_due_again_after_a_restart(bench: Bench) -> None:
    plan = planned("daily 01:00")
    bench.ends = False
    bench.scheduler.plan([plan])
    bench.go_on(17 * HOUR)
    assert bench.times() == ["12 23:00:00"]
    bench.restart(plan)
    bench.go_on(60)
    assert bench.times() == ["12 23:00:00", "13 00:00:00"]


def test_a_running_job_is_not_started_twice_and_its_next_time_is_kept(bench: Bench) -> None:
    bench.ends = False
    plan = planned("every 15min")
    bench.scheduler.plan([plan])
    bench.go_on(16 * 60)
    assert len(bench.started) == 1
    bench.error = Busy("app: backup is running already")
    bench.go_on(15 * 60)
    bench.error = None
    bench.end(plan)
    bench.scheduler.reconsider("app")
    bench.go_on(15 * 60)
    assert len(bench.started) == 2


def test_a_refusal_is_told_stands_in_the_memory_and_is_tried_again_soon(bench: Bench) -> None:
    bench.scheduler.plan([planned("daily 01:00")])
    bench.error = PolicyInvalid("app: run_as: there is no such user")
    bench.go_on(16 * HOUR + 1200)
    assert [event for level, event, _ in bench.log.events if level == "error"] == ["run.refused", "run.refused"]
    memory = bench.catalog.runs.get("app", "backup")
    assert memory is not None
    assert (memory.failures, memory.failing_since_at) == (2, "2026-09-12T23:00:00.000Z")
    assert (memory.problem or {})["message"] == "app: run_as: there is no such user"
    bench.error = None
    bench.go_on(DAY)
    assert bench.times() == ["12 23:30:00", "13 23:00:00"]


def test_a_refusal_is_over_with_a_new_policy(bench: Bench) -> None:
    bench.scheduler.plan([planned("daily 01:00")])
    bench.error = PolicyInvalid("app: run_as: there is no such user")
    bench.go_on(16 * HOUR + 60)
    bench.error = None
    bench.scheduler.plan([planned("daily 01:00")])
    bench.go_on(1)
    assert bench.times() == ["12 23:01:00"]


def test_a_daemon_that_stops_refuses_without_noise(bench: Bench) -> None:
    bench.scheduler.plan([planned("every 1h")])
    bench.error = Interrupted("dbguardd is stopping")
    bench.go_on(2 * HOUR)
    assert bench.log.events == []
    assert bench.catalog.runs.get("app", "backup") == Run("app", "backup", known_at="2026-09-12T07:00:00.000Z")


def test_a_pause_rests_and_its_end_makes_up(bench: Bench) -> None:
    bench.scheduler.plan([planned("every 1h"), planned("every 1h", target="shop")])
    until = to_text(bench.wall + timedelta(hours=2, minutes=5))
    bench.catalog.pauses.put(Pause("app", until, "alice", to_text(bench.wall)))
    bench.scheduler.reconsider("app")
    assert {run.paused for run in bench.scheduler.upcoming(2) if run.target == "app"} == {True}
    bench.go_on(2 * HOUR + 600)
    assert bench.times() == ["12 09:05:00"]
    assert len(bench.times("shop")) == 2


def test_an_endless_pause_ends_by_hand(bench: Bench) -> None:
    bench.scheduler.plan([planned("every 1h")])
    bench.catalog.pauses.put(Pause("app", None, "alice", to_text(bench.wall)))
    bench.scheduler.reconsider("app")
    bench.go_on(DAY)
    assert bench.started == []
    assert bench.scheduler.next_run("app", ("backup",)) is None
    bench.catalog.pauses.drop("app")
    bench.scheduler.reconsider("app")
    bench.go_on(1)
    assert len(bench.started) == 1


def test_a_clock_set_forward_runs_what_is_due_but_deletes_nothing_for_a_day(bench: Bench) -> None:
    bench.scheduler.plan([planned("every 1h"), planned("every 1h", verb="expire")])
    bench.go_on(600)
    assert bench.scheduler.doubt() is None
    bench.set_clock(days=26_000)
    bench.go_on(6 * HOUR)
    assert {verb for _, _, verb in bench.started} == {"backup"}
    assert len(bench.started) >= 6
    assert "set forward" in (bench.scheduler.doubt() or "")
    bench.go_on(20 * HOUR)
    assert bench.scheduler.doubt() is None
    assert "expire" in {verb for _, _, verb in bench.started}


def test_a_clock_set_back_leaves_no_hole(bench: Bench) -> None:
    bench.scheduler.plan([planned("every 15min")])
    bench.go_on(3 * HOUR)
    before = len(bench.started)
    bench.set_clock(hours=-1)
    bench.go_on(HOUR)
    assert len(bench.started) - before in (3, 4, 5)
    assert "clock.stepped" in [event for _, event, _ in bench.log.events]


def test_a_run_is_started_once_when_the_last_one_lies_in_the_future(bench: Bench) -> None:
    """The battery of the clock was empty: it ran in 2037, then the time came from the network; the run takes long."""
    bench.ends = False
    bench.scheduler.plan([plan := planned("every 1h")])
    bench.set_clock(days=4000)
    bench.end(plan)
    bench.set_clock(days=-4000)
    bench.restart(plan)
    bench.go_on(1)
    assert len(bench.started) == 1
    bench.error = Busy("app: backup is running already")
    assert bench.scheduler.tick() == LONGEST_SLEEP
    bench.go_on(600)
    assert len([event for _, event, _ in bench.log.events if event == "run.started"]) == 1
    bench.error = None
    bench.go_on(HOUR)
    assert bench.times() == ["12 07:00:00", "12 08:00:00"]


class Full:
    """A catalog on a full disk, for as long as it is full."""

    def __init__(self, catalog: Catalog) -> None:
        self.full = True
        self._catalog = catalog
        self.runs = self

    def put(self, run: Run) -> None:
        if self.full:
            raise NoSpace("no room to write the catalog")
        self._catalog.runs.put(run)

    def get(self, target: str, verb: str) -> Run | None:
        return self._catalog.runs.get(target, verb)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._catalog, name)


def test_everything_is_planned_although_the_catalog_is_full(bench: Bench) -> None:
    full = Full(bench.catalog)
    bench.scheduler._catalog = full  # type: ignore[assignment]
    bench.ends = False
    bench.scheduler.plan([planned("daily 01:00"), planned("daily 02:00", target="shop")])
    bench.go_on(DAY)
    assert (bench.times("app"), bench.times("shop")) == (["12 23:00:00"], ["13 00:00:00"])


def test_a_plan_that_cannot_be_made_leaves_the_old_one(bench: Bench) -> None:
    bench.scheduler.plan([planned("daily 01:00")])

    def half() -> Iterator[Planned]:
        yield planned("daily 02:00", target="shop")
        raise NoSpace("no room")

    with pytest.raises(NoSpace):
        bench.scheduler.plan(half())
    bench.go_on(DAY)
    assert (bench.times("app"), bench.times("shop")) == (["12 23:00:00"], [])


def test_a_clock_behind_the_last_life_is_doubted(bench: Bench) -> None:
    bench.catalog.probe(bench.wall)
    bench.set_clock(days=-3)
    bench.restart()
    assert "behind" in (bench.scheduler.doubt() or "")


def test_a_doubted_clock_stays_in_doubt_after_a_restart_and_a_reboot(bench: Bench) -> None:
    """Only the daemon that was running saw the jump: the time that it wrote last is already wrong."""
    both = [planned("every 1h"), planned("every 1h", verb="expire")]
    bench.scheduler.plan(both)
    bench.go_on(600)
    bench.set_clock(days=400)
    bench.go_on(HOUR)
    bench.catalog.probe(bench.wall)
    bench.restart(*both)
    assert "set forward" in (bench.scheduler.doubt() or "")
    bench.go_on(22 * HOUR)
    bench.catalog.probe(bench.wall)
    bench.steady = 5.0  # a reboot: how long the machine was off is unknown
    bench.restart(*both)
    bench.go_on(23 * HOUR)
    assert {verb for _, _, verb in bench.started} == {"backup"}
    bench.go_on(2 * HOUR)
    assert "expire" in {verb for _, _, verb in bench.started}
    bench.catalog.probe(bench.wall)
    bench.steady = 5.0
    bench.restart(*both)
    assert bench.scheduler.doubt() is None


def test_small_corrections_are_no_steps(bench: Bench) -> None:
    bench.scheduler.plan([planned("every 15min")])
    for _ in range(20):
        bench.set_clock(milliseconds=90)
        bench.go_on(30)
    assert [event for _, event, _ in bench.log.events if event.startswith("clock")] == []


def test_a_new_policy_replaces_the_plan_and_keeps_the_memory(bench: Bench) -> None:
    bench.scheduler.plan([planned("daily 01:00")])
    bench.go_on(17 * HOUR)
    bench.scheduler.plan([planned("daily 03:00"), planned("daily 01:00", target="new")])
    bench.go_on(4 * HOUR)
    assert bench.times() == ["12 23:00:00", "13 01:00:00"]
    assert bench.times("new") == []
    bench.scheduler.plan([])
    assert bench.scheduler.tick() == LONGEST_SLEEP


def test_upcoming_runs_are_in_order_and_as_many_as_asked_for(bench: Bench) -> None:
    bench.scheduler.plan([planned("every 6h"), planned("daily 01:00", target="shop")])
    runs = bench.scheduler.upcoming(5)
    assert [(run.target, run.at.hour) for run in runs] == [
        ("app", 12),
        ("app", 18),
        ("shop", 23),
        ("app", 0),
        ("app", 6),
    ]


def test_runs_are_known_since_the_database_came(bench: Bench) -> None:
    bench.scheduler.plan([planned("daily 01:00")])
    assert bench.catalog.runs.get("app", "backup") == Run("app", "backup", to_text(bench.wall))
