"""Jobs that start by themselves: on the minute, after a pause, after a downtime."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

from tests.process.house import FINAL, House, add, until


def daily(ago: timedelta) -> str:
    """Return a schedule that was due so long ago today (or yesterday), and is due again after a day."""
    due = datetime.now(UTC) - ago
    return f'backup = "{due.minute} {due.hour} * * *"'


def remembers(house: House, database: str, ago: timedelta) -> None:
    """Let a stopped daemon's last runs of a database lie so long ago: it was down since."""
    at = (datetime.now(UTC) - ago).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    with closing(sqlite3.connect(house.state / "catalog.db")) as db, db:
        change = "update runs set known_at = ?, started_at = case when started_at is null then null else ? end"
        assert db.execute(f"{change} where target = ?", (at, at, database)).rowcount > 0


def by_itself(house: House, verb: str, database: str) -> list[str]:
    """Return the ids of the jobs of the schedule, oldest first."""
    jobs = [row for row in house.jobs(database=database) if (row["verb"], row["actor"]) == (verb, "schedule")]
    return [row["id"] for row in jobs][::-1]


EVERY_MINUTE = ('backup = "every 1min"', 'jitter = "0s"', 'window = "4h"', "keep = { last = 1 }", "min_proven = 1")


def test_every_minute_a_backup_its_proof_and_the_end_of_old_ones(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", *EVERY_MINUTE[1:]))
    house.start()
    first = house.does("backup", "app")["backup"]["id"]
    add(path)
    house.idle()
    house.protects(house.table("app", *EVERY_MINUTE))  # not before: a full minute may come at any time
    house.does("reload")
    assert house.status("app")["next_verb"] == "backup"
    backup = house.ended(until(lambda: by_itself(house, "backup", "app"), house.jobs)[0])
    started = next(e for e in house.events("run.started") if e["action"] == "backup")
    assert started["planned_at"][17:19] == "00"
    assert backup["created_at"][:19] >= started["planned_at"][:19]  # not before its minute
    assert backup["state"] == "done"
    until(
        lambda: [row["state"] in FINAL for row in house.jobs() if row["verb"] == "expire"] == [True, True], house.jobs
    )
    new = backup["result"]["backup"]["id"]
    assert house.job(backup["result"]["verify_job"])["state"] == "done"
    assert new != first
    assert [(row["id"], row["grade"]) for row in house.backups("app")] == [(new, "proven")]
    order = [row["verb"] for row in house.jobs(database="app")][:3][::-1]
    assert order == ["backup", "verify", "expire"]
    assert house.status("app")["next_run_at"][:19] > started["planned_at"][:19]


def test_what_was_missed_while_it_was_down_is_made_up_for_once(house: House) -> None:
    house.database("app")
    house.protects(house.table("app", daily(timedelta(hours=5)), 'missed = "run-once"', 'jitter = "0s"'))
    house.start()
    house.does("backup", "app")
    house.idle()
    house.stop()
    remembers(house, "app", timedelta(days=4))
    house.start()
    job = until(lambda: by_itself(house, "backup", "app"), house.jobs)[0]
    assert house.ended(job)["state"] == "done"
    house.idle()
    (run,) = [e for e in house.events("run.started") if e["action"] == "backup"]
    assert (run["missed"], run["overdue"]) == (3, True)
    assert len(house.backups("app")) == 2
    house.stop()
    house.start()
    house.idle()
    assert by_itself(house, "backup", "app") == [job]  # once
    assert house.status("app")["attention"] == [] or "overdue" not in str(house.status("app")["attention"])


def test_what_was_missed_can_be_left_out(house: House) -> None:
    for name in ("app", "beacon"):
        house.database(name)
    late = daily(timedelta(hours=5))
    house.protects(
        house.table("app", late, 'missed = "skip"', 'window = "1h"', 'jitter = "0s"'),
        house.table("beacon", late, 'missed = "run-once"', 'window = "1h"', 'jitter = "0s"'),
    )
    house.start()
    house.stop()
    for name in ("app", "beacon"):
        remembers(house, name, timedelta(days=2))
    house.start()
    until(lambda: by_itself(house, "backup", "beacon"), house.jobs)
    house.idle()
    assert house.jobs(database="app") == []
    assert len(house.backups("beacon")) == 1
    assert house.status("app")["next_run_at"] > datetime.now(UTC).isoformat()[:19]


def test_a_pause_stops_what_is_due_and_its_end_starts_it(house: House) -> None:
    for name in ("app", "beacon"):
        house.database(name)
    due = (daily(timedelta(minutes=10)), 'missed = "run-once"', 'window = "4h"', 'jitter = "0s"')
    house.protects(house.table("app", *due), house.table("beacon", *due))
    house.start()
    assert house.ctl("pause", "app").status == 0
    house.stop()
    for name in ("app", "beacon"):
        remembers(house, name, timedelta(days=1, hours=1))
    house.start()  # a pause outlives the daemon
    until(lambda: by_itself(house, "backup", "beacon"), house.jobs)
    house.idle()
    assert house.jobs(database="app") == []
    assert house.status("app")["next_run_at"] is None
    assert {run["state"] for run in house.does("schedule")["runs"] if run["database"] == "app"} == {"paused"}
    assert house.does("backup", "app")["backup"]  # who asks gets one all the same
    house.idle()
    assert house.status("app")["state"] == "paused"
    house.stop()
    remembers(house, "app", timedelta(days=1, hours=1))
    house.start()
    house.idle()
    assert by_itself(house, "backup", "app") == []
    assert house.does("resume", "app")["was_paused"]
    until(lambda: by_itself(house, "backup", "app"), house.jobs)
    house.idle()
    assert len(house.backups("app")) == 2
    pauses = [e["action"] for e in house.audit() if e["object"] == "app" and e["action"].startswith("database.")]
    assert pauses == ["database.pause", "database.resume"]


def test_a_pause_ends_by_itself(house: House) -> None:
    house.database("app")
    house.protects(house.table("app", daily(timedelta(minutes=10)), 'missed = "run-once"', 'window = "4h"'))
    house.start()
    house.does("pause", "app", "--for", "8s")
    house.stop()
    remembers(house, "app", timedelta(days=1, hours=1))
    house.start()
    until(lambda: by_itself(house, "backup", "app"), house.jobs)
    house.idle()
    (row,) = [row for row in house.jobs(database="app") if row["verb"] == "backup"]
    paused = next(e for e in house.audit() if e["action"] == "database.pause")
    assert row["created_at"] >= paused["facts"]["until_at"]


def test_full_backups_come_when_they_are_due(house: House) -> None:
    house.database("app")
    late = (daily(timedelta(minutes=10)), 'missed = "run-once"', 'window = "4h"', 'jitter = "0s"')
    house.protects(house.table("app", *late, 'full_every = "1d"'))
    house.start()
    for count, full in ((1, True), (2, False)):  # there is none; then one that is minutes old
        house.stop()
        remembers(house, "app", timedelta(days=2))
        house.start()
        until(lambda count=count: len(by_itself(house, "backup", "app")) == count, house.jobs)
        job = house.ended(by_itself(house, "backup", "app")[-1])
        assert (job["state"], job["request"]["full"]) == ("done", full)
        house.idle()
