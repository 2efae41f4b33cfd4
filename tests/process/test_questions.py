"""Questions to the past, asked of a real daemon: who may, what is kept of them, and what they cannot do to it."""

from __future__ import annotations

import os
import pwd
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timedelta

import pytest

from dbguardd.errors import NotFound
from dbguardd.worker.start import environment
from tests.process.house import House, add, rows, until

NEEDLE = "a row that nobody may keep"
ENDLESS = "with recursive r(n) as (select 1 union all select n + 1 from r) select count(*) from r"


def guarded(house: House, *lines: str) -> str:
    """Protect a database whose note 7 holds the needle; start the daemon, back up, and return the id."""
    path = house.database("app", blob=500)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("update note set text = ? where id = 7", (NEEDLE,))
    house.protects(house.table("app", *lines))
    house.start()
    id = str(house.does("backup", "app")["backup"]["id"])
    house.idle()  # what follows from it is over: the halves that run now are those of a question
    return id


def fetch(house: House, job: str) -> str:
    """Return the answer of a job."""
    return b"".join(house.api.download("jobs", job, "answer")).decode()


def test_a_row_of_the_past_is_found_without_restoring(house: House) -> None:
    first = guarded(house)
    with closing(sqlite3.connect(house.place / "app.db")) as db, db:
        db.execute("delete from note where id = 7")
        db.execute("update note set text = 'other' where id = 8")
        db.execute("insert into note (id, text) values (99, 'new')")
    second = house.does("backup", "app")["backup"]["id"]
    house.idle()
    before = sorted(str(path) for path in house.place.rglob("*"))
    found = house.does("query", "app", "--id", first, "select id, text from note where id = 7")
    assert (found["schema"], found["backup"], found["grade"]) == ("dbguard.query/1", first, "proven")
    assert (found["columns"], found["rows"], found["more"]) == (["id", "text"], [[7, NEEDLE]], None)
    assert house.does("query", "app", "select id from note where id = 7")["rows"] == []
    changed = house.does("diff", "app", "--from", first)
    assert (changed["older"]["backup"], changed["newer"]["backup"]) == (first, second)
    assert [(row["change"], row["key"]["id"]) for row in changed["changes"]] == [
        ("removed", 7), ("changed", 8), ("added", 99),
    ]  # fmt: skip
    assert changed["tables"][0] | {"added": 1, "removed": 1, "changed": 1} == changed["tables"][0]
    told = house.ctl("diff", "app", "--from", first, "--summary")
    assert "note" in told.out and NEEDLE not in told.out
    told = house.ctl("query", "app", "--id", first, "--csv", "select text from note where id in (7, 8)")
    assert told.out == f"text\n{NEEDLE}\nnote 7\n"
    assert f"backup {first}, proven" in told.err
    assert sorted(str(path) for path in house.place.rglob("*")) == before
    house.is_sound()


def test_a_deleted_row_comes_back_by_the_hand_of_the_administrator(house: House) -> None:
    first, path, script = guarded(house), house.place / "app.db", house.place / "back.sql"
    refused = house.fails("DBG-0001", 2, "undelete", "app", "--table", "note", "--id", first)
    assert refused["hints"] == ["dbguardctl backup app"]  # "nothing is missing" would be true of the backup only
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("delete from note where id > 40 or id = 7")
    house.does("backup", "app")
    live = path.read_bytes()
    words = ["undelete", "app", "--table", "note", "--id", first, "--where", f"text = '{NEEDLE}'"]
    shown = house.does(*words)
    assert (shown["missing"], shown["rows"][0][:2]) == (1, [7, NEEDLE])
    written = house.does(*words, "--to", str(script))
    assert (written["missing"], written["to"], path.read_bytes()) == (1, str(script), live)
    subprocess.run(["sqlite3", "-bail", path], input=script.read_bytes(), check=True, timeout=60)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("select text from note where id = 7").fetchall() == [(NEEDLE,)]
        assert db.execute("select count(*) from note").fetchall() == [(40,)]
        db.execute("update note set text = 'all of them'")
        db.commit()
    house.does("backup", "app")
    assert house.does(*words)["differing"] == 1
    assert house.does(*words[:-2], "--changed", "--to", str(house.place / "set.sql"))["differing"] == 40
    subprocess.run(["sqlite3", "-bail", path], input=(house.place / "set.sql").read_bytes(), check=True, timeout=60)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("select text from note where id = 7").fetchall() == [(NEEDLE,)]


def test_who_asks_for_a_table_too_late_is_told_which_backup_had_it(house: House) -> None:
    guarded(house)
    with closing(sqlite3.connect(house.place / "app.db")) as db, db:  # one that stays: it has not lost everything
        db.executescript("create table left_over (a); insert into left_over values (1)")
    first = str(house.does("backup", "app")["backup"]["id"])
    with closing(sqlite3.connect(house.place / "app.db")) as db, db:
        db.execute("drop table note")
    house.does("backup", "app")
    house.does("backup", "app")
    out = str(house.place / "table.sql")
    problem = house.fails("DBG-0001", 2, "get", "app", "--table", "Note", "--to", out)
    assert f"Backup {first} of" in problem["detail"]
    assert problem["hints"] == [f"dbguardctl get app --table Note --id {first} --to table.sql"]
    assert house.does(*problem["hints"][0].split()[1:-1], out)["rows"] == 50
    refused = house.fails("DBG-2008", 2, "undelete", "app", "--table", "note", "--id", first)
    assert refused["hints"] == [f"dbguardctl get app --table note --id {first} --to table.sql"]
    assert house.fails("DBG-0001", 2, "get", "app", "--table", "never", "--to", f"{out}.2")["hints"] == []


def test_a_table_is_taken_out_whole_or_not_at_all(house: House) -> None:
    first, out = guarded(house), house.place / "note.sql"
    taken = house.does("get", "app", "--table", "note", "--to", str(out))
    assert (taken["backup"], taken["rows"], taken["to"]) == (first, 50, str(out))
    subprocess.run(["sqlite3", "-bail", house.place / "copy.db"], input=out.read_bytes(), check=True, timeout=60)
    found = []
    for name in ("app.db", "copy.db"):
        with closing(sqlite3.connect(house.place / name)) as db:
            found.append(db.execute("select id, text, body from note").fetchall())
    assert found[0] == found[1]
    written = out.read_bytes()
    house.fails("DBG-6002", 10, "get", "app", "--table", "note", "--to", str(out))
    assert out.read_bytes() == written
    house.fails("DBG-0001", 2, "get", "app", "--table", "nots", "--to", str(house.place / "none.sql"))
    assert not (house.place / "none.sql").exists()
    assert house.ctl("get", "app", "--table", "note", "--to", "-").out.encode() == written
    told = house.ctl("get", "app", "--table", "note", "--format", "csv")
    assert told.out.splitlines()[7].startswith(f"7,{NEEDLE},")


def test_what_was_found_is_kept_nowhere_and_what_was_asked_is(house: House) -> None:
    first = guarded(house)
    asked = "select text from note where id = 7 and 12345 = 12345"
    job = house.submit("query", "app", sql=asked)
    assert house.ended(job)["state"] == "done"
    assert NEEDLE in fetch(house, job)
    with pytest.raises(NotFound):
        fetch(house, job)  # it is given once
    house.does("get", "app", "--table", "note", "--format", "csv", "--to", str(house.place / "out"))
    house.does("diff", "app", "--from", first, "--to", first)
    house.fails("DBG-0001", 2, "query", "app", "select json_extract('{}', text) from note where id = 7")
    row = house.job(job)
    assert row["request"]["sql"] == asked
    assert row["result"] | {"rows": 1, "more": None, "backup": first} == row["result"]
    audited = [entry for entry in house.audit() if entry["action"] == "job.query" and entry["object"] == "app"]
    assert [entry["outcome"] for entry in audited[:3]] == ["asked", "intent", "done"]
    assert audited[0]["facts"]["request"]["sql"] == asked
    house.is_sound()
    for path in [house.log, *(path for path in house.state.rglob("*") if path.is_file())]:
        assert NEEDLE.encode() not in path.read_bytes(), path


def test_who_may_restore_may_ask_and_nobody_gets_the_answer_of_another(house: House, users: list[int]) -> None:
    first = guarded(house)
    house.does("backup", "app")
    one, other, stranger = users
    names = {uid: pwd.getpwuid(uid).pw_name for uid in users}
    access = f'[access]\noperate = ["{names[one]}", "{names[other]}"]\nread = ["{names[stranger]}"]\n'
    house.protects(house.table("app"), more=access)
    house.does("reload")
    said = house.ctl("--json", "query", "app", "select text from note where id = 7", uid=one)
    assert said.json["rows"] == [[NEEDLE]]
    for words in (["query", "app", "select 1"], ["get", "app", "--table", "note"], ["diff", "app", "--from", "now"]):
        assert house.ctl(*words, uid=stranger).status == 5
    looked_for = f"id = 7 and text = '{NEEDLE}'"
    undelete = ["undelete", "app", "--table", "note", "--id", first, "--where"]
    assert house.ctl(*undelete, looked_for, uid=one).status == 0
    wrong = house.ctl("--json", "query", "app", f"select nope('{NEEDLE}')", uid=one)
    assert wrong.status == 2 and NEEDLE in wrong.err  # who asked is told what is wrong with it
    asked = [row for row in house.jobs() if row["verb"] in ("query", "undelete")]
    assert {row["id"] for row in asked if NEEDLE in str(row)} == {row["id"] for row in asked[:2]}
    looking = [["job", "list"], ["events"], ["audit", "show"], ["log", "app"]]
    looking += [[*show, row["id"]] for show in (["job", "show"], ["show"]) for row in asked]
    for words in looking:
        for uid, told in (
            (stranger, False),
            (other, words[0] in ("job", "audit", "show") and asked[2]["id"] not in words),
        ):
            said = house.ctl("--json", *words, uid=uid)
            assert said.status in (0, 3) and (NEEDLE in said.out) is told, (words, uid, said.out)
    said = house.ctl("job", "show", asked[0]["id"], uid=stranger)
    assert "not shown  sql: only for users who may ask this" in said.out and "DBG-0001 Wrong usage" in said.out
    assert NEEDLE.encode() not in house.log.read_bytes()
    job = house.submit("query", "app", sql="select text from note where id = 7")  # as whoever runs the test
    assert house.ended(job)["state"] == "done"
    script = (
        "import sys; from dbguardctl.client import Daemon\n"
        "print(b''.join(Daemon(sys.argv[1]).download('jobs', sys.argv[2], 'answer')).decode())"
    )
    argv = [house.python, "-c", script, str(house.socket), job]
    theirs = subprocess.run(argv, user=other, group=other, extra_groups=[], cwd="/", capture_output=True, text=True,
                            check=False)  # fmt: skip
    assert theirs.returncode != 0
    assert "no answer is kept for this user" in theirs.stderr
    assert NEEDLE in fetch(house, job)


# ------------------------------------------------------------------------------------------------ refused, wrong


def test_a_text_backup_is_refused_with_what_to_do(house: House) -> None:
    first = guarded(house, 'method = "dump"')
    problem = house.fails("DBG-2008", 2, "query", "app", "select 1")
    assert problem["hints"] == [f"dbguardctl restore app --id {first} --to PLACE"]
    house.fails("DBG-2008", 2, "get", "app", "--table", "note", "--to", str(house.place / "x"))
    house.fails("DBG-2008", 2, "diff", "app", "--from", first)


def test_wrong_questions_are_told_what_is_wrong(house: House) -> None:
    guarded(house)
    problem = house.fails("DBG-0001", 2, "query", "app", "select * from nots")
    assert "Did you mean note?" in problem["detail"]
    house.fails("DBG-0004", 8, "query", "app", "--at", "2001-01-01 00:00", "select 1")
    house.fails("DBG-0004", 8, "diff", "app", "--from", "2001-01-01 00:00")
    house.fails("DBG-0004", 8, "query", "nothing", "select 1")
    house.fails("DBG-6005", 1, "query", "app", ENDLESS, "--seconds", "1")
    house.fails("DBG-0001", 2, "query", "app", "attach '/etc/passwd' as x")
    house.fails("DBG-0001", 2, "query", "app", "select 1", "--rows", "2000000")


def test_a_database_that_left_the_policy_can_still_be_asked(house: House) -> None:
    guarded(house)
    house.database("other")
    house.protects(house.table("other"))
    house.does("config", "accept")
    (house.place / "app.db").unlink()
    assert house.does("query", "app", "select text from note where id = 7")["rows"] == [[NEEDLE]]


def test_damage_that_a_question_meets_is_remembered_of_the_backup(house: House) -> None:
    first = guarded(house)
    house.idle()
    packs = sorted((house.store / "packs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(packs[-1].read_bytes())
    data[200:300] = bytes(100)
    packs[-1].chmod(0o600)
    packs[-1].write_bytes(data)
    problem = house.fails("DBG-4001", 4, "query", "app", "select count(body) from note")
    assert problem["hints"][0] == "dbguardctl check app --data"
    (row,) = house.backups("app")
    assert (row["id"], row["grade"]) == (first, "stored")
    assert "question: DBG-4001" in row["failure"]
    assert house.status("app")["state"] != "safe"


# ------------------------------------------------------------------------------------------------ ends


@pytest.mark.parametrize("half", ["question", "repository"])
def test_a_half_that_is_killed_fails_the_question_and_nothing_else(house: House, half: str) -> None:
    guarded(house)
    job = house.submit("query", "app", sql=ENDLESS, seconds=600)
    until(lambda: half in house.workers() and house.job(job)["step"] == "answer", lambda: house.job(job))
    os.kill(house.workers()[half], signal.SIGKILL)
    row = house.ended(job)
    assert row["problem"]["code"] == "DBG-8001" and f"The {half} half ended with signal SIGKILL." in row["stderr_tail"]
    until(lambda: not house.workers(), house.workers)
    assert house.does("query", "app", "select 1")["rows"] == [[1]]


def test_a_question_can_be_cancelled_and_is_in_nobodys_way(house: House) -> None:
    guarded(house)
    job = house.submit("query", "app", sql=ENDLESS, seconds=600)
    until(lambda: house.job(job)["step"] == "answer", lambda: house.job(job))
    add(house.place / "app.db")
    assert house.does("backup", "app")["backup"]["kind"] == "incremental"  # it goes on beside
    house.does("job", "cancel", job)
    assert house.ended(job)["state"] == "cancelled"
    until(lambda: not house.workers(), house.workers)
    assert rows(house.place / "app.db") == 60


def test_questions_by_hand_need_no_daemon(house: House) -> None:
    first = guarded(house)
    house.idle()
    house.stop()
    run = [sys.executable, "-m", "dbguardd", "--policy", house.policy, "--state", house.state, "run"]

    def by_hand(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*run, *words], capture_output=True, text=True, check=False, cwd="/",
                              env={**environment(), **os.environ})  # fmt: skip

    asked = by_hand("query", "app", "select id, text from note where id = 7")
    assert (asked.returncode, asked.stdout) == (0, f'["id","text"]\n[7,"{NEEDLE}"]\n'), asked.stderr
    assert f"ok  1 row from backup {first}" in asked.stderr
    taken = by_hand("get", "app", "--table", "note", "--format", "csv")
    assert (taken.returncode, len(taken.stdout.splitlines())) == (0, 51)
    same = by_hand("diff", "app", "--older", first)
    assert "ok  0 of 1 table differ: 0 rows added, 0 rows removed, 0 rows changed" in same.stderr
    wrong = by_hand("query", "app", "select * from nots")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    house.start()


def test_an_answer_that_nobody_fetches_is_no_file(house: House) -> None:
    guarded(house)
    before = set(house.state.rglob("*"))
    job = house.submit("query", "app", sql="select text from note")
    assert house.ended(job)["state"] == "done"
    assert {path for path in house.state.rglob("*") if path not in before and "catalog" not in path.name} == set()
    house.kill()
    assert {path for path in house.state.rglob("*") if path not in before and "catalog" not in path.name} == set()
    house.start()
    with pytest.raises(NotFound):
        fetch(house, job)


def test_the_answer_is_from_the_time_that_is_asked(house: House) -> None:
    first = guarded(house)
    add(house.place / "app.db")
    second = house.does("backup", "app")["backup"]["id"]
    made = datetime.fromisoformat(house.does("show", first)["backup"]["created_at"])
    for at, backup, count in (
        ((made + timedelta(milliseconds=1)).isoformat(), first, 50),
        ("now", second, 60),
    ):
        found = house.does("query", "app", "--at", at, "select count(*) from note")
        assert (found["backup"], found["rows"]) == (backup, [[count]])
