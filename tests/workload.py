"""A small application for tests and the demo: a shop whose sums must always agree, written to all the time.

Run as `python -m tests.workload PATH SECONDS [RATE]` it is the writer: every transaction moves money between two
accounts and books it, so that in every consistent snapshot the balances add up to zero and equal the bookings.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

SCHEMA = """
create table account (id integer primary key, owner text not null, balance integer not null default 0);
create table booking (
  id integer primary key, at real not null, debit integer not null references account (id),
  credit integer not null references account (id), amount integer not null, memo text);
create index booking_at on booking (at);
create table document (name text primary key, body blob) without rowid;
"""
BOOK = "insert into booking (at, debit, credit, amount, memo) values (?, ?, ?, ?, ?)"


def seed(path: Path, *, accounts: int = 500, bookings: int = 20_000, documents: int = 200, wal: bool = True) -> None:
    """Make the database at `path`, which must not exist. Documents have 10 KiB on average."""
    dice = random.Random(7)
    balances, booked = [0] * accounts, []
    for _ in range(bookings):
        debit, credit, amount, memo = transfer(dice, accounts)
        balances[debit] -= amount
        balances[credit] += amount
        booked.append((time.time(), debit, credit, amount, memo))
    papers = ((f"doc-{n:05}", dice.randbytes(dice.randint(10, 10_240)).hex()) for n in range(documents))
    with closing(sqlite3.connect(path)) as db, db:
        if wal:
            db.execute("pragma journal_mode = wal")
        db.executescript(SCHEMA)
        db.executemany(
            "insert into account values (?, ?, ?)", ((i, f"owner {i:05}", b) for i, b in enumerate(balances))
        )
        db.executemany("insert into document values (?, ?)", papers)
        db.executemany(BOOK, booked)


def transfer(dice: random.Random, accounts: int) -> tuple[int, int, int, str]:
    """Return a random transfer: debit, credit, amount, memo."""
    debit, credit, amount = dice.randrange(accounts), dice.randrange(accounts), dice.randint(1, 10_000)
    return debit, credit, amount, f"transfer {dice.randrange(10**9):09} of {amount} for services rendered"


def book(db: sqlite3.Connection, dice: random.Random) -> None:
    """Move an amount from one account to another and record it; the caller commits."""
    accounts = db.execute("select count(*) from account").fetchone()[0]
    debit, credit, amount, memo = transfer(dice, accounts)
    db.execute("update account set balance = balance - ? where id = ?", (amount, debit))
    db.execute("update account set balance = balance + ? where id = ?", (amount, credit))
    db.execute(BOOK, (time.time(), debit, credit, amount, memo))


def consistent(path: Path) -> bool:
    """Return whether the sums agree, as they do in every snapshot of the application."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        total = db.execute("select sum(balance) from account").fetchone()[0]
        wrong = db.execute(
            """select count(*) from account a where balance <>
               (select coalesce(sum(amount), 0) from booking where credit = a.id)
             - (select coalesce(sum(amount), 0) from booking where debit = a.id)"""
        ).fetchone()[0]
    finally:
        db.close()
    return bool(total == 0 and wrong == 0)


def main() -> None:
    """Write until the time is over, at most RATE transactions a second; print one line when the first is committed."""
    path, seconds = sys.argv[1], float(sys.argv[2])
    rate = float(sys.argv[3]) if len(sys.argv) > 3 else 200.0
    dice = random.Random()
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    started, count = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        if count > elapsed * rate:
            time.sleep(count / rate - elapsed)
        db.execute("begin immediate")
        book(db, dice)
        db.execute("commit")
        count += 1
        if count == 1:
            print("writing", flush=True)
    print(count, flush=True)


if __name__ == "__main__":
    main()
