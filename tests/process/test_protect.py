"""protect and unprotect: what they write, what they leave, and what they refuse."""

from __future__ import annotations

from tests.process.house import House, rows


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
    assert "its 1 backup stays, and nothing deletes them" in said.out and f"protect {path} --name app" in said.out
    assert list(drop_in.parent.iterdir()) == []
    assert house.status("app")["state"] == "orphaned"
    house.does("restore", "app", "--to", str(house.place / "back.db"))
    assert rows(house.place / "back.db") == 50
    assert [e["outcome"] for e in house.audit() if e["action"] == "policy.unprotect"] == ["intent", "done"]
    assert house.fails("DBG-0004", 8, "unprotect", "app", "--confirm", "app")

    again = house.does("protect", str(path))["backup"]
    assert (again["kind"], [row["id"] for row in house.backups("app")][-1]) == ("incremental", first)
    house.idle()
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
