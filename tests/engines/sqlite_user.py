"""Another process that uses a SQLite database: python sqlite_user.py DB ACTION [NUMBER]. Ends when its input ends.

It says "ready" when the action stands (a transaction is open, writing goes on), and answers what the end brought.
"""

import json
import os
import select
import sqlite3
import sys
import time


def say(**message):
    os.write(1, json.dumps(message).encode() + b"\n")


def ended(seconds=0.0):
    return bool(select.select([0], [], [], seconds)[0]) and not os.read(0, 512)


def transfer(connection, count):
    """Move money between accounts in two tables: the sum over both is constant in each commit."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE a SET amount = amount - 1 WHERE id = ?", (count % 50,))
    connection.execute("UPDATE b SET amount = amount + 1 WHERE id = ?", (count * 7 % 50,))
    connection.execute("INSERT INTO moves(note) VALUES(?)", ("x" * (count % 900),))
    if count % 40 == 0:
        connection.execute("DELETE FROM moves WHERE id % 3 = 0")
    connection.execute("COMMIT")


def write(connection, pause):
    count, latest = 0, []
    while not ended(pause):
        began = time.perf_counter()
        try:
            transfer(connection, count)
        except sqlite3.OperationalError:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            continue
        latest.append(time.perf_counter() - began)
        count += 1
        if count == 20:
            say(ready=True)
    latest.sort()
    say(commits=count, slowest=latest[-1] if latest else 0, median=latest[len(latest) // 2] if latest else 0)


def main(path, action, number):
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA synchronous=OFF")
    if action == "write":
        return write(connection, number)
    if action == "checkpoint-often":
        connection.execute(f"PRAGMA wal_autocheckpoint={int(number)}")
        return write(connection, 0)
    if action == "idle":
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    elif action == "exclusive":
        connection.execute("BEGIN EXCLUSIVE")
    elif action == "open-transaction":
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO moves(note) VALUES('mine')")
    elif action == "crash":
        # Leave everything as a crash does: spill the open transaction, then die without cleaning up.
        connection.execute("PRAGMA cache_size=5")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE a SET amount = 0")
        for _ in range(int(number)):
            connection.execute("INSERT INTO moves(note) VALUES(?)", ("never" * 300,))
        say(ready=True)
        os._exit(1)
    elif action == "crash-after-commit":
        connection.execute("INSERT INTO moves(note) VALUES('last words')")
        say(ready=True)
        os._exit(1)
    say(ready=True)
    while not ended(5):
        pass
    if connection.in_transaction:
        connection.execute("COMMIT")
    connection.close()
    say(closed=True)
    return None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
