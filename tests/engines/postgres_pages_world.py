"""A real cluster with an object of every kind, its physical backups, and what their tests share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import fastcdc.fastcdc_cy  # noqa: F401 - the owner of the server may not read where it lies: it is loaded before
from engine_memory import MemorySink, MemoryTree, no_progress
from postgres_world import alive_processes, cluster, owner, until

from dbguardd.engines.postgresql import open_postgresql
from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.facts import LogPosition

MADE = """
CREATE TABLE big (n int PRIMARY KEY, t text);
INSERT INTO big SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 12000) n;
CREATE UNLOGGED TABLE passing (n int PRIMARY KEY); INSERT INTO passing SELECT generate_series(1, 1000);
CREATE TABLE "odd.\n""name" ("c, 1" text, mood numeric, raw bytea);
INSERT INTO "odd.\n""name" SELECT 'r' || n, n / 3.0, decode(md5(n::text), 'hex') FROM generate_series(1, 300) n;
CREATE TABLE part (n int) PARTITION BY RANGE (n); CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (100);
INSERT INTO part SELECT generate_series(0, 99);
CREATE TABLE gone AS SELECT n FROM generate_series(1, 50) n; DELETE FROM gone WHERE n > 40;
CREATE TABLE afar (n int PRIMARY KEY) TABLESPACE far; INSERT INTO afar SELECT generate_series(1, 500);
CREATE MATERIALIZED VIEW seen AS SELECT count(*) FROM big;
SELECT lo_from_bytea(0, 'a large object');
VACUUM ANALYZE;
"""

OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dbguard'"

FACTS = ClusterFacts(
    name="main",
    server_version="15.1",
    major=15,
    system=7 << 60,
    page_size=8192,
    checksums=True,
    segment_bytes=16 << 20,
    prepared=0,
    locks=6400,
    superuser="postgres",
    tablespaces={"16384": ("fast", "/srv/fast")},
    directory="/var/lib/postgresql/15/main",
    service="postgresql@15-main.service",
    owner="postgres",
    timeline=3,
    start_lsn=0x1_0000_0028,
    stop_lsn=0x1_0000_0100,
    recovery_lsn=0x1_0000_0200,
    snapshots={"shop": "10:20:11"},
    snapshot_at="2026-11-27T10:00:00+00:00",
    fingerprint_form=2,
    size_bytes=30 << 20,
    log_place=LogPosition("8/3", 0x1_0000_0200, end=0x1_0000_0300),
)
"""What is stored with a backup."""


@contextmanager
def shop():
    """A server with an object of every kind."""
    with cluster("--data-checksums") as made:
        far = made.place / "far"
        far.mkdir()
        os.chown(far, owner(), -1)
        made.sql(f"CREATE TABLESPACE far LOCATION '{far}'; CREATE DATABASE shop")
        made.sql(MADE, "shop")
        subprocess.run(bench(made, "-i", "-q", "-s", "1"), check=True, capture_output=True, cwd="/")
        yield made


def move_out(live):
    """Configure the cluster as Debian does: from a separate directory, which includes another one."""
    live.stop(signal.SIGINT)
    live.config = live.place / "etc"
    (live.config / "conf.d").mkdir(parents=True)
    (live.config / "more.d").mkdir()
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (live.data / name).rename(live.config / name)
    settings = {"hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}
    with (live.config / "postgresql.conf").open("a") as conf:
        conf.write(f"data_directory = '{live.data}'\ninclude_dir = 'conf.d'\ninclude_dir = 'more.d'\n")
        conf.writelines(f"{setting} = '{live.config / name}'\n" for setting, name in settings.items())
    (live.config / "conf.d" / "own.conf").write_text("work_mem = '7MB'\n")
    (live.config / "conf.d" / "large.conf").write_text("# " + "x" * (1 << 20) + "\n")
    for place, _directories, files in os.walk(live.config):
        for path in (place, *(os.path.join(place, file) for file in files)):
            os.chown(path, owner(), -1)
    live.start()


@contextmanager
def own_place(user=None):
    """A directory of the owner's, or of another user, where a job restores; nothing is left running in it."""
    base = Path(tempfile.mkdtemp(prefix="dbg-"))
    os.chown(base, owner() if user is None else user, -1)
    yield base
    assert alive_processes(str(base)) == []
    shutil.rmtree(base)


def bench(live, *words):
    return [live.programs / "pgbench", "-h", live.socket, "-p", str(live.port), "-U", "postgres", *words, "shop"]


@contextmanager
def writers(live):
    """Run eight clients that transfer money for the length of a block."""
    before = live.sql("SELECT count(*) FROM pgbench_history", "shop")
    words = bench(live, "-n", "-c", "8", "-R", "800", "-T", "3600")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/")
    try:
        until(lambda: live.sql("SELECT count(*) FROM pgbench_history", "shop") != before, "the first transfers")
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate()


def made(live, **settings):
    return open_postgresql({"url": live.url, "staging": "/nonexistent", "method": "pages", **settings}).snapshots


def backed_up(live, before=None, after=None, progress=no_progress):
    """Back up and fingerprint the snapshot. `before` is called with each stream, `after` before the fingerprint."""
    engine, sink = made(live), MemorySink(before)
    facts = engine.dump(sink, progress)
    if after is not None:
        after()
    taken = engine.fingerprint(no_progress)
    engine.release()
    return sink, facts, taken


def stored(live, before=None, after=None):
    sink, facts, taken = backed_up(live, before, after)
    return sink.streams, facts, taken


def timed(live):
    """A backup, and by the server's clock when its snapshots had been taken and when the end of its log was read.

    And how many were held when its log began to be stored.
    """
    told = {}

    def before(name):
        if name == "log.tar":
            told["held"] = int(live.sql(f"{OURS} AND state = 'idle in transaction'"))

    def progress(step, done, total):
        if step not in ("snapshot", "log"):
            return
        told[step] = datetime.fromisoformat(live.sql("SELECT to_json(now() AT TIME ZONE 'UTC') #>> '{}'") + "+00:00")

    sink, facts, taken = backed_up(live, before, progress=progress)
    return sink.streams, facts, taken, told


def tree(streams, facts):
    sink = MemorySink()
    sink.streams = dict(streams)
    return MemoryTree(sink, facts)


def proven(live, streams, facts, target, queries=()):
    engine = made(live)
    engine.restore(tree(streams, facts), target, no_progress)
    return engine.examine(target, queries, no_progress)


def round_trip(live, target, queries=(), before=None, after=None):
    streams, facts, taken = stored(live, before, after)
    return streams, facts, taken, proven(live, streams, facts, target, queries)


def failed(found):
    return {finding.name: finding.detail for finding in found.findings if finding.outcome != "ok"}


def by_hand(live, streams, target):
    """Start a server at port 5433 on what recover.py writes of a backup, with the commands in dbguard-recovery(7)."""
    for name, data in streams.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    page = (Path(__file__).parents[2] / "man" / "dbguard-recovery.7").read_text()
    block = page.partition("unpack its archives")[2].partition(".Bd -literal\n")[2].partition(".Ed")[0]
    script = block.replace("\\e\n", "\\\n").replace("/srv/recovered", str(target))
    script = script.replace("/usr/lib/postgresql/15/bin", str(live.programs))
    become = (
        f"setpriv --reuid {owner()} --regid {os.stat(live.data).st_gid} --clear-groups --" if os.geteuid() == 0 else ""
    )
    script = script.replace("runuser -u postgres --", become).replace("postgres: .", f"{owner()} .")
    assert "5433" in script and "runuser" not in script and "pg_ctl" in script
    done = subprocess.run(["bash", "-ec", script], cwd="/", stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, (target / "start.log").read_text()
