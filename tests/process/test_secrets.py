"""Secrets stay where they belong: looked for in every place that anybody but the daemon's user could see, and in all
that is kept."""

from __future__ import annotations

import base64
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.process.house import House, held, rows, until

WORDS = "canary of nine-hundred yellow feathers"


def traces(secret: str) -> list[bytes]:
    """Return how a secret may look where it does not belong."""
    raw = secret.encode()
    return [raw, raw.lower(), raw.hex().encode(), base64.b64encode(raw).rstrip(b"="), repr(raw)[2:-1].encode()]


def kept(house: House) -> Iterator[tuple[Path, bytes]]:
    """Yield every file that the daemon wrote, with its content."""
    for path in (house.log, *house.state.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes()


def seen() -> Iterator[tuple[str, bytes]]:
    """Yield what the system shows of the processes that run now."""
    for name in os.listdir("/proc"):
        for part in ("cmdline", "environ"):
            with suppress(OSError):
                yield f"{name}/{part}", Path(f"/proc/{name}/{part}").read_bytes()


def is_nowhere(house: House, secret: str) -> None:
    """The secret is in no file, in no process and in no answer; what is no secret is found by the same search."""
    assert any(str(house.policy).encode() in content for _, content in seen())
    assert any(b"daemon.ready" in content for _, content in kept(house))
    forms = traces(secret)
    found = [str(path) for path, content in kept(house) if any(form in content for form in forms)]
    found += [where for where, content in seen() if any(form in content for form in forms)]
    jobs = [house.api.get("show", row["id"]) for row in house.jobs()]
    answers = [house.api.get(what) for what in ("status", "events", "audit", "keys", "config", "jobs")]
    found += [f"{form!r}" for form in forms if form.decode() in str((jobs, answers))]
    assert not found, found


def script(house: House, text: str) -> Path:
    """Write a command."""
    path = house.place / "unlock"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


@pytest.mark.parametrize("kind", ["file", "command"])
def test_a_passphrase_shows_nowhere(house: House, kind: str) -> None:
    path = house.database("app", 50)
    secret = house.place / "words"
    secret.write_text(WORDS + "\n")
    secret.chmod(0o600)
    command = script(house, f"cat {secret}")
    source = f'file = "{secret}"' if kind == "file" else f'command = ["{command}", "an-argument"]'
    table = house.table("app", 'key = "team"', 'lock_timeout = "1h"')
    house.protects(table, more=f'[key.team]\ntype = "passphrase"\nsecret = {{ {source} }}\n')
    house.start()
    with held(path):
        job = house.submit("backup", "app")
        until(lambda: house.job(job)["step"] == "snapshot", lambda: house.job(job))
        assert set(house.workers()) == {"repository", "engine"}
        is_nowhere(house, WORDS)
    assert house.ended(house.ended(job)["result"]["verify_job"])["state"] == "done"
    house.does("restore", "app", "--to", str(house.place / "again.db"))
    assert rows(house.place / "again.db") == 50
    house.does("check", "app", "--data")
    assert not (house.state / "machine.key").exists()
    assert house.api.get("keys")["keys"][0]["recovery"] == ["passphrase"]

    secret.write_text("other words of a stranger\n")  # and what is said when it is wrong, or missing
    problem = house.fails("DBG-5001", 11, "backup", "app")
    assert "stranger" not in str(problem)
    secret.unlink()
    assert house.fails("DBG-1004", 11, "backup", "app")["hints"] is not None
    is_nowhere(house, "other words of a stranger")
    secret.write_text(WORDS)
    secret.chmod(0o644)
    if kind == "file":
        assert WORDS not in str(house.fails("DBG-1003", 9, "backup", "app"))
    secret.chmod(0o600)
    house.does("backup", "app")
    house.idle()
    is_nowhere(house, WORDS)
    house.stop()
    assert not [path for path, content in kept(house) if any(form in content for form in traces(WORDS))]


def test_a_command_that_talks_on_standard_error_is_not_quoted(house: House) -> None:
    house.database("app")
    command = script(house, f"echo '{WORDS}' >&2; echo '{WORDS}'; exit 3")
    more = f'[key.team]\ntype = "passphrase"\nsecret = {{ command = ["{command}"] }}\n'
    house.protects(house.table("app", 'key = "team"'), more=more)
    house.start()
    problem = house.fails("DBG-1004", 11, "backup", "app")
    assert str(command) in problem["message"] and "3" in problem["detail"]
    is_nowhere(house, WORDS)


def test_a_recovery_identity_is_shown_once_and_kept_nowhere(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    house.idle()
    sheet = house.does("key", "recovery-sheet", "main")
    identity = sheet["identity"]
    assert identity.startswith("AGE-SECRET-KEY-1") and identity in sheet["sheet_text"].replace("\n", "").replace(
        " ", ""
    )
    is_nowhere(house, identity)
    said = house.ctl("--json", "key", "recovery-test", "main", stdin=f"# from the drawer\n{identity}\n")
    assert (said.status, said.json["ok"]) == (0, True)
    stranger = identity[:-8] + ("QQQQQQQQ" if identity[-8:] != "QQQQQQQQ" else "PPPPPPPP")
    wrong = house.ctl("--json", "key", "recovery-test", "main", stdin=stranger)
    assert wrong.status in (9, 11)
    assert stranger not in wrong.out + wrong.err
    key = house.api.get("keys")["keys"][0]
    assert key["recovery"] == [sheet["recipient"]] and key["recovery_tested_at"]
    is_nowhere(house, identity)
    is_nowhere(house, stranger)
    house.stop()
    for secret in (identity, stranger):
        assert not [path for path, content in kept(house) if any(form in content for form in traces(secret))]
    made = [e["action"] for e in house.audit() if e["outcome"] == "done"]
    assert made.count("job.recovery-sheet") == 1


def test_what_is_in_the_database_is_not_in_the_store_or_the_books(house: House) -> None:
    path = house.database("app")
    canary = base64.b32encode(os.urandom(40)).decode()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table people (name text)")
        db.execute("insert into people values (?)", (canary,))
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    house.idle()
    house.does("check", "app", "--data")
    house.stop()
    assert not [path for path, content in kept(house) if any(form in content for form in traces(canary))]
    assert list((house.state / "staging").iterdir()) == []
