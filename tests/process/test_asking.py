"""What people ask a real daemon, and what it answers: any case of an id, the role that is needed, words."""

from __future__ import annotations

import shutil
from pathlib import Path

import dbguardd
from dbguardd.keys import new_identity
from tests.process.house import House


def test_ids_are_found_as_people_type_them(house: House) -> None:
    house.database("app")
    house.protects(house.table("app", 'expire = "off"'))
    house.start()
    ids = [house.does("backup", "app")["backup"]["id"] for _ in range(2)]
    assert house.does("show", ids[0].lower())["backup"]["id"] == ids[0]
    problem = house.fails("DBG-0001", 2, "show", ids[0][:2].lower())
    assert problem["detail"] == ", ".join(ids)
    (job, *_) = house.does("job", "list")["jobs"]
    assert house.does("job", "show", job["id"].lower())["job"]["id"] == job["id"]


def test_a_proof_and_a_job_are_shown_in_words(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app", "--verify")
    house.idle()
    id = house.backups("app")[0]["id"]
    shown = house.ctl("show", id).out
    assert "  integrity_check" in shown
    assert "findings" not in shown
    jobs = house.does("job", "list")["jobs"]
    said = {job["verb"]: house.ctl("job", "show", job["id"]).out for job in jobs}
    assert f"backup {id} of app is stored" in said["backup"]
    assert "app can be restored in" in said["verify"]
    assert "VERDICT" in said["expire"]


def test_who_has_no_role_is_told_which_one_is_needed(house: House, users: list[int]) -> None:
    house.database("app")
    house.protects(house.table("app"), more="[access]\nread = []\noperate = []\n")
    house.start()
    assert "needs the role operate" in house.fails("DBG-0003", 5, "backup", "app", uid=users[0])["detail"]
    assert "needs the role read" in house.fails("DBG-0003", 5, "job", "list", uid=users[0])["detail"]


def test_what_was_not_paused_is_not_said_to_go_on_again(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    assert "was not paused" in house.ctl("resume", "app").out
    house.does("pause", "app")
    assert "is no longer paused" in house.ctl("resume", "app").out


def test_a_daemon_that_was_not_restarted_after_an_upgrade_says_so_and_starts_no_job(house: House) -> None:
    code = house.place / "code"
    shutil.copytree(Path(dbguardd.__file__).parent, code / "dbguardd")
    file, new = code / "dbguardd" / "__init__.py", dbguardd.__version__
    text = file.read_text()
    file.write_text(text.replace(new, "0.0.9"))
    house.database("app")
    house.protects(house.table("app"))
    house.start(PYTHONPATH=str(code))
    assert not house.does("status")["attention"]
    file.write_text(text)  # workers load the code that these tests run
    said = f"dbguardd 0.0.9 is running, but {new} is installed"
    assert house.does("status")["attention"] == [
        f"{said}: no job starts before it is restarted (systemctl restart dbguardd)"
    ]
    problem = house.fails("DBG-8004", 1, "backup", "app")
    assert (problem["message"], problem["hints"]) == (said, ["systemctl restart dbguardd"])
    assert not house.store.exists()


def test_a_text_is_called_a_text(house: House) -> None:
    house.protects()
    house.start()
    path = house.place / "notes.db"
    path.write_text("Dear diary, today I was taken for a database.\n")
    wrong = house.fails("DBG-2002", 1, "protect", str(path))
    assert "looks like text" in wrong["message"]
    assert path.read_text()[:8] not in str(wrong)  # it may be any file: what is in it is not told


def test_an_added_database_differs_by_what_stands_in_its_table(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.protects(house.table("app"), house.table("more", "min_proven = 3"))
    [change] = house.does("config", "diff")["changes"]
    assert change["new"] == {"engine": "sqlite", "path": str(house.place / "more.db"), "min_proven": 3}


def test_a_key_that_does_not_fit_says_so_once(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    for _ in range(3):
        house.does("key", "recovery-sheet")
    said = house.ctl("key", "recovery-test", stdin=new_identity()[0].reveal().decode())
    assert said.status == 11
    assert "match none of the 4 recipients" in said.err
    assert said.err.count("match none") == 1
