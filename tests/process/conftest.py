"""A place with a daemon for each test, users to be, and a Python that they can run."""

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import dbguardd
from tests.process.house import House, a_place


@pytest.fixture
def house():
    """A place whose daemon is not started yet; whatever a test leaves running is stopped."""
    with a_place() as place:
        house = House(place)
        yield house
        house.close()


@pytest.fixture(scope="session")
def uids():
    """Three users without rights; skips where this process cannot become them."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as other users")
    return [pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon", "games")]


@pytest.fixture(scope="session")
def python(uids):
    """A Python with dbguard that everybody can run: this one, or the system's with the same packages; else skips."""
    if _can_run(Path(sys.executable), uids):
        yield Path(sys.executable)
        return
    system = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")
    if system is None:
        pytest.skip(f"others cannot run {sys.executable}, and the system has no Python of that version")
    with a_place() as place:
        subprocess.run([system, "-m", "venv", "--without-pip", place / "venv"], check=True, capture_output=True)
        (packages,) = place.glob("venv/lib/python3.*/site-packages")
        roots = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), Path(dbguardd.__file__).parents[1]]
        (packages / "dbguard.pth").write_text("".join(f"{root}\n" for root in roots))
        if not _can_run(place / "venv/bin/python", uids):
            pytest.skip(f"others can run neither {sys.executable} nor {system} with what dbguard needs")
        yield place / "venv/bin/python"


def _can_run(python, uids):
    argv = [python, "-I", "-c", "import dbguardd.worker.channel, dbguardctl.app"]
    try:
        return not any(
            subprocess.run(
                argv, check=False, user=uid, group=uid, extra_groups=[], cwd="/", capture_output=True
            ).returncode
            for uid in uids
        )
    except PermissionError:
        return False


@pytest.fixture
def users(uids, python, house):
    """The uids, with a house whose commands all of them can run."""
    house.python = python
    return uids
