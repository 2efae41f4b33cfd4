"""Keys that are withdrawn open nothing any more: that of a lost sheet, and a machine key that was stolen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import blocks, roff, section
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


def typed(house: House, text: str, stdin: str) -> None:
    """Type a block of a manual page at the places of this house."""
    places = {"/var/lib/dbguard": house.state, "/root/": f"{house.place}/root/"}
    for theirs, ours in places.items():
        text = text.replace(theirs, str(ours))
    path = f"{house.python.parent}:{os.environ['PATH']}"
    said = subprocess.run(["sh", "-ec", text], env={"PATH": path, "DBGUARD_SOCKET": str(house.socket)}, input=stdin,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert said.returncode == 0, (text, said)


def opens(key: Path, store: Path) -> bool:
    argv = [sys.executable, store / "recover" / "recover.py", "--machine-key", key, store, "list"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_a_stolen_machine_key_is_withdrawn_as_the_manual_says(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    first = house.does("backup", "app")["job"]["result"]["backup"]["id"]
    identity = house.does("key", "recovery-sheet")["identity"]
    new, stolen = house.state / "machine.key", house.place / "root" / "machine.key"
    stolen.parent.mkdir()
    note, replace, withdraw, policy = blocks(section(roff("dbguard-recovery.7"), "A KEY WAS STOLEN"))
    typed(house, note, identity)
    assert opens(stolen, house.store)
    typed(house, replace, identity)
    assert opens(new, house.store) and opens(stolen, house.store)
    typed(house, withdraw, "")
    assert opens(new, house.store) and not opens(stolen, house.store)
    house.does("verify", first)
    house.does("backup", "app")

    second, text = house.place / "second", policy.partition("\n\n")[0].replace("/srv/dbguard-second", "PLACE")
    house.protects(house.table("app", 'storage = ["second"]'), more=f"{text.replace('PLACE', str(second))}\n")
    house.does("reload")
    house.does("backup", "app")
    assert opens(new, second) and not opens(stolen, second)
    assert (second / "repo.json").read_bytes() != (house.store / "repo.json").read_bytes()
