"""Recovery sheets, more than one: each is tested for itself, and one that is lost opens nothing any more."""

from __future__ import annotations

from tests.process.house import House


def test_a_lost_sheet_is_withdrawn(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    early = house.ctl("key", "recovery-test", stdin=f"AGE-SECRET-KEY-1{'Q' * 58}")
    assert (early.status, "no repository yet" in early.err) == (8, True)
    house.does("backup", "app")
    lost = house.does("key", "recovery-sheet")
    kept = house.does("key", "recovery-sheet")
    assert (lost["others"], kept["others"]) == ([], [lost["recipient"]])
    assert house.ctl("key", "recovery-test", stdin=kept["sheet_text"]).status == 0
    [key] = house.does("key", "list")["keys"]
    tested = {row["recipient"]: row["tested_at"] is not None for row in key["recipients"]}
    assert tested == {lost["recipient"]: False, kept["recipient"]: True}
    assert "2 recovery copies, 1 never tested" in house.ctl("status").out

    few = lost["recipient"][:12]
    problem = house.fails("DBG-6004", 10, "key", "recovery-drop", few)
    assert "stay: 1, tested: 1" in problem["detail"] and lost["recipient"] in problem["message"]
    assert "stay: 1, tested: none" in house.fails("DBG-6004", 10, "key", "recovery-drop", kept["recipient"])["detail"]
    assert house.ctl("key", "recovery-drop", few, "--confirm", few).status == 0
    assert house.ctl("key", "recovery-test", stdin=lost["identity"]).status == 11
    assert house.ctl("key", "recovery-test", stdin=kept["identity"]).status == 0
    assert house.does("key", "list")["keys"][0]["recovery"] == [kept["recipient"]]
    house.fails("DBG-0004", 8, "key", "recovery-drop", lost["recipient"])

    problem = house.fails("DBG-6004", 10, "key", "recovery-drop", kept["recipient"])
    assert "last recovery recipient" in problem["message"]
    assert house.ctl("key", "recovery-drop", kept["recipient"], "--confirm", kept["recipient"]).status == 0
    assert house.does("key", "list")["keys"][0]["recovery"] == []
    assert "no recovery recipient" in house.ctl("status").out


def test_what_the_policy_names_is_taken_out_there(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    recipient = house.does("key", "recovery-sheet")["recipient"]
    house.protects(house.table("app"), more=f'[key.main]\ntype = "machine"\nrecovery = ["{recipient}"]\n')
    house.does("reload")
    assert "policy names it" in house.fails("DBG-7001", 10, "key", "recovery-drop", recipient)["message"]
