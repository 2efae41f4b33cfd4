"""Two servers of one cluster: one is promoted, one is lost, one comes back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from tests.engines.postgres_world import Cluster, cluster, identity, owner, until


class Pair:
    """Servers of one cluster, in one url. SQL goes to the first one."""

    def __init__(self, *servers):
        self.servers, self.programs = servers, servers[0].programs

    @property
    def url(self):
        return self.as_role("")

    def as_role(self, role):
        """The url that asks for a role."""
        hosts, ports = (",".join(str(getattr(one, name)) for one in self.servers) for name in ("socket", "port"))
        return f"postgresql:///?host={hosts}&port={ports}&user=postgres" + (role and f"&target_session_attrs={role}")


def standby_of(live, place):
    """Make and start a standby."""
    made = Cluster(place, live.programs)
    where = f"host={live.socket} port={live.port} user=postgres"
    words = [live.programs / "pg_basebackup", "-d", where, "-D", made.data, "-R", "-c", "fast", "--no-sync"]
    subprocess.run(words, check=True, capture_output=True, cwd="/", **identity())
    made.socket.mkdir(mode=0o755)
    os.chown(made.socket, owner(), -1)
    with (made.data / "postgresql.conf").open("a") as conf:
        conf.write(f"unix_socket_directories = '{made.socket}'\nwal_retrieve_retry_interval = 100ms\n")
    made.start()
    return made


@contextmanager
def pair(*options):
    """A primary whose log can be followed, with a ledger, and its standby."""
    with cluster(*options) as first, place() as where:
        first.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '128MB'")
        first.sql("ALTER SYSTEM SET wal_sender_timeout = 0")
        first.sql("SELECT pg_reload_conf(); CREATE TABLE ledger (id int PRIMARY KEY, note text)")
        second = standby_of(first, where)
        try:
            yield Pair(first, second)
        finally:
            second.stop()


@contextmanager
def place():
    made = Path(tempfile.mkdtemp(prefix="dbg-pg-"))
    os.chown(made, owner(), -1)
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def replayed(first, second):
    """Wait until a standby has everything that was committed."""
    at = first.sql("SELECT pg_current_wal_flush_lsn()")
    until(lambda: second.sql(f"SELECT pg_last_wal_replay_lsn() >= '{at}'") == "t", "the log, on the standby")


def promote(server):
    """Make a standby the primary."""
    assert server.sql("SELECT pg_promote()") == "t"


def demote(server, primary):
    """Make a stopped server a standby of another one, which has all of its log."""
    (server.data / "standby.signal").touch()
    os.chown(server.data / "standby.signal", owner(), -1)
    with (server.data / "postgresql.auto.conf").open("a") as conf:
        conf.write(f"primary_conninfo = 'host={primary.socket} port={primary.port} user=postgres'\n")
    server.start()


def rewind(server, primary):
    """Make a lost server a standby of its successor with pg_rewind: it has commits that the successor lacks."""
    conf = (server.data / "postgresql.conf").read_bytes()
    where = f"host={primary.socket} port={primary.port} user=postgres dbname=postgres"
    words = [server.programs / "pg_rewind", "-D", server.data, "--source-server", where, "-R", "--no-sync"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd="/", **identity())
    assert done.returncode == 0, done.stderr
    (server.data / "postgresql.conf").write_bytes(conf)  # it has brought the one of the other, with its socket
    server.start()


def take_over(server):
    """Promote a standby that was stopped when its primary was lost: it lacks what was written since."""
    with (server.data / "postgresql.auto.conf").open("a") as conf:
        conf.write("primary_conninfo = ''\n")
    server.start()
    promote(server)


def lose(server):
    """End a server as if its machine was lost."""
    server.stop(signal.SIGQUIT)
