"""A moment of a real cluster: its backup and its log come to what had committed by then, or to nothing at all."""

import os
import random
import re
import signal
import subprocess
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from engine_memory import no_progress
from postgres_follow_world import Follower, asked, base, followable, moment, opened, proven, restored
from postgres_pages_world import backed_up, failed, own_place
from postgres_world import as_owner, owner

from dbguardd.engines.base import REPLACED
from dbguardd.engines.fingerprint import NoFingerprint
from dbguardd.engines.postgresql import open_postgresql
from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.engines.postgresql.physical.records import Record, Records
from dbguardd.engines.postgresql.physical.recovery_target import Part, ending, find_point
from dbguardd.engines.postgresql.physical.roll_forward import Files
from dbguardd.engines.postgresql.physical.segments import WalTimeline, parse_lsn
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.errors import Damaged, ToolMissing, Unsupported
from dbguardd.facts import Target
from dbguardd.flow import LOG, Segment
from dbguardd.repository import recover
from tests.repository.data_path import DOMAIN
from tests.repository.test_log import open_log
from tests.storage.memory import Memory

FORGED = (
    "a\nrmgr: Transaction len (rec/tot):     34/    34, tx:        731, lsn: 0/7000028, prev 0/7000000, "
    "desc: COMMIT 2099-01-01 00:00:00.000000 UTC"
)
RANDOM = int(os.environ.get("MOMENTS", "3"))


def now():
    return datetime.now(UTC)


class Kept:
    """What happened to a server, and what was stored of it."""

    def __init__(self, live, follower):
        self.book, self._live, self._follower = [], live, follower
        self._db = psycopg.connect(live.url, autocommit=True)
        follower.start(watch_seconds=100_000)
        follower.catches_up()
        live.sql("CREATE DATABASE doomed")
        live.sql("CREATE TABLE t AS SELECT generate_series(1, 100) n", "doomed")
        self.first = as_owner(base, live)
        self._commit(200)
        self.before_drop = now()
        live.sql("DROP DATABASE doomed")
        self._commit(40)
        self.lsn = live.sql("SELECT pg_current_wal_flush_lsn()")
        points = "SELECT n, pg_create_restore_point('p ' || n) FROM generate_series(1, 300) n"
        self.points = {
            f"p {n}": parse_lsn(end) for n, end in (line.split("|") for line in live.sql(points).splitlines())
        }
        self._commit(60)
        self._db.execute("BEGIN")
        self._db.execute("INSERT INTO ledger VALUES (-1, 'prepared')")
        self._db.execute("PREPARE TRANSACTION 'mine'")
        self.plain = self._stored()
        self.second = as_owner(base, live)
        self._commit(20)
        self.later = self._stored()
        self._db.execute("ROLLBACK PREPARED 'mine'")
        self.before_forged = now()
        self._db.execute("BEGIN")
        self._db.execute("INSERT INTO ledger VALUES (-2, 'prepared')")
        self._db.execute(f"PREPARE TRANSACTION '{FORGED}'")
        self.after_forged = now()
        self.forged = self._stored()
        self._db.execute(f"ROLLBACK PREPARED '{FORGED}'")
        self._commit(10)
        self.before_space = now()
        far = live.place / "far"
        far.mkdir()
        os.chown(far, live.data.stat().st_uid, -1)
        live.sql(f"CREATE TABLESPACE far LOCATION '{far}'")
        follower.catches_up()  # nobody has looked: the log has the making of it
        follower.kill()
        follower.start()
        follower.catches_up()
        chains = follower.chains()
        assert "tablespace" in follower.events("begin")[-1][3] and len(chains) == 2
        self.whole = follower.body_of(chains[0])
        self.after_space = now()
        self._db.close()

    def _commit(self, count):
        for _ in range(count):
            begun, number = now(), len(self.book) + 1
            self._db.execute("INSERT INTO ledger VALUES (%s, %s)", (number, "x" * (number % 700)))
            self.book.append((number, begun, now()))

    def _stored(self):
        self._follower.catches_up()
        return self._follower.body()


@pytest.fixture(scope="module")
def live():
    with followable(prepared=5) as made:
        yield made


@pytest.fixture(scope="module")
def kept(live, tmp_path_factory):
    follower = Follower(live, tmp_path_factory.mktemp("shelf"))
    found = Kept(live, follower)
    follower.kill()
    return found


@pytest.fixture
def place():
    with own_place() as made:
        yield made


def moment_of(restored):
    return datetime.fromisoformat(re.search(r"as it was at (\S+)\.\n", (restored / "RESTORE.txt").read_text())[1])


def at(when):
    return {"at": when.isoformat()}


@pytest.mark.parametrize("seed", range(RANDOM))
def test_a_moment_has_what_had_committed_by_then_and_nothing_else(live, kept, place, seed):
    dice = random.Random(seed)
    first, last = kept.book[0][1], kept.book[-1][2]
    when = first + (last - first) * dice.random() if seed else kept.book[150][2]
    as_owner(restored, live, moment(kept.first, *kept.later, at(when)), place / "restored")
    said, ids = asked(live, place / "restored", "SELECT 1", "SELECT id FROM ledger WHERE id > 0 ORDER BY 1")
    found = [int(line) for line in ids.split()]
    assert said and found == list(range(1, len(found) + 1))
    assert len(found) >= sum(done < when for _, _, done in kept.book)
    assert len(found) <= sum(begun <= when for _, begun, _ in kept.book)


def test_a_database_is_there_the_moment_before_it_was_dropped(live, kept, place):
    as_owner(restored, live, moment(kept.first, *kept.plain, at(kept.before_drop)), place / "restored")
    (count,) = asked(live, place / "restored", ("doomed", "SELECT count(*) FROM t"))
    assert count == "100"


def test_a_place_and_a_restore_point_are_moments(live, kept, place):
    tree, ends = moment(kept.first, *kept.plain), kept.points
    across = [
        f"p {n}" for n in range(2, 301) if ends[f"p {n}"] - ends[f"p {n - 1}"] > 104
    ]  # the head of a page is in it
    told = []
    names = (*across, "p 1", "p 300", "p", "p0")
    found, told = as_owner(
        lambda: ({name: find_point(tree, name, lambda *step: told.append(step)) for name in names}, told[-1])
    )
    assert told == ("search", len(kept.plain[0]), len(kept.plain[0]))
    assert len(across) > 2 and found.pop("p") is None and found.pop("p0") is None
    assert all(98 <= ends[name] - one[0] <= 98 + 7 + 40 for name, one in found.items()), (found, ends)
    assert all(kept.book[239][2] < one[1] < kept.book[240][1] for one in found.values()), "not their own times"
    target = {"position": parse_lsn(kept.lsn), "lsn": kept.lsn}
    examined = as_owner(proven, live, moment(kept.first, *kept.plain, target), place / "lsn")
    assert failed(examined).keys() <= {"page checksums", "the server was kept to its directory"}
    assert asked(live, place / "lsn", "SELECT count(*) FROM ledger") == ["240"]
    target = {"position": found["p 300"][0], "name": "p 300"}
    examined = as_owner(proven, live, moment(kept.first, *kept.plain, target), place / "point")
    assert failed(examined).keys() <= {"page checksums", "the server was kept to its directory"}
    assert asked(live, place / "point", "SELECT count(*) FROM ledger") == ["240"]
    with pytest.raises(Damaged, match="no restore point"):
        as_owner(restored, live, moment(kept.first, *kept.plain, {**target, "name": "p 299"}), place / "wrong")


def test_a_target_at_a_commit_has_it_and_one_just_before_has_not(live, kept, place):
    """Of a time and of a place; a place is one of bytes, and a commit is in it as soon as its record has ended."""
    _, begun, done = kept.book[120]
    tree = moment(kept.first, *kept.plain)

    def tried():
        restored(live, tree, place / "all")
        log = Records(find_tools("pg_waldump", live.major), str(place / "all/pg_wal"), 1, lambda: None, Damaged)
        facts = ClusterFacts.read(tree.facts)
        part = Part(log, facts.start_lsn, facts.start_lsn, facts.moment.until.position)

        def end(**target):
            return ending(facts, replace(facts.moment, target=Target(**target)), [part])[1].recovery_lsn

        commits = [one for one in log.between(part.start, part.end, "Transaction") if one.committed is not None]
        number = next(n for n, one in enumerate(commits) if begun <= one.time <= done)
        before, mine, tick = commits[number - 1], commits[number], timedelta(microseconds=1)
        when = [end(**at(mine.time + d)) for d in (-tick, 0 * tick, tick)]
        behind = mine.at + mine.size  # the next record begins at a multiple of 8 bytes
        where = [end(position=one, lsn="here") for one in (mine.at, behind - 1, behind + 7)]
        return before.at, mine.at, when, where

    before, mine, when, where = as_owner(tried)
    assert when == [before, mine, mine]
    assert before < where[0] == where[1] < mine == where[2]


def test_programs_that_are_missing_are_told_before_anything_is_read(kept, place):
    """As after an upgrade of the server: then the old ones are often removed."""
    streams, facts, taken = kept.first
    tree = moment((streams, {**facts, "major": 39}, taken), *kept.plain)
    tree.read = tree.deliver = None
    with pytest.raises(ToolMissing, match="pg_waldump of PostgreSQL 39 is not here"):
        as_owner(lambda: open_postgresql({"staging": "/nonexistent"}).snapshots.restore(tree, place / "r", no_progress))


def test_commits_of_one_moment_are_all_in_it_and_none_that_came_after_a_later_one():
    """What was acknowledged by a moment lies before each record of a later time, also where clocks were set back."""
    first = datetime(2026, 11, 27, 12, tzinfo=UTC)

    class Told:
        def between(self, start, end, *kinds):
            times = (0, 5, 5, 5, 9, 5)
            for n, seconds in enumerate(times):
                line = b"COMMIT " + (first + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S.%f UTC").encode()
                yield Record(b"Transaction", b"COMMIT", n, 100 + n, 1, line)

    part = Part(Told(), 100, 100, 200)
    ends = [part.last_end(0, first + timedelta(seconds=seconds))[0] for seconds in (4, 5, 8, 9)]
    assert [one.xid for one in ends] == [0, 3, 3, 5]


def test_the_newest_has_all_and_what_was_prepared(live, kept, place):
    found = as_owner(proven, live, moment(kept.first, *kept.plain), place / "restored")
    assert failed(found) == {} or set(failed(found)) <= {"page checksums", "the server was kept to its directory"}
    assert found.fingerprint is None
    assert kept.book[299][2] <= moment_of(place / "restored") <= kept.book[300][1], "its last end was prepared"
    count, prepared = asked(
        live, place / "restored", "SELECT count(*) FROM ledger", "SELECT gid FROM pg_prepared_xacts"
    )
    assert (count, prepared) == ("300", "mine")


def test_a_log_comes_to_the_very_content_of_the_backup_after_it(live, kept, place):
    """So the restore of a log proves it: all of it, and nothing else."""
    tree = moment(kept.first, *kept.later, {"backup": kept.second[1]})
    found = as_owner(proven, live, tree, place / "restored")
    assert found.fingerprint == kept.second[2]


def cut(body, where, length=1):
    return body[:where] + body[where + length :]


def flipped(body, where):
    return body[:where] + bytes([body[where] ^ 1]) + body[where + 1 :]


def swapped(body, where, length=8192):
    return (
        body[:where]
        + body[where + length : where + 2 * length]
        + body[where : where + length]
        + body[where + 2 * length :]
    )


def strange_log(live, kept, copy):
    """The log as it would be if a copy of the server, which went its own way from a moment on, had sent its own."""
    body, since, until_ = kept.plain
    as_owner(restored, live, moment(kept.first, body, since, until_, at(kept.before_drop)), copy)
    asked(live, copy, "INSERT INTO ledger SELECT n, repeat('y', 500) FROM generate_series(1000, 3000) n")
    name, data = next((path.name, path.read_bytes()) for path in sorted((copy / "pg_wal").glob("00000002" + "?" * 16)))
    start = max(since["position"], int(name[16:], 16) << 24)
    end = min(until_["position"], (int(name[16:], 16) + 1) << 24)
    part = data[start - (int(name[16:], 16) << 24) : end - (int(name[16:], 16) << 24)]
    strange = body[: start - since["position"]] + part + body[end - since["position"] :]
    assert len(strange) == len(body) and strange != body
    return strange


def test_a_log_that_is_not_that_of_the_backup_or_not_whole_is_refused_before_anything_starts(live, kept, place):
    body, since, until_ = kept.plain
    begin = int(kept.first[1]["log_place"]["position"]) - since["position"]
    known = parse_lsn(kept.first[1]["start_lsn"]) - since["position"]
    middle = (begin + len(body)) // 2 // 8192 * 8192 - since["position"] % 8192
    other = {**since, "round": "7/1"}
    late = {**since, "position": kept.first[1]["log_place"]["end"] + 8192}
    wrong = {
        "flipped": (flipped(body, middle + 100), since, until_),
        "flipped where the backup has it too": (flipped(body, known + 40), since, until_),
        "a part is missing": (cut(body, middle, 8192), since, until_),
        "a part is missing, and the rest moved up": (cut(body, middle, 8192) + bytes(8192), since, until_),
        "truncated": (body[:-8192], since, until_),
        "twice": (body[: middle + 8192] + body[middle:], since, until_),
        "twice, in the place of the next": (body[: middle + 8192] + body[middle:-8192], since, until_),
        "reordered": (swapped(body, middle), since, until_),
        "foreign": (strange_log(live, kept, place / "copy"), since, until_),
        "zeros at the end": (body[:-300] + bytes(300), since, until_),
        "of another cluster": (body, other, {**until_, "round": "7/1"}),
        "begins too late": (body[late["position"] - since["position"] :], late, until_),
    }

    def tried():
        said = {}
        for name, (bytes_, first, last) in wrong.items():
            try:
                restored(live, moment(kept.first, bytes_, first, last), place / name[:6])
            except Damaged as error:
                said[name] = LOG in error.facts
        return said, os.listdir(place)

    before = os.listdir(place)
    assert as_owner(tried) == (dict.fromkeys(wrong, True), before)


def test_no_recovery_goes_past_the_making_of_a_tablespace_and_any_goes_up_to_it(live, kept, place):
    """Who replays that empties the directory of the live one. It may be the first thing that is not stored."""

    def tried():
        restored(live, moment(kept.first, *kept.whole, at(kept.before_space)), place / "before")
        try:
            restored(live, moment(kept.first, *kept.whole, at(kept.after_space)), place / "after")
        except Unsupported as refused:
            return LOG in refused.facts
        return None

    said = as_owner(tried)
    assert os.listdir(live.place / "far") != []
    assert said or os.fsencode(live.place / "far") not in kept.whole[0]
    assert sorted(os.listdir(place)) == (["before"] if said else ["after", "before"])


def test_a_log_that_leads_nowhere_is_refused_before_a_cluster_is_written_over(live, kept):
    """Be it cut off, or one that makes a tablespace (which may be the first thing that is not stored)."""
    body, since, until_ = kept.plain
    trees = [moment(kept.first, body[:-8192], since, until_)]
    if os.fsencode(live.place / "far") in kept.whole[0]:
        trees.append(moment(kept.first, *kept.whole, at(kept.after_space)))

    def tried():
        said = []
        for tree in trees:
            try:
                opened(live).delta_restore.overwrite(tree, live.data, no_progress)
            except (Damaged, Unsupported) as error:
                said.append((LOG in error.facts, REPLACED in error.facts))
        return said

    live.stop(signal.SIGINT)
    try:
        before = {path: path.lstat().st_mtime_ns for path in live.data.rglob("*")}
        assert as_owner(tried) == [(True, False)] * len(trees)
        assert {path: path.lstat().st_mtime_ns for path in live.data.rglob("*")} == before
        assert not [path for path in live.place.iterdir() if "restore" in path.name or path.name.startswith(".")]
    finally:
        live.start()


@pytest.mark.parametrize("when", ["before_forged", "after_forged"])
def test_the_name_of_a_prepared_transaction_is_no_record_whatever_it_looks_like(live, kept, place, when):
    as_owner(restored, live, moment(kept.first, *kept.whole, at(getattr(kept, when))), place / "restored")
    (count,) = asked(live, place / "restored", "SELECT count(*) FROM ledger")
    assert count == "320"


def test_the_name_of_a_prepared_transaction_is_not_when_that_was(live, kept, place):
    as_owner(restored, live, moment(kept.first, *kept.forged), place / "restored")
    assert kept.before_forged <= moment_of(place / "restored") <= kept.after_forged


def test_a_moment_of_which_nothing_had_committed_since_is_the_backup(live, kept, place):
    early = datetime.fromisoformat(kept.first[1]["snapshot_at"]) + timedelta(microseconds=1)
    found = as_owner(proven, live, moment(kept.first, *kept.plain, at(early)), place / "restored")
    assert failed(found).keys() <= {"page checksums", "the server was kept to its directory"}
    assert asked(live, place / "restored", "SELECT count(*) FROM ledger") == ["0"]


def test_a_log_is_taken_by_its_server_as_the_manual_says(live, kept, place):
    """Without dbguard: what recover.py writes, tar, and the server's own programs."""
    storage, target, when = Memory(), place / "recovered", kept.before_drop
    log = open_log(storage)
    body, since, until_ = kept.plain
    chain = log.begin(since, "new", when)
    for start in range(0, len(body), 1 << 20):
        part = body[start : start + (1 << 20)]
        ends = [{**since, "position": since["position"] + at} for at in (start, start + len(part))]
        chain = log.append(chain, Segment("log", *ends, when, part))
    for entry in storage.list("log/"):
        (place / "store" / entry.name).parent.mkdir(parents=True, exist_ok=True)
        (place / "store" / entry.name).write_bytes(storage.get(entry.name))
    for name, data in kept.first[0].items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    key = recover.Key(DOMAIN.repo_id, DOMAIN.id, DOMAIN.key)
    backup = {"facts": {**kept.first[1], "log": {"chain": chain.id, "after": 0}}}
    recover.keep_log(place / "store", key, backup, when, target)
    page = (Path(__file__).parents[2] / "man" / "dbguard-recovery.7").read_text()
    block = page.partition("so configure it before that:\n.Bd -literal\n")[2].partition(".Ed")[0]
    taken = page[page.index("if test -f log.conf") :].partition("fi\n")[0]
    told = block.replace("/srv/recovered", str(target)).replace("2026-09-12 08:59:00Z", when.isoformat())
    unpack = next(line for line in page.splitlines() if "tar xf" in line)
    script = f"set -e\n{unpack}\n{told}\n{taken}fi\nchmod -R go= .\n"
    subprocess.run(["bash", "-c", script], check=True, cwd=target, capture_output=True)
    for path in (target, *target.rglob("*")):
        os.chown(path, owner(), -1, follow_symlinks=False)
    assert asked(live, target, "SELECT count(*) FROM ledger") == ["200"]


def test_no_name_of_a_prepared_transaction_moves_the_place_of_a_backup(live):
    """Else whoever may prepare one makes the proof of every backup fail, and what failed counts for nothing."""
    live.sql("CREATE TABLE seen (n int)")

    def forge(name):
        if name == "log.tar":
            with psycopg.connect(live.url, autocommit=True) as db:
                before = db.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()[0]
                db.execute("INSERT INTO seen VALUES (1)")
                line = FORGED.replace("0/7000028", before).replace("        731", "    1000000")
                db.execute("BEGIN")
                db.execute("INSERT INTO seen VALUES (2)")
                db.execute(f"PREPARE TRANSACTION '{line}'")

    taken = as_owner(lambda: backed_up(live, forge)[2])
    live.sql(f"ROLLBACK PREPARED '{live.sql('SELECT gid FROM pg_prepared_xacts')}'")
    assert isinstance(taken, NoFingerprint) and "no log position matches" in taken.why


class Telling:
    """A pg_waldump that tells of a commit with a hundred million bytes of subtransactions, and of one more."""

    def __init__(self, place):
        self._script = place / "pg_waldump"
        head = "rmgr: Transaction len (rec/tot): 34/ 34, tx: {}, lsn: 0/{}, prev 0/0, "
        head += "desc: COMMIT 2026-01-01 00:00:00.5 UTC"
        first, second = head.format(7, 10), head.format(8, 20)
        many = "yes ' 12345678' | head -c 100000000 | tr -d '\\n'"
        self._script.write_text(f"#!/bin/sh\nprintf '{first}; subxacts:'\n{many}\nprintf '\\n{second}\\n'\n")
        self._script.chmod(0o755)

    def path(self, name):
        return str(self._script)


def test_a_log_that_turns_takes_no_memory_for_its_large_files(tmp_path):
    size = 64 << 20
    log, at = WalTimeline(7, 1, size), 5 * size + 3 * (1 << 20)
    old, later = (tmp_path / log.name(place) for place in (at, at + size))
    for path in (old, later):
        path.write_bytes(b"x" * (4 << 20))
        os.truncate(path, size)
    with Files(tmp_path, log, at, (5 * size, 5 * size)) as files:
        tracemalloc.start()
        try:
            files.turn(2, at)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()
    assert not later.exists()
    new = tmp_path / log.on(2).name(at)
    assert new.read_bytes() == b"x" * (3 << 20)
    assert old.read_bytes() == b"x" * (3 << 20) + bytes(size - (3 << 20))
    assert (tmp_path / "00000002.history").read_text().startswith("1\t")


def test_a_commit_of_millions_of_subtransactions_takes_no_memory(tmp_path):
    records = Records(Telling(tmp_path), "/nonexistent", 1, lambda: None, Damaged)
    tracemalloc.start()
    try:
        found = list(records.between(0, 100))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(one.at, one.committed) for one in found] == [(16, 7), (32, 8)] and found[0].time.year == 2026
    assert most < 8 << 20
