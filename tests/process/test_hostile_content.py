"""What the owner of a database chooses is in its names and values: it does not reach what belongs to others."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from tests.process.house import House


def test_names_that_fill_a_message_do_not_keep_the_catalog_of_others_from_coming_back(house: House) -> None:
    path = house.database("odd")
    house.database("app")
    with closing(sqlite3.connect(path)) as db, db:
        for number in range(8):
            name = f"t{number}" + "x" * 200_000
            db.execute(f'create table "{name}" (note references note (id))')
            db.execute(f'insert into "{name}" values (-1)')  # said by name when the restored copy is examined
    house.protects(house.table("odd"), house.table("app"))
    house.start()
    for name in ("app", "odd"):
        assert house.does("backup", name)["proof"]["grade"] == "proven"
    house.idle()
    assert house.stop() == 0
    (house.state / "catalog.db").unlink()
    house.start()
    house.idle()
    assert {row["verb"]: row["state"] for row in house.jobs()} == {"scan": "done"}
    assert house.status("app")["state"] == house.status("odd")["state"] == "safe"
    house.is_sound()


def test_a_message_that_quotes_the_database_does_not_fill_the_catalog(house: House) -> None:
    path = house.database("app")
    name = "n" * 900_000
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("pragma writable_schema = 1")
        broken = f'create index "{name}" on note (text)'
        db.execute("insert into sqlite_schema values ('index', ?, 'note', 99999, ?)", (name, broken))
    house.protects(house.table("app"))
    house.start()
    said = house.ctl("--json", "backup", "app")
    assert said.status == 4
    assert "(900" in said.err
    assert house.stop() == 0
    assert (house.state / "catalog.db").stat().st_size < 500_000


def test_another_file_under_the_name_of_one_that_has_backups_is_told_and_takes_no_place_of_theirs(house: House) -> None:
    path, other = house.database("app", blob=5000), house.database("other", blob=5000)
    house.protects(house.table("app"))
    house.start()
    first = house.does("backup", "app")["backup"]["id"]
    house.protects(house.table("app", path=other))
    house.does("reload")
    refused = house.fails("DBG-2013", 1, "backup", "app")
    assert refused["hints"][0].startswith("dbguardctl backup app --successor")
    assert house.status("app")["state"] == "failing" and [row["id"] for row in house.backups("app")] == [first]

    house.protects(house.table("app"))
    house.does("reload")
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript("create table another as select * from note; drop table note")
    assert house.does("backup", "app")["proof"]["grade"] == "restored"
    said = house.status("app")
    assert (said["state"], said["proven_backup"]) == ("unproven", first)
    (doubt,) = [line for line in said["attention"] if "not proven" in line]
    assert "has any row now (note)" in doubt and "dbguardctl backup app --successor" in doubt
    assert house.does("backup", "app", "--successor")["proof"]["grade"] == "proven"
    assert house.status("app")["state"] == "safe"
    house.is_sound()
