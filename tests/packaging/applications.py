"""Applications on a machine: a user, his private directory, his database, and a writer that goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.packaging.machine import Machine

_MAKE = """
import os, sqlite3, sys
path, rows = sys.argv[1], int(sys.argv[2])
os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
os.umask(0o077)
db = sqlite3.connect(path)
db.execute("pragma journal_mode = wal")
db.execute("create table note (id integer primary key, text text)")
db.executemany("insert into note (text) values (?)", [(f"note {n}",) for n in range(rows)])
db.commit()
db.close()
"""
_LOOK = """
import base64, json, os, pwd, sys
found = os.stat(sys.argv[1])
names = sorted(os.listxattr(sys.argv[1]))
attributes = {name: base64.b64encode(os.getxattr(sys.argv[1], name)).decode() for name in names}
print(json.dumps({"owner": pwd.getpwuid(found.st_uid).pw_name, "mode": oct(found.st_mode), "attributes": attributes}))
"""
_HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma journal_mode = delete")
db.execute("begin exclusive")
print("held", flush=True)
sys.stdin.read()
"""
_COUNT = """
import sqlite3, sys
db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
print(db.execute("select count(*) from note").fetchone()[0])
"""


def application(machine: Machine, name: str, rows: int = 500) -> str:
    """Make a user with a database that nobody else may read, in a directory that nobody else may enter."""
    if machine.run("id", name, check=False).status:
        machine.run("useradd", "--system", "--no-create-home", name)
    machine.run("rm", "-rf", f"/var/lib/{name}")
    machine.run("install", "-d", "-o", name, "-g", name, "-m", "0700", f"/var/lib/{name}")
    path = f"/var/lib/{name}/{name}.db"
    machine.python(_MAKE, path, str(rows), user=name)
    return path


def rights(machine: Machine, path: str) -> dict[str, Any]:
    """Return owner, mode and attributes of a file."""
    found: dict[str, Any] = json.loads(machine.python(_LOOK, path))
    return found


def count(machine: Machine, path: str, user: str = "root") -> int:
    """Return how many notes a database has; it must be whole."""
    return int(machine.python(_COUNT, path, user=user))


@contextmanager
def held(machine: Machine, path: str, user: str) -> Iterator[None]:
    """Hold an exclusive lock on a database as its owner."""
    with machine.starting("/usr/bin/python3", "-I", "-c", _HOLD, path, user=user) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
