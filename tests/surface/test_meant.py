"""A time that is typed as a screen shows it means the backup made within it, and never something later unsaid."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from dbguardctl.moments import parse_moment, unit_of
from tests.surface import answers
from tests.surface.fake import FakeDaemon

NIGHTLY = [("01KB", "2026-09-11T23:00:42.512Z"), ("01KA", "2026-09-10T23:00:39.008Z")]
LOGGED = {"since_at": "2026-09-11T22:00:00.000Z", "until_at": "2026-09-12T06:00:00.000Z", "grain_seconds": 0}


def made(daemon: FakeDaemon, *backups: tuple[str, str], fields: dict[str, str] | None = None, **log: object) -> None:
    rows = [{**answers.listing()["backups"][0], "id": id, "created_at": at, **(fields or {})} for id, at in backups]
    found = {"schema": "dbguard.list/1", "database": "app", "backups": rows, "expired": []}
    daemon.routes["GET /databases/app/backups"] = {**found, "log": [log] if log else []}


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("today 01:02", timedelta(minutes=1)),
        ("12 Sep 2026 02:06", timedelta(minutes=1)),
        ("2026-09-12 08:59+02:00", timedelta(minutes=1)),
        ("2026-09-12T08:59:00Z", timedelta(seconds=1)),
        ("9:14:07", timedelta(seconds=1)),
        ("2026-09-12T08:59:00.000Z", timedelta()),
        ("yesterday", timedelta()),
        ("3h ago", timedelta()),
        ("now", timedelta()),
    ],
)
def test_the_unit_in_which_a_time_is_typed(text: str, unit: timedelta) -> None:
    assert unit_of(text) == unit


@pytest.mark.parametrize("typed", ["12 Sep 2026 01:00", "2026-09-12 01:00:42", "2026-09-11T23:00:42Z"])
def test_what_list_shows_means_that_very_backup(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], typed: str
) -> None:
    made(daemon, *NIGHTLY)
    assert inside("restore", "app", "--at", typed, "--dry-run") == 0
    assert daemon.bodies("POST /jobs/restore")[0]["at"] == "2026-09-11T23:00:42.512Z"
    assert "the backup 01KB was made within that " in (said := capsys.readouterr().err)
    assert "at 2026-09-12 01:00:42.512+02:00" in said
    inside("query", "app", "--at", typed, "SELECT 1")
    inside("diff", "app", "--from", typed)
    assert daemon.bodies("POST /jobs/query")[0]["at"] == daemon.bodies("POST /jobs/diff")[0]["older"]
    assert daemon.bodies("POST /jobs/query")[0]["at"] == "2026-09-11T23:00:42.512Z"


@pytest.mark.parametrize("fields", [{"note": "before restore --in-place"}, {"failure": "content differs"}])
def test_a_backup_that_no_time_selects_is_named_and_not_meant(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], fields: dict[str, str]
) -> None:
    made(daemon, *NIGHTLY[:1], fields=fields)
    assert inside("restore", "app", "--at", "2026-09-12 01:00:42", "--dry-run") == 0
    assert daemon.bodies("POST /jobs/restore")[0]["at"] == "2026-09-11T23:00:42Z"
    assert "can be named instead: --id 01KB" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["2026-09-12 01:00:43", "2026-09-12 01:00:42.100", "2026-09-12 00:59"])
def test_no_other_time_means_a_later_backup(inside: Callable[..., int], daemon: FakeDaemon, typed: str) -> None:
    made(daemon, *NIGHTLY)
    assert inside("restore", "app", "--at", typed, "--dry-run") == 0
    asked = datetime.fromisoformat(daemon.bodies("POST /jobs/restore")[0]["at"])
    assert asked == parse_moment(typed, datetime.now(UTC), None)


def test_a_log_that_has_the_typed_moment_restores_exactly_that(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    made(daemon, *NIGHTLY, **LOGGED)
    assert inside("restore", "app", "--at", "2026-09-12 01:00:42", "--dry-run") == 0
    assert daemon.bodies("POST /jobs/restore")[0]["at"] == "2026-09-11T23:00:42Z"
    assert "1 backup, made within that second but after this moment" in (said := capsys.readouterr().err)
    assert "--id 01KB" in said
    made(daemon, *NIGHTLY, **{**LOGGED, "grain_seconds": 3600})
    assert inside("restore", "app", "--at", "2026-09-12 01:00:42", "--dry-run") == 0
    assert daemon.bodies("POST /jobs/restore")[1]["at"] == "2026-09-11T23:00:42.512Z"


def test_of_several_backups_none_is_meant_and_each_is_named(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    made(daemon, ("01KC", "2026-09-11T23:00:42.900Z"), *NIGHTLY)
    assert inside("restore", "app", "--at", "2026-09-12 01:00", "--dry-run") == 0
    assert daemon.bodies("POST /jobs/restore")[0]["at"] == "2026-09-11T23:00:00Z"
    assert "--id 01KC or --id 01KB" in capsys.readouterr().err
