"""Holds a read transaction on a live WAL database until standard input is closed. Runs as a script in its own process.

Arguments: the file: URI (with mode=ro) and the time to wait for locks in seconds. Answers with JSON lines: {"held":
version} once the read mark is set, {"released": true} when it is gone, or {"error": text, "code": SQLite result code}.
The line "again" on standard input takes a second, newer mark and answers "held"; the line "drop" then releases the
older one and answers "dropped". If no newer mark can be had ("error"), the old one stays. mode=ro and query_only: this
connection never checkpoints, never writes the database or its WAL, and deletes nothing when it closes. Imports nothing
of dbguardd, so that it starts fast (python -I -S).
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys


def _say(**message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _mark(uri: str, timeout_seconds: float) -> sqlite3.Connection:
    """Return a connection in a read transaction."""
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=timeout_seconds)
    for pragma in ("query_only=1", "mmap_size=0", "cell_size_check=1", "trusted_schema=0"):
        connection.execute(f"PRAGMA {pragma}")
    # BEGIN alone takes no lock. user_version is read from page 1 without parsing the schema, so that a broken schema
    # does not prevent the copy.
    connection.execute("BEGIN")
    connection.execute("PRAGMA user_version").fetchall()
    return connection


def _refuse(error: sqlite3.Error) -> None:
    _say(error=str(error), code=getattr(error, "sqlite_errorcode", 0))


def _let_go(connection: sqlite3.Connection) -> None:
    connection.execute("ROLLBACK")
    connection.close()


def main(uri: str, timeout_seconds: float) -> int:
    """Take the read mark, follow the commands on standard input, release the mark at its end."""
    try:
        marks = [_mark(uri, timeout_seconds)]
    except sqlite3.Error as error:
        _refuse(error)
        return 1
    _say(held=sqlite3.sqlite_version)
    while asked := os.read(0, 512):
        if asked == b"again\n":
            try:
                marks.append(_mark(uri, timeout_seconds))
            except sqlite3.Error as error:
                _refuse(error)
            else:
                _say(held=sqlite3.sqlite_version)
        elif asked == b"drop\n":
            _let_go(marks.pop(0))
            _say(dropped=True)
    for connection in marks:
        _let_go(connection)
    _say(released=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
