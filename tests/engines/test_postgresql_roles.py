"""The servers of a cluster change their roles: its log is followed on, and leads where the cluster went."""

import shlex
import signal
from datetime import UTC, datetime

import pytest
from engine_memory import no_progress
from postgres_follow_world import STAGING, Follower, asked, base, moment, proven, restored
from postgres_pages_world import failed, own_place
from postgres_pair_world import demote, lose, pair, promote, replayed, take_over
from postgres_world import as_owner
from psycopg.conninfo import conninfo_to_dict

from dbguardd.engines.postgresql.connect import address_of
from dbguardd.engines.postgresql.physical.history import timeline_in
from dbguardd.engines.postgresql.physical.recovery_target import find_point
from dbguardd.engines.postgresql.physical.segments import parse_lsn, turns_of
from dbguardd.engines.postgresql.physical.slot import name_of
from dbguardd.engines.postgresql.roles import addresses_of
from dbguardd.engines.postgresql.typed import running
from dbguardd.errors import Damaged, PolicyInvalid, ServerUnreachable, SourceReplaced
from dbguardd.flow import TURNS
from dbguardd.repository import recover
from tests.repository.data_path import DOMAIN
from tests.repository.test_log import open_log
from tests.storage.memory import Memory

SLOT = name_of(STAGING)
SUM = "SELECT count(*) || ' ' || md5(string_agg(id || note, ',' ORDER BY id)) FROM ledger"


def commit(live, count=3):
    """Commit rows, of which one can see where they were written."""
    for _ in range(count):
        live.sql(f"INSERT INTO ledger SELECT coalesce(max(id), 0) + 1, '{live.place.name}' FROM ledger")


class Life:
    """What happened to a cluster: the ledger at known moments, the log that was stored, and backups.

    The first server is lost while nobody follows. The second is lost when the first, a standby by then, is behind: so
    what was stored of it last is in no history that goes on.
    """

    def __init__(self, both, shelf):
        self.both, self.follower, self.known = both, Follower(both, shelf), []
        one, two = both.servers
        self.follower.start()
        self.follower.catches_up()
        self.first = as_owner(base, both)
        self.note(one)
        self.follower.kill()
        self.note(one)
        replayed(one, two)
        lose(one)
        promote(two)
        self.note(two)
        self.follower.start()
        self.follower.catches_up()
        self.second = as_owner(base, both)
        self.note(two)
        demote(one, two)
        replayed(two, one)
        one.stop(signal.SIGINT)
        two.sql("SELECT pg_create_restore_point('lost')")
        self.note(two)  # what comes to nothing
        self.dead = as_owner(base, both)
        self.note(two)
        self.follower.catches_up()
        lose(two)
        self.lost = self.follower.ended()
        take_over(one)
        self.note(one)
        self.kept = one.sql("SELECT pg_create_restore_point('kept')"), one.sql(SUM)
        self.note(one)
        self.follower.start()
        self.follower.catches_up()
        self.third = as_owner(base, both)
        self.note(one)
        self.follower.catches_up()
        self.segments = self.follower.chains()[-1]

    def note(self, live):
        commit(live)
        self.known.append((datetime.now(UTC), live.sql(SUM)))

    def to(self, when=None, backup=None):
        """The tree of a moment, from a backup: with the log that was stored since."""
        base, target = backup or self.first, {} if when is None else {"at": when.isoformat()}
        end = len(self.segments)
        if when is not None:
            end = next(n for n, one in enumerate(self.segments) if one.at >= when) + 1
            end -= turned_at(self.segments[end - 1], when) > when
        segments = self.segments[:end]
        body = b"".join(one.body for one in segments)
        return moment(base, body, segments[0].since, segments[-1].until, target)


def turned_at(segment, otherwise):
    """When a segment turns to another timeline."""
    turns = segment.until.get(TURNS, [])
    return datetime.fromisoformat(turns[-1][-1]) if turns != segment.since.get(TURNS, []) else otherwise


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    with pair() as made:
        found = Life(made, tmp_path_factory.mktemp("shelf"))
        yield found
        if found.follower.process.is_alive():
            found.follower.kill()


def test_a_log_goes_on_without_a_gap_whoever_takes_over(life):
    assert isinstance(life.lost, ServerUnreachable)
    assert [begun[2] for begun in life.follower.events("begin")] == [False, True, True]
    (first, left, stored, _), (second, behind, lost, _) = life.segments[-1].until[TURNS]
    assert [timeline_in(one) for one in (first, second, life.segments[-1].until["round"])] == [1, 2, 3]
    assert left == stored and behind < lost  # the one that came second had less of the log
    at = life.segments[-1].until[TURNS][-1][-1]  # a moment of the same second may be before the turn or after it
    written = (life.both.servers[0].data / "pg_wal" / "00000003.history").stat().st_mtime
    assert abs(datetime.fromisoformat(at).timestamp() - written) < 0.001


def test_any_moment_comes_back_as_it_was_across_timelines(life):
    """Also what was lost later: it was there then. And what comes after the loss has nothing of that."""
    tried = {"lost later": (5, life.first), "after": (6, life.second)}
    with own_place() as place:
        for name, (number, backup) in tried.items():
            when, what = life.known[number]
            as_owner(restored, life.both, life.to(when, backup), place / name)
            assert asked(life.both, place / name, SUM) == [what], name


def test_a_restore_point_is_found_where_the_cluster_went(life):
    """And none in what was lost, though its bytes are there."""
    tree = life.to(backup=life.second)
    found = as_owner(lambda: {name: find_point(tree, name, no_progress) for name in ("lost", "kept")})
    lsn, what = life.kept
    assert found["lost"] is None and parse_lsn(lsn) - 512 < found["kept"][0] < parse_lsn(lsn)
    tree.facts["moment"]["target"] = {"position": found["kept"][0], "name": "kept"}
    with own_place() as target:
        as_owner(restored, life.both, tree, target / "restored")
        assert asked(life.both, target / "restored", SUM) == [what]


def test_the_log_is_proven_by_the_backup_after_a_switch(life):
    with own_place() as place:
        tree = life.to(backup=life.first)
        tree.facts["moment"]["target"] = {"backup": life.third[1]}
        found = as_owner(proven, life.both, tree, place / "restored")
        assert found.fingerprint == life.third[2], failed(found)


def test_a_backup_of_what_was_lost_leads_to_no_later_moment(life):
    with own_place() as place, pytest.raises(Damaged, match="left timeline 2"):
        as_owner(restored, life.both, life.to(backup=life.dead), place / "restored")


def test_the_log_is_laid_out_without_dbguard_as_the_server_had_it(life, tmp_path):
    """By recover.py, which is given with each repository."""
    storage, (one, _) = Memory(), life.both.servers
    log = open_log(storage)
    chain = log.begin(life.segments[0].since, "new", life.segments[0].at)
    for segment in life.segments:
        chain = log.append(chain, segment)
    for entry in storage.list("log/"):
        (tmp_path / "store" / entry.name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / entry.name).write_bytes(storage.get(entry.name))
    key = recover.Key(DOMAIN.repo_id, DOMAIN.id, DOMAIN.key)
    for number, timelines in ((5, {"00000001", "00000002"}), (7, {"00000001", "00000002", "00000003"})):
        target = tmp_path / str(number)
        target.mkdir()
        (target / "log.tar").write_bytes(life.first[0]["log.tar"])
        backup = {"facts": {**life.first[1], "log": {"chain": chain.id, "after": 0}}}
        recover.keep_log(tmp_path / "store", key, backup, life.known[number][0], target)
        found = {path.name: path.read_bytes() for path in (target / "log").iterdir()}
        assert {name[:8] for name in found} == timelines
    for name, data in found.items():
        if name.endswith(".history"):
            assert turns_of(data.decode()) == turns_of((one.data / "pg_wal" / name).read_text())
    newest = max(name for name in found if not name.endswith(".history"))
    end = life.segments[-1].until["position"] % (16 << 20)
    assert found[newest][:end] == (one.data / "pg_wal" / newest).read_bytes()[:end]


def test_a_server_that_was_left_behind_is_never_taken(life):
    """Last in this file: what was lost comes back. Who follows sees that, and the log of neither is let go of."""
    one, two = life.both.servers
    life.follower.kill()
    life.follower.start(watch_seconds=0.02)
    life.follower.catches_up()
    two.start()
    for _ in ("while it follows", "when it starts"):
        refused = life.follower.ended()
        assert isinstance(refused, SourceReplaced) and "both accept writes" in refused.message
        assert one.sql(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}'") == "1"
        life.follower.start()
    life.follower.ended()
    with pytest.raises(SourceReplaced, match="both accept writes"):
        as_owner(base, life.both)
    one.stop(signal.SIGINT)
    life.follower.start()
    refused = life.follower.ended()
    assert isinstance(refused, SourceReplaced) and "left behind" in refused.message
    assert two.sql(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}'") == "0"
    one.start()


def test_lists_of_servers_that_do_not_fit_are_refused_in_words():
    with pytest.raises(PolicyInvalid, match="3 of host, 2 of port"):
        addresses_of(address_of("postgresql:///?host=a,b,c&port=1,2"))


@pytest.mark.parametrize("hosts", ["db 1,db2", "/run/a,/run/b"])
def test_of_several_servers_a_text_is_typed_into_the_one_that_accepts_writes(hosts):
    words = shlex.split(running({"host": hosts, "port": "1,2"}, "postgres", "o", "the 'shop'"))
    role = "o" if hosts.startswith("db") else "postgres"
    assert conninfo_to_dict(words[words.index("-d") + 1]) == {
        **{"host": hosts, "port": "1,2", "user": role, "dbname": "the 'shop'"},
        "target_session_attrs": "read-write",
    }
    assert "target_session_attrs" not in running({"host": "db1"}, "postgres", "o", "shop")


def test_servers_that_a_service_names_are_asked_for_the_primary_as_those_of_a_url(tmp_path, monkeypatch):
    """The library would take the first that answers, perhaps a standby, and another one for the next connection."""
    file = tmp_path / "services"
    file.write_text("[two]\nhost=one,/run/two\nport=1,2\nuser=x\n[role]\nhost=one\ntarget_session_attrs=standby\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert addresses_of(address_of("service=two")) == [
        {"service": "two", "host": "one", "port": "1"},
        {"service": "two", "host": "/run/two", "port": "2"},
    ]
    assert "target_session_attrs=read-write" in running(address_of("service=two"), "x", "x", "app")
    assert address_of("service=role") == {"service": "role", "host": "one", "target_session_attrs": "standby"}
    assert address_of("postgresql:///?service=two&host=three&port=3")["host"] == "three"
    assert address_of("service=nosuch") == {"service": "nosuch"}
