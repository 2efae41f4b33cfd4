"""Secrets stay where they belong: planted wherever they can be, then hunted for in all that is kept, shown or said."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import dbguardd
from tests.process.house import House, held, rows, until
from tests.process.hunt import Hunt
from tests.process.journald import Journal, a_journal

WORDS = f"canary {os.urandom(6).hex()} of nine-hundred yellow feathers"  # of this run: others may run beside it
STRANGER = f"other words {os.urandom(6).hex()} of a stranger with a beak"


@pytest.fixture
def journal() -> Iterator[Journal]:
    with a_journal() as journal:
        yield journal


def private(path: Path, content: str | bytes) -> Path:
    """Write a file for its owner only."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    return path


def script(house: House, text: str) -> Path:
    """Write a command."""
    path = house.place / "unlock"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


def works(house: House, hunt: Hunt, path: Path, *secrets: str | bytes) -> None:
    """Do everything that needs the key, hunting while both halves of a worker have it and at the end."""
    with held(path):
        job = house.submit("backup", "app")
        until(lambda: house.job(job)["step"] == "snapshot", lambda: house.job(job))
        assert set(house.workers()) == {"repository", "engine"}
        assert len(hunt.tree()) >= 3
        hunt.is_nowhere(*secrets)
    assert house.ended(house.ended(job)["result"]["verify_job"])["state"] == "done"
    house.does("restore", "app", "--to", str(house.place / "again.db"))
    assert rows(house.place / "again.db") == 50
    house.does("check", "app", "--data")
    house.idle()
    hunt.is_nowhere(*secrets)


# ------------------------------------------------------------------------------------------------ passphrases


def test_the_hunt_finds_what_is_there(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app", "--note", "a Secret in a note")
    house.idle()
    hunt = Hunt(house)
    with pytest.raises(AssertionError, match="GET"):
        hunt.is_nowhere("a Secret in a note")
    planted = private(house.place / "conf.d" / "left.tmp", b"xx" + WORDS.encode().hex().encode())
    with pytest.raises(AssertionError, match="left.tmp"):
        hunt.is_nowhere(WORDS)
    planted.unlink()
    hunt.is_nowhere(WORDS)


@pytest.mark.parametrize(("kind", "told"), [("file", "json"), ("command", "console"), ("credential", "journal")])
def test_a_passphrase_shows_nowhere(house: House, kind: str, told: str, request: pytest.FixtureRequest) -> None:
    path = house.database("app", 50)
    secret = private(house.place / "credentials" / "words", WORDS + "\n")
    if kind == "command":
        source = f'command = ["{script(house, f"cat {secret}")}", "an-argument"]'
    else:
        source = f'file = "{secret}"' if kind == "file" else 'credential = "words"'
    journal: Journal | None = None
    house.more = ["--json-log"] if told == "json" else []
    if told == "journal":
        journal = request.getfixturevalue("journal")
        journal.service(house)
    table = house.table("app", 'key = "team"', 'lock_timeout = "1h"')
    house.protects(table, more=f'[key.team]\ntype = "passphrase"\nsecret = {{ {source} }}\n')
    hunt = Hunt(house, secret, journal=journal)
    house.start(CREDENTIALS_DIRECTORY=str(secret.parent))
    works(house, hunt, path, WORDS)
    assert not (house.state / "machine.key").exists()
    assert house.api.get("keys")["keys"][0]["recovery"] == ["passphrase"]

    private(secret, STRANGER + "\n")  # and what is said when it is wrong, or missing
    assert "stranger" not in str(house.fails("DBG-5001", 11, "backup", "app"))
    secret.unlink()
    assert house.fails("DBG-1004", 11, "backup", "app")["hints"] is not None
    hunt.is_nowhere(WORDS, STRANGER)
    private(secret, WORDS).chmod(0o644)
    if kind == "file":
        assert WORDS not in str(house.fails("DBG-1003", 9, "backup", "app"))
    secret.chmod(0o600)
    house.does("backup", "app")
    house.idle()
    hunt.is_nowhere(WORDS, STRANGER)
    house.stop()
    hunt.is_nowhere_kept(WORDS, STRANGER)


def test_a_command_that_talks_on_standard_error_is_not_quoted(house: House) -> None:
    house.database("app")
    command = script(house, f"echo '{WORDS}' >&2; echo '{WORDS}'; exit 3")
    more = f'[key.team]\ntype = "passphrase"\nsecret = {{ command = ["{command}"] }}\n'
    house.protects(house.table("app", 'key = "team"'), more=more)
    house.start()
    problem = house.fails("DBG-1004", 11, "backup", "app")
    assert str(command) in problem["message"] and "3" in problem["detail"]
    Hunt(house, command).is_nowhere(WORDS)


def test_a_secret_in_the_wrong_place_of_the_policy_is_not_repeated(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    for line in (f'secret = {{ value = "{WORDS}" }}', f'secret = "{WORDS}"', f'passphrase = "{WORDS}"'):
        house.protects(house.table("app"), more=f'[key.team]\ntype = "passphrase"\n{line}\n')
        said = house.ctl("reload")
        assert said.status == 9 and WORDS not in said.out + said.err
        house.ctl("config", "check")
        Hunt(house, house.policy).is_nowhere(WORDS)


# ------------------------------------------------------------------------------------------------ machine and recovery


@pytest.mark.parametrize("kind", ["file", "credential"])
def test_a_machine_key_shows_nowhere(house: House, kind: str) -> None:
    path = house.database("app", 50)
    more = ""
    key = house.state / "machine.key"
    if kind == "credential":
        key = private(house.place / "credentials" / "machine", os.urandom(32))
        more = '[key.main]\ntype = "machine"\ncredential = "machine"\n'
    house.protects(house.table("app", 'lock_timeout = "1h"'), more=more)
    house.start(CREDENTIALS_DIRECTORY=str(key.parent))
    house.does("backup", "app")
    house.idle()
    hunt = Hunt(house, key)
    works(house, hunt, path, key.read_bytes())
    good = key.read_bytes()
    bad = os.urandom(32)
    private(key, bad)
    house.fails("DBG-5001", 11, "backup", "app")
    private(key, bad[:31])
    house.fails("DBG-5003", 9, "backup", "app")
    private(key, good)
    hunt.is_nowhere(good, bad, bad[:31])
    house.stop()
    hunt.is_nowhere_kept(good, bad)


def test_a_recovery_identity_is_shown_once_and_kept_nowhere(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    hunt = Hunt(house)
    house.does("backup", "app")
    house.idle()
    sheet = house.does("key", "recovery-sheet", "main")
    identity = sheet["identity"]
    spaceless = sheet["sheet_text"].replace("\n", "").replace(" ", "")
    assert identity.startswith("AGE-SECRET-KEY-1") and identity in spaceless
    hunt.is_nowhere(identity)
    said = house.ctl("--json", "key", "recovery-test", "main", stdin=f"# from the drawer\n{identity}\n")
    assert (said.status, said.json["ok"]) == (0, True)
    stranger = identity[:-8] + ("QQQQQQQQ" if identity[-8:] != "QQQQQQQQ" else "PPPPPPPP")
    for typed in (stranger, identity[:-1], identity.replace("-", "_")):
        wrong = house.ctl("--json", "key", "recovery-test", "main", stdin=typed)
        assert wrong.status in (2, 9, 11), wrong
        assert typed not in wrong.out + wrong.err
    for body in ({"identity": [identity]}, {"identitty": identity}, {"identity": {identity: 1}}, {identity: 1}):
        with pytest.raises(dbguardd.errors.Usage) as refused:
            house.api.post("keys", "main", "recovery-test", body=body)
        assert identity not in str(refused.value.problem())
    key = house.api.get("keys")["keys"][0]
    assert key["recovery"] == [sheet["recipient"]] and key["recovery_tested_at"]
    hunt.is_nowhere(identity, stranger)
    house.stop()
    hunt.is_nowhere_kept(identity, stranger)
    made = [e["action"] for e in house.audit() if e["outcome"] == "done"]
    assert made.count("job.recovery-sheet") == 1


# ------------------------------------------------------------------------------------------------ rows


def test_what_is_in_the_database_is_not_in_the_store_or_the_books(house: House) -> None:
    """Nor what stands in rows that are no text, break a rule, or disappoint a query of the policy."""
    path = house.database("app")
    canary = os.urandom(30).hex()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table people (id integer primary key, name text, boss integer references people)")
        db.execute("insert into people (name) values (?)", (canary,))
        db.execute("insert into people (name) values (cast(? as text))", (b"\xff\xfe" + canary.encode(),))
        db.execute("insert into people (name, boss) values (?, 4711)", (canary,))
    queries = "proof.queries = ["
    queries += '{ sql = "select name from people", min = 5 }, { sql = "select name from people limit 1", min = 5 }, '
    queries += '{ sql = "select json_extract(1, name) from people", min = 1 }, { sql = "select 1 from no", min = 1 }]'
    house.protects(house.table("app", queries))
    house.start()
    hunt = Hunt(house, path)
    house.ctl("backup", "app")
    house.ctl("check", "app", "--data")
    house.idle()
    hunt.is_nowhere(canary)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("delete from people")
    path.write_bytes(path.read_bytes()[:-3000] + canary.encode() * 50)
    house.ctl("backup", "app", "--full")
    house.ctl("check", "app")
    house.idle()
    hunt.is_nowhere(canary)
    house.stop()
    hunt.is_nowhere_kept(canary)
    assert list((house.state / "staging").iterdir()) == []


def test_what_is_committed_is_not_in_a_followed_log(house: House) -> None:
    """As Litestream 790: each commit was stored as plain text, while its policy said encrypted."""
    path = house.database("app")
    canary = os.urandom(30).hex()
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma journal_mode = wal")
        house.protects(house.table("app", "continuous = true"))
        house.start()
        hunt = Hunt(house, path, Path(f"{path}-wal"))
        house.does("backup", "app")
        with db:
            db.execute("create table people (name text)")
            db.execute("insert into people values (?)", (canary,))
        seen = ("query", "app", "select count(*) from people")
        until(lambda: house.ctl(*seen, "--csv").out.split()[-1:] == ["1"], "a commit that is in the log")
        hunt.is_nowhere(canary)
        house.stop()
        hunt.is_nowhere_kept(canary)


# ------------------------------------------------------------------------------------------------ bugs and crashes

BUG = """
import sys
from importlib.machinery import PathFinder
class Bugs:
    def find_spec(self, name, path=None, target=None):
        if name not in ("dbguardd.keys.passphrase", "dbguardd.keys.age"):
            return None
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            if name.endswith("passphrase"):
                def unwrap(self, wrapped, context):
                    words = self._passphrase.reveal()
                    return {}[len(words)]
                module.Passphrase.unwrap = unwrap
            else:
                def from_identity(identity):
                    raise ValueError(f"not what was expected: {identity.reveal()!r}")
                module.AgeRecipient.from_identity = from_identity
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Bugs())
"""


def buggy(house: House) -> None:
    """Give a house a Python in which the keys of dbguard have bugs."""
    venv = house.place / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, capture_output=True)
    (packages,) = venv.glob("lib/python3.*/site-packages")
    roots = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), Path(dbguardd.__file__).parents[1]]
    (packages / "dbguard.pth").write_text("".join(f"{root}\n" for root in roots) + "import bugs\n")
    (packages / "bugs.py").write_text(BUG)
    house.python = venv / "bin" / "python"


def test_a_bug_beside_a_secret_leaves_its_trace_and_not_the_secret(house: House) -> None:
    house.database("app")
    secret = private(house.place / "words", WORDS + "\n")
    more = f'[key.team]\ntype = "passphrase"\nsecret = {{ file = "{secret}" }}\n'
    house.protects(house.table("app", 'key = "team"'), more=more)
    house.start()
    house.does("backup", "app")
    house.idle()
    house.stop()
    buggy(house)
    house.start()
    hunt = Hunt(house, secret)
    problem = house.fails("DBG-0008", 1, "backup", "app")
    assert problem["message"] == f"KeyError: {len(WORDS)}"
    assert "in unwrap" in problem["detail"], "the trace is kept with the job"
    assert "in unwrap" in house.job(problem["job"])["stderr_tail"]
    hunt.is_nowhere(WORDS)
    (failed,) = [event for event in house.events("job.failed") if event["job"] == problem["job"]]
    assert "in unwrap" in failed["detail"] and failed["code"] == "DBG-0008"
    house.stop()
    hunt.is_nowhere_kept(WORDS)
    house.log.write_text("")  # what was planted here is no bug of ours


def test_a_bug_that_quotes_a_recovery_identity_is_told_without_it(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    buggy(house)
    house.start()
    house.does("backup", "app")
    house.idle()
    hunt = Hunt(house)
    identity = "AGE-SECRET-KEY-1" + os.urandom(29).hex().upper()
    said = house.ctl("--json", "key", "recovery-test", "main", stdin=identity)
    assert said.problem()["message"] == "ValueError: not what was expected: b'***'"
    assert "in from_identity" in said.problem()["detail"]
    hunt.is_nowhere(identity)
    house.stop()
    hunt.is_nowhere_kept(identity)
    house.log.write_text("")


def test_nobody_gets_a_core_dump(house: House, program, tmp_path: Path) -> None:
    """Even where dumps are wanted: neither of the daemon nor of the halves that have keys and rows."""
    path = house.database("app")
    house.protects(house.table("app", 'lock_timeout = "1h"'))
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    house.become = [program("prlimit"), f"--core={'unlimited' if hard == resource.RLIM_INFINITY else hard}"]
    house.start()
    with held(path):
        job = house.submit("backup", "app")
        until(lambda: house.job(job)["step"] == "snapshot", lambda: house.job(job))
        for pid in Hunt(house).tree():
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert limits.partition("Max core file size")[2].split()[:2] == ["0", "0"], pid
        os.kill(house.workers()["repository"], signal.SIGSEGV)
        ended = house.ended(job)
    assert "SIGSEGV" in ended["problem"]["detail"] and "core" not in ended["problem"]["detail"]
    assert not [
        found for place in ("/", "/tmp", str(house.place)) for found in Path(place).glob("core*") if found.is_file()
    ]
