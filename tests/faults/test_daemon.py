"""The real daemon, killed and stopped in the middle of work, twice on one state directory, and on a full disk."""

import os
import random
import signal
import socket
import sqlite3
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.hand import SIDES, a_place
from tests.faults.test_full import a_disk, filled
from tests.live import SECONDS, Live, asking, gone, until
from tests.process.house import far
from tests.workload import consistent, seed

POLICY = """[defaults]
verify = "off"
expire = "off"
backup = "{far}"
jitter = "0s"
keep = {{ last = 3 }}
min_proven = 1
{defaults}
[database.shop]
engine = "sqlite"
path = "{path}"
lock_timeout = "10min"
{database}
[storage.local]
type = "directory"
path = "{store}"
keep_free = "0B"
grace = "0s"
sweep = "{far}"
"""


def write_policy(live: Live, defaults: str = "", database: str = "") -> None:
    where = {"path": shop(live), "store": live.place / "store"}
    live.write_policy(POLICY.format(far=far(12), defaults=defaults, database=database, **where))


def shop(live: Live) -> Path:
    return live.place / "live" / "shop.db"


@pytest.fixture
def live():
    """A daemon that is not started yet, and its shop."""
    with a_place() as place:
        (place / "live").mkdir()
        live = Live(place)
        seed(shop(live), accounts=50, bookings=500, documents=20)
        write_policy(live)
        try:
            yield live
        finally:
            live.stop(signal.SIGKILL)


@contextmanager
def locked(live: Live):
    """The application holds its database exclusively, so that a backup can only wait."""
    application = sqlite3.connect(shop(live), isolation_level=None, timeout=SECONDS)
    try:
        application.execute("pragma locking_mode = exclusive")
        application.execute("begin exclusive")
        application.execute("update account set balance = balance")
        yield
    finally:
        application.close()


def waiting(live: Live) -> str:
    """Start a backup and return its job when both halves are at work on it."""
    job = live.submit("backup", "shop")
    live.until(job, "running")
    while live.job(job)["step"] != "snapshot":
        assert live.job(job)["state"] == "running"
    assert len(live.workers()) == 2
    return job


def restored(live: Live, *ids: str) -> None:
    for id in ids:
        target = live.place / f"restored-{id}.db"
        live.must("restore", "shop", "--id", id, "--to", str(target))
        assert consistent(target), id


def tidy(live: Live) -> None:
    assert {path.name for path in shop(live).parent.iterdir()} <= {f"shop.db{side}" for side in SIDES}
    assert list((live.state / "staging").iterdir()) == []


def test_a_killed_daemon_takes_its_workers_along_and_the_next_one_goes_on(live):
    with live:
        first = live.backup()
        with locked(live):
            job = waiting(live)
            workers = live.workers()
            live.kill()
            gone(workers)
        assert live.socket.exists()  # as a kill leaves it: the next daemon takes it over
        live.start()
        row = live.job(job)
        assert (row["state"], row["problem"]["code"]) == ("interrupted", "DBG-8003")
        live.idle()
        assert len(live.listed()) == 2  # it has made up for that
        second = live.backup()
        tidy(live)
        restored(live, first, second)
        assert live.must("audit", "verify")
    assert live.stop() == 0


@pytest.mark.slow
def test_the_schedule_goes_on_after_a_kill(live):
    """A run that a kill interrupted is due again: the next daemon makes it up by itself. Takes a minute to be due."""
    write_policy(live, database='backup = "every 1min"')
    with live:
        live.must("pause", "shop")
        first = live.backup()
        known = {row["id"] for row in live.jobs()}  # a run may be due as soon as it may run
        with locked(live):
            live.must("resume", "shop")
            job = next_job(live, known)
            live.until(job, "running")
            live.kill()
        live.start()  # well before the next minute, or with a run for that one too
        assert live.job(job)["state"] == "interrupted"
        until(lambda: live.listed()[0] != first, "a backup that makes up for the interrupted one")
        assert live.listed()[-1] == first


def next_job(live: Live, known: set[str]) -> str:
    """Wait for a job that nobody asked for, and return its id."""
    new: list[dict] = []

    def came() -> bool:
        new[:] = [row for row in live.jobs() if row["id"] not in known]
        new[:] = [row for row in new if row["actor"] == "schedule"]  # what follows a backup is his who asked for that
        return bool(new)

    until(came, "a job of the schedule")
    assert new[-1]["verb"] == "backup"
    return str(new[-1]["id"])


def test_a_stop_during_a_backup_leaves_everything_usable(live):
    with live:
        first = live.backup()
        with locked(live):
            job = waiting(live)
            workers = live.workers()
            assert live.stop(signal.SIGTERM) == 0
            gone(workers)
        tidy(live)
        assert not live.socket.exists() or not connects(live.socket)
        live.start()
        assert live.job(job)["state"] == "interrupted"
        live.idle()
        second = live.backup()
        restored(live, first, second)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as end, suppress(OSError):
        end.connect(str(path))
        return True
    return False


def test_a_second_daemon_and_a_job_by_hand_are_refused(live):
    with live:
        first = live.backup()
        commands = (["--socket", str(live.place / "other.sock")], ["run", "backup", "shop"], ["run", "sweep", "local"])
        for words in commands:
            done = subprocess.run(live.argv(*words), capture_output=True, check=False, timeout=SECONDS)
            assert done.returncode == 7, done.stderr
            assert b"DBG-0010" in done.stderr
        assert live.listed() == [first]
        live.backup()
    live.process = None
    done = subprocess.run(live.argv("run", "backup", "shop"), capture_output=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stderr


def test_two_daemons_on_one_socket(live):
    """The second has a state directory of its own, but the place of the first: the first is not disturbed."""
    with live:
        argv = [*live.argv("--socket", str(live.socket))]
        argv[argv.index("--state") + 1] = str(live.place / "state2")
        done = subprocess.run(argv, capture_output=True, check=False, timeout=SECONDS)
        assert done.returncode == 7, done.stderr
        assert b"DBG-0010" in done.stderr
        live.backup()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_half_fails_the_job_and_nothing_else(live, victim):
    write_policy(live, defaults='retry = { times = 0, wait = "1s" }')
    with live:
        first = live.backup()
        with locked(live):
            job = waiting(live)
            workers = live.workers()
            os.kill(workers[victim], signal.SIGKILL)
            row = live.until(job, "failed", "done", "cancelled", "interrupted")
            assert (row["state"], row["problem"]["code"]) == ("failed", "DBG-8001")
            gone(workers)
            settled(live, lambda listed: [row["verb"] for row in live.jobs()].count("scan") == 1)
        second = live.backup()
        tidy(live)
        restored(live, first, second)


def test_what_happened_behind_the_catalogs_back_is_in_the_list(live):
    """Jobs by hand, and jobs whose daemon died before it heard: the list is what the repository holds."""
    with live:
        first = live.backup()
    live.process = None
    by_hand(live, "backup", "shop")
    with live:
        settled(live, lambda listed: len(listed) == 2 and listed[-1] == first)
    for _ in range(3):
        by_hand(live, "backup", "shop")
    by_hand(live, "expire", "shop", "--confirm", "shop")
    with live:
        settled(live, lambda listed: len(listed) == 3 and first not in listed)
        restored(live, *live.listed())


def by_hand(live: Live, *words: str) -> None:
    done = subprocess.run(live.argv("run", *words), capture_output=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stderr


def settled(live: Live, right) -> None:
    """When no job is left that could still mend it, the list is right."""
    live.idle()
    assert right(live.listed()), live.listed()


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_kills_of_the_daemon_at_random_moments(live, number):
    dice_seed = random.SystemRandom().randrange(10**6)
    print(f"seed {dice_seed}")
    dice, acknowledged = random.Random(dice_seed), set()
    with live:
        for _ in range(8):
            with asking(live, "backup", "shop") as client:
                with suppress(subprocess.TimeoutExpired):
                    client.wait(dice.random() * 1.2)  # the moment is meant to be random
                workers = live.workers()
                live.kill()
                gone(workers)
                client.wait(SECONDS)
                live.start()
            acknowledged |= {event["backup"] for event in live.events("backup.stored")}
            assert acknowledged <= set(live.listed()), f"seed {dice_seed}"
        live.idle()
        acknowledged.add(live.backup())
        assert acknowledged <= set(live.listed())
        tidy(live)
        restored(live, *sorted(acknowledged)[-3:])
        findings = live.must("check", "shop", "--data")["job"]["result"]
        assert findings["damaged"] == 0, findings


def test_a_full_state_directory_stops_nothing_for_good(live):
    live.place.joinpath("state").mkdir()
    with a_disk(live.state, "size=8m"), live:
        first = live.backup()
        with filled(live.state, 0):
            status, answer = live.ctl("backup", "shop")
            assert status not in (0, 3), answer
            assert live.process is not None and live.process.poll() is None
            live.ctl("status")
        second = live.backup()
        assert {first, second} <= set(live.listed())
        restored(live, first, second)
        assert live.stop() == 0
