"""What `status` says can be done now: nothing is shown as safe that could not be restored."""

from __future__ import annotations

import shlex
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.test_full import a_disk, filled
from tests.process.house import House, add, rows, until


def packs(house: House) -> set[Path]:
    return set(house.store.glob("packs/*/*"))


def damage(path: Path) -> None:
    """Change a byte in the middle of an object."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(0o400)


def test_a_storage_that_was_taken_out_of_the_policy_is_named_with_what_it_held(house: House) -> None:
    def on(storage: str) -> None:
        where = f'[storage.{storage}]\ntype = "directory"\npath = "{house.place / storage}"\nkeep_free = "0B"\n'
        house.protects(house.table("app", f'storage = ["{storage}"]'), more=where)

    house.database("app")
    on("first")
    house.start()
    house.does("backup", "app")
    on("second")
    house.does("reload")
    said = " ".join(house.ctl("status").out.split())
    assert "storage first, which holds the newest backup, is no longer in the policy" in said
    assert "Put [storage.first] back into the policy" in said and "dbguardctl reload # once that table" in said
    on("first")
    house.does("reload")
    assert house.status("app")["proven_backup"]
    house.idle()
    house.is_sound()


def test_damage_that_a_check_finds_makes_status_fall_back_and_the_next_backup_heals_it(house: House) -> None:
    path = house.database("app", 200, blob=500)
    house.protects(house.table("app", 'expire = "off"'))
    house.start()
    good = house.does("backup", "app")["backup"]["id"]
    (storage,) = house.api.get("status")["storages"]
    assert (storage["url"], storage["beside"]) == (str(house.store), ["app"])
    before = packs(house)
    add(path)
    bad = house.does("backup", "app")["backup"]["id"]
    assert house.status("app")["proven_backup"] == bad
    for pack in packs(house) - before:
        damage(pack)

    assert house.ctl("check", "app", "--data").status == 4
    for restarted in (False, True):
        if restarted:  # the catalog is read from the repository again
            house.stop()
            house.start()
            house.idle()
        status = house.status("app")
        assert (status["state"], status["proven_backup"]) == ("failing", good)
        assert "is not reliable" in status["attention"][0]
        assert status["hints"][0] == "dbguardctl backup app --verify"
        assert house.ctl("status").status == 3
    house.does("restore", "app", "--to", str(house.place / "x.db"))
    assert rows(house.place / "x.db") == 200

    healed = house.does("backup", "app", "--verify")["backup"]
    assert healed["kind"] == "full"
    status = house.status("app")
    assert (status["state"], status["proven_backup"]) == ("safe", healed["id"])
    assert "1 of its older backups are not reliable" in status["attention"][0]
    house.idle()


@pytest.mark.parametrize("how", ["gone", "an empty mount point", "another repository", "no key"])
def test_what_could_not_be_restored_now_is_not_shown_as_safe(house: House, how: str) -> None:
    house.database("app")
    house.database("left")
    house.protects(house.table("app"), house.table("left"))
    house.start()
    house.does("backup", "app")
    house.does("backup", "left")
    house.does("key", "recovery-sheet", "main")
    house.idle()
    house.protects(house.table("app"))
    house.does("reload")
    safe = house.status("app")
    assert (safe["state"], house.status("left")["state"]) == ("safe", "orphaned")
    away, key = house.state / "away", house.state / "machine.key"

    def lose() -> None:
        (key if how == "no key" else house.store).rename(away)
        if how == "an empty mount point":
            house.store.mkdir()
        if how == "another repository":
            shutil.copytree(away, house.store)
            (house.store / "repo.json").chmod(0o600)
            (house.store / "repo.json").write_text('{"repo_id": "' + 32 * "0" + '"}')

    def bring_back() -> None:
        if how != "no key":
            shutil.rmtree(house.store, ignore_errors=True)
        away.rename(key if how == "no key" else house.store)

    lose()
    for restarted in (False, True):
        if restarted:
            house.stop()
            house.start()
            house.idle()
        for name in ("app", "left"):
            row = house.status(name)
            assert (row["recoverable_to_at"], row["proven_backup"]) == (None, None), row
            assert row["state"] == {"app": "failing", "left": "orphaned"}[name]
            assert row["last_proven_at"] and "no backup can be made or restored" in row["attention"][0]
        said = house.ctl("status")
        assert said.status == 3
        assert "nothing now" in said.out and "no backup can be made or restored now" in said.out
        assert ("dbguardctl key recover main" in said.out) is (how == "no key")
        assert ("machine.key" if how == "no key" else str(house.store)) in said.out
    bring_back()
    house.does("backup", "app")
    house.idle()
    back = house.status("app")
    assert (back["state"], back["attention"]) == ("safe", safe["attention"])
    lose()
    assert house.ctl("backup", "app").status != 0
    bring_back()
    assert house.status("app")["state"] == "failing"
    assert house.status("app")["hints"][0].startswith("dbguardctl check app")
    house.does("check", "app")
    back = house.status("app")
    assert (back["state"], back["attention"], back["problem"]) == ("safe", safe["attention"], None)
    assert house.status("left")["state"] == "orphaned"


def test_a_job_that_waits_for_its_next_try_is_not_shown_as_running(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", "retry = { times = 1, wait = '1h' }", "window = '1d'"))
    house.start()
    house.does("backup", "app")
    house.idle()
    house.store.rename(house.state / "away")
    add(path)
    job = house.submit("backup", "app")
    until(lambda: house.job(job)["problem"], house.jobs)
    (house.state / "away").rename(house.store)
    row = house.status("app")
    assert (row["running_job"], row["next_verb"], row["recoverable_to_at"] is None) == (None, "backup", False)
    assert row["next_run_at"] == house.job(job)["problem"]["next_try_at"]
    assert "will be retried" in row["attention"][0] and row["problem"]["message"] in row["attention"][0]
    said = house.ctl("status")
    assert (said.status, "running now" in said.out) == (3, False)
    assert f"[{row['problem']['code']}]" in next(line for line in said.out.splitlines() if "will be retried" in line)
    path.rename(path.with_name("gone"))  # two things are wrong: neither has the code of the other
    house.store.rename(house.state / "away")
    until(lambda: "no backup can be" in house.ctl("status").out, house.jobs)
    lines = house.ctl("status").out.splitlines()
    assert "[DBG" not in next(line for line in lines if "will be retried" in line)
    assert "[DBG-3" in next(line for line in lines if "no backup can be" in line)
    (house.state / "away").rename(house.store)
    path.with_name("gone").rename(path)
    house.does("job", "cancel", job)


def test_a_changed_audit_log_is_to_be_seen_in_status(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    house.stop()
    log = house.state / "audit.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0].replace(b"asked", b"faked"), *lines[1:]]))
    assert lines[0] != log.read_bytes().splitlines(keepends=True)[0]
    house.start()
    until(lambda: house.api.get("status")["attention"], house.log.read_text)
    said = house.ctl("status")
    assert (said.status, "dbguardctl audit verify says where" in said.out) == (3, True)
    assert house.ctl("audit", "verify").status == 4
    house.idle()
    house.stop()
    for path in (log, *house.state.glob("catalog.db*")):  # the advice
        path.rename(house.place / path.name)
    house.start()
    house.idle()
    assert house.ctl("audit", "verify").status == 0
    assert not house.api.get("status")["attention"]
    house.does("pause", "app")
    house.stop()
    (house.state / "catalog.db").unlink()
    house.start()
    said = house.ctl("audit", "verify")
    assert "UNSURE" in said.out and "is intact" not in said.out


def test_what_left_the_policy_says_what_can_be_done_with_it(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    house.idle()
    house.protects()
    house.does("reload")
    assert "its place is not known" in house.fails("DBG-0001", 2, "restore", "app")["message"]
    assert "is not known" in house.fails("DBG-0001", 2, "restore", "app", "--in-place", "--confirm", "app")["message"]
    house.does("restore", "app", "--to", str(house.place / "x.db"))
    assert rows(house.place / "x.db") == rows(path)
    said = house.ctl("prune", "app")
    assert (said.status, "no longer in the policy" in said.err, "smaller `keep`" in said.err) == (2, True, True)


def test_an_expired_backup_can_be_looked_at(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", "keep = { last = 1 }", "min_proven = 1"))
    house.start()
    old = house.does("backup", "app")["backup"]["id"]
    house.idle()
    add(path)
    said = house.ctl("backup", "app")
    assert said.status == 0
    assert "has expired by the policy's `keep`" in said.err and f"dbguardctl recall {old}" in said.err
    house.idle()
    assert [row["backup"]["id"] for row in house.api.get("databases", "app", "backups", all=1)["expired"]] == [old]
    shown = house.ctl("show", old)
    assert shown.status == 0
    assert "recall until" in shown.out and f"dbguardctl recall {old}" in shown.out
    problem = house.fails("DBG-0004", 8, "restore", "app", "--id", old, "--to", str(house.place / "x.db"))
    assert "has expired" in problem["message"] and problem["hints"] == [f"dbguardctl recall {old}"]


def test_what_a_failed_job_left_is_named_by_a_sweep(house: House) -> None:
    path = house.database("app", 400, blob=500)
    house.protects(house.table("app", 'verify = "off"', 'expire = "off"'))
    house.start()
    house.does("backup", "app")
    house.idle()
    add(path)
    before, manifests = packs(house), set(house.store.glob("records/backup/*"))
    house.does("backup", "app", "--full")
    house.idle()
    (made,) = set(house.store.glob("records/backup/*")) - manifests
    for record in house.store.glob(f"records/*/{made.name[:26]}-*"):  # as if it had been killed before its manifest
        record.unlink()
    said = house.ctl("prune", "--dry-run")
    left = len(packs(house) - before)
    assert left and f"{left} object" in said.out and "in no backup, too new to delete" in said.out, said


@pytest.mark.parametrize("what", ["empty", "damaged"])
def test_a_protection_that_did_not_come_about_leaves_nothing_or_says_how_it_ends(house: House, what: str) -> None:
    house.start()
    path = house.place / "new.db"
    path.write_bytes(b"" if what == "empty" else b"SQLite format 3\0" + b"\xa5" * 5000)
    said = house.ctl("protect", str(path))
    assert said.status != 0
    dropins = list((house.place / "conf.d").glob("*"))
    if what == "empty":
        assert "is empty" in said.err and not dropins
    else:
        assert f"The policy {dropins[0]} stays" in said.err and "dbguardctl unprotect new --dry-run" in said.err
        assert house.ctl("unprotect", "new", "--confirm", "new").status == 0
        assert not list((house.place / "conf.d").glob("*"))


def test_a_database_that_lost_every_row_takes_the_place_of_no_proven_backup(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", "keep = { last = 1 }", "min_proven = 1"))
    house.start()
    house.does("backup", "app", "--verify")
    for sql in ("delete from note", "drop table note"):
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(sql)
        proof = house.does("backup", "app", "--verify")["proof"]
        assert proof["grade"] == "restored"
        assert "50 rows" in next(one["detail"] for one in proof["findings"] if one["name"] == "content is not lost")
        house.idle()
        assert house.backups("app")[-1]["grade"] == "proven"
    house.does("restore", "app", "--to", str(house.place / "back.db"))
    assert rows(house.place / "back.db") == 50
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table note (id integer primary key, text text, body blob)")
    add(path)
    assert house.does("backup", "app", "--verify")["proof"]["grade"] == "proven"


def test_a_full_storage_is_named_while_a_log_waits_for_it(house: House) -> None:
    """It waits a minute for room before it gives up."""
    path = house.database("app", wal=True)
    house.protects(house.table("app", "continuous = true"))
    house.store.parent.mkdir(exist_ok=True)
    with a_disk(house.store, "size=20m"):
        house.start()
        house.does("backup", "app")
        house.idle()
        until(lambda: house.status("app")["log_problem"] is None and house.coverage("app"), "its log is followed")
        with filled(house.store, 0):
            add(path)
            said = until(lambda: house.status("app")["log_problem"], "the full storage is told")
            assert said.endswith(f"now: {house.store}: the file system of the storage is full")
            assert house.events("log.interrupted") == []  # it still waits
            (storage,) = house.api.get("status")["storages"]
            assert (storage["ok"], storage["problem"]["code"]) == (False, "DBG-3002")
        until(lambda: house.status("app")["log_problem"] is None, "its log is stored")
        house.stop()


def test_a_proof_that_fails_for_the_live_database_says_how_to_look_at_that(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app"))
    house.start()
    good = house.does("backup", "app", "--verify")["backup"]["id"]
    house.idle()
    with closing(sqlite3.connect(path)) as db:  # an index that lacks every row
        db.execute("create index of_it on note(text) where id < 0")
        db.execute("pragma writable_schema = 1")
        db.execute("update sqlite_schema set sql = 'create index of_it on note(text)' where name = 'of_it'")
        db.commit()
    problem = house.fails("DBG-6001", 4, "backup", "app", "--verify")
    assert "the live database is probably damaged" in problem["detail"]
    _, look, proven, *_ = problem["hints"]
    found = subprocess.run(shlex.split(look, comments=True), capture_output=True, text=True, check=False)
    assert "missing from index of_it" in found.stdout
    assert good in house.does(*shlex.split(proven, comments=True)[1:])["plan"]["backup"]
