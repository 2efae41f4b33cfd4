"""The directory of the engine half: what others put in its place does not keep a database from being backed up."""

import os
from pathlib import Path

import pytest

from dbguardd.worker.staging import remove_foreign, staging_of


@pytest.fixture
def staging(tmp_path):
    return tmp_path / "app-0"


def test_its_own_leftovers_are_left_to_the_engine_half(staging):
    remove_foreign(staging, os.geteuid())
    staging.mkdir()
    (staging / "snapshot").touch()
    remove_foreign(staging, os.geteuid())
    assert (staging / "snapshot").exists()


def test_a_file_or_a_link_goes_and_what_it_leads_to_stays(staging, tmp_path):
    (tmp_path / "precious").mkdir()
    staging.symlink_to(tmp_path / "precious")
    remove_foreign(staging, os.geteuid())
    assert not os.path.lexists(staging)
    assert (tmp_path / "precious").is_dir()
    staging.touch()
    remove_foreign(staging, os.geteuid())
    assert not staging.exists()


@pytest.mark.parametrize("full", [False, True])
def test_a_directory_of_somebody_else_goes_or_is_set_aside(staging, tmp_path, full):
    staging.mkdir()
    (staging / "theirs").touch()
    if not full:
        (staging / "theirs").unlink()
    remove_foreign(staging, os.geteuid() + 1)  # as if we ran it as another user than whose it is
    assert not staging.exists()
    assert len(list(tmp_path.glob("foreign-app-0-*/theirs"))) == full


def test_the_name_is_the_same_each_time_and_only_we_know_it(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for state in (here, there):
        state.mkdir()
    name = staging_of(str(here), "app", 7)
    assert name == staging_of(str(here), "app", 7)
    assert len({name, staging_of(str(here), "app", 8), staging_of(str(here), "ap", 7)}) == 3
    assert Path(name).name != Path(staging_of(str(there), "app", 7)).name
    assert (here / "staging.seed").stat().st_mode & 0o777 == 0o600
    (here / "staging.seed").write_bytes(b"cut")  # by a full disk
    assert staging_of(str(here), "app", 7) == staging_of(str(here), "app", 7) != name
