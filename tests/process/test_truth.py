"""What `status` says can be done now: nothing is shown as safe that could not be restored."""

from __future__ import annotations

from pathlib import Path

from tests.process.house import House, add, rows


def packs(house: House) -> set[Path]:
    return set(house.store.glob("packs/*/*"))


def damage(path: Path) -> None:
    """Change a byte in the middle of an object."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(0o400)


def test_damage_that_a_check_finds_makes_status_fall_back_and_the_next_backup_heals_it(house: House) -> None:
    path = house.database("app", 200, blob=500)
    house.protects(house.table("app", 'expire = "off"'))
    house.start()
    good = house.does("backup", "app")["backup"]["id"]
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
        assert "cannot be relied on" in status["attention"][0]
        assert status["hints"][0] == "dbguardctl backup app --verify"
        assert house.ctl("status").status == 3
    house.does("restore", "app", "--to", str(house.place / "x.db"))
    assert rows(house.place / "x.db") == 200

    healed = house.does("backup", "app", "--verify")["backup"]
    assert healed["kind"] == "full"
    status = house.status("app")
    assert (status["state"], status["proven_backup"]) == ("safe", healed["id"])
    assert "1 of its older backups cannot be relied on" in status["attention"][0]
    house.idle()
