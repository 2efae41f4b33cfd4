"""What every test has: calm hypothesis, an environment without the caller's settings, programs that may be missing.

And in which order files are tested, where several processes share them.
"""

import os
import shutil

import pytest
from hypothesis import settings

settings.register_profile("dbguard", deadline=None, print_blob=True)
settings.load_profile("dbguard")

for name in [name for name in os.environ if name.startswith("DBGUARD_")]:
    del os.environ[name]

FIRST = ("packaging", "faults", "process", "engines")
"""What starts machines, servers and daemons takes long: begun first, it does not keep the end of a run waiting."""


def pytest_collection_modifyitems(items):
    order = {folder: number for number, folder in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process after the other gets a file; those of the packages share machines, and belong to one process."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "machines" if nodeid.startswith("tests/packaging/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture
def program():
    """program("mandoc") gives its path; where it is not installed, the test is skipped and says so."""

    def find(name):
        path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"{name} is not installed")
        return path

    return find
