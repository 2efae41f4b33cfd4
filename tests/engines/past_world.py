"""Backups of SQLite as plain files, for tests of questions to them."""

from __future__ import annotations

import json
import sqlite3
from base64 import b64decode
from contextlib import closing
from pathlib import Path

from dbguardd.engines.base import Bounds
from dbguardd.engines.sqlite import open_past
from dbguardd.errors import Cancelled, Damaged
from dbguardd.flow import BLOCK_BYTES

PAST = open_past()
BOUNDS = Bounds("app, backup B1", 120.0, 100_000, 64 << 20)


class FilePages:
    """A file as Pages; counts the blocks that were asked for, and refuses `broken` ones."""

    def __init__(self, path, broken=()):
        self.data = Path(path).read_bytes()
        self.size, self.page_size = len(self.data), int.from_bytes(self.data[16:18], "big")
        self.broken = set(broken)
        self.asked = []

    def block(self, number):
        self.asked.append(number)
        if number in self.broken:
            raise Damaged(f"block {number}: damaged")
        return self.data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


class Told:
    """An Answer that is cancelled after `patience` calls of beat()."""

    def __init__(self, patience=1 << 60):
        self.data = bytearray()
        self.patience = patience

    def write(self, data, /):
        self.data += data

    def beat(self):
        self.patience -= 1
        if self.patience < 0:
            raise Cancelled("the job was cancelled")

    @property
    def lines(self):
        return [json.loads(line) for line in self.data.splitlines()]


def make(path, *statements, **settings):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for name, value in settings.items():
            db.execute(f"pragma {name} = {value}")
        for statement in statements:
            db.execute(*statement) if isinstance(statement, tuple) else db.execute(statement)
    return path


def ask(path, sql, bounds=BOUNDS, told=None, pages=None):
    told = told or Told()
    facts = PAST.query(pages or FilePages(path), sql, bounds, told)
    head, *rows = told.lines
    assert facts["rows"] == len(rows)
    return head, [tuple(map(back, row)) for row in rows], facts["more"]


def back(item):
    match item:
        case {"base64": text}:
            return b64decode(text)
        case {"text_base64": text}:
            return b64decode(text).decode("utf-8", "surrogateescape")
        case {"real": text}:
            return float(text)
        case _:
            return item


def typed(rows):
    """Rows that are equal exactly when types and values are."""
    return [tuple((type(item), item) for item in row) for row in rows]
