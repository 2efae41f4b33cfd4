"""What every test has: calm hypothesis, an environment without the caller's settings, programs that may be missing."""

import os
import shutil

import pytest
from hypothesis import settings

settings.register_profile("dbguard", deadline=None, print_blob=True)
settings.load_profile("dbguard")

for name in [name for name in os.environ if name.startswith("DBGUARD_")]:
    del os.environ[name]


@pytest.fixture
def program():
    """program("mandoc") gives its path; where it is not installed, the test is skipped and says so."""

    def find(name):
        path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"{name} is not installed")
        return path

    return find
