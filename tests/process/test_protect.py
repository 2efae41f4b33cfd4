"""protect and unprotect: what they write, what they leave, and what they refuse."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.process.house import House, held, rows, until


def test_a_protection_ends_and_its_backups_stay_and_are_gone_on_with(house: House) -> None:
    path = house.database("app")
    house.protects()
    house.start()
    first = house.does("protect", str(path))["backup"]["id"]
    house.idle()
    drop_in = house.place / "conf.d" / "app.toml"
    before = drop_in.read_text()

    plan = house.does("unprotect", "app", "--dry-run")
    assert (plan["removed"], plan["would_remove"], plan["backups"]) == (None, str(drop_in), 1)
    assert house.fails("DBG-6004", 10, "unprotect", "app", "--confirm", "ap")["hints"]
    assert drop_in.read_text() == before

    said = house.ctl("unprotect", "app", "--confirm", "app")
    assert said.status == 0, said
    assert "its 1 backup stays, and nothing deletes it" in said.out and f"protect {path} --adopt app" in said.out
    assert list(drop_in.parent.iterdir()) == []
    assert house.status("app")["state"] == "orphaned"
    house.does("restore", "app", "--to", str(house.place / "back.db"))
    assert rows(house.place / "back.db") == 50
    assert [e["outcome"] for e in house.audit() if e["action"] == "policy.unprotect"] == ["intent", "done"]
    assert house.fails("DBG-0004", 8, "unprotect", "app", "--confirm", "app")
    assert [(job["verb"], job["state"]) for job in house.does("prune")["sweep"]] == [("sweep", "done")]

    for words in ([], ["--name", "app"]):  # it could be another one of that name: the old backups would expire
        refused = house.fails("DBG-1002", 10, "protect", str(path), *words)
        assert "there is 1 backup of a database of that name" in refused["message"]
    ways = [hint.partition("  #")[0] for hint in refused["hints"]]
    assert ways == [f"dbguardctl protect {path} {way}" for way in ("--adopt app", "--name app-2")]
    assert list(drop_in.parent.iterdir()) == [] and house.api.get("status")["policy_problem"] is None
    assert "no backups" in house.fails("DBG-0001", 2, "protect", str(path), "--adopt", "shop")["message"]
    again = house.does(*ways[0].split()[1:])["backup"]
    assert (again["kind"], [row["id"] for row in house.backups("app")][-1]) == ("incremental", first)
    house.does("unprotect", "app", "--confirm", "app")

    (house.state / "accepted.json").unlink()  # as on a new machine: nobody knows what the lost policy kept
    house.write("[defaults]\nkeep = { last = 1 }\nmin_proven = 1\n")
    house.does("reload")
    said = house.ctl("protect", str(path), "--adopt", "app")
    assert said.status in (0, 3) and "1 older backup would be deleted at once" in said.out, said
    house.idle()
    assert len(house.backups("app")) == 3
    drop_in.write_text(drop_in.read_text().partition("[database.app.keep]")[0])
    assert len(house.does("config", "diff")["deletes"]) == 2
    house.does("config", "accept")
    house.does("prune", "app", "--confirm", "app")
    assert len(house.backups("app")) == 1
    house.is_sound()


def test_what_does_not_look_like_what_was_backed_up_is_not_adopted_unless_that_is_confirmed(house: House) -> None:
    path = house.database("app")
    house.protects()
    house.start()
    first = house.does("protect", str(path))["backup"]["id"]
    house.does("unprotect", "app", "--confirm", "app")
    path.unlink()
    house.database("app", rows=0)
    house.idle()
    house.stop()
    for file in house.state.glob("catalog.db*"):  # as on another machine: it is known from the storage
        file.unlink()
    house.start()
    house.idle()
    refused = house.fails("DBG-6004", 10, "protect", str(path), "--adopt", "app")
    assert "None of its tables has a row" in refused["detail"] and "50 rows" in refused["detail"]
    ways = [hint.partition("  #")[0] for hint in refused["hints"]]
    asked = f"dbguardctl protect {path}"
    assert ways == ["dbguardctl restore app --to PLACE", f"{asked} --name app-2", f"{asked} --adopt app --confirm app"]
    assert not (house.place / "conf.d").exists() or not list((house.place / "conf.d").iterdir())
    house.does(*ways[0].replace("PLACE", str(house.place / "back.db")).split()[1:])
    with closing(sqlite3.connect(house.place / "back.db")) as db:
        db.executescript("PRAGMA page_size=1024; VACUUM")
    found = house.does("protect", str(house.place / "back.db"), "--adopt", "app")  # what came of it is no question
    assert found["backup"]["kind"] == "full"  # although it lies elsewhere, and no page of it is as it was
    house.does("unprotect", "app", "--confirm", "app")
    house.does(*ways[2].split()[1:])
    assert house.backups("app")[-1]["id"] == first
    house.idle()
    house.is_sound()


def test_a_storage_that_could_not_be_read_says_what_it_waits_for_and_is_read_when_somebody_looks(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    house.idle()
    house.stop()
    for file in house.state.glob("catalog.db*"):
        file.unlink()
    house.policy.write_text(house.policy.read_text().replace("retry = { times = 0 }", 'retry = { wait = "1h" }'))
    records, aside = house.store / "records", house.store / "aside"
    records.rename(aside)
    records.symlink_to(path)
    house.start()
    (scan,) = until(lambda: [job for job in house.jobs() if job["problem"]], house.jobs)
    (storage,) = house.api.get("status")["storages"]
    assert (storage["ok"], storage["stored_bytes"]) == (False, None)
    assert storage["problem"]["next_try_at"] == scan["problem"]["next_try_at"]
    assert storage["problem"]["hints"][-1].startswith("dbguardctl reload ")
    assert "The next attempt to read it is" in house.ctl("status").out
    records.unlink()
    aside.rename(records)
    until(lambda: house.status("app")["state"] == "safe", house.jobs)  # in an hour, if nobody looked
    house.is_sound()


def test_a_table_that_stands_with_others_is_not_touched_and_a_bad_policy_keeps_the_drop_in(house: House) -> None:
    path = house.database("app")
    house.database("hand")
    house.protects(house.table("hand"))
    house.start()
    house.does("protect", str(path))
    drop_in = house.place / "conf.d" / "app.toml"

    refused = house.fails("DBG-0001", 2, "unprotect", "hand", "--confirm", "hand")
    assert str(house.policy) in refused["detail"] and "[database.hand]" in refused["detail"]
    before = drop_in.read_text()
    drop_in.write_text(f"{before}\n[defaults]\nverify = 'off'\n")
    assert str(drop_in) in house.fails("DBG-0001", 2, "unprotect", "app", "--confirm", "app")["detail"]
    drop_in.write_text(before)
    good = house.policy.read_text()
    house.policy.write_text(good + "nonsense = 1\n")
    house.fails("DBG-1001", 9, "unprotect", "app", "--confirm", "app")
    assert drop_in.read_text() == before
    house.policy.write_text(good)
    house.does("unprotect", "app", "--confirm", "app")
    assert [row["name"] for row in house.api.get("status")["databases"] if row["state"] != "orphaned"] == ["hand"]
    house.idle()


IMPATIENT = """[defaults]
retry = { times = 5, wait = "1h" }
"""


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Hold a database as an application with locking_mode = exclusive does."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma locking_mode = exclusive")
        with db:
            db.execute("insert into note (text) values ('mine')")
        yield


@pytest.mark.parametrize("how", [held, owned], ids=["a long transaction", "locking_mode = exclusive"])
def test_protect_of_a_locked_database_fails_at_once_and_says_what_stays(house: House, how) -> None:  # type: ignore[no-untyped-def]
    path = house.database("app")
    house.write(IMPATIENT)
    house.start()
    with how(path):
        said = house.ctl("protect", str(path))
    assert said.status != 0
    assert "DBG-2004" in said.err and "holds an exclusive lock" in said.err
    assert f"The policy {house.place}/conf.d/app.toml stays" in said.err and "dbguardctl unprotect app" in said.err
    (job,) = house.jobs()
    assert (job["state"], job["attempt"]) == ("failed", 1)
    house.does("backup", "app")  # which the schedule would do


def test_a_backup_that_waits_for_its_next_try_says_so(house: House) -> None:
    path = house.database("app")
    house.write(IMPATIENT)
    house.write(house.table("app"), name="app")
    house.start()
    with held(path):
        job = house.submit("backup", "app")
        until(lambda: house.job(job)["problem"], house.jobs)
    assert "retrying" in house.ctl("job", "list").out
    shown = house.ctl("job", "show", job).out
    assert "retrying" in shown and "next try" in shown
    assert house.fails("DBG-0005", 7, "backup", "app", "--full")["hints"][1] == f"dbguardctl job cancel {job}"
    assert house.does("backup", "app")["job"]["id"] == job  # which waits for an hour no more
    house.idle()
    with held(path):
        job = house.submit("backup", "app")
        until(lambda: house.job(job)["problem"], house.jobs)
    house.does("unprotect", "app", "--confirm", "app")
    assert house.job(job)["state"] == "cancelled"


def test_its_own_files_are_no_databases_to_protect(house: House) -> None:
    house.start()
    refused = house.fails("DBG-0001", 2, "protect", str(house.state / "catalog.db"))
    assert "one of dbguard's own files" in refused["message"]
    assert not (house.place / "conf.d").exists()
    house.protects(house.table("app", path=house.state / "catalog.db"))
    assert "lies in the state directory" in house.fails("DBG-1001", 9, "reload")["detail"]


def test_a_file_whose_name_is_no_text_is_protected_by_a_link_to_it(house: House) -> None:
    house.start()
    house.database("app").rename(os.fsdecode(os.fsencode(house.place) + b"/caf\xe9.db"))
    (house.place / "app.db").symlink_to(os.fsdecode(b"caf\xe9.db"))
    assert house.does("protect", str(house.place / "app.db"))["proof"]["grade"] == "proven"
    house.does("restore", "app", "--to", str(house.place / "copy.db"))
    assert rows(house.place / "copy.db") == rows(house.place / "app.db")
    house.database("odd").rename(house.place / "o\nd\x1b.db")
    (house.place / "odd.db").symlink_to("o\nd\x1b.db")
    assert house.does("protect", str(house.place / "odd.db"))["proof"]["grade"] == "proven"
