"""Whatever lies at the path: a clear outcome, never a hang, never a change."""

import os
import random
import sqlite3
import stat
import tracemalloc
from contextlib import closing
from itertools import pairwise

import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from sqlite_world import directory, ledger, make, round_trip, shell, using

from dbguardd.engines.sqlite.wal import Logged
from dbguardd.errors import (
    PolicyInvalid,
    SourceDamaged,
    SourceDenied,
    SourceEncrypted,
    SourceInvalid,
    SourceMissing,
)


def nothing(path):
    pass


def empty(path):
    path.touch()


def prose(path):
    path.write_text("A story about a database. " * 400)


def random_bytes(path):
    path.write_bytes(os.urandom(8192))


def random_after_a_clear_header(path):
    ledger(path)
    data = path.read_bytes()
    path.write_bytes(data[:32] + random.Random(1).randbytes(len(data) - 32))  # one in 128 would have a page's type


def only_a_header(path):
    path.write_bytes(b"SQLite format 3\0")


def wrong_page_size(path):
    ledger(path)
    with path.open("r+b") as file:
        file.seek(16)
        file.write(b"\x03\x00")


def a_directory(path):
    path.mkdir()


def a_pipe(path):
    os.mkfifo(path)


def a_device(path):
    path.symlink_to("/dev/zero")


def a_loop(path):
    path.symlink_to(path.name)


def two_names(path):
    ledger(path)
    os.link(path, path.with_name("second.db"))


BAD = [
    (nothing, SourceMissing),
    (empty, SourceInvalid),
    (prose, SourceInvalid),
    (random_bytes, SourceEncrypted),
    (random_after_a_clear_header, SourceEncrypted),
    (only_a_header, SourceInvalid),
    (wrong_page_size, SourceInvalid),
    (a_directory, SourceInvalid),
    (a_pipe, SourceInvalid),
    (a_device, SourceInvalid),
    (a_loop, SourceInvalid),
    (two_names, SourceInvalid),
]


@pytest.mark.parametrize("setup, outcome", BAD, ids=lambda value: value.__name__)
def test_bad_sources(live, staging, setup, outcome):
    setup(live)
    before = sorted(os.listdir(live.parent))
    engine = make(live, staging)
    with pytest.raises(outcome) as probed:
        engine.probe()
    with pytest.raises(outcome) as dumped:
        engine.dump(MemorySink(), no_progress)
    for raised in (probed.value, dumped.value):
        assert raised.message.startswith("/")
        assert raised.detail
    assert sorted(os.listdir(live.parent)) == before
    assert directory(staging) == {}


def test_a_symbolic_link_is_followed_to_where_the_log_is(live, staging, tmp_path):
    ledger(live)
    link = tmp_path / "link.db"
    link.symlink_to(live)
    facts, taken, found = round_trip(make(link, staging), tmp_path / "restored.db")
    assert found.fingerprint == taken
    assert facts["name"] == "link.db"
    assert make(link, staging).probe().facts["path"] == str(live)


def test_an_unreadable_file(live, staging):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    ledger(live)
    live.chmod(0)
    with pytest.raises(SourceDenied):
        make(live, staging).dump(MemorySink(), no_progress)


def test_a_read_only_directory_of_a_cleanly_closed_database(live, staging, tmp_path):
    ledger(live)
    live.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        _, taken, found = round_trip(make(live, staging), tmp_path / "restored.db")
    finally:
        live.parent.chmod(0o700)
    assert found.fingerprint == taken


@pytest.mark.parametrize("super_journal", ["there", "gone", "empty"])
@pytest.mark.parametrize("checksum", ["right", "wrong"])
def test_a_hot_journal_of_a_transaction_over_two_databases(live, staging, tmp_path, super_journal, checksum):
    """Its journal names a super-journal; while that exists the transaction has not committed. As SQLite sees it."""
    ledger(live, "delete", filler=100_000)
    with using(live, "crash", 200):
        pass
    journal, parent = live.with_name(f"{live.name}-journal"), live.with_name(f"{live.name}-mj12345678")
    name = os.fsencode(parent)
    total = sum(name) + (checksum == "wrong")
    tail = (0).to_bytes(4, "big") + name + len(name).to_bytes(4, "big") + total.to_bytes(4, "big")
    journal.write_bytes(journal.read_bytes() + tail + bytes.fromhex("d9d505f920a163d7"))
    if super_journal != "gone":
        parent.write_bytes(os.fsencode(journal) + b"\0" if super_journal == "there" else b"")
    before, sink = directory(live.parent), MemorySink()
    make(live, staging).dump(sink, no_progress)
    assert directory(live.parent) == before
    assert shell(live, "PRAGMA user_version").strip() == "0"  # SQLite rolls back, or not
    assert not journal.exists()
    assert sink.streams["database"] == live.read_bytes()


# ------------------------------------------------------------------------------------------------ damage


def test_a_truncated_database_is_stored_but_never_printed(live, staging):
    ledger(live, "delete", filler=500_000)
    os.truncate(live, live.stat().st_size // 2)
    engine, sink = make(live, staging), MemorySink()
    engine.dump(sink, no_progress)
    assert len(sink.streams["database"]) == live.stat().st_size
    with pytest.raises(SourceDamaged):
        engine.fingerprint(no_progress)


def test_a_damaged_page_is_stored_but_never_printed(live, staging, tmp_path):
    ledger(live, "delete", filler=500_000)
    with closing(sqlite3.connect(live)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name='a'").fetchone()
    with live.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xa5" * 4096)
    engine, sink = make(live, staging), MemorySink()
    facts = engine.dump(sink, no_progress)
    with pytest.raises(SourceDamaged):
        engine.fingerprint(no_progress)
    engine.restore(MemoryTree(sink, facts), tmp_path / "restored.db", no_progress)
    found = engine.examine(tmp_path / "restored.db", [], no_progress)
    assert not found.ok
    assert found.fingerprint is None


def test_a_broken_schema_in_a_wal_database_is_stored_but_never_printed(live, staging):
    ledger(live)
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET sql='CREATE TABLE nonsense(' WHERE name='a'")
    engine = make(live, staging)
    engine.dump(MemorySink(), no_progress)
    with pytest.raises(SourceDamaged):
        engine.fingerprint(no_progress)


def test_a_large_schema_that_lies_behind_what_the_log_names_is_no_obstacle(live, staging, tmp_path):
    """It is copied when the log is in the copy: who parsed it before would find nothing there."""
    ledger(live, filler=500_000)
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        db.executescript("BEGIN;" + "".join(f"CREATE TABLE added_{n}(a, b, c UNIQUE);" for n in range(100)) + "COMMIT")
    with using(live, "crash-after-commit"):
        pass
    facts, taken, found = round_trip(make(live, staging), tmp_path / "restored.db")
    assert facts["log_bytes"] > 0
    assert found.fingerprint == taken
    assert found.ok


def interior_page(size, child, cells):
    """A b-tree page all of whose children are one page."""
    cell = child.to_bytes(4, "big") + b"\x01"
    start = size - len(cell) * cells
    head = b"\x05\0\0" + cells.to_bytes(2, "big") + start.to_bytes(2, "big") + b"\0" + child.to_bytes(4, "big")
    pointers = b"".join((start + len(cell) * n).to_bytes(2, "big") for n in range(cells))
    return (head + pointers).ljust(start, b"\0") + cell * cells


def test_a_table_that_multiplies_itself_does_not_hang(live, staging, tmp_path):
    """Twelve levels of pages that name their only child 40 times: some 10^19 rows in a small file."""
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        db.execute("PRAGMA page_size=512")
        db.execute("CREATE TABLE t(x)")
        db.execute("INSERT INTO t VALUES('row')")
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema").fetchone()
    data = bytearray(live.read_bytes())
    pages = len(data) // 512
    leaf = data[(root - 1) * 512 : root * 512]
    data[(root - 1) * 512 : root * 512] = interior_page(512, pages + 1, 40)
    for level in range(1, 12):
        data += interior_page(512, pages + level + 1, 40)
    data += leaf
    data[28:32] = (len(data) // 512).to_bytes(4, "big")
    live.write_bytes(data)
    engine, sink = make(live, staging), MemorySink()
    facts = engine.dump(sink, no_progress)
    with pytest.raises(SourceDamaged):
        engine.fingerprint(no_progress)
    engine.restore(MemoryTree(sink, facts), tmp_path / "restored.db", no_progress)
    assert not engine.examine(tmp_path / "restored.db", [], no_progress).ok


def test_views_are_never_run(live, staging, tmp_path):
    ledger(live)
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        db.execute("CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i FROM n")
    for method in ("pages", "dump"):
        _, taken, found = round_trip(make(live, staging, method=method), tmp_path / f"{method}.db")
        assert found.fingerprint == taken
        assert found.ok


def test_an_unknown_method(live, staging):
    with pytest.raises(PolicyInvalid):
        make(live, staging, method="copy")


def test_the_probe_says_what_is_there(live, staging):
    ledger(live)
    before = directory(live.parent)
    found = make(live, staging).probe()
    assert found.size_bytes == live.stat().st_size
    assert found.facts["journal_mode"] == "wal"
    assert found.facts["page_size"] == 4096
    fixed = sqlite3.sqlite_version_info >= (3, 51, 3)
    assert bool(found.warnings) != fixed or sqlite3.sqlite_version_info[:2] in ((3, 44), (3, 50))
    assert directory(live.parent) == before


def test_the_pages_of_a_long_log_are_known_in_little_memory():
    dice, page, pages = random.Random(7), 512, 400_000
    numbers = [0, 1, 2, pages, pages + 1, pages + 3] + [dice.randrange(1, pages) for _ in range(100_000)]
    tracemalloc.start()
    try:
        logged = Logged(page, bytearray(pages // 8 + 1))
        for number in numbers:
            logged.note(number)
        count = sum(1 for _ in logged.spans())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert count > 50_000
    spans = list(logged.spans())
    named = {number for start, end in spans for number in range(start // page + 1, end // page + 1)}
    assert named == {*numbers, *range(1, 65536 // page + 1)} - {0}
    assert all(end < start for (_, end), (start, _) in pairwise(spans))
