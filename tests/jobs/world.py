"""Everything that jobs need, in one process: storage in memory, a toy engine, a clock that the test sets."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dbguardd.engines.base import BODY, WAL, Examination, Finding, LiveDisk, LiveState, Probe
from dbguardd.engines.fingerprint import Fingerprint, TablePrint
from dbguardd.errors import Cancelled, SourceMissing, TargetInUse
from dbguardd.jobs import job_of
from dbguardd.jobs.base import Run
from dbguardd.keys import MachineKey
from dbguardd.repository import Repository
from tests.storage.memory import Memory


class ToyEngine:
    """A database that is one JSON file: {"table": [rows]}. The `break_*` attributes make it fail."""

    def __init__(self, path: Path, staging: Path) -> None:
        self.path = path
        self.staging = staging
        self.snapshot: bytes | None = None
        self.break_fingerprint = False
        self.break_restore = b""
        self.refuse_restore: Exception | None = None
        self.refuse_examine: Exception | None = None
        self.refuse_dump: Exception | None = None
        self.in_use = False
        self.used_at_last = False  # when it is to be replaced
        self.paged = False  # handed over as a file of pages
        self.read = 0  # how often a snapshot was
        self.sent = False  # was anything of it
        self.snapshot_at = ""
        self.beside: dict[str, bytes] = {}  # more streams
        self.lost: list[str] = []
        self.rights: dict[str, Any] = {}
        self.found: dict[str, Any] = {}  # by who looks
        self.restored: dict[str, Any] = {}  # the facts of what was

    def probe(self):
        return Probe("1", self.path.stat().st_size, self.found, ())

    def dump(self, sink, progress, *, compared=True):
        if not self.path.exists():
            raise SourceMissing(f"{self.path} is gone")
        if self.refuse_dump:
            raise self.refuse_dump
        if "system" in self.rights:
            sink.admit({name: self.rights[name] for name in ("system", "timeline") if name in self.rights})
        content = self.path.read_bytes()
        self.sent = True
        self.snapshot = content if compared else None
        progress("snapshot", 0, len(content))
        if self.paged:
            with self.path.open("rb") as file:
                sink.adopt("dump.json", file.fileno(), 4096)
        else:
            with sink.write("dump.json") as out:
                out.write(content)
        for name, body in self.beside.items():
            with sink.write(name) as out:
                out.write(body)
        return {"blocked_seconds": 0.001, "snapshot_at": self.snapshot_at, **self.rights}

    def fingerprint(self, progress, stored=None):
        if self.break_fingerprint:
            raise Cancelled("cancelled in the middle")
        self.read += 1
        return _print(self.snapshot)

    def release(self):
        self.snapshot = None

    def restore(self, tree, target, progress):
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.refuse_restore:
            raise self.refuse_restore
        self.restored = dict(tree.facts)
        with tree.read("dump.json") as source, target.open("xb") as out:
            shutil.copyfileobj(source, out)
        if self.break_restore:
            target.write_bytes(self.break_restore)
        return self.lost

    def examine(self, target, queries, progress):
        if self.refuse_examine:
            raise self.refuse_examine
        found = [Finding("opened", "ok")]
        rows = sum(map(len, json.loads(target.read_bytes()).values()))
        for query in queries:
            good = query.min is None or rows >= query.min
            found.append(Finding(query.sql, "ok" if good else "failed", f"{rows} rows"))
        return Examination(found, _print(target.read_bytes()))

    def check_unused(self):
        if self.in_use:
            raise TargetInUse(f"{self.path} is in use")

    def replace(self, source, progress):
        self.in_use |= self.used_at_last
        self.check_unused()
        self.path.write_bytes(source.read_bytes())


class ToyDeltaRestore:
    """Restores a toy over the live one: until publish() it has another name."""

    def __init__(self, engine: ToyEngine) -> None:
        self.engine = engine
        self.there = LiveState((LiveDisk("/live", 1, 1 << 40, (BODY, WAL)),), spare_bytes=0, begun=False)
        self.aside = engine.path.with_name("aside.json")

    def inspect(self, live, facts):
        return replace(self.there, begun=self.aside.exists())

    def check_unused(self, live, facts):
        self.engine.check_unused()

    def save(self, live, facts, sink, progress):
        return {**self.engine.dump(sink, progress), "directory": str(live), "resting": True}

    def overwrite(self, tree, live, progress):
        if live.exists():
            live.rename(self.aside)
        self.aside.unlink(missing_ok=True)
        self.engine.restore(tree, self.aside, progress)
        return self.aside

    def publish(self, live):
        self.aside.rename(live)
        return str(live)


def _print(data: bytes | None) -> Fingerprint:
    assert data is not None
    tables = {name: TablePrint(len(rows), json.dumps(rows)) for name, rows in json.loads(data).items()}
    return Fingerprint("schema", tables)


class World:
    """One database `app`, one storage, one repository; `do` runs a job as the worker would."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.path = place / "live" / "app.json"
        self.path.parent.mkdir()
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        self.storage = Memory(self._now)
        self.repository = Repository.create(self.storage, [MachineKey.create(place / "key")], self.now)
        self.engine = ToyEngine(self.path, place / "staging")
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.cancelled = False
        self.delta_restore: ToyDeltaRestore | None = None
        self.chances = [0.5]  # what is drawn by chance, the last one for ever
        self.spec: dict[str, Any] = {
            "database": {
                "name": "app",
                "engine": "toy",
                "settings": {"path": str(self.path), "method": "dump"},
                "compress_level": 1,
                "keep": {"last": 2},
                "min_proven": 1,
                "timezone": "UTC",
                "queries": [],
                "keep_plain": {"count": 0, "path": ""},
                "continuous": False,
                "keep_log_seconds": 604_800.0,
                "fingerprint_every_seconds": None,
            },
            "storage": {"name": "local", "type": "memory", "grace_seconds": 86400},
            "key": {"name": "main", "type": "machine"},
        }
        self.write(users=[1, 2, 3])

    def write(self, **tables: list[int]) -> None:
        """Let the application change its database."""
        self.path.write_text(json.dumps(tables))

    def live(self) -> dict[str, list[int]]:
        """Read the live database."""
        found: dict[str, list[int]] = json.loads(self.path.read_text())
        return found

    def later(self, **delta: float) -> None:
        """Let time pass."""
        self.now += timedelta(**delta)

    def do(self, verb: str, **request: Any) -> dict[str, Any]:
        """Run one job."""
        job = job_of(verb)
        shutil.rmtree(self.engine.staging, ignore_errors=True)
        run = Run(
            id="J",
            actor="alice",
            spec=self.spec,
            storage=self.storage,
            repository=self.repository,
            snapshots=self.engine,
            log=self.engine,
            staging=str(self.engine.staging),
            now=self._now,
            monotonic=lambda: self.now.timestamp(),  # noqa: PLW0108 the clock moves
            report=lambda event, /, **facts: self.events.append((event, facts)),
            progress=self._progress,
            cancelled=lambda: self.cancelled,
            delta_restore=self.delta_restore,
            chance=lambda: self.chances.pop(0) if len(self.chances) > 1 else self.chances[0],
        )
        return job.run(run, job.request(**request))

    def _now(self) -> datetime:
        return self.now

    def _progress(self, step: str, done_bytes: int, total_bytes: int | None) -> None:
        if self.cancelled:
            raise Cancelled("cancelled")

    def backup(self, **tables: list[int]) -> str:
        """Change the database, back it up a minute after the last backup, and return the id."""
        self.later(minutes=1)
        if tables:
            self.write(**tables)
        made: str = self.do("backup", database="app")["backup"]["id"]
        return made

    def said(self, event: str) -> list[dict[str, Any]]:
        """Return the facts of all events with this name."""
        return [facts for name, facts in self.events if name == event]

    def ids(self) -> list[str]:
        """Return the ids of the visible backups, newest first."""
        return [backup.id for backup in self.repository.backups("app")]
