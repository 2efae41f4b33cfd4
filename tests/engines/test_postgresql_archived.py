"""A log that is taken file by file: the archiver is told that one is stored when it is, and of no other."""

import hashlib
import os
import signal
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from postgres_follow_world import Follower, asked, base, moment, restored
from postgres_pages_world import own_place
from postgres_world import as_owner, cluster, owner, until

from dbguardctl.commands.push import _asked
from dbguardd.engines.postgresql.physical.history import timeline_in
from dbguardd.flow import TURNS

SEGMENT = 1 << 20


@pytest.fixture(scope="module")
def live():
    with cluster("--wal-segsize=1") as made:
        with (made.data / "postgresql.conf").open("a") as conf:
            conf.write("archive_mode = on\narchive_command = 'false'\nwal_keep_size = '512MB'\n")
        made.stop()
        made.start()
        made.sql("CREATE TABLE ledger (id serial PRIMARY KEY, note text)")
        yield made


@pytest.fixture
def taken(live, tmp_path):
    """What takes the log of the server, and asks it as archive_command does."""
    with own_place() as place:
        staging = place / "staging"
        staging.mkdir(0o700)
        os.chown(staging, owner(), -1)
        follower = Follower(live, tmp_path)
        made = Taken(live, follower, staging)
        yield made
        if follower.process is not None and follower.process.exitcode is None:
            follower.kill()


class Taken:
    def __init__(self, live, follower, staging):
        self.live, self.follower, self.staging = live, follower, staging

    def start(self, **how):
        (self.staging / "push").unlink(missing_ok=True)  # as the half does that wipes its directory
        self.follower.start(continuous="archive", staging=str(self.staging), **how)
        until(lambda: self.follower.process.exitcode is not None or self._answers(), "its answer")

    def _answers(self):
        with suppress(OSError):
            return self.ask("x", b"") != ""
        return False

    def stored(self, name):
        """Wait until a file is stored."""

        def is_stored():
            if self.follower.process.exitcode is not None:
                raise self.follower.ended()
            return self.ask(name) == "ok it is stored"

        until(is_stored, name)

    def file(self, name):
        return (self.live.data / "pg_wal" / name).read_bytes()

    def ask(self, name, data=None):
        digest = hashlib.sha256(self.file(name) if data is None else data).hexdigest()
        return as_owner(_asked, str(self.staging), f"1 {name} {digest}\n".encode())

    def written(self):
        """Commit something, end the file that it is in, and return the name of that."""
        self.live.sql("INSERT INTO ledger (note) SELECT repeat('x', 700) FROM generate_series(1, 300)")
        name = self.live.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        self.live.sql("SELECT pg_switch_wal()")
        return name

    def current(self):
        return self.live.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")


def test_only_what_is_stored_may_be_removed(taken):
    taken.start()
    first = taken.written()
    assert taken.ask(first) == taken.ask(first) == "ok it is stored"
    body, since, end = taken.follower.body()
    assert body[-SEGMENT:] == taken.file(first) and end["position"] % SEGMENT == 0 == since["position"] % SEGMENT
    now = datetime.now(UTC)  # nothing is committed any more: all that had been is stored
    until(lambda: taken.follower.events("reached")[-1][1] > now, "a later moment")
    taken.live.sql("INSERT INTO ledger (note) VALUES ('not yet')")
    committed = datetime.now(UTC)
    assert taken.ask(taken.current()) == "no it is not stored yet"
    assert taken.follower.events("reached")[-1][1] < committed
    assert taken.ask(taken.written()).startswith("ok")
    until(lambda: taken.follower.events("reached")[-1][1] > committed, "a later moment")
    refused = {
        first: b"of a copy of this server", "0000000100000000000000FF": b"of another one", "../../PG_VERSION": b"",
        "00000002.history": b"made up",
    }  # fmt: skip
    for name, data in refused.items():
        assert taken.ask(name, data).startswith("no "), name
    taken.live.sql("SELECT pg_backup_start('x', true); SELECT count(*) FROM pg_backup_stop(false)")
    history = next(path.name for path in (taken.live.data / "pg_wal").glob("*.backup"))
    assert taken.ask(history).startswith("ok it is not part of the followed log")


def test_a_storage_that_is_full_and_a_follower_that_dies_let_the_server_ask_again(taken):
    taken.start()
    assert taken.ask(taken.written()).startswith("ok")
    taken.follower.path.chmod(0o700)
    name = taken.written()
    taken.follower.ended()
    with pytest.raises(OSError, match="refused|No such"):
        taken.ask(name)
    taken.follower.path.chmod(0o600)
    taken.start()
    assert taken.ask(name) == "ok it is stored"
    taken.follower.kill()
    later = taken.written()
    with pytest.raises(OSError, match="refused"):
        taken.ask(later)
    taken.start()
    assert taken.ask(later) == taken.ask(name) == "ok it is stored"
    begun = taken.follower.events("begin")
    assert [event[2] for event in begun] == [False, True, True]
    body, since, end = taken.follower.body()
    assert len(body) == end["position"] - since["position"] and body[-SEGMENT:] == taken.file(later)


def test_a_log_that_does_not_go_on_begins_anew_and_says_why(taken):
    taken.start()
    name = taken.written()
    assert taken.ask(name).startswith("ok")
    taken.follower.kill()
    resume = taken.follower.resume()
    assert name in resume["files"] and len(resume["files"]) <= 16
    taken.live.sql("INSERT INTO ledger (note) VALUES ('in the file that is written now')")
    wrong = {
        "differs from the stored log": {"position": resume["position"] + 100, "check": "0" * 64, "files": {}},
        "WAL differs": {"files": {**resume["files"], name: "0" * 32}},
        "removed a part": {"position": SEGMENT, "files": {}},
        "WAL ends before": {"position": 1 << 50},
        "which does not descend from timeline 0": {"round": resume["round"].replace("/1", "/0")},
    }
    for why, said in wrong.items():
        taken.start(resume={**resume, **said})
        begun = taken.follower.events("begin")[-1]
        assert begun[2] is False and why in begun[3], begun
        taken.follower.kill()


def test_no_log_goes_on_over_what_was_written_at_wal_level_minimal(taken):
    """All of that is in one file, which the server archives when it does so again."""
    taken.start()
    assert taken.ask(taken.written()).startswith("ok")
    taken.follower.kill()
    live = taken.live
    for more in ("archive_mode = off\nwal_level = minimal\nmax_wal_senders = 0\n", ""):
        live.stop(signal.SIGINT)
        (live.data / "postgresql.auto.conf").write_text(more)
        live.start()
        live.sql("DROP TABLE IF EXISTS bulk; CREATE TABLE bulk AS SELECT generate_series(1, 9) AS n")
    taken.start()
    begun = taken.follower.events("begin")[-1]
    assert not begun[2] and "wal_level = minimal" in begun[3], begun
    assert taken.ask(taken.written()).startswith("ok")


def test_a_log_goes_on_along_the_timeline_of_a_server_that_was_promoted(taken):
    """File by file as byte by byte; also from a place that the old server had come to, and the new one never."""
    live = taken.live
    taken.start()
    assert taken.ask(taken.written()).startswith("ok")
    backup = as_owner(base, live)
    taken.written()
    live.sql("INSERT INTO ledger (note) VALUES ('in the file that both have')")
    taken.follower.kill()
    resume = taken.follower.resume()
    live.stop(signal.SIGINT)
    (live.data / "standby.signal").touch()
    os.chown(live.data / "standby.signal", owner(), -1)
    live.start()
    assert live.sql("SELECT pg_promote()") == "t"
    taken.start()
    taken.written()
    live.sql("CHECKPOINT")
    newest = taken.written()
    assert newest.startswith("00000002")
    taken.stored(newest)
    begun = taken.follower.events("begin")
    assert [event[2] for event in begun] == [False, True], begun
    segments = taken.follower.chains()[-1]
    body, since, end = taken.follower.body()
    ((first, left, stored, _),) = end[TURNS]
    assert (timeline_in(first), left == stored, timeline_in(end["round"])) == (1, True, 2)
    assert left % SEGMENT and taken.file(newest) == body[-SEGMENT:]
    with own_place() as place:
        as_owner(restored, live, moment(backup, body, since, end), place / "restored")
        question = "SELECT count(*), max(id) FROM ledger"
        assert asked(live, place / "restored", question) == [live.sql(question)]
    taken.follower.kill()

    taken.start(resume={**resume, "position": (left // SEGMENT + 1) * SEGMENT})  # as one that lost a file with us
    taken.stored(newest)
    more = taken.follower.chains()[-1][len(segments) :]
    assert more[0].since["position"] > left and more[0].until[TURNS][-1][1:3] == [left, more[0].since["position"]]
    assert b"".join(one.body for one in more) == body[left - since["position"] :]
