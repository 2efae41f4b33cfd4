"""The journal of a real journald: sentences, fields, and an explanation with the next command below each error."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

import pytest

from dbguardd.errors import OUTCOMES, message_id
from dbguardd.events import KINDS
from tests.process.house import SECONDS, House, until
from tests.process.journald import Journal, a_journal
from tests.surface.happened import HAPPENED, of

SEND = """
import json, sys
from dbguardd.daemon.log import JournalSender, _datagrams
from dbguardd.daemon.lean import structlog
sender = JournalSender(_datagrams("/run/systemd/journal/socket"))
for event in json.loads(sys.argv[1]):
    try:
        sender(None, "info", event)
    except structlog.DropEvent:
        pass
"""


@pytest.fixture(scope="module")
def journal() -> Iterator[Journal]:
    with a_journal() as journal:
        yield journal


@pytest.fixture
def served(house: House, journal: Journal) -> House:
    """A house whose daemon logs to the journal; it is not started yet."""
    journal.service(house)
    house.database("app")
    house.protects(house.table("app"))
    return house


def ours(house: House, journal: Journal, *matches: str) -> list[dict[str, str]]:
    """The entries that this daemon sent; what it wrote on its standard error is none."""
    assert house.process is not None
    found = journal.entries(f"_PID={house.process.pid}", *matches)
    return [entry for entry in found if entry["_TRANSPORT"] == "journal"]


def sentences(house: House, journal: Journal, *matches: str) -> str:
    return "\n".join(entry["MESSAGE"] for entry in ours(house, journal, *matches))


def explained(house: House, journal: Journal, *matches: str) -> str:
    """What `journalctl -x` says of entries of this daemon."""
    assert house.process is not None
    return in_one_line(journal.journalctl("-x", f"_PID={house.process.pid}", *matches))


def in_one_line(said: str) -> str:
    """The words, without the marks at the beginning of the lines."""
    return " ".join(re.sub(r"^(░░|--) ?", "", said, flags=re.M).split())


def test_what_a_tired_administrator_reads(served: House, journal: Journal) -> None:
    served.start()
    made = served.does("backup", "app")
    id = made["backup"]["id"]
    served.idle()
    served.does("restore", "app", "--to", str(served.place / "again.db"))
    told = sentences(served, journal, "DBGUARD_DATABASE=app", "PRIORITY=6")
    assert re.search(rf"^app: backup {id} is stored, [0-9.]+ [KM]?i?B new, [0-9.]+ m?s$", told, re.M)
    assert re.search(rf"^app: backup {id} is proven: a restore takes [0-9.]+ m?s$", told, re.M)
    restored = rf"^app: backup {id} was restored to {served.place}/again.db, as of [0-9:+ -]+, [0-9.]+ m?s$"
    assert re.search(restored, told, re.M)
    assert "=" not in told and "job." not in told
    (stored,) = ours(served, journal, "DBGUARD_EVENT=backup.stored")
    assert (stored["DBGUARD_BACKUP"], stored["DBGUARD_JOB"]) == (id, made["job"]["id"])
    known = {"ACTION": "backup", "STORAGE": "local", "ENGINE": "sqlite", "ACTOR": "root", "RESULT": "stored"}
    assert {name: stored[f"DBGUARD_{name}"] for name in known} == known
    assert int(stored["DBGUARD_BYTES"]) == made["backup"]["stored_bytes"]
    assert int(stored["DBGUARD_DURATION_USEC"]) > 0
    assert stored["CODE_FILE"].endswith("dbguardd/daemon/runner.py")
    assert served.stop() == 0


def test_a_failure_is_explained_with_the_next_command(served: House, journal: Journal) -> None:
    served.start()
    id = served.does("backup", "app")["backup"]["id"]
    served.idle()
    (served.place / "app.db").unlink()
    served.fails("DBG-2001", 1, "backup", "app")
    kind = OUTCOMES["DBG-2001"]
    said = explained(served, journal, f"MESSAGE_ID={message_id('DBG-2001')}")
    assert re.search(r"app: backup failed: .*app.db: no such file \(DBG-2001\)", said)
    assert f"Subject: {kind.title} (DBG-2001)" in said and kind.meaning in said
    assert f"Last proven backup: {id}." in said
    assert "dbguardctl status app" in said
    (entry,) = ours(served, journal, "DBGUARD_CODE=DBG-2001")
    assert (entry["PRIORITY"], entry["DBGUARD_RESULT"], entry["DBGUARD_LAST_PROVEN"]) == ("3", "failed", id)


def test_a_refused_policy_shows_every_mistake(served: House, journal: Journal) -> None:
    served.start()
    served.write("[defaults]\nbakcup = 1\nkeep = 2\n")
    assert served.ctl("reload").status == 9
    until(lambda: ours(served, journal, "DBGUARD_EVENT=policy.refused"), "policy.refused")
    (entry,) = ours(served, journal, "DBGUARD_EVENT=policy.refused")
    first, *more = entry["MESSAGE"].splitlines()
    assert first.startswith("the policy was refused, the old one stays in force: ") and first.endswith("(DBG-1001)")
    assert [line for line in more if "bakcup" in line] and [line for line in more if "policy.toml:4" in line]
    assert "dbguardctl config check" in explained(served, journal, "DBGUARD_EVENT=policy.refused")


def test_a_daemon_that_does_not_start_says_so_as_an_entry(served: House, journal: Journal) -> None:
    served.write("[defaults]\nbakcup = 1\n")
    process = served.launch()
    assert process.wait(SECONDS) == 9
    (entry,) = journal.entries(f"_PID={process.pid}", "DBGUARD_EVENT=daemon.failed")
    assert entry["MESSAGE"].startswith("dbguardd did not start: ")
    assert entry["MESSAGE_ID"] == message_id("DBG-1001")


def send(journal: Journal, *events: dict[str, object]) -> None:
    journal.run(sys.executable, "-c", SEND, json.dumps(events))


def test_journalctl_explains_every_error_and_every_event_that_has_an_entry(journal: Journal) -> None:
    mark = {"mark": "a", "last_proven": "01J"}
    problems = [{"message": "app: x", "code": code, "backup": "01K"} for code in OUTCOMES]
    failed = [of("job.failed", verb="verify", problem=problem, **mark) for problem in problems]
    send(journal, *failed, *({**happened, **mark} for happened in HAPPENED))
    shown = in_one_line(journal.journalctl("-x", "DBGUARD_MARK=a"))
    for code, kind in OUTCOMES.items():
        assert f"Subject: {kind.title} ({code})" in shown
        assert kind.meaning in shown
    for event in KINDS:
        if event.title:
            assert f"Subject: {event.title} Defined-By: dbguard" in shown
    unfilled = set(re.findall(r"\bDBGUARD_\w+(?!=)\b", shown))
    assert unfilled <= {"DBGUARD_DATABASE"}, "only what is about a storage has no database"


def test_a_hostile_value_cannot_forge_an_entry_or_command_a_terminal(journal: Journal) -> None:
    hostile = "x\n-- forged\nPRIORITY=0\n\x1b[2J\u202e"
    problem = {"message": hostile, "code": "DBG-6001", "detail": hostile, "hints": [hostile]}
    send(journal, of("job.failed", hostile, backup=hostile, problem=problem, mark="hostile", last_proven=hostile))
    (entry,) = journal.entries("DBGUARD_MARK=hostile")
    assert entry["PRIORITY"] == "6"
    assert "\x1b" not in str(entry) and "\u202e" not in str(entry)
    assert entry["DBGUARD_DATABASE"] == "x\\n-- forged\\nPRIORITY=0\\n\\x1b[2J\\u202e"
    said = journal.journalctl("-x", "--output=short", "DBGUARD_MARK=hostile")
    assert "\x1b[2J" not in said and "\u202e" not in said
    lines = said.splitlines()
    assert not [line for line in lines if line.startswith(("-- forged", "PRIORITY"))]
    assert len([line for line in lines if "dbguardd[" in line]) == 1
