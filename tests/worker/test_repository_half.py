"""Which jobs may make a repository, and where."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from dbguardd.errors import NotARepository, Unreachable
from dbguardd.jobs import JOBS
from dbguardd.keys import new_identity
from dbguardd.worker.repository_half import Voice, open_repository

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MAKERS = {"backup", "scan", "recovery-sheet"}


def spec(place: Path, verb: str):
    storage = {"name": "local", "type": "directory", "path": str(place / "store")}
    key = {"name": "main", "type": "machine", "path": str(place / "key")}
    request = {"identity": new_identity()[0].reveal().decode()}  # of those that a person opens with a sheet
    return {"verb": verb, "state": str(place), "storage": storage, "key": key, "request": request}


@pytest.fixture
def voice(tmp_path):
    with (tmp_path / "said").open("wb") as out:
        yield Voice(out.fileno(), lambda: False)


@pytest.mark.parametrize("verb", sorted(MAKERS))
def test_what_begins_to_use_a_storage_makes_the_repository(tmp_path, voice, verb):
    _, made = open_repository(spec(tmp_path, verb), voice, NOW)
    _, opened = open_repository(spec(tmp_path, "restore"), voice, NOW)
    assert made.id == opened.id


@pytest.mark.parametrize("verb", sorted(JOBS.keys() - MAKERS))
def test_what_reads_or_deletes_makes_nothing_in_an_empty_mount_point(tmp_path, voice, verb):
    with pytest.raises(Unreachable):
        open_repository(spec(tmp_path, verb), voice, NOW)
    (tmp_path / "store").mkdir()
    with pytest.raises(NotARepository):
        open_repository(spec(tmp_path, verb), voice, NOW)
    assert not any((tmp_path / "store").iterdir())
    assert not (tmp_path / "key").exists()
