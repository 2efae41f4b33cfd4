"""A daemon that cannot start says why, in words: a place that is not there, not allowed, full, or something else."""

from __future__ import annotations

import os
import resource
import stat
import subprocess

import pytest

from tests.process.house import SECONDS, House


@pytest.fixture
def refused(house: House):
    """Start dbguardd, which must end by itself; `limit`: no file may have a byte."""
    house.protects(house.table("app"))

    def start(*, state="", socket="", limit=False) -> subprocess.CompletedProcess[str]:
        argv = [house.python.with_name("dbguardd"), "--policy", house.policy]
        argv += ["--state", state or house.state, "--socket", socket or house.socket]
        nothing = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))) if limit else None
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=SECONDS, preexec_fn=nothing)

    return start


@pytest.mark.parametrize(
    ("places", "status", "code"),
    [
        ({"state": "/sys/dbguard"}, 5, "DBG-0012"),
        ({"state": "/proc/version"}, 2, "DBG-0001"),
        ({"limit": True}, 11, "DBG-3002"),
        ({"socket": "/sys/dbguard/api.sock"}, 5, "DBG-0012"),
        ({"socket": "/nonexistent/a/b/api.sock"}, 2, "DBG-0001"),
        ({"socket": "/proc/version/api.sock"}, 2, "DBG-0001"),
    ],
    ids=str,
)
def test_it_says_why(refused, places, status: int, code: str) -> None:
    done = refused(**places)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert f"error[{code}]: " in done.stderr
    assert ("dbguardd run sweep STORAGE" in done.stderr) is (code == "DBG-3002")  # no ctl can ask for a prune


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_read_only_state_directory_is_a_matter_of_its_mount(house: House) -> None:
    house.state.mkdir()
    mount = 'mount -t tmpfs -o ro none "$0" && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", mount, house.state, house.python.with_name("dbguardd"), "--state", house.state]
    argv += ["--policy", house.policy, "--socket", house.socket]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert "Read-only file system" in done.stderr and f"findmnt -T {house.state}" in done.stderr
    assert "run it as root" not in done.stderr


@pytest.mark.parametrize("option", ["--policy", "--state", "--socket"])
def test_an_empty_option_is_not_one_left_out(house: House, option: str) -> None:
    argv = [house.python.with_name("dbguardd"), option, ""]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 2
    assert f"argument {option}: it is empty" in done.stderr


def test_what_it_makes_may_others_not_write_whatever_the_umask_is(house: House) -> None:
    place = house.place / "made"
    where = ["--policy", place / "a/b/policy.toml", "--state", place / "c/d/state"]
    begin = [house.python.with_name("dbguardctl"), "init", "--policy", place / "a/b/policy.toml"]
    subprocess.run(begin, check=True, capture_output=True, umask=0)
    job = [house.python.with_name("dbguardd"), *where, "run", "sweep", "local"]
    subprocess.run(job, check=False, capture_output=True, umask=0)
    assert (place / "c/d/state/staging").is_dir()
    written = [path for path in (place, *place.rglob("*")) if stat.S_IMODE(path.lstat().st_mode) & 0o022]
    assert written == [place / "c/d/state/staging"]
