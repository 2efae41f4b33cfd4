"""A database whose log is followed: any moment of it comes back, and what was missed is said to be."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.process.house import House, until

WRITER = """
import datetime, os, sqlite3, sys, time
path, ledger, pause = sys.argv[1:]
now = lambda: datetime.datetime.now(datetime.timezone.utc).isoformat()
db = sqlite3.connect(path, isolation_level=None, timeout=30)
number = db.execute("select coalesce(max(id), 0) from note").fetchone()[0]
with open(ledger, "a") as file:
    while True:
        begun, number = now(), number + 1
        db.execute("insert into note (id, text, body) values (?, ?, randomblob(700))", (number, begun))
        file.write(f"{number} {begun} {now()}\\n")
        file.flush()
        time.sleep(float(pause))
"""


@contextmanager
def writing(house: House, name: str = "app", pause: float = 0.002) -> Iterator[None]:
    """An application that commits all the time and writes down what was acknowledged, until the block ends."""
    argv = [sys.executable, "-c", WRITER, str(house.place / f"{name}.db"), str(house.place / "ledger"), str(pause)]
    process = subprocess.Popen(argv)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ledger(house: House) -> list[tuple[int, datetime, datetime]]:
    """What was committed: number, when it was begun and when it was acknowledged."""
    rows = [line.split() for line in (house.place / "ledger").read_text().splitlines() if line.count(" ") == 2]
    return [(int(n), datetime.fromisoformat(begun), datetime.fromisoformat(done)) for n, begun, done in rows]


def committed(house: House) -> int:
    """How many commits were acknowledged up to now."""
    with suppress(FileNotFoundError):
        return len((house.place / "ledger").read_text().splitlines())
    return 0


def spoil(piece: Path) -> None:
    """Change the last byte of an object."""
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.chmod(0o600)
    piece.write_bytes(data)


def pieces(house: House) -> list[Path]:
    """Return the objects of the stored log, oldest first."""
    return sorted(path for path in (house.store / "log").rglob("*") if path.is_file())


def more(house: House, commits: int) -> None:
    """Wait for so many further commits."""
    target = committed(house) + commits
    until(lambda: committed(house) > target, "commits")


def numbers(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        return [row[0] for row in db.execute("select id from note order by id")]


def is_as_it_was(house: House, path: Path, moment: datetime, before: int) -> None:
    """Assert that a restored file holds every commit that had returned before a moment, none missing, few more.

    What is stored as of a moment was read after it: no commit begun after the file was written can be in it. A writer
    that was killed may not have written down its last commit.
    """
    found, book = numbers(path), ledger(house)
    assert found == list(range(1, len(found) + 1))
    told = moment - timedelta(milliseconds=1)  # moments are told in whole milliseconds, the next one
    assert len(found) >= max([before, *(number for number, _, done in book if done < told)])
    written = [datetime.fromtimestamp(piece.stat().st_mtime, UTC) for piece in pieces(house)]
    stored = min((at for at in written if at >= moment), default=moment) + timedelta(seconds=2)
    begun = [number for number, begin, _ in book if begin <= stored]
    assert len(found) <= max([before, *begun]) + 1


def restored(house: House, at: str, name: str) -> tuple[Path, datetime, Any]:
    """Restore a moment (or the newest, if empty) to a new place."""
    place = house.place / name
    answer = house.does("restore", "app", *(("--at", at) if at else ()), "--to", str(place))
    plan = answer["job"]["result"]["plan"] if "result" in answer.get("job", {}) else answer["plan"]
    return place, datetime.fromisoformat(plan["created_at"]), plan


def followed(house: House) -> Any:
    """Wait until the log of the database is followed from a proven backup on, up to now; return the status."""
    now = datetime.now(UTC)

    def reaches() -> Any:
        row = house.status("app")
        reached = datetime.fromisoformat(row["recoverable_to_at"] or "1970-01-01T00:00Z")
        return row if reached > now and not house.jobs(state="running") else None

    return until(reaches, lambda: (house.status("app"), house.log.read_text()[-3000:]))


def logged(house: House) -> list[Any]:
    """The stretches of time that `list` tells of."""
    return list(house.does("list", "app")["log"])


def begin(house: House, *lines: str) -> Path:
    """Protect a database continuously, and wait until it is."""
    path = house.database("app", rows=3, wal=True)
    house.protects(house.table("app", "continuous = true", *lines))
    house.start()
    house.does("backup", "app", "--verify")
    followed(house)
    return path


def test_any_moment_comes_back_with_what_was_committed_until_then(house: House) -> None:
    begin(house)
    with writing(house):
        until(lambda: committed(house) > 200, "commits")
        moments, told = [], []
        for _ in range(4):
            told.append(datetime.fromisoformat(house.status("app")["recoverable_to_at"]))
            moments.append(datetime.now(UTC))
            more(house, 150)
            until(lambda: datetime.fromisoformat(house.status("app")["recoverable_to_at"]) > moments[-1], "its log")
        for index, moment in enumerate(moments):
            place, reached, plan = restored(house, moment.isoformat(), f"at-{index}.db")
            assert reached <= moment + timedelta(milliseconds=1), (told, moments)
            assert plan["segments"] > 0
            # what was told may be later by as long as nothing was committed: no segment has that time
            is_as_it_was(house, place, max(reached, told[index]), 3)
    place, reached, _ = restored(house, "", "newest.db")
    assert reached > moments[-1]
    is_as_it_was(house, place, reached, 3)
    (stretch,) = logged(house)
    assert stretch["since_at"] < moments[0].isoformat() < stretch["until_at"]
    assert house.status("app")["state"] == "safe"
    house.protects()  # as on a new machine, whose policy does not name it: its log is no less there
    house.does("reload")
    assert house.status("app")["state"] == "orphaned"
    until(lambda: house.status("app")["recoverable_to_at"] == logged(house)[-1]["until_at"], "the end of its log")
    assert house.status("app")["recoverable_to_at"] > max(row["created_at"] for row in house.backups("app"))


def test_a_killed_daemon_goes_on_or_says_what_it_missed(house: House) -> None:
    """kill -9 beside a busy application: whatever is claimed to be covered comes back right."""
    begin(house)
    with writing(house):
        for _ in range(3):
            more(house, 300)
            house.kill()
            more(house, 100)  # the application goes on without us
            house.start()
            followed(house)
    stretches = logged(house)
    assert stretches
    for index, stretch in enumerate(stretches):
        since, end = (datetime.fromisoformat(stretch[name]) for name in ("since_at", "until_at"))
        for part in (0.3, 0.7):
            moment = since + (end - since) * part
            place, reached, _ = restored(house, moment.isoformat(), f"{index}-{part}.db")
            assert reached <= moment + timedelta(milliseconds=1)
            is_as_it_was(house, place, reached, 3)
    assert house.does("check", "app", "--data")["job"]["state"] == "done"


def test_an_idle_database_is_let_be_and_a_stop_makes_no_gap(house: House) -> None:
    path = begin(house)
    with writing(house):
        until(lambda: committed(house) > 50, "commits")
    followed(house)
    followed(house)
    store = sorted((house.store / "log").rglob("*"))
    with closing(sqlite3.connect(path)):  # the application is there, and does nothing
        was = house.status("app")["recoverable_to_at"]
        until(lambda: house.status("app")["recoverable_to_at"] > was, "it is known to be idle")
        assert sorted((house.store / "log").rglob("*")) == store
        assert house.stop() == 0
        house.start()
        followed(house)
        assert [event["continued"] for event in house.events("log.begun")][-1] is True
        assert len(logged(house)) == 1


def test_what_is_replaced_in_place_is_followed_again_and_can_be_undone(house: House) -> None:
    path = begin(house)
    with writing(house):
        until(lambda: committed(house) > 100, "commits")
        followed(house)
        moment = datetime.now(UTC)
        followed(house)
        in_place = ("restore", "app", "--at", moment.isoformat(), "--in-place", "--confirm", "app")
        problem = house.fails("DBG-6003", 10, *in_place)
        assert "python" in problem["message"]
    everything = numbers(path)
    house.does(*in_place)
    assert 100 <= len(numbers(path)) < len(everything)
    assert numbers(path) == everything[: len(numbers(path))]
    followed(house)
    first, *anew = house.events("log.begun")
    assert anew and "restore in place" not in first["because"]
    assert all("restore in place" in event["because"] for event in anew), anew
    house.does("restore", "undo", "app", "--confirm", "app")
    assert numbers(path)[: len(everything)] == everything  # and the commit that the writer was killed in, if any
    until(lambda: len(house.workers()) == 2 and not house.jobs(state="running"), "followed again")


def test_a_pause_rests_the_schedule_and_not_the_log(house: House) -> None:
    begin(house)
    assert "Its log is still followed" in house.ctl("pause", "app").out
    with writing(house):
        more(house, 50)
        followed(house)
    house.does("resume", "app")
    followed(house)
    assert len(logged(house)) == 1


def test_a_look_at_a_restore_in_place_and_one_that_is_refused_leave_the_log_whole(house: House) -> None:
    begin(house)
    with writing(house, pause=0.0005):
        more(house, 500)
        plan = house.does("restore", "app", "--in-place", "--dry-run")["plan"]
        assert plan["in_use"]
        assert "python" in plan["warnings"][-1]
        more(house, 2000)
        problem = house.fails("DBG-6003", 10, "restore", "app", "--in-place", "--confirm", "app")
        assert "python" in problem["message"]
        more(house, 2000)
        followed(house)
    assert len(house.events("log.begun")) == 1
    assert not house.does("restore", "app", "--in-place", "--dry-run")["plan"]["in_use"]


def test_a_log_goes_on_over_a_new_machine_key_and_a_new_sheet(house: House) -> None:
    """And over the end of the old sheet: what was stored before is read as well as what is stored after."""
    path = begin(house)
    old = house.does("key", "recovery-sheet", "main")
    with writing(house, pause=0.02):
        more(house, 20)
        moments = [datetime.now(UTC)]
        followed(house)
        (house.state / "machine.key").unlink()
        assert house.ctl("--json", "key", "recover", "main", stdin=f"{old['identity']}\n").status == 0
        house.does("key", "recovery-sheet", "main")
        house.does("key", "recovery-drop", old["recipient"], "main", "--confirm", old["recipient"])
        moments.append(datetime.now(UTC))
        followed(house)
    with closing(sqlite3.connect(path)):  # it writes nothing: else its log may begin anew while nobody follows it
        assert house.stop() == 0  # the next follower opens the repository with the new key
        house.start()
        followed(house)
    with writing(house):
        more(house, 20)
        moments.append(datetime.now(UTC))
        followed(house)
    assert [event["continued"] for event in house.events("log.begun")] == [False, True]
    for index, moment in enumerate(moments):
        place, reached, _ = restored(house, moment.isoformat(), f"{index}.db")
        is_as_it_was(house, place, reached, 3)


def test_nobody_follows_what_the_policy_does_not_say(house: House) -> None:
    begin(house)
    house.protects(house.table("app"))
    house.does("reload")
    until(lambda: not house.workers(), "nobody follows")


def test_a_database_without_a_log_says_so(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", "continuous = true"))
    house.start()
    house.does("backup", "app", "--verify")
    row = until(lambda: (row := house.status("app"))["state"] == "late" and row, lambda: house.status("app"))
    assert "not WAL" in row["attention"][0]
    assert f"sqlite3 {path} 'PRAGMA journal_mode=WAL'" in row["hints"]
    other = house.database("other")
    problem = house.fails("DBG-2008", 2, "protect", str(other), "--continuous")
    assert f"sqlite3 {other} 'PRAGMA journal_mode=WAL'" in problem["hints"]
    assert 'backup = "every 1min"' in problem["detail"]
    assert 'backup = "every 1min"' in house.ctl("log", "app", "-v").out
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma journal_mode = wal")
    followed(house)
    assert house.status("app")["state"] == "safe"


def test_the_log_goes_when_it_is_older_than_keep_log(house: House) -> None:
    begin(house, 'keep_log = "1s"', "keep = { last = 9 }")
    with writing(house):
        until(lambda: committed(house) > 300, "commits")
    followed(house)
    newest = max(piece.stat().st_mtime for piece in pieces(house))
    until(lambda: time.time() > newest + 1.1, "all of it to be old")
    plan = house.does("prune", "app", "--dry-run")["expire"][0]["result"]["plan"]
    assert plan["log"]["objects"] <= 1  # what goes on from the newest backup stays, however old it is
    house.does("backup", "app", "--verify")
    house.idle()
    assert house.events("log.forgotten")
    assert len(pieces(house)) <= 1
    assert house.does("check", "app", "--data")["job"]["state"] == "done"
    with writing(house):
        more(house, 100)
        house.does("backup", "app", "--verify")
        more(house, 100)
        followed(house)
    place, reached, plan = restored(house, "", "newest.db")
    assert plan["segments"] > 0
    is_as_it_was(house, place, reached, 3)


def test_a_proof_tries_the_log_too_and_a_damaged_one_is_told(house: House) -> None:
    begin(house)
    with writing(house):
        more(house, 200)
        followed(house)
    begun = house.events("log.begun")[0]["at"]
    found = house.does("backup", "app", "--verify")["proof_job"]["result"]["log"]
    assert found["outcome"] == "ok", found
    proof = house.status("app")["log_proof"]
    assert begun[:19] <= proof["moment_at"] <= proof["proven_at"]
    assert proof["moment_at"][:23] in found["detail"]
    assert house.does("list", "app")["log_proof"] == proof
    assert re.search("its log proven +(today|yesterday)", house.ctl("status", "app").out)
    with writing(house):
        more(house, 200)
        followed(house)
        spoil(pieces(house)[-1])
        more(house, 200)
        followed(house)
    problem = house.fails("DBG-6001", 4, "backup", "app", "--verify")
    assert "the backups are not affected" in problem["message"]
    assert house.status("app")["state"] == "failing"
    house.does("backup", "app", "--verify")
    assert followed(house)["state"] == "safe"


def test_a_moment_of_the_log_can_be_asked_without_restoring_it(house: House) -> None:
    begin(house)
    with writing(house):
        more(house, 150)
        followed(house)
        moment = datetime.now(UTC)
        followed(house)
        more(house, 100)
    followed(house)  # what is asked of the newest from here on is asked of the same moment
    count = ("query", "app", "select count(*), max(id), sum(length(body)) from note")
    place, _, plan = restored(house, moment.isoformat(), "then.db")
    answer = house.does(*count, "--at", moment.isoformat())
    with closing(sqlite3.connect(place)) as db:
        assert tuple(answer["rows"][0]) == db.execute(count[2]).fetchone()
    assert (answer["created_at"], answer["segments"]) == (plan["created_at"], plan["segments"])
    assert answer["sum_compared"] is False
    assert "only a restore proves all of it" in house.ctl(*count, "--at", moment.isoformat()).err
    assert house.does(*count)["rows"][0][0] > answer["rows"][0][0]
    (found,) = house.does("diff", "app", "--from", moment.isoformat())["tables"]
    assert found["added"] == house.does(*count)["rows"][0][0] - answer["rows"][0][0]
    taken = house.ctl("get", "app", "--table", "note", "--at", moment.isoformat()).out
    assert taken.startswith(f"-- Made by dbguard: note of app, backup {plan['backup']} at {plan['created_at']}. Run: ")


def test_damage_of_the_log_is_not_blamed_on_the_backup(house: House) -> None:
    begin(house)
    with writing(house):
        more(house, 300)
        followed(house)
    house.stop()
    for piece in pieces(house)[1:]:
        spoil(piece)
    house.start()
    house.idle()
    said = house.ctl(
        "--json", "restore", "app", "--at", ledger(house)[150][2].isoformat(), "--to", f"{house.place}/x.db"
    )
    assert said.status in (0, 4)
    assert not [row for row in house.backups("app") if row["failure"]]


def test_a_missing_segment_is_found_and_nothing_is_restored_over_it(house: House) -> None:
    begin(house)
    with writing(house):
        until(lambda: committed(house) > 200, "commits")
        moment = datetime.now(UTC)
        until(lambda: len(pieces(house)) > 2, "a segment between two")
        followed(house)
    house.stop()
    found = pieces(house)
    found[len(found) // 2].unlink()
    house.start()
    said = house.ctl("--json", "check", "app")
    assert said.status == 4
    assert "lacks its segments" in said.out
    place, reached, _ = restored(house, moment.isoformat(), "before.db")
    assert reached < moment
    is_as_it_was(house, place, reached, 3)


def test_recover_py_reaches_the_same_moment(house: House) -> None:
    begin(house)
    with writing(house):
        until(lambda: committed(house) > 300, "commits")
        moment = datetime.now(UTC)
        followed(house)
    place, reached, plan = restored(house, moment.isoformat(), "by-dbguard.db")
    argv = [
        sys.executable,
        house.store / "recover/recover.py",
        "--machine-key",
        house.state / "machine.key",
        house.store,
    ]
    target = house.place / "by-hand"
    done = subprocess.run([*argv, "restore", plan["backup"], target, "--until", reached.isoformat()],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert "the log was applied up to" in done.stdout
    assert (target / "database").read_bytes() == place.read_bytes()
    listed = subprocess.run([*argv, "list"], capture_output=True, text=True, check=True).stdout
    assert "the log of app ends at" in listed
    assert "restore BACKUP TARGET --until MOMENT, where BACKUP is the newest one made before MOMENT" in listed
    assert json.loads((target / "facts.dbguard.json").read_text())["log"]["chain"]


def test_what_was_changed_past_the_log_alarms_and_begins_it_anew(house: House) -> None:
    path = begin(house)
    with writing(house):
        until(lambda: committed(house) > 200, "commits")
    with closing(sqlite3.connect(path, isolation_level=None)) as user:
        followed(house)
        moved = "pragma wal_checkpoint(truncate)"
        until(lambda: user.execute(moved).fetchone() == (0, 0, 0), "all of the log to be in the file")
        user.execute("create table other (x)")  # the log that is stored ends with this, and has few pages
        followed(house)
        assert house.stop() == 0
        page = path.stat().st_size // 4096 // 2  # past SQLite, which reads it raw in no other process
        flip = f"f = open({str(path)!r}, 'r+b'); f.seek({page * 4096 + 2000}); b = f.read(1); f.seek(-1, 1); "
        subprocess.run([sys.executable, "-c", flip + "f.write(bytes([b[0] ^ 1]))"], check=True)
        house.start()
        (found,) = until(lambda: house.events("log.audited"), house.log.read_text)
        assert found["level"] == "error"
        assert "followed last" in found["message"]
        until(lambda: len(house.events("log.begun")) == 3, house.log.read_text)
        followed(house)
        with writing(house):
            more(house, 50)
        followed(house)
        # A log without a commit is no stretch yet.
        until(lambda: len(house.coverage("app")) == 2, lambda: str(logged(house)))
    _, _, plan = restored(house, "", "newest.db")
    assert plan["segments"] > 0


def test_who_lets_the_log_grow_is_named(house: House) -> None:
    path = begin(house)
    hold = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('begin'); "
    argv = [sys.executable, "-c", hold + "db.execute('select * from note').fetchone(); sys.stdin.read()", path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as reader, closing(sqlite3.connect(path)) as db:
        until(lambda: Path(f"/proc/{reader.pid}/fd").exists() and in_use(path, reader.pid), "a reader")

        def told() -> Any:
            with db:
                db.execute("insert into note (body) values (randomblob(2000000))")
            return [line for line in house.status("app")["attention"] if f"process {reader.pid} (" in line]

        (line,) = until(told, lambda: house.status("app"))
        assert "cannot be reset" in line
        assert house.events("log.held")[-1]["by"][0].startswith(f"process {reader.pid} (")
        assert reader.stdin is not None
        reader.stdin.close()
        reader.wait()
    said = lambda: str(house.status("app")["attention"])  # noqa: E731
    until(lambda: "cannot be reset" not in said(), said)


def in_use(path: Path, pid: int) -> bool:
    """Say if a process holds a read mark."""
    inode = f":{path.with_name(f'{path.name}-shm').stat().st_ino}"
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(row[4] == str(pid) and row[5].endswith(inode) and row[6] in ("123", "124", "125") for row in rows)
