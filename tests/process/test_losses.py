"""What is lost and comes back: the catalog, the storage, a repository that was half made."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dbguardd.errors import OUTCOMES
from dbguardd.keys import new_identity
from tests.process.house import House, a_place, add, far, held, rows, until

CALM = ('verify = "off"', 'expire = "off"')


def known(house: House) -> dict[str, Any]:
    """Return what the daemon says of its backups and keys."""
    status = house.api.get("status")
    memory = ("next_run_at", "next_verb", "state", "attention", "hints", "problem")  # of runs; not in a repository
    databases = [
        {k: v for k, v in row.items() if row["name"] != "odd" or k not in memory} for row in status["databases"]
    ]
    shown = [house.api.get("show", row["id"]) for name in ("app", "odd", "gone") for row in house.backups(name)]
    return {
        "backups": {name: house.backups(name) for name in ("app", "odd", "gone")},
        "databases": databases,
        "keys": house.api.get("keys")["keys"],
        "shown": shown,
    }


@pytest.fixture
def rich(house: House) -> House:
    """A running daemon with backups of every grade, kind and fate."""
    path = house.database("app", 400, blob=2000)
    house.database("odd")
    house.database("gone")
    odd = house.table("odd", 'proof.queries = [{ sql = "select count(*) from note", equals = 51, why = "never" }]')
    app = house.table("app", 'expire = "off"', "keep = { last = 3 }", "min_proven = 1")
    house.protects(app, odd, house.table("gone"))
    house.start()
    house.does("backup", "gone")
    for note in ("first", "second", "third", "fourth"):
        house.does("backup", "app", "--note", note)
        add(path)
    house.ctl("hold", house.backups("app")[1]["id"], "--reason", "for the auditors")
    assert house.ctl("backup", "odd").status == 4
    house.does("prune", "app")
    house.does("key", "recovery-sheet", "main")
    house.protects(app, odd)
    house.does("reload")
    house.idle()
    assert [row["note"] for row in house.backups("app")] == ["fourth", "third", "second"]
    assert {row["kind"] for row in house.backups("app")} == {"incremental"}
    assert house.backups("odd")[0]["failure"]
    assert house.status("gone")["state"] == "orphaned"
    return house


def test_a_lost_catalog_comes_back_from_the_repository(rich: House) -> None:
    house, before = rich, known(rich)
    catalog = house.state / "catalog.db"
    for loss in ("deleted", "garbage", "torn", "empty"):
        house.stop()
        content = catalog.read_bytes()
        for path in house.state.glob("catalog.db*"):
            path.unlink()
        damaged = {"garbage": os.urandom(len(content)), "torn": content[: len(content) // 2], "empty": b""}
        if loss in damaged:
            catalog.write_bytes(damaged[loss])
        house.start()
        house.idle()
        assert known(house) == before, loss
        audited = house.does("audit", "verify")
        assert (audited["ok"], audited["sure"]) == (True, False)  # its anchor was in the catalog
        aside = list(house.state.glob("catalog.db.damaged-*"))
        assert len(aside) == (loss in ("garbage", "torn"))
        if aside:
            assert aside[0].read_bytes() == damaged[loss]
            assert any("rebuilt" in line for line in house.api.get("status")["attention"])
    assert [e["action"] for e in house.audit()].count("catalog.replaced") == 2
    assert house.does("backup", "app")["backup"]["kind"] == "incremental"
    house.does("restore", "app", "--to", str(house.place / "again.db"))
    assert rows(house.place / "again.db") == 440
    house.idle()
    house.is_sound()


@pytest.mark.parametrize("empty", [False, True], ids=["no directory", "an empty mount point"])
def test_a_storage_that_is_not_mounted_is_not_made_anew(house: House, empty: bool) -> None:
    path = house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    first = house.does("backup", "app")["backup"]["id"]
    add(path)
    away = house.store.with_name("away")
    house.store.rename(away)
    if empty:
        house.store.mkdir()
    for restarted in (False, True):
        if restarted:
            house.stop()
            house.start()
            house.idle()
        for words in (("backup", "app"), ("verify", "app"), ("restore", "app", "--to", str(house.place / "x.db"))):
            problem = house.fails("DBG-4002" if empty else "DBG-3001", 11, *words)
            assert str(house.store) in problem["message"] + problem["detail"], problem
        assert house.ctl("prune", "app").status == 11
        assert not house.store.exists() or list(house.store.iterdir()) == []
        assert [row["id"] for row in house.backups("app")] == [first]  # what there is, is not forgotten
        assert house.status("app")["state"] == "failing"
    if empty:
        house.store.rmdir()
    away.rename(house.store)
    house.does("backup", "app")
    house.does("verify", "app")
    assert house.status("app")["problem"] is None
    house.does("restore", "app", "--id", first, "--to", str(house.place / "back.db"))
    assert rows(house.place / "back.db") == 50
    assert len(house.backups("app")) == 2
    house.is_sound()


def test_another_repository_in_its_place_is_not_written_to(house: House) -> None:
    house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    house.does("backup", "app")
    house.stop()
    house.store.rename(house.state / "mine")
    (house.state / "catalog.db").rename(house.state / "catalog.mine")
    house.start()  # the same key, another repository
    house.does("backup", "app")
    house.stop()
    (house.state / "catalog.mine").rename(house.state / "catalog.db")
    before = sorted(path.name for path in house.store.rglob("*"))
    house.start()
    house.idle()
    problem = house.fails("DBG-4002", 11, "backup", "app")
    assert "a different repository" in problem["message"]
    assert sorted(path.name for path in house.store.rglob("*")) == before
    assert len(house.backups("app")) == 1
    shutil.rmtree(house.store)
    (house.state / "mine").rename(house.store)
    house.does("backup", "app")
    house.idle()
    house.is_sound()


def killed_while(house: House, made: Path) -> str:
    """Start a first backup and kill the daemon as soon as something is there; return the job."""
    with held(house.place / "app.db"):  # it may make the repository, and cannot end
        job = house.submit("backup", "app")
        while not list(made.parent.glob(made.name)):
            assert house.job(job)["state"] in ("queued", "running")
        house.kill()
    return job


@pytest.mark.parametrize("made", ["machine.key", "store/keys/*", "store/recover/*", "store/repo.json"])
def test_a_daemon_killed_while_it_makes_the_repository_makes_it_next_time(house: House, made: str) -> None:
    house.database("app")
    house.protects(house.table("app", 'lock_timeout = "1h"'))
    house.start()
    job = killed_while(house, house.state / made)
    house.start()
    assert house.job(job)["state"] == "interrupted"
    house.idle()  # it has made up for that
    assert [row["grade"] for row in house.backups("app")] == ["proven"]
    assert house.does("backup", "app")["proof"]["grade"] == "proven"
    found = house.does("check", "app", "--data")["findings"]
    assert not [row for row in found if row["outcome"] == "failed" and "key" not in row["name"]], found
    house.idle()
    house.is_sound()


def test_what_a_killed_creation_left_is_finished_whatever_it_is(house: House) -> None:
    """Every prefix of what a creation writes, in its order, as a crash leaves it."""
    house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    house.does("backup", "app")
    house.stop()
    whole = house.place / "whole"
    house.store.rename(whole)
    for left in (("keys",), ("recover",), ("keys", "recover")):
        for path in house.state.glob("catalog.db*"):
            path.unlink()
        shutil.rmtree(house.store, ignore_errors=True)
        house.store.mkdir()
        for name in left:
            shutil.copytree(whole / name, house.store / name)
        house.start()
        house.does("backup", "app")
        house.stop()


def test_a_store_with_backups_but_without_its_description_is_not_made_anew(house: House) -> None:
    house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    house.does("backup", "app")
    house.stop()
    for path in house.state.glob("catalog.db*"):
        path.unlink()
    (house.store / "repo.json").rename(house.place / "repo.json")
    before = sorted(path.name for path in house.store.rglob("*"))
    house.start()
    house.fails("DBG-4002", 11, "backup", "app")
    assert sorted(path.name for path in house.store.rglob("*")) == before
    house.stop()
    (house.place / "repo.json").rename(house.store / "repo.json")
    house.start()
    house.does("backup", "app")
    house.idle()
    assert len(house.backups("app")) == 2
    house.is_sound()


def test_a_new_machine_goes_on_where_the_lost_one_ended(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    first = house.does("backup", "app")["backup"]["id"]
    sheet = house.does("key", "recovery-sheet", "main")
    identity = sheet["identity"]
    stranger = new_identity()[0].reveal().decode()
    house.stop()

    with a_place() as place:  # what is left: the storage, and a sheet of paper
        new = House(place)
        try:
            shutil.copytree(house.store, new.store)
            shutil.rmtree(house.state)
            shutil.copy(path, place / "app.db")
            new.protects(new.table("app", *CALM))
            new.start()
            refused = new.fails("DBG-5002", 11, "restore", "app", "--to", str(place / "back.db"))
            assert "dbguardctl key recover" in OUTCOMES[refused["code"]].advice
            until(lambda: not new.api.get("status")["storages"][0]["ok"], new.jobs)
            seen = new.ctl("status").out
            assert "no key of this machine opens" in seen and "dbguardctl key recover main" in seen
            wrong = new.ctl("--json", "key", "recover", stdin=stranger)
            assert (wrong.status, wrong.problem()["code"]) == (11, "DBG-5001")
            assert wrong.problem()["detail"].startswith("The available keys (age) match none of the 2 recipients: ")
            assert new.ctl("key", "recovery-test", "main", stdin=identity).status == 0  # by the sheet alone
            unread = new.fails("DBG-5002", 11, "protect", str(path))  # its name may be that of one of those backups
            assert unread["hints"] == ["dbguardctl key recover main"]
            assert not (new.state / "machine.key").exists()
            done = new.ctl("key", "recover", stdin=f"{identity}\n")
            assert done.status == 0, done
            assert "storage local is open; backups 1" in done.out
            mark = re.search(r"mark ([0-9a-f-]{24})", done.out)
            assert mark and mark[1] in sheet["sheet_text"]
            assert new.api.get("status")["storages"][0]["ok"]
            assert new.api.get("keys")["keys"][0]["recipients"][0]["tested_at"]
            new.does("restore", "app", "--id", first, "--to", str(place / "back.db"))
            assert rows(place / "back.db") == 50
            again = new.does("backup", "app")["backup"]
            assert (again["kind"], len(new.backups("app"))) == ("incremental", 2)
            assert new.ctl("key", "recovery-test", "main", stdin=identity).status == 0  # the sheet is still good
            assert "AGE-SECRET-KEY-1" not in new.log.read_text() + (new.state / "audit.jsonl").read_text()
            assert "job.recover" in {entry["action"] for entry in new.audit()}
            new.is_sound()
        finally:
            new.close()


def test_a_policy_that_keeps_less_is_not_accepted_because_the_catalog_was_lost(house: House) -> None:
    """Nobody knows what it would delete before the repository was read again."""
    path = house.database("app")
    house.protects(house.table("app", *CALM, "keep = { last = 10 }"))
    house.start()
    for _ in range(4):
        house.does("backup", "app")
        add(path)
    accepted = house.state / "accepted.json"
    before = json.loads(accepted.read_text())["databases"]
    assert house.stop() == 0
    (house.state / "catalog.db").unlink()
    house.protects(house.table("app", 'verify = "off"', "keep = { last = 1 }", "min_proven = 1"))
    house.start()
    house.idle()
    assert house.api.get("status")["policy_problem"]["code"] == "DBG-1002"
    assert house.ctl("prune", "app").status == 10
    assert house.ctl("backup", "app").status == 0  # whose expiry waits for somebody, too
    house.idle()
    assert len(house.backups("app")) == 5
    assert json.loads(accepted.read_text())["databases"] == before
    house.does("config", "accept")
    assert house.api.get("status")["policy_problem"] is None
    house.does("prune", "app", "--confirm", "app")
    assert len(house.backups("app")) == 1
    house.is_sound()


def test_backups_of_a_purged_installation_show_before_anything_is_protected(house: House) -> None:
    house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    whole = house.does("backup", "app")["backup"]["id"]
    identity = house.does("key", "recovery-sheet", "main")["identity"]
    before = {path.name for path in house.store.glob("packs/*/*")}
    add(house.place / "app.db")
    house.does("backup", "app", "--verify")
    house.idle()
    house.stop()
    for path in house.store.glob("packs/*/*"):  # copied while that backup ran: packs first, its records later
        path.unlink() if path.name not in before else None
    for path in (*house.state.glob("catalog.db*"), house.state / "accepted.json"):
        path.unlink()
    house.write("")

    house.start()
    house.idle()
    row = house.status("app")
    assert (row["state"], row["backups"], row["last_proven_at"]) == ("orphaned", 2, None)
    assert "copied while a backup ran?" in house.backups("app")[0]["failure"]
    checked = house.ctl("check")  # no name, and nothing is protected
    assert checked.status == 4 and "copied while a backup ran?" in checked.out, checked
    assert house.does("config", "show")["policy"]["storage"]["local"]["path"] == str(house.store)  # as no file says
    said = house.ctl("status").out
    assert "no recovery recipient" not in said and "dbguardctl key recovery-test main" in said
    assert house.does("restore", "app", "--to", str(house.place / "back.db"))["plan"]["backup"] == whole
    assert rows(house.place / "back.db") == 50
    house.stop()

    for path in house.state.glob("catalog.db*"):
        path.unlink()
    (house.state / "machine.key").unlink()
    house.start()
    house.idle()
    (key,) = house.api.get("keys")["keys"]
    assert (key["recovery"], key["known"]) == ([], False)
    said = house.ctl("status").out
    assert "no key of this machine opens" in said and "dbguardctl key recover main" in said
    assert "no recovery recipient" not in said and "not known until they have been read" in said
    assert house.ctl("key", "recover", stdin=identity).status == 0
    assert (house.status("app")["backups"], house.api.get("keys")["keys"][0]["known"]) == (2, True)
    house.is_sound()


def test_a_storage_that_appears_is_read_by_itself(house: House) -> None:
    house.database("app")
    house.protects(house.table("app", *CALM))
    house.start()
    house.does("backup", "app")
    house.stop()
    for path in (*house.state.glob("catalog.db*"), house.state / "accepted.json"):
        path.unlink()
    house.store.rename(house.place / "away")
    house.write("")
    house.start()
    assert house.api.get("status")["storages"] == []
    (house.place / "away").rename(house.store)
    until(lambda: [row for row in house.api.get("status")["databases"] if row["backups"] == 1], house.log.read_text)
    house.idle()
    assert house.status("app")["state"] == "orphaned"
    (storage,) = house.api.get("status")["storages"]
    assert storage["ok"] and storage["stored_bytes"]


def test_a_storage_that_gets_its_old_name_back_has_its_backups_under_that(house: House) -> None:
    house.database("app")
    place = f'\n[storage.{{}}]\ntype = "directory"\npath = "{house.place}/kept"\nkeep_free = "0B"\n'
    named = [f'[defaults]\nbackup = "{far(12)}"\nstorage = ["{name}"]{place.format(name)}' for name in ("one", "two")]
    house.write(named[0] + house.table("app"))
    house.start()
    house.does("backup", "app", "--verify")
    for text, name in ((named[1], "two"), (named[0], "one")):
        house.write(text + house.table("app"))
        house.does("reload")
        house.idle()
        assert [row["storage"] for row in house.backups("app")] == [name]
        assert house.status("app")["recoverable_to_at"]
