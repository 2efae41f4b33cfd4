"""What an id, a moment or a place in a request means, or why it means nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dbguardd.errors import GuardError, NotFound, Usage
from dbguardd.rules.backup_state import BackupState
from dbguardd.rules.requested import Other, at_or_before, by_id, check_place

RESTORE = {"to": "/srv/x y", "in_place": False, "dry_run": False}
OTHERS = (Other("01A9GONE", "app"), Other("01B7CRM", "crm"), Other("01B7SHOP", "shop"))
NOON = datetime(2026, 9, 12, 12, tzinfo=UTC)


def refused(id: str, **request: object) -> GuardError:
    with pytest.raises(GuardError) as caught:
        by_id("app", id, ["01A1ONE", "01A1TWO"], lambda: OTHERS, {**RESTORE, **request})
    return caught.value


def test_an_id_is_its_first_or_its_last_characters() -> None:
    assert [by_id("app", part, ["01A1ONE", "01A1TWO"], lambda: (), {}) for part in ("01a1o", "two", "01A1ONE")] == [
        "01A1ONE",
        "01A1TWO",
        "01A1ONE",
    ]
    assert isinstance(refused("01A1"), Usage)


def test_a_backup_of_another_database_is_told_with_the_line_to_type() -> None:
    assert refused("01B7CRM").message == "app: backup 01B7CRM is one of crm"
    assert refused("01B7CRM").hints == ("dbguardctl restore crm --id 01B7CRM --to '/srv/x y'",)
    assert refused("crm", to="", in_place=True).hints == ("dbguardctl restore crm --id 01B7CRM --dry-run",)
    assert refused("01B7").message == "app has no backup 01B7"
    with pytest.raises(NotFound) as caught:
        by_id("app", "01B7CRM", [], lambda: OTHERS, {"sql": "SELECT 1"})
    assert caught.value.hints == ("dbguardctl show 01B7CRM",)


def test_an_expired_backup_can_be_recalled_and_an_unknown_one_not() -> None:
    assert refused("01A9").hints == ("dbguardctl recall 01A9GONE",)
    assert refused("nonsense").hints == ("dbguardctl list app --all",)


def test_before_the_first_backup_there_is_nothing() -> None:
    states = [BackupState("02", NOON + timedelta(hours=1)), BackupState("01", NOON)]
    assert at_or_before("app", states, "2026-09-12T12:00:00Z").backup == states[1]
    with pytest.raises(NotFound, match="no backup as old as") as caught:
        at_or_before("app", states, "2026-09-12T11:59:59Z")
    assert caught.value.detail == "The oldest is 01 of 2026-09-12T12:00:00.000Z."
    assert caught.value.hints[0] == "dbguardctl restore app --id 01 --dry-run"
    with pytest.raises(NotFound, match="no reliable backup"):
        at_or_before("app", [BackupState("01", NOON, failed=True)], "")
    for text in ("soon", "2026-09-12T12:00:00"):
        with pytest.raises(Usage):
            at_or_before("app", states, text)


@pytest.mark.parametrize("place", ["/proc/x", "/proc", "//proc/1", "/srv/../sys/x"])
def test_nothing_is_restored_into_files_of_the_kernel(place: str) -> None:
    with pytest.raises(Usage, match="nothing can be restored"):
        check_place("app", place)


def test_other_places_are_for_the_job_to_judge() -> None:
    for place in ("/process/x", "/srv/proc/x", "/dev/shm/x", "/dev/null"):
        check_place("app", place)
