"""What every test has: calm hypothesis, nothing of the caller's settings, code that is compiled, programs or a skip.

And in which order files are tested, where several processes share them.
"""

import compileall
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples whenever the same tree is tested, however busy the host is; `make soak` looks for new ones.
settings.register_profile(
    "dbguard", deadline=None, print_blob=True, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("random", settings.get_profile("dbguard"), derandomize=False)
settings.load_profile("dbguard")

for name in [name for name in os.environ if name.startswith("DBGUARD_") and not name.startswith("DBGUARD_TEST_")]:
    del os.environ[name]
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell, and so by each child

FIRST = ("packaging", "faults", "process", "engines")
"""What starts machines, servers and daemons takes long: begun first, it does not keep the end of a run waiting."""

MEMORY, ROOM = "/dev/shm", 8 << 30


def pytest_configure(config):
    """Compile what is tested: a worker that is another user cannot keep what it compiled, and would at each start.

    Temporary directories lie in memory, if there is room: in ext4 a new file costs a search past all that were removed
    in the last seconds, and each server that a test starts has a thousand. TMPDIR overrides that.
    """
    if not hasattr(config, "workerinput"):
        if "TMPDIR" not in os.environ and _usable(MEMORY):
            os.environ["TMPDIR"], tempfile.tempdir = MEMORY, None
        for name in ("dbguardd", "dbguardctl"):
            compileall.compile_dir(Path(__file__).parents[1] / name, quiet=2)


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


def _usable(place):
    """Return whether tests can write and run programs there, and have room."""
    if not os.access(place, os.W_OK):
        return False
    found = os.statvfs(place)
    return not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize >= ROOM
