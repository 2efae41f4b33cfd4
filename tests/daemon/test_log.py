"""Log entries have their fields, their ids and no secrets."""

import io
import json
import logging
import os
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dbguardd.daemon import log
from dbguardd.daemon.lean import structlog
from dbguardd.errors import NoSpace, message_id
from tests.daemon.conftest import SECONDS


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What setup() changes for the whole process is put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def decode(data: bytes) -> dict[str, str]:
    """Read the journal's native protocol back."""
    found = {}
    while data:
        name, end, rest = data.partition(b"\n")
        if b"=" in name:
            key, _, value = name.partition(b"=")
            data = rest
        else:
            (size,) = struct.unpack("<Q", rest[:8])
            key, value, data = name, rest[8 : 8 + size], rest[9 + size :]
            assert end
        found[key.decode()] = value.decode()
    return found


FAILED = {
    **{"event": "job.failed", "level": "error", "database": "app", "engine": "sqlite", "action": "backup"},
    **{"job": "01J", "seconds": 1.5, "step": "store", "actor": "alice", "actor_uid": 1000, "last_proven": "01H"},
    **{"storage": None},
    "problem": NoSpace("app: no room", detail="3 of 4", hints=["dbguardctl prune app", "df -h"]).problem(),
}


def test_an_event_becomes_an_entry_with_fields() -> None:
    sent: list[bytes] = []
    sender = log.JournalSender(sent.append)
    with pytest.raises(structlog.DropEvent):
        sender(None, "error", dict(FAILED))
    entry = decode(sent[0])
    assert entry["MESSAGE"] == f"app: backup failed: no room ({NoSpace.code}). 3 of 4"
    assert entry["MESSAGE_ID"] == message_id(NoSpace.code)
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("3", "dbguardd")
    assert entry["DOCUMENTATION"] == "man:dbguard-errors(7)"
    named = {name.removeprefix("DBGUARD_"): value for name, value in entry.items() if name.startswith("DBGUARD_")}
    assert named.pop("HINT") == "dbguardctl prune app\n  df -h"
    assert named == {
        **{"EVENT": "job.failed", "DATABASE": "app", "ENGINE": "sqlite", "ACTION": "backup", "JOB": "01J"},
        **{"STEP": "store", "RESULT": "failed", "ACTOR": "alice", "ACTOR_UID": "1000", "LAST_PROVEN": "01H"},
        **{"CODE": NoSpace.code, "PROBLEM": "app: no room", "DETAIL": "3 of 4"},
        **{"SECONDS": "1.5", "DURATION_USEC": "1500000"},
    }


@pytest.mark.parametrize(
    ("event", "field", "value"),
    [
        ({"event": "backup.stored", "id": "01J", "stored_bytes": 5}, "BYTES", "5"),
        ({"event": "backup.stored", "id": "01J", "stored_bytes": 5}, "BACKUP", "01J"),
        ({"event": "sweep.done", "freed_bytes": 7}, "BYTES", "7"),
        ({"event": "backup.graded", "id": "01J", "grade": "proven"}, "RESULT", "proven"),
        ({"event": "backup.graded", "id": "01J", "findings": [{"name": "size", "outcome": "failed"}]}, "STEP", "size"),
        ({"event": "audit.entry", "seq": 4, "hash": "ab", "result": "intent"}, "RESULT", "intent"),
        ({"event": "audit.entry", "seq": 4, "hash": "ab", "result": "intent"}, "HASH", "ab"),
    ],
)
def test_what_can_be_asked_of_every_event_has_one_name(event: dict[str, object], field: str, value: str) -> None:
    assert log.fields(event)[f"DBGUARD_{field}"] == value


def test_nothing_in_a_value_can_make_a_field_a_line_or_an_order_of_its_own() -> None:
    event = {"event": "x.y", "database": "a\nPRIORITY=0\nMESSAGE=forged \x1b[2J\u202e", "level": "info"}
    entry = decode(log.encode(log.fields(event)))
    assert entry["PRIORITY"] == "6"
    assert entry["DBGUARD_DATABASE"] == "a\\nPRIORITY=0\\nMESSAGE=forged \\x1b[2J\\u202e"
    assert entry["MESSAGE"] == "a\\nPRIORITY=0\\nMESSAGE=forged \\x1b[2J\\u202e: x.y"


def test_what_has_lines_of_its_own_stands_below_the_sentence() -> None:
    mistakes = {"event": "policy.refused", "code": "DBG-1001", "problem": "2 mistakes", "detail": "a.toml:3\n\x1b[2Jx"}
    assert log.fields(mistakes)["MESSAGE"].splitlines()[1:] == ["a.toml:3", "\\x1b[2Jx"]
    trace = {"event": "job.crashed", "exception": "Traceback:\nKeyError: 'x\u202e'"}
    assert log.fields(trace)["MESSAGE"].splitlines()[1:] == ["Traceback:", "KeyError: 'x\\u202e'"]


def test_hints_are_as_long_as_the_catalog_can_fill_in() -> None:
    long = log.fields({**FAILED, "problem": NoSpace("x", hints=["first", "y" * 300]).problem()})
    assert long["DBGUARD_HINT"] == "first"
    none = log.fields({**FAILED, "problem": NoSpace("x", hints=["y" * 300]).problem()})
    assert none["DBGUARD_HINT"] == f"dbguardctl explain {NoSpace.code}"


def test_long_values_are_cut_so_that_a_datagram_suffices() -> None:
    assert len(log.encode({"MESSAGE": "x" * 1_000_000})) < 64 << 10
    assert decode(log.encode({"DBGUARD_NOTE": "\u00fc" * 5000 + "x"}))["DBGUARD_NOTE"] == "\u00fc" * 2048


# ------------------------------------------------------------------------------------------------ not under systemd


def test_a_line_for_people() -> None:
    lines = log.Lines(colour=False)
    told = {"event": "backup.stored", "database": "app", "id": "01J", "stored_bytes": 20172, "level": "info"}
    at = {"timestamp": "2026-09-12T07:14:11.123456Z"}
    said = lines(None, "info", {**told, **at})
    assert said == "2026-09-12 07:14:11Z info    app: backup 01J is stored, 19.7 KiB new [backup.stored]"
    trace = lines(None, "error", {"event": "job.crashed", "exception": "one\ntwo\x1b[2J", "level": "error", **at})
    assert trace.splitlines()[1:] == ["    one", "    two\\x1b[2J"]
    assert log.Lines(colour=True)(None, "error", {"event": "x.y", "level": "error", **at}).count("\x1b") == 2


def test_a_line_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    logger = log.setup(json_lines=True)
    logger.debug("job.done", database="a\nb", verb="expire")
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert told.pop("timestamp").endswith("Z")
    assert told == {
        **{"event": "job.done", "level": "debug", "database": "a\nb", "verb": "expire"},
        "message": "a\\nb: expire is done",
    }


def test_people_are_spared_steps(capsys: pytest.CaptureFixture[str]) -> None:
    logger = log.setup()
    logger.debug("job.done", verb="expire")
    assert capsys.readouterr().err == ""


def test_what_libraries_say_goes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(json_lines=True)
    logging.getLogger("api").error("api.failed", extra={"facts": {"path": "/v1/x"}})
    logging.getLogger("asyncio").warning("never retrieved\nAGE-SECRET-KEY-1HUNTER2")
    ours, theirs = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["path"], ours["level"]) == ("api.failed", "/v1/x", "error")
    assert (theirs["event"], theirs["logger"], theirs["text"]) == ("library.said", "asyncio", "never retrieved")
    assert "HUNTER2" not in str(theirs) and "***" in theirs["detail"]


def test_a_trace_hides_what_looks_like_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    logger = log.setup(json_lines=True)
    logger.error("job.crashed", exc_info=ValueError("no AGE-SECRET-KEY-1HUNTER2 there"))
    said = capsys.readouterr().err
    assert "ValueError" in said and "HUNTER2" not in said


# ------------------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize(
    "event",
    [
        {"password": "hunter2"},
        {"request": {"identity": "hunter2", "database": "app"}},
        {"detail": "key AGE-SECRET-KEY-1HUNTER2 refused"},
        {"rows": ["fine", "AGE-SECRET-KEY-1HUNTER2"]},
        {"db_passphrase": "hunter2"},
        {"deep": [{"token": "hunter2"}]},
    ],
)
def test_secrets_are_replaced_wherever_they_stand(event: dict[str, object]) -> None:
    clean = log.redact(None, "info", {"event": "x.y", **event})
    assert "hunter2" not in str(clean).lower()
    assert clean["event"] == "x.y"


def test_what_is_no_secret_stays() -> None:
    event = {"event": "x.y", "key": "main", "recipient": "age1abc", "database": "app", "bytes": 5, "identity": None}
    assert log.redact(None, "info", dict(event)) == event


def test_the_journal_is_used_only_when_it_is_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryFile() as file:
        status = os.fstat(file.fileno())

        class Stderr(io.StringIO):
            def fileno(self) -> int:
                return file.fileno()

        monkeypatch.setattr(sys, "stderr", Stderr())
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not log.to_journal()
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not log.to_journal()
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert log.to_journal() == Path("/run/systemd/journal/socket").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it is open as long as a daemon lives
def test_a_journal_that_does_not_read_keeps_nobody(tmp_path):
    """It may wait for its disk; the daemon must not wait for it, or jobs and answers would."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        send = log._datagrams(str(tmp_path / "journal"))
        told = threading.Thread(target=lambda: [send(b"MESSAGE=%d\n" % n) for n in range(2000)], daemon=True)
        told.start()
        told.join(SECONDS)
        assert not told.is_alive()
        journal.setblocking(False)
        with suppress(BlockingIOError):
            while journal.recv(100):
                pass
        send(b"MESSAGE=again\n")
        assert journal.recv(100) == b"MESSAGE=again\n"
