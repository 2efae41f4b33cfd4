"""The end of the daemon in the middle of work: by SIGTERM, by SIGKILL, of a worker alone."""

import os
import signal
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.process.house import SECONDS, House, add, gone, halves, held, rows, until

SLOW = ('compress = "zstd:13"', 'verify = "off"', 'expire = "off"')


@pytest.fixture
def big(house: House) -> Path:
    """A database that takes long to store: compressible text, compressed as hard as can be."""
    path = house.database("big", 10)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table page (text text)")
        db.executemany("insert into page values (?)", [(os.urandom(60_000).hex(),) for _ in range(170)])
    house.protects(house.table("big", *SLOW))
    return path


def storing(house: House) -> str:
    """Start a backup and return its id when it is in the middle of storing."""
    job = house.submit("backup", "big")
    until(lambda: (row := house.job(job))["step"] == "store" and row["done_bytes"] > 0, lambda: house.job(job))
    assert house.job(job)["state"] == "running"
    return job


def test_sigterm_in_the_middle_of_storing(house: House, big: Path) -> None:
    house.start()
    job = storing(house)
    queued = house.submit("check", "big")
    began = os.listdir(house.store)
    assert "repo.json" in began
    assert house.stop() == 0
    assert not house.socket.exists()
    house.protects(house.table("big"))
    house.start()
    row = house.job(job)
    assert (row["state"], row["problem"]["code"]) == ("interrupted", "DBG-8003"), row
    assert house.job(queued)["state"] == "interrupted"
    listed = house.ctl("job", "list", "--state", "interrupted")
    assert job[:10] in listed.out or job in listed.out
    assert house.status("big")["problem"] is None  # nothing failed: the next daemon makes up for it
    house.idle()
    assert [row["grade"] for row in house.backups("big")] == ["proven"]
    house.does("restore", "big", "--to", str(house.place / "again.db"))
    assert rows(house.place / "again.db") == 10
    house.idle()
    house.is_sound()


def test_sigkill_in_the_middle_of_storing(house: House, big: Path) -> None:
    process = house.start()
    job = storing(house)
    workers = halves(process.pid)
    assert set(workers) == {"repository", "engine"}
    (copied,) = (house.state / "staging").iterdir()
    theirs = copied.with_name(f"big-{os.geteuid()}-{20 * '0'}")  # a name that we have not given
    theirs.mkdir()
    house.kill()  # waits for the workers, which die with it
    (copied / "copy").write_text("of what somebody has written")
    house.start()
    assert [event["database"] for event in house.events("staging.swept")] == ["big"]
    theirs.rmdir()
    row = house.job(job)
    assert (row["state"], row["problem"]["code"]) == ("interrupted", "DBG-8003"), row
    assert len(house.events("job.interrupted")) == 1
    said = house.ctl("--json", "job", "cancel", house.jobs()[0]["id"])  # that makes up for it: slow, as it was
    assert said.status == 0 or said.problem()["message"].endswith("has ended already: done"), said
    house.idle()
    house.protects(house.table("big"))
    house.does("reload")
    assert house.does("backup", "big")["proof"]["grade"] == "proven"
    house.idle()
    house.is_sound()


@pytest.mark.parametrize("half", ["repository", "engine"])
def test_a_worker_that_dies_fails_its_job_only(house: House, big: Path, half: str) -> None:
    house.start()
    job = storing(house)
    os.kill(house.workers()[half], signal.SIGKILL)
    row = house.ended(job)
    assert (row["state"], row["problem"]["code"]) == ("failed", "DBG-8001")
    assert f"The {half} half ended with signal SIGKILL." in row["stderr_tail"]
    assert not list((house.state / "staging").iterdir())  # a copy of the database is nothing to leave about
    until(lambda: not house.workers(), house.workers)
    assert house.status("big")["state"] == "failing"
    house.protects(house.table("big"))
    house.does("reload")
    assert house.does("backup", "big")["proof"]["grade"] == "proven"
    assert house.status("big")["problem"] is None
    house.idle()
    house.is_sound()


def test_what_fails_for_a_moment_is_tried_again_by_itself(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", 'lock_timeout = "1h"', 'retry = { times = 2, wait = "1ms" }', 'window = "1h"'))
    house.start()
    with held(path):
        job = house.submit("backup", "app")
        until(lambda: house.job(job)["step"] == "snapshot", lambda: house.job(job))
        os.kill(house.workers()["engine"], signal.SIGKILL)
        until(lambda: house.job(job)["attempt"] == 2, lambda: house.job(job))
        assert house.job(job)["problem"]["code"] == "DBG-8001"
    row = house.ended(job)
    assert (row["state"], row["attempt"], row["problem"]) == ("done", 2, None)
    house.idle()
    assert len(house.backups("app")) == 1


def test_a_second_daemon_is_refused_and_disturbs_nothing(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app"))
    first = house.start()
    second = house.launch()
    assert gone(second) == 7
    assert str(first.pid) in house.log.read_text().partition("DBG-0010")[2]
    add(path)
    assert house.does("backup", "app")["proof"]["grade"] == "proven"


def test_a_client_that_waits_is_told_when_the_daemon_goes(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", 'lock_timeout = "1h"'))
    house.start()
    with held(path), house.starting("backup", "app") as waiting:
        until(house.jobs, "the job")
        until(lambda: house.jobs()[0]["step"] == "snapshot", house.jobs)
        house.stop()
        _, err = waiting.communicate(timeout=SECONDS)
    assert waiting.returncode in (1, 6), err
    assert "DBG-8003" in err or "DBG-0002" in err


def test_a_worker_that_hangs_is_ended(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", 'lock_timeout = "1h"', 'stall_timeout = "5s"'))
    house.start()
    with held(path):
        job = house.submit("backup", "app")
        until(lambda: house.job(job)["step"] == "snapshot", lambda: house.job(job))
        os.kill(house.workers()["repository"], signal.SIGSTOP)
        row = house.ended(job)
    assert (row["state"], row["problem"]["code"]) == ("failed", "DBG-8002")
    until(lambda: not house.workers(), house.workers)
    assert house.does("backup", "app")["proof"]["grade"] == "proven"
    house.idle()
    house.is_sound()


def test_an_interrupt_ends_it_as_sigterm_does(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", 'lock_timeout = "1h"'))
    process = house.start()
    with held(path):
        job = house.submit("backup", "app")
        until(lambda: house.job(job)["step"] == "snapshot", lambda: house.job(job))
        for pid in (process.pid, *house.workers().values()):  # as a terminal sends it
            with suppress(ProcessLookupError):  # a half ends with the daemon
                os.kill(pid, signal.SIGINT)
        assert gone(process) == 0
    house.start()
    assert house.job(job)["state"] == "interrupted"
    house.idle()
    house.is_sound()
