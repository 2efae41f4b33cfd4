"""A real PostgreSQL server for tests: made once, on a Unix socket only, by an unprivileged user, removed afterwards.

PostgreSQL does not run as root, and neither does the engine half: where the tests do, whatever touches the server runs
in a child of `OWNER` (see `as_owner`).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from tests.live import rest

PREFERRED = "DBGUARD_TEST_POSTGRESQL"
"""The major version that is tested; without it the newest that is installed."""

_SECONDS = 120.0


def bin_directory():
    """Return the programs of PostgreSQL that are tested; None if there are none."""
    found = [place for place in Path("/usr/lib/postgresql").glob("*/bin") if (place / "initdb").exists()]
    if preferred := os.environ.get(PREFERRED):
        found = [place for place in found if place.parent.name == preferred]
    newest = max(found, key=lambda place: int(place.parent.name), default=None)
    if newest is None and (there := shutil.which("initdb")):
        return Path(there).resolve().parent
    return newest


def free_port():
    """Return a port of this host that nobody listens at, below those that the kernel gives to whoever asks for any."""
    for port in range(10_000 + os.getpid() % 20_000, 32_768):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def owner():
    """Return the uid that the server runs as: ours, or that of nobody if we are root."""
    return os.geteuid() or pwd.getpwnam("nobody").pw_uid


def identity():
    """Return the arguments with which subprocess runs a child as the owner."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwuid(owner())
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def as_owner(action, *arguments):
    """Run something in a child of the owner; return what it returns, or raise what it raises."""
    return as_user(owner(), action, *arguments) if os.geteuid() == 0 else action(*arguments)


def stranger():
    """Return the uid of a user who cannot read the owner's files; skip if we cannot become that user."""
    if os.geteuid() != 0:
        pytest.skip("not root: NOTHING is tested of a server whose files are not read here")
    return pwd.getpwnam("daemon").pw_uid


def as_user(uid, action, *arguments):
    """Run something in a child of a user, as root; see as_owner."""
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_as_user, args=(there, uid, action, arguments))
    child.start()
    there.close()
    try:
        try:
            outcome, value = here.recv()
        except EOFError:
            child.join()
            pytest.fail(f"the child ended with {child.exitcode} and said nothing")
    finally:
        here.close()
        child.join(_SECONDS)
        child.close()
    if outcome == "raised":
        raise value
    return value


def _as_user(pipe, uid, action, arguments):
    user = pwd.getpwuid(uid)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    os.environ["HOME"] = "/nonexistent"
    sys.executable = _python()
    try:
        said = ("returned", action(*arguments))
    except BaseException as error:  # noqa: BLE001 - it is raised again on the other side
        error.add_note(traceback.format_exc())
        said = ("raised", error)
    pipe.send(said)
    pipe.close()


def _python():
    """Return a Python that the owner can run: ours, or the system's."""
    return sys.executable if os.access(os.path.realpath(sys.executable), os.X_OK) else shutil.which("python3")


class Cluster:
    """A running server."""

    def __init__(self, place, programs):
        self.place, self.programs = place, programs
        self.data, self.socket = place / "data", place / "socket"
        self.config = self.data
        self.port = 54321
        self.process = None

    @property
    def url(self):
        return f"postgresql:///?host={self.socket}&port={self.port}&user=postgres"

    @property
    def major(self):
        said = subprocess.run([self.programs / "postgres", "--version"], check=True, capture_output=True, text=True)
        return int(said.stdout.split()[2].split(".")[0])

    def make(self, *options):
        """Make the cluster; `options` are those of initdb."""
        words = ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", *options]
        if self.major >= 18 and "--data-checksums" not in options:
            words.append("--no-data-checksums")  # it makes them unasked
        subprocess.run([self.programs / "initdb", *words, "-D", self.data], check=True, capture_output=True,
                       cwd="/", **identity())  # fmt: skip
        self.socket.mkdir(mode=0o755)
        os.chown(self.socket, owner(), -1)
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"listen_addresses = ''\nport = {self.port}\nunix_socket_directories = '{self.socket}'\nfsync = off\n"
                "wal_level = replica\nmax_wal_senders = 4\nmax_replication_slots = 4\ntimezone = 'Europe/Berlin'\n"
                "datestyle = 'SQL, DMY'\nshared_buffers = 32MB\nlog_statement = none\n"
                "autovacuum = off\ncheckpoint_timeout = 1h\n"  # what a test asserts depends on no moment of theirs
            )

    def start(self):
        """Start the server and wait until it answers."""
        with (self.place / "log").open("ab") as log:
            self.process = subprocess.Popen([self.programs / "postgres", "-D", self.config], stdout=log, stderr=log,
                                            cwd="/", **identity())  # fmt: skip
        deadline = time.monotonic() + _SECONDS
        while "ready" not in self._status():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.place / "log").read_text()
            time.sleep(0.02)

    def _status(self):
        with suppress(OSError):
            return (self.data / "postmaster.pid").read_text()
        return ""

    def stop(self, number=signal.SIGQUIT):
        """Stop the server."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(_SECONDS)
            self.process = None

    @property
    def checkpoints(self):
        """The checkpoints that the server has begun, each as its log names it: "force wait", "immediate force wait"."""
        return re.findall(r"checkpoint starting: (.*)", (self.place / "log").read_text())

    def sql(self, text, database="postgres"):
        """Run SQL as the superuser, and return what psql prints."""
        where = make_conninfo("", host=str(self.socket), port=self.port, user="postgres", dbname=database)
        words = [self.programs / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", where]
        done = subprocess.run(words, check=False, input=text, capture_output=True,
                              text=True, timeout=_SECONDS, cwd="/")  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stream(self, database):
        """Return the name of the stream of a database in a dump."""
        number = self.sql(f"SELECT oid FROM pg_database WHERE datname = '{database}'")
        return f"{int(number):04}.dump"


@contextmanager
def cluster(*options):
    """Make and start a server; skip if there is no PostgreSQL."""
    programs = bin_directory()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: NOTHING of its engine is tested (apt-get install postgresql)")
    place = Path(tempfile.mkdtemp(prefix="dbg-pg-"))  # short: sockets
    os.chown(place, owner(), -1)
    place.chmod(0o755)
    made = Cluster(place, programs)
    try:
        made.make(*options)
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(place, ignore_errors=True)


def alive_processes(*words):
    """Return the pids of processes whose command line contains all these words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if all(word.encode() in line for word in words):
                    found.append(int(entry.name))
    return found


def ended(pid):
    """Return whether a process has ended, reaped or not."""
    try:
        return "(zombie)" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def until(condition, what):
    """Wait until a condition holds; return what it returned."""
    began = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() < began + _SECONDS, f"never came: {what}"
        rest(began)
    return found
