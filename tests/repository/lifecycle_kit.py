"""Shared by the tests of objects and lifecycle: a settable clock, cheap keys, a dying storage, small backups."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from dbguardd.errors import KeyMissing, KeyRefused
from dbguardd.repository import Backup, Repository
from dbguardd.repository.clock import Pulse
from tests.storage.memory import Memory

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
GRACE = timedelta(hours=24)


class Clock:
    """The storage's time, the host's time and the uptime; each can be wrong independently."""

    def __init__(self) -> None:
        self.storage = self.host = START
        self.boot, self.uptime = "boot-1", 1000.0

    def forward(self, **duration: float) -> None:
        step = timedelta(**duration)
        self.storage += step
        self.host += step
        self.uptime += step.total_seconds()

    def pulse(self) -> Pulse:
        return Pulse(self.boot, self.uptime)


class Key:
    """A cheap key wrapper: the secret xored with a hash."""

    def __init__(self, word: str = "machine", *, kind: str = "machine", offline: bool = False, only_wrap: bool = False):
        self.word, self.kind, self.label, self.offline, self.only_wrap = word, kind, word, offline, only_wrap

    def _mask(self, context: bytes) -> bytes:
        return hashlib.sha256(self.word.encode() + context).digest()

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        mask = self._mask(context)
        return bytes(a ^ b for a, b in zip(secret, mask, strict=True)) + hashlib.sha256(mask).digest()

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        if self.only_wrap:
            raise KeyMissing(f"{self.label}: can only wrap")
        mask = self._mask(context)
        if wrapped[32:] != hashlib.sha256(mask).digest():
            raise KeyRefused(f"{self.label}: another key")
        return bytes(a ^ b for a, b in zip(wrapped[:32], mask, strict=True))


class Killed(BaseException):
    """The process was killed. Code under test must not catch this."""


class Mortal:
    """A storage whose process is killed at call `last` (from 0), before the call takes effect or just after it."""

    def __init__(self, storage: Memory, last: int | None = None, *, after: bool = False) -> None:
        self.inner, self.last, self.after, self.calls = storage, last, after, 0
        self.url = storage.url

    def _verb(self, act: Callable[[], object]) -> object:
        number, self.calls = self.calls, self.calls + 1
        if self.last is not None and (number > self.last or (number == self.last and not self.after)):
            raise Killed(number)
        result = act()
        if number == self.last:
            raise Killed(number)
        return result

    def put(self, name, data):
        return self._verb(lambda: self.inner.put(name, data))

    def get(self, name, start=0, length=None):
        return self._verb(lambda: self.inner.get(name, start, length))

    def list(self, prefix):
        return self._verb(lambda: iter(list(self.inner.list(prefix))))

    def delete(self, name):
        return self._verb(lambda: self.inner.delete(name))

    def stat(self, name):
        return self._verb(lambda: self.inner.stat(name))

    def probe(self):
        return self.inner.probe()


class World:
    """A storage with a clock, and repositories opened on it."""

    def __init__(self, seed: int = 1) -> None:
        self.clock = Clock()
        self.storage = Memory(lambda: self.clock.storage)
        self.dice = random.Random(seed)
        self.content: dict[str, bytes] = {}
        self.prints: dict[str, str] = {}

    def create(self, *keys: Key, storage=None) -> Repository:
        return Repository.create(
            storage or self.storage,
            keys or (Key(),),
            self.clock.host,
            randomness=self.dice.randbytes,
            pulses=self.clock.pulse,
        )

    def open(self, *keys: Key, storage=None) -> Repository:
        return Repository.open(
            storage or self.storage, keys or (Key(),), randomness=self.dice.randbytes, pulses=self.clock.pulse
        )

    def copy(self) -> World:
        """Return a copy of this world, so that both can continue differently."""
        other = World()
        other.clock.__dict__.update(self.clock.__dict__)
        for name, (data, at) in self.storage._objects.items():
            other.storage._objects[name] = (data, at)
        other.dice.setstate(self.dice.getstate())
        other.content, other.prints = dict(self.content), dict(self.prints)
        return other

    def change(self, database: str, pages: int = 12) -> bytes:
        """Change a page of the database (or make it, with incompressible and zero pages) and return its content."""
        old = self.content.get(database)
        if old is None:
            old = b"".join(bytes(512) if n % 3 == 2 else self.dice.randbytes(512) for n in range(pages))
        page = self.dice.randrange(len(old) // 512)
        new = old[: page * 512] + self.dice.randbytes(512) + old[page * 512 + 512 :]
        self.content[database] = new
        return new

    def save(self, repository: Repository, database: str = "orders", *, full: bool = False) -> Backup:
        """Back up a changed database, and remember the content that a restore must have."""
        data = self.change(database)
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            with repository.saving(database, "sqlite", "copy", self.clock.host, full=full) as saving:
                saving.adopt("main", file.fileno(), 512)
                with saving.write("notes") as notes:
                    notes.write(data[:700])
                backup = saving.seal({"pages": len(data) // 512})
        self.prints[backup.id] = digest(data)
        return backup

    def intact(self, repository: Repository, ids: Iterable[str] | None = None) -> None:
        """Assert that backups (all that are visible) restore to what they were made from."""
        for backup in repository.backups() if ids is None else map(repository.backup, ids):
            with repository.tree(backup) as tree, tree.read("main") as main, tree.read("notes") as notes:
                data = main.read()
                assert digest(data) == self.prints[backup.id]
                assert notes.read() == data[:700]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def damage(repository: Repository, *, data: bool = True) -> list:
    """Return the findings of a check that are damage."""
    return [finding for finding in repository.check(data) if finding.severity == "damage"]


def clean(repository: Repository) -> None:
    """Assert that a deep check finds no damage and nothing untidy."""
    assert [finding for finding in repository.check(True) if finding.severity != "unseen"] == []


@contextmanager
def killed():
    """Run a block that may be killed; yields a list that is not empty afterwards if it was."""
    deaths: list[int] = []
    try:
        yield deaths
    except Killed as death:
        deaths.append(death.args[0])
