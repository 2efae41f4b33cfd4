"""The demo: the real daemon protects a live SQLite database, which is then deleted and restored.

`python -m tests.demo [DB]` needs no root and leaves nothing behind. With DB it protects that database instead, and only
reads it. Each line that it prints after `$` is a command that works the same with an installed dbguard.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from dbguardd.engines.sqlite.live import open_live, read_header
from dbguardd.errors import GuardError
from tests.workload import consistent, seed

RATE = 200
COPIES = 4  # a staged snapshot, the backups, a proof, the restored copy; each at most the size of the database


class Ended(Exception):
    """The demo ends early, with this exit status: a command failed."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Host:
    """A directory with a daemon of its own: policy, state, socket. Tests use it too."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.policy, self.state, self.socket = place / "policy.toml", place / "state", place / "api.sock"
        self.log = place / "dbguardd.log"
        self.bin = Path(sys.executable).parent
        path = f"{self.bin}{os.pathsep}{os.environ.get('PATH', '')}"
        self.environment = {**os.environ, "PATH": path, "DBGUARD_SOCKET": str(self.socket), "COLUMNS": "110"}

    @contextmanager
    def daemon(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run dbguardd during the block; its socket exists when the block begins."""
        if not self.policy.exists():
            self.policy.write_text("version = 1\n")
            self.policy.chmod(0o600)
        argv = [self.bin / "dbguardd", "--policy", self.policy, "--state", self.state, "--socket", self.socket]
        with self.log.open("ab") as log:
            process = subprocess.Popen([*argv, *options], stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while not self.socket.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Ended(1, f"dbguardd did not start:\n{self.log.read_text()}")
                time.sleep(0.02)
            yield process
        finally:
            stop(process)

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a dbguardctl command."""
        return subprocess.run([self.bin / "dbguardctl", *words], env=self.environment, check=False, **options)

    def settle(self) -> None:
        """Wait until no job runs or waits; a job can start others, such as an expiry."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            rows = json.loads(self.run("--json", "job", "list", "--limit", "10", capture_output=True).stdout)["jobs"]
            if all(row["finished_at"] for row in rows):
                return
            time.sleep(0.05)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process; kill it if it does not end within a minute."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def say(*lines: str) -> None:
    """Print a paragraph of explanation."""
    print("\n" + "\n".join(f"# {line}" for line in lines), flush=True)


def show(host: Host, *words: str) -> None:
    """Print and run a dbguardctl command. Raises Ended if it fails."""
    print("$ dbguardctl " + shlex.join(words), flush=True)
    status = host.run(*words).returncode
    if status not in (0, 3):
        raise Ended(status, f"the command ended with status {status}")


class Shop:
    """The application: its database, a process that writes to it, and the figures that its owner would check."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Create the database and start writing to it."""
        seed(self.path, bookings=60_000, documents=3_500)
        argv = [sys.executable, "-m", "tests.workload", str(self.path), "600", str(RATE)]
        self.writer = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
        assert self.writer.stdout is not None
        self.writer.stdout.readline()

    def close(self) -> None:
        """Stop writing."""
        if self.writer is not None:
            stop(self.writer)
            self.writer.communicate()
            self.writer = None

    def bookings(self) -> int:
        """Return the number of bookings."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as db:
            return int(db.execute("select count(*) from booking").fetchone()[0])

    def wait_for(self, more: int) -> int:
        """Wait up to a minute until `more` bookings were added; return how many were."""
        before, deadline = self.bookings(), time.monotonic() + 60
        while (written := self.bookings() - before) < more and time.monotonic() < deadline:
            time.sleep(0.1)
        return written


def main() -> int:
    """Run the tour in a temporary directory, which is removed whatever happens; return the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    started, place = time.monotonic(), Path(tempfile.mkdtemp(prefix="dbguard-demo-"))
    place.chmod(0o711)  # as root, jobs run as the owner of the database
    shop = None
    try:
        if theirs := next(iter(sys.argv[1:]), ""):
            your_database(Host(place), Path(theirs).absolute())
        else:
            shop = Shop(place / "shop.db")
            the_shop(Host(place), shop)
        status, end = 0, "Done"
    except Ended as error:
        print(error, file=sys.stderr, flush=True)
        status, end = error.status, "Ended"
    except KeyboardInterrupt:
        status, end = 130, "Interrupted"
    except BrokenPipeError:  # the reader of a pipe, such as head, has ended
        status, end = 0, "Ended"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as stopped:
        status, end = int(str(stopped.code)), "Stopped"
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if shop:
            shop.close()
        shutil.rmtree(place, ignore_errors=True)
    gone = "all files of the demo were removed" if not place.exists() else f"{place} could not be removed"
    say(f"{end} after {time.monotonic() - started:.0f} s. No daemon is left, and {gone}.")
    return status


def the_shop(host: Host, shop: Shop) -> None:
    """Show dbguard with a database that the demo creates."""
    shop.open()
    size = shop.path.stat().st_size / (1 << 20)
    say(f"A shop's database of {size:.0f} MiB. Its application commits {RATE} transactions a second.")
    with host.daemon():
        say("One command detects the database, writes its policy, makes a full backup and proves it by a real restore.")
        show(host, "protect", str(shop.path), "--name", "shop")
        for _ in range(2):
            written = shop.wait_for(2 * RATE)
            say(f"{written} transactions later. Only changed pages are stored, and this backup is proven too.")
            show(host, "backup", "shop")
        say("Which backups exist, which rule keeps each of them, and until when?")
        host.settle()
        show(host, "list", "shop", "--why")
        say("What could be restored, to which moment, how fast, when was that proven, and what is left to do?")
        show(host, "status")
        lose(host, shop)


def lose(host: Host, shop: Shop) -> None:
    """Delete the database and restore it."""
    shop.close()
    had = shop.bookings()
    for path in shop.path.parent.glob("shop.db*"):
        path.unlink()
    say(f"The application is down, and its database with {had} bookings was deleted. Restore it:")
    show(host, "restore", "shop", "--to", str(shop.path))
    has, right = shop.bookings(), consistent(shop.path)
    say(
        f"The application's own check: all sums {'agree' if right else 'DO NOT AGREE'}; it has {has} bookings.",
        f"The {had - has} bookings made after the last backup are lost: `status` shows the moment of that backup.",
    )
    if not right:
        raise Ended(1, "the restored database is wrong")
    say(
        "As `status` warns, nobody could read these backups without this machine. On a real host,",
        "`dbguardctl key recovery-sheet` prints a second key, to be kept somewhere else.",
    )


def your_database(host: Host, path: Path) -> None:
    """Show dbguard with the user's database, which is not changed."""
    with suppress(OSError):
        needed, free = path.stat().st_size * COPIES, shutil.disk_usage(host.place).free
        if needed > free:
            where = "set TMPDIR to a directory with more space"
            raise Ended(11, f"{host.place.parent}: the demo needs {needed} bytes, {free} are free; {where}")
    try:
        with open_live(str(path)) as live:
            read_header(live)
    except GuardError as error:  # before anything is started
        lines = [f"error[{error.code}]: {error.message}", error.detail, *(f"try  {hint}" for hint in error.hints)]
        raise Ended(error.exit_status, "\n       ".join(filter(None, lines))) from error
    say(f"Your database {path} is only read. The demo writes to {host.place}, which it removes at the end.")
    with host.daemon():
        show(host, "protect", str(path), "--name", "yours")
        say("A second backup: only changed pages are stored, and it is proven too.")
        show(host, "backup", "yours")
        host.settle()
        show(host, "list", "yours", "--why")
        show(host, "status")
        copies = host.place / "restored"
        copies.mkdir(mode=0o700)
        with suppress(PermissionError):  # only root can do this, and must: the restore runs as the database's owner
            owner = path.stat()
            os.chown(copies, owner.st_uid, owner.st_gid)
        say("A restore goes to a new place. It never overwrites anything.")
        show(host, "restore", "yours", "--to", str(copies / path.name))


if __name__ == "__main__":
    sys.exit(main())
