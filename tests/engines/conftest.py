"""Places for tests of engines."""

import pytest


@pytest.fixture
def live(tmp_path):
    """A place for the live database, alone in its directory."""
    (tmp_path / "live").mkdir()
    return tmp_path / "live" / "app.db"


@pytest.fixture
def staging(tmp_path):
    return tmp_path / "staging"
