"""Jobs through the real client: waiting, cancelling, asking twice, one at a time for a database, so many in all."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from dbguardd.errors import Busy, Usage
from tests.process.house import FINAL, SECONDS, House, held, until

CALM = ('lock_timeout = "1h"', 'verify = "off"', 'expire = "off"')


def waits(house: House, job: str) -> None:
    """Wait until a backup waits for the lock of its database: it is running, and will be as long as we want."""
    until(lambda: house.job(job)["step"] == "snapshot", lambda: house.job(job))


def test_a_job_is_cancelled_while_others_wait_for_it(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    with held(path):
        job = house.ctl("backup", "app", "--no-wait").out.strip()
        waits(house, job)
        with house.starting("job", "watch", job) as watching:
            said = house.ctl("job", "cancel", job)
            assert (said.status, job in said.out) == (0, True)
            out, err = watching.communicate(timeout=SECONDS)
    assert watching.returncode == 1, err
    assert "DBG-0007" in err
    row = house.job(job)
    assert (row["state"], row["problem"]["code"]) == ("cancelled", "DBG-0007")
    until(lambda: not house.workers(), house.workers)
    assert house.backups("app") == []
    assert house.status("app")["state"] == "unproven"  # not failing: somebody wanted it so
    house.fails("DBG-0005", 7, "job", "cancel", job)
    house.fails("DBG-0004", 8, "job", "cancel", "01K4Z7Q2AB0000000000000J01")
    house.does("backup", "app")
    cancels = [e for e in house.audit() if e["action"] == "job.cancel"]
    assert [(e["object"], e["actor"]["uid"]) for e in cancels] == [(job, os.geteuid())]
    house.is_sound()


def test_a_proof_that_takes_for_ever_is_cancelled(house: House) -> None:
    house.database("app")
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    house.protects(house.table("app", 'expire = "off"', f'proof.queries = [{{ sql = "{endless}", min = 1 }}]'))
    house.start()
    backup = house.ended(house.submit("backup", "app"))
    proof = backup["result"]["verify_job"]
    until(lambda: house.job(proof)["step"] == "examine", lambda: house.job(proof))
    house.does("job", "cancel", proof)
    assert house.ended(proof)["state"] == "cancelled"
    assert house.backups("app")[0]["grade"] == "stored"  # no verdict
    assert house.backups("app")[0]["failure"] is None
    until(lambda: not house.workers(), house.workers)
    house.is_sound()


def test_a_client_that_gives_up_leaves_the_job_alone(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    with held(path):
        problem = house.fails("DBG-0006", 12, "backup", "app", "--timeout", "1s")
        waits(house, problem["job"])
        for silent in (False, True):  # the daemon answers, or has not even answered the first question
            stopped = frozen(house.process) if silent else nullcontext()
            with stopped, house.starting("job", "watch", problem["job"]) as watching:
                until(lambda: not watching.poll() and said(watching.pid), "it looks on")
                watching.send_signal(signal.SIGINT)
                _, err = watching.communicate(timeout=SECONDS)
            assert watching.returncode == 130
            assert f"dbguardctl job cancel {problem['job']}" in err
        assert house.job(problem["job"])["state"] == "running"
    assert house.ended(problem["job"])["state"] == "done"
    watched = house.does("job", "watch", problem["job"])
    assert watched["backup"]["id"] == house.backups("app")[0]["id"]


@contextmanager
def frozen(process: subprocess.Popen[bytes] | None) -> Iterator[None]:
    """Keep a process from doing anything."""
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def said(pid: int) -> bool:
    """True when a client has a connection open: it waits for an answer."""
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except OSError:
            continue
    return any(link.startswith("socket:") for link in links)


def test_one_at_a_time_for_a_database(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    with held(path):
        first = house.ctl("backup", "app", "--no-wait").out.strip()
        waits(house, first)
        problem = house.fails("DBG-0005", 7, "backup", "app")
        assert problem["job"] == first
        assert problem["hints"] == [f"dbguardctl job watch {first}"]
        text = house.ctl("backup", "app")
        assert (text.status, first in text.err) == (7, True)
        other = house.submit("check", "app")  # other work on it waits its turn
        assert house.job(other)["state"] == "queued"
        assert house.status("app")["running_job"] == first
    assert house.ended(first)["state"] == "done"
    assert house.ended(other)["state"] == "done"
    assert house.job(other)["started_at"] >= house.job(first)["finished_at"]


def test_no_more_jobs_at_once_than_the_policy_says(house: House) -> None:
    names = ("a", "b", "c", "d")
    paths = [house.database(name) for name in names]
    house.protects(*(house.table(name, *CALM) for name in names), more="[daemon]\nmax_jobs = 2\n")
    house.start()
    with held(paths[0]), held(paths[1]), held(paths[2]), held(paths[3]):
        jobs = [house.submit("backup", name) for name in names]
        for job in jobs[:2]:
            waits(house, job)
        assert [house.job(job)["state"] for job in jobs] == ["running", "running", "queued", "queued"]
        house.does("job", "cancel", jobs[3])  # one that waits is gone at once
        assert house.job(jobs[3])["state"] == "cancelled"
        house.protects(*(house.table(name, *CALM) for name in names), more="[daemon]\nmax_jobs = 3\n")
        house.does("reload")
        waits(house, jobs[2])  # the new limit holds for what waits already
    assert [house.ended(job)["state"] for job in jobs] == ["done", "done", "done", "cancelled"]


def test_asked_twice_with_one_key_it_is_done_once(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    with held(path):
        ask = {"database": "app", "note": "once"}
        first = house.api.post("jobs", "backup", body=ask, key="the-same")["job"]
        again = house.api.post("jobs", "backup", body=ask, key="the-same")["job"]
        assert again["id"] == first["id"]
        with pytest.raises(Usage):
            house.api.post("jobs", "backup", body={**ask, "note": "else"}, key="the-same")
        with pytest.raises(Busy):
            house.api.post("jobs", "backup", body=ask, key="another")
    house.ended(first["id"])
    house.stop()
    house.start()
    later = house.api.post("jobs", "backup", body=ask, key="the-same", wait=30)["job"]  # it outlives the daemon
    assert (later["id"], later["state"]) == (first["id"], "done")
    assert [row["state"] in FINAL for row in house.jobs(database="app")] == [True]
    assert [row["note"] for row in house.backups("app")] == ["once"]


def test_all_databases_at_once(house: House) -> None:
    for name in ("a", "b"):
        house.database(name)
    house.protects(house.table("a"), house.table("b"), house.table("lost"))
    house.start()
    said = house.ctl("backup", "--all")
    assert said.status == 1  # of the one that is not there
    assert "DBG-2001" in said.err and "lost" in said.err
    for name in ("a", "b"):
        assert house.backups(name)[0]["grade"] == "proven"
    assert house.status("lost")["state"] == "failing"
    assert house.ctl("status").status == 3
