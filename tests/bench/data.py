"""Makes realistic SQLite databases: users, events with JSON, orders, prose, attachments. Compresses about 2.5 times.

The content is drawn from a seed, so two runs make the same rows. Words follow Zipf's law over invented syllables, half
of the attachments are incompressible, sessions are random: what a compressor meets in real applications.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

SCHEMA = """
pragma page_size = 4096; pragma journal_mode = wal; pragma synchronous = off; pragma cache_size = -200000;
create table users (id integer primary key, email text, name text, city text, bio text, prefs text, balance real,
  logins integer, last_login text);
create index users_email on users (email);
create table events (id integer primary key, user_id integer, ts integer, type text, payload text, seen integer);
create index events_user on events (user_id, ts);
create table orders (id integer primary key, user_id integer, cents integer, tax integer, status text,
  placed_at integer, note text, counter integer);
create index orders_user on orders (user_id);
create table documents (id integer primary key, user_id integer, title text, body text, rev integer);
create table attachments (id integer primary key, document_id integer, mime text, data blob);
"""
SHARES = {"events": 0.50, "orders": 0.07, "documents": 0.38, "users": 0.05}
UPDATES = {
    "events": "update events set seen = seen + 1 where id = ?",
    "orders": "update orders set counter = counter + 1, status = 'paid' where id = ?",
    "documents": "update documents set rev = rev + 1 where id = ?",
    "users": "update users set logins = logins + 1 where id = ?",
}


class Prose:
    """Deterministic filler text cut from one long pool of Zipf-distributed words."""

    def __init__(self, dice: random.Random, size: int = 24 << 20) -> None:
        syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
        self.words = ["".join(dice.choices(syllables, k=dice.randint(1, 4))) for _ in range(20_000)]
        weights = list(accumulate(1 / rank**1.12 for rank in range(2, len(self.words) + 2)))
        pool: list[str] = []
        while size > 0:
            part = dice.choices(self.words, cum_weights=weights, k=100_000)
            for stop in range(11, len(part), 13):
                part[stop] += "."
            pool.append(" ".join(part))
            size -= len(pool[-1])
        self.pool = " ".join(pool)
        self.dice = dice

    def cut(self, low: int, high: int) -> str:
        """Return between `low` and `high` characters."""
        start = self.dice.randrange(len(self.pool) - 20_000)
        return self.pool[start : start + self.dice.randint(low, high)]


def make(path: Path, size_bytes: int, seed: int = 7) -> None:
    """Make a database of about `size_bytes` at `path`, checkpointed, in WAL mode."""
    dice = random.Random(seed)
    prose = Prose(dice)
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(SCHEMA)
    count = 0
    while db.execute("pragma page_count").fetchone()[0] * 4096 < size_bytes:
        count += 1
        db.execute("begin")
        for table, rows in _batch(dice, prose, count * 400):
            listed = list(rows)
            marks = ", ".join("?" * len(listed[0]))
            db.executemany(f"insert into {table} values (null, {marks})", listed)
        db.execute("commit")
    db.execute("pragma wal_checkpoint(truncate)")
    db.close()


def _batch(dice: random.Random, prose: Prose, users: int) -> Iterator[tuple[str, Iterator[tuple[object, ...]]]]:
    kinds = ["page_view", "click", "login", "purchase", "search", "error", "api_call"]
    agents = ["Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (Windows NT 10.0)", "curl/8.5.0"]

    def payload() -> str:
        path = "/".join(dice.choices(prose.words[:2000], k=dice.randint(1, 4)))
        return json.dumps(
            {
                "session": f"{dice.getrandbits(64):016x}",
                "ip": f"10.{dice.randrange(256)}.{dice.randrange(256)}.{dice.randrange(256)}",
                "path": f"/{path}",
                "ms": dice.randrange(2000),
                "agent": dice.choice(agents),
            }
        )

    def blob() -> bytes:
        size = int(min(200_000, dice.lognormvariate(9.3, 0.9)))
        return (
            dice.randbytes(size)
            if dice.random() < 0.5
            else prose.cut(min(size, 18_000) // 2, min(size, 18_000)).encode()
        )

    def email() -> str:
        return f"{dice.choice(prose.words)}.{dice.choice(prose.words)}{dice.randrange(999)}@example.com"

    user = lambda: dice.randint(1, users)  # noqa: E731 one expression, used below only
    yield (
        "users",
        (
            (
                email(),
                prose.cut(8, 20),
                dice.choice(prose.words[:50]),
                prose.cut(0, 200),
                payload(),
                dice.random() * 1e4,
            )
            + (dice.randrange(500), f"2025-{dice.randint(1, 12):02}-{dice.randint(1, 28):02}T12:00:00Z")
            for _ in range(400)
        ),
    )
    yield (
        "events",
        ((user(), 1_700_000_000 + dice.randrange(10**8), dice.choice(kinds), payload(), 0) for _ in range(8000)),
    )
    yield (
        "orders",
        (
            (user(), dice.randrange(10**6), dice.randrange(10**5), "open", dice.randrange(10**9), prose.cut(0, 60), 0)
            for _ in range(2500)
        ),
    )
    yield "documents", ((user(), prose.cut(15, 70), prose.cut(300, 4500), 1) for _ in range(450))
    yield "attachments", ((dice.randrange(10**6), "image/jpeg", blob()) for _ in range(24))


def change(path: Path, share: float, seed: int = 11) -> None:
    """Change about `share` of the pages by single-row updates of uniformly random rows; checkpointed."""
    dice = random.Random(seed)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma synchronous = off")
    pages = db.execute("pragma page_count").fetchone()[0]
    db.execute("begin")
    for table, part in SHARES.items():
        last = db.execute(f"select max(id) from {table}").fetchone()[0]
        db.executemany(UPDATES[table], ((dice.randint(1, last),) for _ in range(int(pages * share * part))))
    db.execute("commit")
    db.execute("pragma wal_checkpoint(truncate)")
    db.close()
