"""Places for tests of engines, and another PostgreSQL than the one that is installed."""

import os
import subprocess

import pytest
from postgres_world import PREFERRED, bin_directory, identity

from tests.packaging import trees


@pytest.fixture
def live(tmp_path):
    """A place for the live database, alone in its directory."""
    (tmp_path / "live").mkdir()
    return tmp_path / "live" / "app.db"


@pytest.fixture
def staging(tmp_path):
    return tmp_path / "staging"


@pytest.fixture(scope="module")
def postgresql_17():
    """PostgreSQL 17 for the servers of a module, installed here or not; where it cannot be had, skip and say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PREFERRED, "17")
        if bin_directory() is None or not str(bin_directory()).endswith("/17/bin"):
            programs = trees.programs("trixie", "postgresql-17", "usr/lib/postgresql/17/bin")
            patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        try:
            words = [bin_directory() / "postgres", "--version"]
            told = subprocess.run(words, check=True, capture_output=True, text=True, cwd="/", **identity()).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"PostgreSQL 17 does not run here, NOTHING of it is tested: {error}")
        assert "(PostgreSQL) 17" in told
        yield
