"""dbguardctl log against a real daemon: the story of a database, also across a restart."""

from __future__ import annotations

import json
import os
import pwd
import re

from dbguardd.errors import OUTCOMES
from tests.process.house import House, until

MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"


def told(house: House, *words: str) -> list[str]:
    """The lines of the log, without their moments."""
    lines = house.ctl("--utc", "log", *words).out.splitlines()
    assert all(re.match(MOMENT, line) for line in lines if not line.startswith("    "))
    return [re.sub(rf"^{MOMENT} +", "", line) for line in lines]


def test_the_story_of_a_database(house: House) -> None:
    path = house.database("app")
    house.database("shop")
    house.protects(house.table("app"), house.table("shop"))
    house.start()
    id = house.does("backup", "app")["backup"]["id"]
    house.idle()
    house.does("hold", id, "--reason", "before the move")
    house.does("pause", "app")
    path.unlink()
    problem = house.fails("DBG-2001", 1, "backup", "app")
    lines = told(house, "app")
    assert re.fullmatch(r"app: storage local was empty: a new repository was created in it", lines[0])
    assert re.fullmatch(rf"app: backup {id} is stored, \S+ \w+ new, \S+ m?s", lines[1])
    assert re.fullmatch(rf"app: backup {id} is proven: a restore takes \S+ m?s", lines[2])
    me = pwd.getpwuid(os.geteuid()).pw_name
    assert lines[3:5] == [f"app: backup {id} is held by {me}: before the move", f"app: paused by {me}"]
    assert lines[5].startswith(f"✖ app: backup failed: {path}: no such file (DBG-2001)")
    assert len(lines) == 6
    assert house.ctl("log", "shop").out == "Nothing has happened to shop that was asked for.\n"
    assert told(house, "--errors") == lines[5:]
    verbose = told(house, "app", "-v")
    assert "app: job.queued" not in str(verbose) and any("backup is queued" in line for line in verbose)
    assert verbose[-1].endswith(f"dbguardctl job show {problem['job']}")
    everything = told(house)
    assert everything[0].startswith("the policy is in force: 2 databases")
    assert "dbguardd is ready and protects 2 databases" in everything


def test_the_log_says_what_the_daemon_logged(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    house.idle()
    entries = house.does("log", "-v", "-n", "1000")["entries"]
    house.stop()
    logged = [json.loads(line) for line in house.log.read_text().splitlines()]
    mine = [(entry["event"], entry["level"], entry["message"]) for entry in entries]
    theirs = [(line["event"], line["level"], line["message"]) for line in logged]
    kept = {event for event, _, _ in mine}
    assert len(kept) >= 10
    assert mine == [line for line in theirs if line[0] in kept][: len(mine)]


def test_following_survives_a_restart_of_the_daemon(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    with house.starting("--json", "log", "--follow", "--since", "1h ago") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["event"] == "policy.loaded"
        house.kill()
        house.start()
        house.does("backup", "app")
        seen = [first]
        while seen[-1]["event"] != "backup.graded":
            seen.append(json.loads(process.stdout.readline()))
    ids = [entry["id"] for entry in seen]
    assert ids == sorted(set(ids))
    assert [entry["event"] for entry in seen].count("daemon.ready") == 2


def test_what_is_refused_is_in_the_history(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.write("[defaults]\nbakcup = 1\n")
    assert house.ctl("reload").status == OUTCOMES["DBG-1001"].exit_status
    until(lambda: told(house, "--errors"), "the refusal")
    (line,) = told(house, "--errors")
    assert line.startswith("✖ the policy was refused, the old one stays in force: ")
    assert any("bakcup" in line for line in told(house, "--errors", "-v"))
    house.protects(house.table("app"))
