"""A database that is written, checkpointed and followed while processes are killed; proves that its log is right.

No process here opens the live database both raw and with SQLite: writers and checkpointers are follow_user.py, the
follower is one too, and this process takes bases (raw) and opens copies only.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from follow_user import STATE, read_shelf

from dbguardd.engines import ENGINES
from dbguardd.flow import Segment
from dbguardd.sums import as_text, file_sum

_USER = Path(__file__).with_name("follow_user.py")
_SCHEMA = """
PRAGMA page_size={page_size}; PRAGMA auto_vacuum={vacuum}; PRAGMA journal_mode=WAL;
CREATE TABLE ledger(who INTEGER, n INTEGER, state TEXT, PRIMARY KEY(who, n)) WITHOUT ROWID;
CREATE TABLE data(id INTEGER PRIMARY KEY, x BLOB);
CREATE TABLE keyed(k INTEGER PRIMARY KEY, v BLOB) WITHOUT ROWID;
CREATE INDEX data_x ON data(substr(x, 1, 20));
INSERT INTO data(x) VALUES(randomblob(500));
"""
_DUMP = """
import hashlib, sqlite3, sys
text, db = hashlib.sha256(), sqlite3.connect(sys.argv[1], uri=True)
for line in db.iterdump():
    text.update(line.encode("utf-8", "surrogateescape"))
print(text.hexdigest())
"""
SECONDS = 120.0
_SUMMED = 6  # positions with a sum that are checked after each base, if there are so many


def until(condition, what):
    """Wait until a condition holds, and return what it returned."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never came: {what() if callable(what) else what}"
        time.sleep(0.01)
    return found


@dataclass
class Chain:
    """A shipped log without a gap; `read_at` has the time at which each segment was read."""

    place: Any
    begun_at: float
    segments: list[Segment] = field(default_factory=list)
    read_at: list[float] = field(default_factory=list)

    @property
    def until(self) -> Any:
        return self.segments[-1].until if self.segments else self.place

    def reaches(self, base: Base) -> int:
        """Return the first segment after a base that includes everything in it, whatever its round."""
        before = self.segments[base.after - 1] if base.after else None
        at = before.at if before else datetime.fromtimestamp(self.begun_at, UTC)
        if base.reached(before.until if before else self.place, at):
            return base.after
        later = range(base.after, len(self.segments))
        return next((n for n in later if base.reached(self.segments[n].until, self.segments[n].at)), len(self.segments))


@dataclass
class Base:
    """A backup made beside the follower: it includes the first `after` segments of `chain`, up to `place`."""

    data: bytes
    place: Any
    chain: int
    after: int

    taken_at: datetime

    def reached(self, place: Any, at: datetime) -> bool:
        """Return whether a segment up to `place` includes everything in the base.

        A log that was emptied tells no place: its first frame may give it another name.
        """
        if not self.place["position"] and at >= self.taken_at:
            return True
        return place["round"] == self.place["round"] and place["position"] >= self.place["position"]


def gone(pid: int) -> bool:
    """Return whether a process has ended, reaped or not."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def sql(path, text):
    """Run SQL on the live database in another process; return the rows."""
    code = (
        "import sqlite3,sys,json;c=sqlite3.connect(sys.argv[1],isolation_level=None,timeout=30);"
        "print(json.dumps([c.execute(t).fetchall() for t in sys.argv[2].split(';') if t.strip()]))"
    )
    argv = [sys.executable, "-c", code, str(path), text]
    done = subprocess.run(argv, check=True, capture_output=True, timeout=SECONDS)
    return json.loads(done.stdout)[-1]


class World:
    """One database, its users and its followers."""

    def __init__(self, place: Path, seed: int, *, page_size: int = 4096, vacuum: int = 0, **pace: Any) -> None:
        self.place, self.dice = place, random.Random(seed)
        (place / "live").mkdir()
        self.path = place / "live" / "app.db"
        self.shelf = place / "shelf"
        self.pace = {"look_seconds": 0.05, **pace}
        self.bases: list[Base] = []
        self.followers = 0
        self.positions = self.gaps = self.sums = 0
        self._told: list[Any] = []
        self._seen = 0
        self._follower: subprocess.Popen[bytes] | None = None
        schema = _SCHEMA.format(page_size=page_size, vacuum=vacuum)
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])"
        subprocess.run([sys.executable, "-c", code, str(self.path), schema], check=True)

    # ------------------------------------------------------------------------------------------ who takes part

    @contextmanager
    def user(self, action: str, *rest: Any, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Have a process use the database until the block ends."""
        argv = [sys.executable, str(_USER), action, str(self.path), *map(str, rest), json.dumps(options)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"{}\n"
                yield process
            finally:
                if process.stdin is not None and not process.stdin.closed:
                    process.stdin.close()
                process.wait(SECONDS)

    @contextmanager
    def open_writer(self, count: int, *, hold: bool = False, **options: Any) -> Iterator[None]:
        """Make `count` commits; with `hold`, one more that stays open until the block ends."""
        options = {"kinds": ["plain"], "seed": self.dice.random(), "auto": 0, **options}
        with self.user("some", self.place / "ledger0", count=count, hold=hold, **options):
            yield

    def commits(self, count: int, **options: Any) -> None:
        """Make `count` commits in a process that opens the database for them."""
        with self.open_writer(count, **options):
            pass

    def writer(self, who: int = 0, **options: Any) -> Any:
        """A writer that continues where the last one with its number stopped."""
        options = {"kinds": ["plain", "keyed"], "seed": self.dice.random(), "who": who, **options}
        return self.user("write", self.place / f"ledger{who}", **options)

    def checkpoints(self, *modes: str, **options: Any) -> Any:
        modes = modes or ("PASSIVE", "FULL", "RESTART", "TRUNCATE")
        return self.user("checkpoint", modes=modes, seed=self.dice.random(), **options)

    def start(self, resume: bool = True, **pace: Any) -> None:
        """Start a follower, which continues the log that is stored."""
        options: dict[str, Any] = {**self.pace, **pace}
        if resume and (chains := self.chains()):
            segments = chains[-1].segments
            options["resume"] = {**chains[-1].until, "sum": segments[-1].body.sum if segments else ""}
        begun = self.count("begin")
        if self.shelf.exists():
            os.truncate(self.shelf, self._seen)  # what the last one was killed at was not put there
        argv = [sys.executable, str(_USER), "follow", str(self.path), str(self.shelf), json.dumps(options)]
        self._follower = subprocess.Popen(argv)
        self.followers += 1
        until(lambda: self.count("begin") > begun or self.ended, lambda: f"a begin: {self.told()[-3:]}")

    @property
    def ended(self) -> bool:
        return self._follower is None or self._follower.poll() is not None

    def keeper(self) -> int:
        """The process that keeps the log for the follower."""
        assert self._follower is not None
        children = Path(f"/proc/{self._follower.pid}/task/{self._follower.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def kill_keeper(self) -> None:
        """Kill that process, and wait until the follower has ended."""
        assert (keeper := self.keeper()), self.ends()  # 0 would be all of our own group
        os.kill(keeper, signal.SIGKILL)
        until(lambda: self.ended, "the end of the follower")

    def kill(self) -> None:
        """Kill the follower; its child must end by itself."""
        assert self._follower is not None
        keeper = self.keeper()
        self._follower.kill()
        self._follower.wait()
        until(lambda: not keeper or gone(keeper), "the end of the child")

    def pause(self) -> None:
        """Stop the follower (SIGSTOP) until go_on()."""
        assert self._follower is not None
        self._follower.send_signal(signal.SIGSTOP)
        until(lambda: "T" in Path(f"/proc/{self._follower.pid}/stat").read_text().split(")")[1], "a stop")

    def go_on(self) -> None:
        assert self._follower is not None
        self._follower.send_signal(signal.SIGCONT)

    @contextmanager
    def following(self, **pace: Any) -> Iterator[None]:
        self.start(**pace)
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        if not self.ended:
            self.kill()

    # ------------------------------------------------------------------------------------------ what was shipped

    def told(self) -> list[Any]:
        """Return everything that followers have reported so far."""
        if self.shelf.exists():
            with open(self.shelf, "rb") as file:
                file.seek(self._seen)
                found, self._seen = read_shelf(file, self._seen)
            self._told += found
        return self._told

    def count(self, what: str) -> int:
        return sum(1 for told in self.told() if told[0] == what)

    def ends(self) -> list[tuple[str, str]]:
        """Return why followers ended that were not killed."""
        return [(told[1], told[2]) for told in self.told() if told[0] == "end"]

    def chains(self) -> list[Chain]:
        found: list[Chain] = []
        for told in self.told():
            if told[0] == "begin":
                _, place, continued, because, at = told
                if continued:
                    assert place == found[-1].until, "continued at another place"
                    assert not because
                else:
                    assert because
                    found.append(Chain(place, at))
            elif told[0] == "segment":
                assert told[1].since == found[-1].until, "a segment that does not begin where the one before ended"
                found[-1].segments.append(told[1])
                found[-1].read_at.append(told[2])
        return found

    def caught_up(self) -> None:
        """Wait until the follower has read the log twice from now on."""
        now = time.time()
        until(
            lambda: (
                self.ended
                or sum(1 for told in self.told() if told[0] == "reached" and told[1] and told[1].timestamp() > now) > 1
            ),
            lambda: f"a look after now: {self.ends()}",
        )

    def moved(self) -> bool:
        """Return whether all of the log is in the main file."""
        shm = Path(f"{self.path}-shm").read_bytes()
        (frames,), (done,) = struct.unpack_from("=I", shm, 16), struct.unpack_from("=I", shm, 96)
        return bool(frames == done)

    def places(self, base: Base, *, summed: bool = False) -> list[int]:
        """Return the segments after a base that end a transaction, so that they can be checked: all, or with a sum."""
        chain = self.chains()[base.chain]
        later = range(chain.reaches(base), len(chain.segments))
        bodies = {at: chain.segments[at].body for at in later}
        return [at for at, body in bodies.items() if body.size and (body.sum or not summed)]

    def goes_on(self, count: int) -> None:
        """Wait until `count` positions with a sum follow the newest base, however long writers and follower take."""
        until(
            lambda: self.ended or len(self.places(self.bases[-1], summed=True)) >= count,
            "commits after the newest base",
        )
        assert not self.ended, self.ends()

    def base(self, progress: Any = None) -> Any:
        """Make a backup with the engine while everything else continues; return its facts."""
        from engine_memory import MemorySink, no_progress  # noqa: PLC0415

        chains = self.chains()
        settings = {"path": str(self.path), "staging": str(self.place / "staging"), "lock_timeout_seconds": 60}
        engine, sink = ENGINES["sqlite"](settings).snapshots, MemorySink()
        facts = engine.dump(sink, progress or no_progress)
        engine.release()
        if facts["log_place"] is not None and chains:
            data = sink.streams["database"]
            taken_at = datetime.fromisoformat(facts["snapshot_at"])
            self.bases.append(Base(data, facts["log_place"], len(chains) - 1, len(chains[-1].segments), taken_at))
        return facts

    # ------------------------------------------------------------------------------------------ the proof

    def ledger(self, who: int) -> tuple[dict[int, float], dict[int, float]]:
        """Return when each commit was begun first, and when it was acknowledged."""
        begun: dict[int, float] = {}
        done: dict[int, float] = {}
        file = self.place / f"ledger{who}"
        for line in file.read_text().splitlines() if file.exists() else ():
            what, number, at = line.split()
            (begun if what == "b" else done).setdefault(int(number), float(at))
        return begun, done

    def prove(self, *, most: int = 40, writers: int = 1, needed: int = 1) -> None:
        """Apply the segments to each base, and check `most` random positions of each, and some whose sum is known."""
        chains, books = self.chains(), [self.ledger(who) for who in range(writers)]
        proven = 0
        for base in self.bases:
            chain = chains[base.chain]
            ends = self.places(base)
            chosen = {
                *self.dice.sample(ends, min(most, len(ends))),
                *self.places(base, summed=True)[-_SUMMED:],
                *ends[-1:],
            }
            proven += self._prove_base(base, chain, chosen, books)
        self.positions += proven
        self.gaps = len(chains) - 1
        assert proven >= needed, (
            f"only {proven} positions: {len(self.bases)} bases, {[len(c.segments) for c in chains]}"
        )

    def _prove_base(self, base: Base, chain: Chain, chosen: set[int], books: Any) -> int:
        work, before = self.place / "work.db", [0] * len(books)
        work.write_bytes(base.data)
        with open(work, "r+b") as file:
            for at in range(base.after, max(chosen, default=-1) + 1):
                segment = chain.segments[at]
                images = segment.body
                assert list(images.numbers) == sorted(set(images.numbers))
                assert len(images.pages) == len(images.numbers) * images.page_size
                for place, number in enumerate(images.numbers):
                    file.seek((number - 1) * images.page_size)
                    file.write(images.pages[place * images.page_size : (place + 1) * images.page_size])
                if images.size:
                    file.truncate(images.size)
                file.flush()
                if images.sum and at in chosen:
                    total = file_sum(file.fileno(), images.size, images.page_size, lambda _: None)
                    assert as_text(total) == images.sum, "the pages are not those that the database had then"
                    self.sums += 1
                if at in chosen:
                    self._prove_position(work, segment, chain.read_at[at], books, before)
        return len(chosen)

    def _prove_position(self, work: Path, segment: Segment, read_at: float, books: Any, before: list[int]) -> None:
        with closing(sqlite3.connect(f"file:{work}?immutable=1", uri=True)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = dict(db.execute("SELECT who, max(n) FROM ledger WHERE n > 0 GROUP BY who"))
            latest, state = "SELECT state FROM ledger WHERE who = 0 ORDER BY n DESC", db.execute(STATE).fetchone()
            if len(books) == 1 and (signed := db.execute(latest).fetchone()) and signed[0] is not None:
                assert signed == state, "the tables are not what they were at the last commit in the copy"
            counts = dict(db.execute("SELECT who, count(*) FROM ledger GROUP BY who"))
        assert set(rows) <= set(range(len(books)))
        assert rows == counts, "commits are missing in the middle, or were never made"
        at = segment.at.timestamp()
        for who, (begun, done) in enumerate(books):
            n = rows.get(who, 0)
            least = max((number for number, when in done.items() if when < at), default=0)
            highest = max((number for number, when in begun.items() if when <= read_at), default=0)
            assert least <= n, f"writer {who}: {n} in a copy of a moment when {least} was acknowledged"
            assert n <= highest, f"writer {who}: {n} in a copy, {highest} begun"
            assert before[who] <= n, f"writer {who}: {n} after {before[who]}"
            before[who] = n

    def prove_end(self) -> None:
        """Assert that, at rest, the newest base with all of the newest chain applied equals the live database."""
        chain = self.chains()[-1]
        base = next(base for base in reversed(self.bases) if base.chain == len(self.chains()) - 1)
        work = self.place / "end.db"
        work.write_bytes(base.data)
        with open(work, "r+b") as file:
            for images in (segment.body for segment in chain.segments[base.after :]):
                for place, number in enumerate(images.numbers):
                    file.seek((number - 1) * images.page_size)
                    file.write(images.pages[place * images.page_size : (place + 1) * images.page_size])
                if images.size:
                    file.truncate(images.size)
        there, here = (
            subprocess.run([sys.executable, "-c", _DUMP, name], check=True, capture_output=True).stdout
            for name in (str(self.path), f"file:{work}?immutable=1")
        )
        assert there == here

    def wipe(self) -> None:
        shutil.rmtree(self.place)


def wait_a_while(seconds: float) -> None:
    """Let everything continue for some time; nothing is expected at its end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(0.05, max(0.0, deadline - time.monotonic())))


@contextmanager
def reading(path):
    """Let another process hold a read transaction until the block ends."""
    code = """if True:
        import sqlite3, sys
        db = sqlite3.connect(sys.argv[1], isolation_level=None)
        db.execute("BEGIN")
        db.execute("SELECT * FROM ledger").fetchone()
        print(flush=True)
        sys.stdin.read()
    """
    argv = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        assert process.stdin is not None
        process.stdin.close()
