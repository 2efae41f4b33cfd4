"""A place with a daemon for each test, and users to be."""

import os
import pwd
import subprocess
import sys

import pytest

from tests.process.house import House, a_place


@pytest.fixture
def house():
    """A place whose daemon is not started yet; whatever a test leaves running is stopped."""
    with a_place() as place:
        house = House(place)
        yield house
        house.close()


@pytest.fixture(scope="session")
def users():
    """Uids of three users without rights who can run dbguard; skips where this process cannot become them."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as other users")
    found = [pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon", "games")]
    argv = [sys.executable, "-I", "-c", "import dbguardd.worker.channel, dbguardctl.app"]
    for uid in found:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
        if subprocess.call(argv, user=uid, group=uid, extra_groups=[], **quiet):
            pytest.skip(f"uid {uid} cannot run {sys.executable}")
    return found
