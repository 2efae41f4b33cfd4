"""The catalog keeps what it acknowledged, and forgets only what it says."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbguardd.catalog import Catalog, HoldRow, Pause, ProofRow, Run, to_moment, to_text
from dbguardd.catalog.effects import EFFECTS
from dbguardd.errors import CatalogDamaged, FormatTooNew, Internal, NotFound, SecondInstance, Usage
from dbguardd.serialize import to_json
from dbguardd.states import Grade, JobState
from dbguardd.wire import BackupRow, EventRange, JobRow
from tests.catalog.conftest import NOW, backup

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reopened(catalog: Catalog, path: Path) -> Catalog:
    catalog.close()
    return Catalog.open(path)


def job(number: int, state: JobState = JobState.QUEUED, **changes: object) -> JobRow:
    row = JobRow(
        f"01K{number:023d}", "backup", "app", state, "schedule", {"database": "app", "full": False}, to_text(NOW)
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def test_it_is_closed_to_others_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        catalog = Catalog.open(tmp_path / "catalog.db")
        catalog.record(NOW, "job.done", "app", None, {})
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
        catalog.close()
        (tmp_path / "catalog.db").chmod(0o644)
        Catalog.open(tmp_path / "catalog.db").close()
        assert (tmp_path / "catalog.db").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog.open(path)
    row = backup(1, note="ünïcode", grade=Grade.PROVEN, proven_at=to_text(NOW), restore_seconds=1.5)
    catalog.backups.put(row)
    catalog.holds.put(HoldRow(row.id, "audit", "alice", to_text(NOW)))
    catalog.jobs.put(job(1, result={"backup": row.id}, problem=None), "local")
    run = Run(
        "app",
        "backup",
        to_text(NOW),
        to_text(NOW),
        to_text(NOW),
        None,
        2,
        to_text(NOW),
        job(1).id,
        {"code": "DBG-3002"},
    )
    catalog.runs.put(run)
    pause = Pause("app", None, "alice", to_text(NOW))
    catalog.pauses.put(pause)
    catalog.settings.put("policy", "abc")
    event = catalog.record(NOW, "job.done", "app", job(1).id, {"seconds": 1.0})

    catalog = reopened(catalog, path)
    assert catalog.backups.of("app") == [replace(row, holds=["audit"])]
    assert catalog.jobs.get(job(1).id) == job(1, result={"backup": row.id})
    assert catalog.runs.get("app", "backup") == run
    assert catalog.pauses.active(to_text(NOW)) == {"app": pause}
    assert catalog.settings.get("policy") == "abc"
    assert catalog.events.find(EventRange(), 10) == [event]
    catalog.close()


def test_only_one_process_owns_the_catalog(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.db")
    with pytest.raises(SecondInstance):
        Catalog.open(tmp_path / "catalog.db")
    catalog.close()
    Catalog.open(tmp_path / "catalog.db").close()


@pytest.mark.parametrize("place", [0, 20, 4096, 4096 * 3 + 5])
def test_damage_is_named_and_never_read_as_truth(tmp_path: Path, place: int) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog.open(path)
    catalog.backups.put(backup(1))
    catalog.close()
    data = bytearray(path.read_bytes())
    data[place : place + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.raises(CatalogDamaged):
        Catalog.open(path)


def test_a_newer_catalog_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog.open(path)
    catalog._session.rows("PRAGMA user_version=99")
    catalog.close()
    before = path.read_bytes()
    with pytest.raises(FormatTooNew):
        Catalog.open(path)
    assert path.read_bytes() == before


def test_a_transaction_is_all_or_nothing(catalog: Catalog) -> None:
    with pytest.raises(ZeroDivisionError), catalog.transaction():
        catalog.settings.put("a", "1")
        with catalog.transaction():
            catalog.settings.put("b", "2")
        raise ZeroDivisionError
    assert catalog.settings.get("a") is None
    assert catalog.settings.get("b") is None


def test_a_bad_report_leaves_neither_event_nor_effect(catalog: Catalog) -> None:
    with pytest.raises(Internal):
        catalog.record(NOW, "backup.stored", "app", None, {"id": "x"})
    with pytest.raises(Internal):
        catalog.record(NOW, "backup.graded", "app", None, {"id": "x", "grade": "golden"})
    assert catalog.events.find(EventRange(), 10) == []
    assert catalog.backups.of("app") == []


def test_the_life_of_a_backup(catalog: Catalog) -> None:
    row = backup(1)
    facts = {name: value for name, value in to_json(row).items() if name not in ("kept_because", "expires_at")}

    def tell(event: str, **more: object) -> list[BackupRow]:
        catalog.record(NOW, event, "app", None, {"id": row.id, **more})
        return catalog.backups.of("app")

    catalog.record(NOW, "backup.stored", "app", None, facts)
    assert catalog.backups.of("app") == [row]
    [proven] = tell("backup.graded", grade="proven", restore_seconds=2.5, steps=["restore", "compare"])
    assert (proven.grade, proven.proven_at, proven.restore_seconds) == (Grade.PROVEN, to_text(NOW), 2.5)
    assert catalog.proofs.of(row.id) == [
        ProofRow(row.id, to_text(NOW), Grade.PROVEN, 2.5, None, {"steps": ["restore", "compare"]})
    ]
    [failed] = tell("backup.graded", grade="stored", failure="pages differ", proven_at="2026-09-12T09:00:01+02:00")
    assert (failed.grade, failed.failure) == (Grade.STORED, "pages differ")
    [held] = tell("backup.held", reason="court")
    assert held.holds == ["court"]
    [free] = tell("backup.released")
    assert free.holds == []
    assert tell("backup.expired", reasons=["daily 8"], grace_until_at="2026-09-13T07:00:00Z") == []
    assert [given_up.backup.id for given_up in catalog.backups.expired("app")] == [row.id]
    with pytest.raises(NotFound):
        catalog.backups.get(row.id)
    assert len(tell("backup.recalled")) == 1
    assert tell("backup.swept") == []
    assert catalog.backups.expired("app") == []
    assert catalog.proofs.of(row.id) == []


def test_every_effect_is_exercised_above() -> None:
    source = Path(__file__).read_text()
    assert all(f'"{event}"' in source for event in EFFECTS)


@FEW
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_events_grow_and_filter(catalog: Catalog, happened: list[tuple[str, bool]]) -> None:
    start = catalog.events.last_id()
    for database, about in happened:
        catalog.record(NOW, "job.done", database if about else None, "j", {})
    seen = catalog.events.find(EventRange(start), 1000)
    assert [event.id for event in seen] == list(range(start + 1, start + 1 + len(happened)))
    for name in "abc":
        expected = [event for event in seen if event.database == name]
        assert catalog.events.find(EventRange(start, database=name), 1000) == expected
    half = start + len(happened) // 2
    assert catalog.events.find(EventRange(half), 1000) == [event for event in seen if event.id > half]


@FEW
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5)), max_size=20),
    st.builds(
        EventRange,
        st.integers(0, 20),
        st.none() | st.integers(0, 20),
        *[st.none() | st.integers(0, 6).map(lambda n: to_text(NOW + timedelta(seconds=n)))] * 2,
        st.sampled_from([None, "a"]),
    ),
    st.integers(1, 20),
)
def test_a_range_of_events_has_the_first_or_the_last_of_them(
    tmp_path_factory: pytest.TempPathFactory, happened: list[tuple[str, int]], asked: EventRange, limit: int
) -> None:
    catalog = Catalog.open(tmp_path_factory.mktemp("range") / "catalog.db")
    events = [catalog.record(NOW + timedelta(seconds=n), "job.done", name, "j", {}) for name, n in happened]
    inside = [
        event
        for event in events
        if asked.after < event.id < (asked.before if asked.before is not None else 100)
        and (asked.since or "") <= event.at < (asked.until or "9")
        and asked.database in (None, event.database)
    ]
    assert catalog.events.find(asked, limit) == inside[:limit]
    assert catalog.events.find(asked, limit, last=True) == inside[-limit:]
    catalog.close()


def test_history_is_bounded_and_ids_are_never_used_twice(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog.open(path, events_kept=100)
    with catalog.transaction():
        for _ in range(1000):
            catalog.record(NOW, "job.done", "app", None, {})
    kept = catalog.events.find(EventRange(), 10_000)
    assert [event.id for event in kept] == list(range(901, 1001))
    catalog._session.rows("DELETE FROM events")
    catalog = reopened(catalog, path)
    assert catalog.events.last_id() == 1000
    assert catalog.record(NOW, "job.done", "app", None, {}).id == 1001
    catalog.close()


def test_finished_jobs_are_pruned_and_unfinished_never(catalog: Catalog) -> None:
    with catalog.transaction():
        catalog.jobs.put(job(0, JobState.RUNNING), "local")
        for number in range(1, 50):
            catalog.jobs.put(job(number, JobState.DONE, finished_at=to_text(NOW)), "local")
    catalog.jobs.prune(10)
    assert [row.id for row in catalog.jobs.find(limit=100)] == [job(n).id for n in (*range(49, 39, -1), 0)]
    assert catalog.jobs.unfinished() == [job(0, JobState.RUNNING)]


def test_ids_may_be_shortened_but_not_ambiguous(catalog: Catalog) -> None:
    for number in (1, 2, 30):
        catalog.backups.put(backup(number))
        catalog.jobs.put(job(number), None)
    assert catalog.backups.get(backup(30).id[:-1]).id == backup(30).id
    assert catalog.jobs.get(job(30).id[:-1]).id == job(30).id
    for table in (catalog.backups, catalog.jobs):
        with pytest.raises(Usage):
            table.get("01")
        for nothing in ("", "zz") if table is catalog.backups else ("zz",):
            with pytest.raises(NotFound):
                table.get(nothing)


def test_a_list_of_jobs_leaves_their_results_out(catalog: Catalog) -> None:
    """The plans of five thousand expiries of a thousand backups were two gigabytes in the daemon."""
    row = replace(job(1), state=JobState.DONE, finished_at="2026-09-12T07:00:00.000Z", result={"plan": {"keep": []}})
    catalog.jobs.put(row, "local")
    assert catalog.jobs.get(row.id) == row
    assert catalog.jobs.find() == [replace(row, result=None)]


def test_an_idempotency_key_names_one_job_and_one_request(catalog: Catalog) -> None:
    catalog.requests.put("k", 1000, "digest", "job", to_text(NOW))
    assert catalog.requests.job("k", 1000, "digest") == "job"
    assert catalog.requests.job("k", 1001, "digest") is None
    with pytest.raises(Usage):
        catalog.requests.job("k", 1000, "other")


def test_a_pause_ends_by_itself(catalog: Catalog) -> None:
    catalog.pauses.put(Pause("app", to_text(NOW + timedelta(hours=2)), "alice", to_text(NOW)))
    assert list(catalog.pauses.active(to_text(NOW + timedelta(hours=1)))) == ["app"]
    assert catalog.pauses.active(to_text(NOW + timedelta(hours=2))) == {}
    assert catalog.pauses.drop("app")
    assert not catalog.pauses.drop("app")


def test_replay_replaces_one_storage_and_leaves_the_others(catalog: Catalog) -> None:
    for number, storage in ((1, "local"), (2, "other"), (3, "local")):
        catalog.backups.put(backup(number, storage=storage))
    reports = [("backup.stored", to_json(row)) for row in (backup(3, grade=Grade.PROVEN), backup(4))]
    hold = ("backup.held", {"id": backup(4).id, "reason": "court", "actor": "alice"})
    assert catalog.replay("local", [*reports, hold], NOW) == 3
    assert {row.id: row.grade for row in catalog.backups.of("app")} == {
        backup(2).id: Grade.STORED,
        backup(3).id: Grade.PROVEN,
        backup(4).id: Grade.STORED,
    }
    assert catalog.backups.get(backup(4).id).holds == ["court"]


@FEW
@given(st.lists(st.integers(0, 5_000), unique=True, max_size=60))
def test_replay_is_the_same_as_living_it(catalog: Catalog, numbers: list[int]) -> None:
    reports = [("backup.stored", to_json(backup(number))) for number in numbers]
    assert catalog.replay("local", reports, NOW) == len(reports)
    first = catalog.backups.of("app")
    assert [row.created_at for row in first] == sorted((backup(n).created_at for n in numbers), reverse=True)
    catalog.replay("local", reports, NOW)
    assert catalog.backups.of("app") == first


@FEW
@given(st.datetimes(timezones=st.timezones()))
def test_text_order_is_time_order(moment: datetime) -> None:
    try:
        text, later = to_text(moment), to_text(moment.astimezone(UTC) + timedelta(seconds=1))
    except OverflowError:
        return
    assert text < later
    assert abs(to_moment(text) - moment) < timedelta(milliseconds=1)


def test_a_time_without_zone_is_no_time() -> None:
    edges = ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59")
    for text in ("2026-09-12T07:00:00", "yesterday", *edges):
        with pytest.raises(Internal):
            to_moment(text)
