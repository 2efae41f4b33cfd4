"""A live database is replaced: not while somebody uses it, whole or not at all, and back again."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.process.house import House, add, rows

READER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("select count(*) from note").fetchone()[0], flush=True)
sys.stdin.read()
"""


@contextmanager
def reading(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run an application that has read from the database and has it open, holding no lock."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", READER, str(path)], **pipes)
    try:
        assert process.stdout is not None and int(process.stdout.readline()) > 0
        yield process
    finally:
        process.kill()
        process.communicate()


def mode(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        return str(db.execute("pragma journal_mode").fetchone()[0])


@pytest.mark.parametrize("wal", [True, False], ids=["wal", "rollback journal"])
def test_in_place_and_back(house: House, wal: bool) -> None:
    path = house.database("app", wal=wal)
    path.chmod(0o640)
    house.protects(house.table("app"))
    house.start()
    first = house.does("backup", "app")["backup"]["id"]
    add(path, 25)
    house.idle()
    in_place = ("restore", "app", "--id", first, "--in-place")

    with reading(path) as reader:
        house.fails("DBG-6004", 10, *in_place)  # the name was not typed
        house.fails("DBG-6004", 10, *in_place, "--confirm", "abb")
        plan = house.does(*in_place, "--dry-run")["plan"]
        assert (plan["in_place"], plan["to"], plan["backup"]) == (True, str(path), first)
        assert f"in use by process {reader.pid} (" in plan["warnings"][-1]
        shown = house.ctl(*in_place, "--dry-run").out
        assert f"restore app --id {first} --in-place --confirm app" in shown
        kept = [row["id"] for row in house.backups("app")]
        said = house.ctl(*in_place, "--confirm", "app")
        assert (said.status, "DBG-6003" in said.err) == (10, True)
        assert f"process {reader.pid} (" in said.err and f"ps -fp {reader.pid}" in said.err
        assert [row["id"] for row in house.backups("app")] == kept  # no copy was made for nothing
        assert rows(path) == 75
    about = path.stat()

    done = house.does(*in_place, "--confirm", "app")
    assert rows(path) == 50
    assert mode(path) == ("wal" if wal else "delete")
    assert (path.stat().st_uid, path.stat().st_mode) == (about.st_uid, about.st_mode)
    safety = next(row for row in house.backups("app") if row["id"] == done["safety_copy"])
    assert safety["holds"] == ["restore undo"]
    add(path, 5)  # life goes on
    assert house.does("backup", "app")["proof"]["grade"] == "proven"
    house.idle()

    house.fails("DBG-6004", 10, "restore", "undo", "app")
    with reading(path):
        house.fails("DBG-6003", 10, "restore", "undo", "app", "--confirm", "app")
    assert rows(path) == 55
    said = house.ctl("restore", "undo", "app", "--confirm", "app")
    assert said.status == 0 and "UNSURE" not in said.out and "undoes the undo" not in said.err
    undone = house.job(next(row["id"] for row in house.jobs(database="app") if row["verb"] == "undo"))["result"]
    assert rows(path) == 75
    assert mode(path) == ("wal" if wal else "delete")
    assert undone["safety_copy"]
    said = house.ctl("restore", "undo", "app", "--confirm", "app")  # and that can be undone as well
    assert said.status == 0 and "this undoes the undo" in said.err
    assert rows(path) == 55
    house.idle()
    assert sorted(p.name for p in house.place.glob("*app*") if not p.name.endswith(("-wal", "-shm"))) == ["app.db"]
    audit = [(e["outcome"], e["facts"].get("request", {}).get("in_place")) for e in house.audit()
             if e["action"] == "job.restore" and e["outcome"] != "asked"]  # fmt: skip
    assert ("intent", True) in audit and ("done", None) in audit
    house.is_sound()


def test_what_was_deleted_comes_back_in_its_place(house: House) -> None:
    path = house.database("app", wal=True)
    path.chmod(0o640)
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    house.idle()
    for side in house.place.glob("app.db*"):
        side.unlink()
    said = house.ctl("status")  # nobody has asked for a backup since
    assert said.status == 3
    assert f"the database file is missing: {path}" in said.out and "dbguardctl restore app --in-place" in said.out
    house.fails("DBG-2001", 1, "backup", "app")
    assert house.status("app")["state"] == "failing"
    done = house.does("restore", "app", "--in-place", "--confirm", "app")
    assert (rows(path), mode(path), path.stat().st_mode & 0o777) == (50, "wal", 0o640)
    assert (done["safety_copy"], done["undo"]) == (None, None)  # there was nothing to keep
    after = house.status("app")
    assert (after["state"], after["problem"]) == ("safe", None), after  # it is there: the failure is of before
    house.fails("DBG-0004", 8, "restore", "undo", "app", "--confirm", "app")
    house.does("backup", "app")
    house.idle()
    house.is_sound()


def test_a_damaged_database_is_kept_and_replaced(house: House) -> None:
    path = house.database("app", 400, blob=500)
    house.protects(house.table("app"))
    house.start()
    good = house.does("backup", "app")["backup"]["id"]
    house.idle()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * 16384)
    damaged = path.read_bytes()
    said = house.ctl("--json", "backup", "app")
    assert said.status == 4, said
    house.idle()
    house.does("restore", "app", "--id", good, "--in-place", "--confirm", "app")
    assert rows(path) == 400
    # what was damaged is not put back, but its bytes can be had
    house.fails("DBG-6001", 4, "restore", "undo", "app", "--confirm", "app")
    assert rows(path) == 400
    safety = next(row["id"] for row in house.backups("app") if row["holds"])
    house.fails("DBG-6001", 4, "restore", "app", "--id", safety, "--to", str(house.place / "evidence.db"))
    assert (house.place / "evidence.db").read_bytes() == damaged
    house.idle()
    house.is_sound()


def test_a_restore_to_a_new_place_overwrites_nothing(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    target = house.place / "there.db"
    for name in ("there.db", "there.db-wal", "there.db-journal"):
        (house.place / name).write_bytes(b"precious")
        house.fails("DBG-6002", 10, "restore", "app", "--to", str(target))
        assert (house.place / name).read_bytes() == b"precious"
        (house.place / name).unlink()
    target.symlink_to(path)
    house.fails("DBG-6002", 10, "restore", "app", "--to", str(target))
    target.unlink()
    house.does("restore", "app", "--to", str(target))
    assert rows(target) == rows(path) == 50


def test_what_restores_by_default_is_what_status_says(house: House) -> None:
    path = house.database("app", 400, blob=500)
    house.protects(house.table("app"))
    house.start()
    good = house.does("backup", "app")["backup"]["id"]
    house.idle()

    def planned(*words: str) -> str:
        plan = house.does("restore", "app", "--dry-run", *words)["plan"]
        assert plan["backup"] == house.status("app")["proven_backup"]
        return str(plan["backup"])

    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * 16384)
    assert house.ctl("backup", "app").status == 4  # its bytes are kept as the newest backup
    house.idle()
    assert house.backups("app")[0]["id"] != good
    assert planned() == planned("--at", "now") == good
    shown = house.ctl("restore", "app", "--dry-run").out
    assert "passed over, it is not proven" in shown
    for _ in range(2):
        house.does("restore", "app", "--in-place", "--confirm", "app")
        assert rows(path) == 400
        assert planned() == good
    house.idle()
    house.is_sound()
