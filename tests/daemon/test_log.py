"""Log entries have their fields, their ids and no secrets."""

import io
import os
import socket
import struct
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from dbguardd.daemon import log
from dbguardd.daemon.lean import structlog
from dbguardd.errors import NoSpace, message_id
from tests.daemon.conftest import SECONDS


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


def test_an_event_becomes_an_entry_with_fields() -> None:
    sent: list[bytes] = []
    sender = log.JournalSender(sent.append)
    event = {
        **{"event": "job.failed", "level": "error", "code": NoSpace.code, "database": "app", "action": "backup"},
        **{"seconds": 1.5, "job": "01J", "problem": "no room", "storage": None},
    }
    with pytest.raises(structlog.DropEvent):
        sender(None, "error", event)
    entry = decode(sent[0])
    assert entry["MESSAGE_ID"] == message_id(NoSpace.code)
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("3", "dbguardd")
    assert (entry["DBGUARD_DATABASE"], entry["DBGUARD_ACTION"], entry["DBGUARD_JOB"]) == ("app", "backup", "01J")
    assert entry["DBGUARD_DURATION_USEC"] == "1500000"
    assert "DBGUARD_STORAGE" not in entry
    assert entry["MESSAGE"].startswith("job.failed ")
    assert "no room" in entry["MESSAGE"]


def test_lines_within_a_value_cannot_make_fields_of_their_own() -> None:
    entry = decode(
        log.encode(log.fields({"event": "x.y", "database": "a\nPRIORITY=0\nMESSAGE=forged", "level": "info"}))
    )
    assert entry["PRIORITY"] == "6"
    assert entry["DBGUARD_DATABASE"] == "a\nPRIORITY=0\nMESSAGE=forged"


def test_long_values_are_cut_so_that_a_datagram_suffices() -> None:
    assert len(log.encode({"MESSAGE": "x" * 1_000_000})) < 64 << 10


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
