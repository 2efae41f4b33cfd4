"""A standby is whole for its readers at any time, survives being killed at any call, and is nobody else's to write."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import sys
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from engine_memory import no_progress

from dbguardd.engines.sqlite.overwrite import Change, overwrite, page_at, settle
from dbguardd.engines.sqlite.standby import SqliteStandby
from dbguardd.errors import Damaged, NoSpace, ProofFailed, StandbyChanged, TargetExists, TargetInUse, Unsupported
from dbguardd.sums import as_text, file_sum

PAGE = 1024


class Story:
    """The states that a database had, one file each: in state n, all rows of `t` say n."""

    def __init__(self, place: Path) -> None:
        self.place = place
        live = place / "live.db"
        with closing(sqlite3.connect(live, isolation_level=None)) as db:
            db.executescript(f"PRAGMA page_size={PAGE}; PRAGMA auto_vacuum=0; PRAGMA journal_mode=WAL;")
            db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, n, x)")
            db.executemany("INSERT INTO t(n, x) VALUES(0, randomblob(300))", [()] * 60)
            self._keep(db, live)
            for change in ("grow", "shrink", "touch", "grow"):
                if change == "shrink":
                    db.execute("DELETE FROM t WHERE id > 20")
                    db.execute("VACUUM")
                db.execute("BEGIN")
                if change == "grow":
                    db.executemany("INSERT INTO t(n, x) VALUES(0, randomblob(300))", [()] * 90)
                db.execute("UPDATE t SET n = ?", (len(self.states),))
                db.execute("COMMIT")
                self._keep(db, live)

    def _keep(self, db: sqlite3.Connection, live: Path) -> None:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        shutil.copyfile(live, self.place / f"state{len(self.states)}")

    @property
    def states(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.place.glob("state*"))]


class Whole:
    """A backup: one state, all of it."""

    def __init__(self, data: bytes, **facts: Any) -> None:
        self.data, self.facts = data, {"method": "pages", "mode": 0o640, **facts}

    def deliver(self, name: str, file: int, *, delta: bool = False) -> int:
        assert name == "database"
        return os.pwrite(file, self.data, 0)


class Stretch(Whole):
    """What of the log lies between two states."""

    def __init__(self, old: bytes, new: bytes, **facts: Any) -> None:
        pages = [(at // PAGE + 1, new[at : at + PAGE]) for at in range(0, len(new), PAGE)]
        stale = b"".join(number.to_bytes(4, "big") + b"s" * PAGE for number, _ in pages[:3])  # later ones count
        data = [n.to_bytes(4, "big") + page for n, page in pages if old[(n - 1) * PAGE : n * PAGE] != page]
        super().__init__(stale + b"".join(data + [n.to_bytes(4, "big") + page for n, page in pages[:3]]))
        self.facts = {"page_size": PAGE, "size": len(new), **facts}


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return Story(tmp_path_factory.mktemp("story")).states


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "far").mkdir()
    return tmp_path / "far" / "copy.db"


def engine(target: Path, seconds: float = 0.2) -> SqliteStandby:
    return SqliteStandby(target.parent.parent, "database", seconds)


def begin(target: Path, data: bytes) -> SqliteStandby:
    made = engine(target)
    assert made.found(target, no_progress) is None
    made.make(Whole(data), target, {"at": 0}, no_progress)  # type: ignore[arg-type]
    return made


def advance(copy: SqliteStandby, target: Path, states: list[bytes], number: int, **facts: Any) -> None:
    stretch = Stretch(states[number - 1], states[number], **facts)
    copy.advance(stretch, target, {"at": number}, no_progress)  # type: ignore[arg-type]


def seen(path: Path, mode: str = "ro") -> int:
    """Read a copy as an application would; return which state it has. All rows must agree, and it must be whole."""
    with closing(sqlite3.connect(f"file:{path}?mode={mode}", uri=True, timeout=5)) as db:
        ((least, most),) = db.execute("SELECT min(n), max(n) FROM t").fetchall()
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert least == most
    return int(least)


def plain(path: Path) -> bytes:
    """The content, without the fields that tell readers of a change."""
    data = bytearray(path.read_bytes())
    data[24:28] = data[92:96] = bytes(4)
    return bytes(data)


def killed(call: int, work: Any) -> bool:
    """Do something in a process that is killed at its n-th call of the system; say if it came that far."""
    child = os.fork()
    if not child:
        count = 0

        def at(frame: Any, event: str, what: Any) -> None:
            nonlocal count
            if event == "c_call" and getattr(what, "__module__", "") in ("posix", "fcntl"):
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.setprofile(at)
            work()
            status = 0
        except BaseException:  # noqa: BLE001
            sys.setprofile(None)
            traceback.print_exc()
        finally:
            sys.setprofile(None)
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "it failed instead of being killed"
    return status == signal.SIGKILL


# ------------------------------------------------------------------------------------------------ following


def test_a_copy_follows_and_becomes_an_ordinary_database(target: Path, states: list[bytes]) -> None:
    copy = begin(target, states[0])
    assert (seen(target), target.stat().st_mode & 0o777) == (0, 0o640)
    for number in range(1, len(states)):
        advance(copy, target, states, number)
        assert seen(target) == number
    copy.close()
    again = engine(target)
    assert again.found(target, no_progress) == {"at": len(states) - 1, "promoted": False}
    findings = again.promote(target, (), no_progress)
    assert {found.outcome for found in findings} <= {"ok", "not configured"}
    expected = bytearray(states[-1])
    expected[24:28] = expected[92:96] = bytes(4)
    assert plain(target) == expected
    assert [path.name for path in target.parent.iterdir()] == ["copy.db"]
    with pytest.raises(TargetExists):
        again.found(target, no_progress)


def test_a_reader_keeps_its_moment_and_the_copy_goes_on_after_it(target: Path, states: list[bytes]) -> None:
    copy = begin(target, states[0])
    with closing(sqlite3.connect(f"file:{target}?mode=ro", uri=True, isolation_level=None)) as db:
        db.execute("BEGIN")
        assert db.execute("SELECT max(n) FROM t").fetchone() == (0,)
        with pytest.raises(TargetInUse):
            advance(copy, target, states, 1)
        assert db.execute("SELECT min(n) FROM t").fetchone() == (0,)
        db.execute("COMMIT")
        advance(copy, target, states, 1)
        assert db.execute("SELECT min(n), max(n) FROM t").fetchone() == (1, 1), "its cache is old, and it must know"


def test_another_base_or_a_lost_page_is_not_put_over_it(target: Path, states: list[bytes]) -> None:
    copy, after = begin(target, states[0]), target.parent / "after"
    after.write_bytes(states[1])
    with after.open("rb") as file:
        total = as_text(file_sum(file.fileno(), len(states[1]), PAGE, lambda _: None))
    with pytest.raises(Damaged):
        advance(copy, target, states, 1, sum=as_text(int(total, 16) ^ 1))
    assert seen(target) == 0
    advance(copy, target, states, 1, sum=total)
    assert seen(target) == 1


def test_it_is_made_equal_to_another_state(target: Path, states: list[bytes]) -> None:
    copy = begin(target, states[0])
    copy.rebase(Whole(states[3]), target, {"at": 3}, no_progress)  # type: ignore[arg-type]
    assert seen(target) == 3
    advance(copy, target, states, 4)
    assert seen(target) == 4


def test_pages_of_another_size_end_it(target: Path, states: list[bytes], tmp_path: Path) -> None:
    copy = begin(target, states[0])
    with closing(sqlite3.connect(tmp_path / "other.db", isolation_level=None)) as db:
        db.executescript("PRAGMA page_size=4096; PRAGMA journal_mode=WAL; CREATE TABLE t(n)")
    with pytest.raises(Unsupported):
        copy.rebase(Whole((tmp_path / "other.db").read_bytes()), target, {"at": 9}, no_progress)  # type: ignore[arg-type]
    assert seen(target) == 0


# ------------------------------------------------------------------------------------------------ killed


@pytest.mark.parametrize("number", [1, 2], ids=["grows", "shrinks"])
def test_it_is_killed_at_every_call_and_never_torn(target: Path, states: list[bytes], number: int) -> None:
    begin(target, states[0]).close()
    for before in range(1, number):
        copy = engine(target)
        copy.found(target, no_progress)
        advance(copy, target, states, before)
        copy.close()
    kept = {path: path.read_bytes() for path in target.parent.iterdir()}

    def work() -> None:
        copy = engine(target)
        copy.found(target, no_progress)
        advance(copy, target, states, number)

    call, met = 0, set()
    while killed(call := call + 1, work):
        # A reader that may not write meets a change that was cut short as an error, never as a torn database.
        try:
            met.add(seen(target, "ro&immutable=0" if call % 2 else "rw"))
        except sqlite3.OperationalError:
            assert call % 2
        copy = engine(target)
        found = copy.found(target, no_progress)
        assert found is not None and found["at"] in (number - 1, number)
        assert seen(target) == found["at"]
        if found["at"] < number:
            advance(copy, target, states, number)
        assert seen(target) == number
        copy.close()
        for path in target.parent.iterdir():
            path.unlink()
        for path, data in kept.items():
            path.write_bytes(data)
            path.chmod(0o640)
        note = target.with_name("copy.db.standby")
        inode = f'"file": {target.stat().st_ino},'
        note.write_text(inode.join(["{\n ", note.read_text().partition(",")[2]]))
    assert call > 40
    assert met == {number - 1, number}


def test_a_copy_that_shrinks_past_the_page_of_locks_is_rolled_back_to_its_end(tmp_path: Path) -> None:
    """SQLite has nothing in the page at 1 GiB, where its locks are: a journal ends for it with a record of that."""
    path, size, locks = tmp_path / "large.db", 1 << 16, (1 << 14) + 1
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"PRAGMA page_size = {size}; CREATE TABLE t (n)")
    pages = {number: bytes([number % 256]) * size for number in (locks - 1, locks + 1, locks + 2)}
    with path.open("r+b") as file:
        for number, data in pages.items():
            file.seek((number - 1) * size)
            file.write(data)
        was = page_at(file.fileno(), 0, size)
        change = Change(locks + 2, locks - 2, size, file.fileno(), {}, {1: was[:100] + b"x" * (size - 100)})

        def work() -> None:
            with path.open("r+b") as mine:
                overwrite(path, mine.fileno(), change, lambda: None, 1)

        call, cut = 0, False
        while killed(call := call + 1, work):
            cut = cut or path.stat().st_size < (locks + 2) * size
            settle(path)
            if path.stat().st_size == (locks - 2) * size:
                break  # it was done
            assert {number: page_at(file.fileno(), (number - 1) * size, size) for number in pages} == pages
            assert page_at(file.fileno(), 0, size) == was
        assert cut and path.stat().st_size == (locks - 2) * size


@pytest.mark.parametrize("step", ["make", "promote"])
def test_its_begin_and_its_end_are_killed_at_every_call(target: Path, states: list[bytes], step: str) -> None:
    def make() -> None:
        begin(target, states[0])

    def promote() -> None:
        copy = engine(target)
        copy.found(target, no_progress)
        copy.promote(target, (), no_progress)

    call = 0
    while killed(call := call + 1, make if step == "make" else promote):
        copy = engine(target)
        try:
            if copy.found(target, no_progress) is None:
                copy.make(Whole(states[0]), target, {"at": 0}, no_progress)  # type: ignore[arg-type]
        except TargetExists:
            assert step == "promote", "what was made is a standby"
            assert seen(target, "rw") == 0  # nothing but the word of it was missing
            assert plain(target)[18:20] == b"\2\2"
        assert target.stat().st_nlink == 1
        copy.close()
        if step == "make":
            assert seen(target) == 0
        if step == "make" or not target.with_name("copy.db.standby").exists():
            for path in target.parent.iterdir():
                path.unlink()
            if step == "promote":
                begin(target, states[0]).close()
    assert call > 20


# ------------------------------------------------------------------------------------------------ somebody else


def write(target: Path, sql: str) -> None:
    with closing(sqlite3.connect(target, isolation_level=None)) as db:
        db.execute(sql).fetchall()


@pytest.mark.parametrize("sql", ["UPDATE t SET x = 1 WHERE id = 7", "PRAGMA journal_mode=WAL", "VACUUM"])
@pytest.mark.parametrize("meanwhile", [True, False])
def test_who_wrote_to_it_ends_it(target: Path, states: list[bytes], sql: str, meanwhile: bool) -> None:
    copy = begin(target, states[0])
    if not meanwhile:
        copy.close()
    write(target, sql)
    after = target.read_bytes()
    with pytest.raises(StandbyChanged):
        if meanwhile:
            advance(copy, target, states, 1)
        else:
            engine(target).found(target, no_progress)
    assert target.read_bytes() == after


def test_a_byte_that_was_changed_past_sqlite_is_found(target: Path, states: list[bytes]) -> None:
    begin(target, states[0]).close()
    with target.open("r+b") as file:
        file.seek(5 * PAGE + 700)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(StandbyChanged):
        engine(target).found(target, no_progress)


def test_another_file_of_that_name_is_left_alone(target: Path, states: list[bytes]) -> None:
    begin(target, states[0]).close()
    data = target.read_bytes()
    target.rename(target.with_name("moved"))
    target.write_bytes(data)
    with pytest.raises(StandbyChanged):
        engine(target).found(target, no_progress)
    target.with_name("copy.db.standby").unlink()
    with pytest.raises(TargetExists):
        engine(target).found(target, no_progress)


def test_two_do_not_keep_one_copy(target: Path, states: list[bytes]) -> None:
    begin(target, states[0])
    with pytest.raises(TargetInUse):
        engine(target).found(target, no_progress)


def test_a_copy_that_is_not_sound_stays_a_standby(target: Path, states: list[bytes]) -> None:
    torn = bytearray(states[0])
    torn[3 * PAGE : 4 * PAGE] = b"x" * PAGE
    copy = begin(target, bytes(torn))
    with pytest.raises(ProofFailed):
        copy.promote(target, (), no_progress)
    copy.close()
    assert engine(target).found(target, no_progress) == {"at": 0, "promoted": False}


@pytest.mark.parametrize("pages", [2, 10])
def test_a_full_disk_leaves_what_was_there(target: Path, states: list[bytes], pages: int) -> None:
    """It is full while the journal is written, or while the copy grows: then it is half changed, and goes on."""

    class Filling(Stretch):
        def deliver(self, name: str, file: int, *, delta: bool = False) -> int:
            length = super().deliver(name, file, delta=delta)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(states[0]) + pages * PAGE, resource.RLIM_INFINITY))
            return length

    begin(target, states[0]).close()

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        copy = engine(target)
        copy.found(target, no_progress)
        with pytest.raises(NoSpace):
            copy.advance(Filling(states[0], states[1]), target, {"at": 1}, no_progress)  # type: ignore[arg-type]
        if pages == 10:
            assert journal.stat().st_size > len(states[0])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            advance(copy, target, states, 1)
            assert seen(target) == 1
            copy.rebase(Whole(states[0]), target, {"at": 0}, no_progress)  # type: ignore[arg-type]

    journal = target.with_name(f"{target.name}-journal")
    assert not killed(1 << 30, work)
    copy = engine(target)
    found = copy.found(target, no_progress)
    assert found is not None and found["at"] == seen(target) == 0
    advance(copy, target, states, 1)
    assert seen(target) == 1
