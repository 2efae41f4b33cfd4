"""A dbguardd process with its own policy, state, socket, databases and users, and the commands that talk to it.

Tests wait for conditions, at most SECONDS; nothing is measured with that.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dbguardctl.client import Daemon
from dbguardd.errors import DaemonUnreachable
from tests.live import rest

SECONDS = 180.0
FINAL = ("done", "failed", "cancelled", "interrupted")
BUGS = ("job.crashed", "daemon.broken", "Traceback", "DBG-0008")


def until(condition: Callable[[], Any], what: object) -> Any:
    """Wait until a condition holds; return what it returned."""
    began = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() < began + SECONDS, f"never came: {what() if callable(what) else what}"
        rest(began)
    return found


@dataclass
class Completed:
    """How a command ended, and its output."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its answer, or the problem if it failed; it must have been called with --json."""
        return json.loads(self.out or self.err.splitlines()[-1])

    def problem(self) -> Any:
        """The problem of a command that failed."""
        return json.loads(self.err.splitlines()[-1])


class House:
    """A directory with a daemon."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.policy, self.state, self.socket = place / "policy.toml", place / "state", place / "api.sock"
        self.store = self.state / "store"
        self.log = place / "log"
        self.log.touch()
        self.api = Daemon(str(self.socket))
        self.process: subprocess.Popen[bytes] | None = None
        self.python = Path(sys.executable)
        self.become: list[str] = []  # a command that starts the daemon as somebody
        self.more = ["--json-log"]  # further options of the daemon
        self.write("")

    # ------------------------------------------------------------------------------------------------ setting up

    def write(self, text: str, *, name: str = "") -> None:
        """Write the policy, or a drop-in. Nothing runs by itself whatever the time of day, if it does not say when."""
        path = self.policy if not name else self.place / "conf.d" / f"{name}.toml"
        path.parent.mkdir(mode=0o755, exist_ok=True)
        quiet = "" if name or "[defaults]" in text else f'\n[defaults]\nbackup = "{far(12)}"\n'
        path.write_text(text if name else f"version = 1\n{text}{quiet}")
        path.chmod(0o600)

    def protects(self, *databases: str, more: str = "") -> None:
        """Write the policy of these tables (see `table`); nothing runs by itself on a schedule."""
        quiet = f'[defaults]\nbackup = "{far(12)}"\nmissed = "skip"\nwindow = "1s"\nretry = {{ times = 0 }}\n'
        free = f'[storage.local]\ntype = "directory"\npath = "{self.store}"\nkeep_free = "0B"\nsweep = "{far(12)}"\n'
        self.write(quiet + free + more + "".join(databases))

    def table(self, name: str, *lines: str, path: Path | None = None) -> str:
        """Return the table of a database in the policy."""
        where = path or self.place / f"{name}.db"
        return "\n".join([f"\n[database.{name}]", 'engine = "sqlite"', f'path = "{where}"', *lines, ""])

    def database(self, name: str, rows: int = 50, *, wal: bool = False, blob: int = 0) -> Path:
        """Make a small database; with `blob`, each row has that many random bytes."""
        path = self.place / f"{name}.db"
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"pragma journal_mode = {'wal' if wal else 'delete'}")
            db.execute("create table note (id integer primary key, text text, body blob)")
            db.executemany("insert into note (text, body) values (?, randomblob(?))",
                           [(f"note {n}", blob) for n in range(rows)])  # fmt: skip
        return path

    # ------------------------------------------------------------------------------------------------ its life

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start the daemon and wait until it answers."""
        self.process = self.launch(**environment)
        until(self._answers, self.log.read_text)
        return self.process

    def launch(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start a daemon without waiting."""
        where = ["--policy", self.policy, "--state", self.state, "--socket", self.socket]
        with self.log.open("ab") as log:
            argv = [*self.become, *self._program("dbguardd"), *where, *self.more]
            return subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True, cwd="/",
                                    env={**os.environ, **environment})  # fmt: skip

    def _program(self, name: str) -> list[str | Path]:
        script = self.python.with_name(name)
        return [script] if script.exists() else [self.python, "-m", name]

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        with suppress(DaemonUnreachable):
            self.api.get("status")
            return True
        return False

    def stop(self) -> int:
        """End the daemon as systemd does; return its exit status. Nothing of it may be left."""
        assert self.process is not None
        process, self.process = self.process, None
        process.terminate()
        return gone(process)

    def kill(self) -> None:
        """End the daemon by SIGKILL."""
        assert self.process is not None
        process, self.process = self.process, None
        process.kill()
        gone(process)

    def close(self) -> None:
        """End what still runs, and assert that the log reports no bugs."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.stop()
        said = self.log.read_text()
        assert not [word for word in BUGS if word in said], said[-4000:]

    def workers(self) -> dict[str, int]:
        """Return the pids of the worker halves that run now."""
        assert self.process is not None
        return halves(self.process.pid)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of an event."""
        found = []
        for line in self.log.read_text().splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                found += [event] if event.get("event") == name else []
        return found

    # ------------------------------------------------------------------------------------------------ using it

    def ctl(self, *words: str, uid: int | None = None, stdin: str = "") -> Completed:
        """Run dbguardctl, as user `uid` if given."""
        with self.starting(*words, uid=uid) as process:
            out, err = process.communicate(stdin, timeout=SECONDS)
        return Completed(process.returncode, out, err)

    @contextmanager
    def starting(self, *words: str, uid: int | None = None) -> Iterator[subprocess.Popen[str]]:
        """Start dbguardctl; it has ended when the block ends."""
        user: dict[str, Any] = {}
        if uid is not None:
            user = {"user": uid, "group": pwd.getpwuid(uid).pw_gid, "extra_groups": []}
        environment = {"PATH": os.environ["PATH"], "DBGUARD_SOCKET": str(self.socket), "LANG": "C.UTF-8"}
        process = subprocess.Popen([*self._program("dbguardctl"), *words], env=environment, text=True, cwd="/",
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   **user)  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def does(self, *words: str) -> Any:
        """Run dbguardctl --json, which must succeed; return the answer."""
        said = self.ctl("--json", *words)
        assert said.status in (0, 3), (words, said)
        return said.json

    def fails(self, code: str, status: int, *words: str, uid: int | None = None) -> Any:
        """Run dbguardctl --json, which must fail with this code and exit status; return the problem."""
        said = self.ctl("--json", *words, uid=uid)
        assert (said.status, said.problem()["code"]) == (status, code), (words, said)
        return said.problem()

    def submit(self, verb: str, database: str, **fields: Any) -> str:
        """Ask for a job and return its id."""
        return str(self.api.post("jobs", verb, body={"database": database, **fields})["job"]["id"])

    def job(self, id: str) -> Any:
        """Return a job as it is now."""
        return self.api.get("jobs", id)["job"]

    def ended(self, id: str) -> Any:
        """Wait for the end of a job and return it."""
        return until(lambda: (row := self.job(id))["state"] in FINAL and row, lambda: self.job(id))

    def idle(self) -> None:
        """Wait until no job runs or waits."""
        until(lambda: all(row["state"] in FINAL for row in self.jobs()), self.jobs)

    def jobs(self, **query: Any) -> list[Any]:
        """Return all jobs, newest first."""
        return list(self.api.get("jobs", limit=1000, **query)["jobs"])

    def backups(self, name: str) -> list[Any]:
        """Return the backups of a database, newest first."""
        return list(self.api.get("databases", name, "backups", all=True, why=True)["backups"])

    def coverage(self, name: str) -> list[Any]:
        """Return the stretches of time that the log of a database covers, oldest first."""
        return list(self.api.get("databases", name, "backups")["log"])

    def status(self, name: str) -> Any:
        """Return the status of one database."""
        return next(row for row in self.api.get("status")["databases"] if row["name"] == name)

    def audit(self) -> list[Any]:
        """Return the audit log as it is on disk."""
        lines = (self.state / "audit.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def is_sound(self) -> None:
        """Stop the daemon, and assert that audit log and catalog are intact and staging is empty. No job may run."""
        assert self.does("audit", "verify")["ok"]
        assert self.stop() == 0
        with closing(sqlite3.connect(f"file:{self.state}/catalog.db?mode=ro", uri=True)) as db:
            assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert list((self.state / "staging").iterdir()) == []


# ------------------------------------------------------------------------------------------------ around it


def typed(command: str, stdin: str = "") -> str:
    """Run a command that a user is told to type."""
    words = shlex.split(command, comments=True)
    return subprocess.run(words, check=True, cwd="/", capture_output=True, text=True, input=stdin).stdout


def far(hours: int) -> str:
    """Return a schedule whose next run is about `hours` hours ahead, whatever the time of day."""
    return f"daily {(datetime.now(UTC) + timedelta(hours=hours)).hour:02}:00"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a long transaction: readers of the database wait."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("begin exclusive")
        yield


@contextmanager
def a_place() -> Iterator[Path]:
    """Yield a new directory that every user may enter, with a name short enough for sockets; remove it afterwards."""
    place = Path(tempfile.mkdtemp(prefix="dbg-"))
    try:
        place.chmod(0o755)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def gone(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a daemon and of all its workers; return its exit status."""
    try:
        status = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    until(lambda: not halves(process.pid), "the end of its workers")
    return status


def halves(parent: int) -> dict[str, int]:
    """Return the pids of the worker halves that a daemon started and that run now.

    A process that a half has forked has the same command line: it only counts if it has outlived that half.
    """
    found = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            words = _words(pid)
            place = words.index("dbguardd.worker") if "dbguardd.worker" in words else len(words)
            if words[place + 2 : place + 3] == [str(parent)]:
                stat = Path(f"/proc/{pid}/stat").read_text()
                if _words(int(stat.rpartition(")")[2].split()[1])) != words:
                    found[words[place + 1]] = pid
    return found


def _words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0") if pid else []


def rows(path: Path) -> int:
    """Return how many notes a database has; it must be intact."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        return int(db.execute("select count(*) from note").fetchone()[0])


def add(path: Path, count: int = 10) -> None:
    """Add notes to a database."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany("insert into note (text) values (?)", [(f"more {n}",) for n in range(count)])


class Systemd:
    """The other end of $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.heard: list[dict[str, str]] = []

    def listen(self) -> list[dict[str, str]]:
        """Return all messages so far, each as a mapping of its variables."""
        with suppress(BlockingIOError):
            while True:
                text = self.socket.recv(65536).decode()
                self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))
        return self.heard

    def hears(self, name: str, after: int = 0) -> dict[str, str]:
        """Wait for a message with this variable, among those from number `after` on."""
        return dict(until(lambda: next((m for m in self.listen()[after:] if name in m), None), f"{name}= {self.heard}"))

    def mark(self) -> int:
        """Return how many messages have come so far."""
        return len(self.listen())
