"""The demo: the real daemon protects a live SQLite database, which is then lost and comes back.

`python -m tests.demo [DB]` needs no root and leaves nothing behind. With DB it protects that database instead, only
reading it. Everything it prints after `$` is a command that works the same against an installed dbguard.
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

from tests.workload import consistent, seed

RATE = 200
BESIDE = 4  # a staged snapshot, the backups, a proof, the restored copy; each at most the size of the database


class Ended(Exception):
    """The demo ends early: a command failed, with this exit status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Host:
    """A directory with a daemon of its own: policy, state, socket. Tests use it as well."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.policy, self.state, self.socket = place / "policy.toml", place / "state", place / "api.sock"
        self.log = place / "dbguardd.log"
        self.bin = Path(sys.executable).parent
        path = f"{self.bin}{os.pathsep}{os.environ.get('PATH', '')}"
        self.environment = {**os.environ, "PATH": path, "DBGUARD_SOCKET": str(self.socket), "COLUMNS": "110"}

    @contextmanager
    def daemon(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run dbguardd until the block ends; ready when the block begins."""
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
        """Wait until no job runs or waits, so that what follows from one (expiring, say) is over."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            rows = json.loads(self.run("--json", "job", "list", "--limit", "10", capture_output=True).stdout)["jobs"]
            if all(row["finished_at"] for row in rows):
                return
            time.sleep(0.05)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process for certain."""
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
    """Show and run a dbguardctl command, which must not fail."""
    print("$ dbguardctl " + shlex.join(words), flush=True)
    status = host.run(*words).returncode
    if status not in (0, 3):
        raise Ended(status, f"the command ended with status {status}")


class Shop:
    """The application: a writer in a process of its own, and what its owner would look at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Make the database and begin to write to it."""
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
        """How many transfers there are."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as db:
            return int(db.execute("select count(*) from booking").fetchone()[0])

    def wait_for(self, more: int) -> int:
        """Wait until the application has written so much more; returns how much it was."""
        before, deadline = self.bookings(), time.monotonic() + 60
        while (written := self.bookings() - before) < more and time.monotonic() < deadline:
            time.sleep(0.1)
        return written


def main() -> int:
    """Run the tour in a directory of its own; whatever happens, that is gone in the end."""
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
    except BrokenPipeError:  # who reads has seen enough
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
    gone = "everything of the demo is removed" if not place.exists() else f"{place} could not be removed"
    say(f"{end} after {time.monotonic() - started:.0f} s. The daemon has stopped and {gone}.")
    return status


def the_shop(host: Host, shop: Shop) -> None:
    """The tour with a database of the demo's own."""
    shop.open()
    size = shop.path.stat().st_size / (1 << 20)
    say(
        f"A shop's database of {size:.0f} MiB. Its application writes to it all the time, {RATE} transactions a second."
    )
    with host.daemon():
        say("One command: find out what it is, write its policy, make a full backup, and prove it by a real restore.")
        show(host, "protect", str(shop.path), "--name", "shop")
        for _ in range(2):
            written = shop.wait_for(2 * RATE)
            say(f"{written} transactions later. Only pages that changed are stored, and that backup is proven as well.")
            show(host, "backup", "shop")
        say("Which backups are there, what keeps each of them, and until when?")
        host.settle()
        show(host, "list", "shop", "--why")
        say("What could be restored, to which moment, how fast, when was that proven, and what is still to be done?")
        show(host, "status")
        lose(host, shop)


def lose(host: Host, shop: Shop) -> None:
    """The worst day: the file is gone."""
    shop.close()
    had = shop.bookings()
    for path in shop.path.parent.glob("shop.db*"):
        path.unlink()
    say(f"The worst day: the application is down and its database, with {had} bookings, is deleted. Get it back:")
    show(host, "restore", "shop", "--to", str(shop.path))
    has, right = shop.bookings(), consistent(shop.path)
    say(
        f"The application's own check: all sums {'agree' if right else 'DO NOT AGREE'}, {has} bookings are there.",
        f"The {had - has} that were made after the last backup are lost: a backup is of a moment, and status names it.",
    )
    if not right:
        raise Ended(1, "the restored database is wrong")
    say(
        "What status warned about is true: whoever loses this machine now loses the backups. On a real host,",
        "`dbguardctl key recovery-sheet` prints the second key, for a drawer somewhere else.",
    )


def your_database(host: Host, path: Path) -> None:
    """The tour with a database of the user's, which is not changed."""
    with suppress(OSError):
        needed, free = path.stat().st_size * BESIDE, shutil.disk_usage(host.place).free
        if needed > free:
            where = "set TMPDIR to a directory that has them"
            raise Ended(11, f"{host.place.parent}: {needed} bytes are needed, {free} are free; {where}")
    say(f"Your database {path}. It is only read; all that is written goes to {host.place} and is removed in the end.")
    with host.daemon():
        show(host, "protect", str(path), "--name", "yours")
        say("Again: only pages that changed are stored, and that backup is proven as well.")
        show(host, "backup", "yours")
        host.settle()
        show(host, "list", "yours", "--why")
        show(host, "status")
        copies = host.place / "restored"
        copies.mkdir(mode=0o700)
        with suppress(PermissionError):  # only root can, and needs to: the restore runs as the database's owner
            owner = path.stat()
            os.chown(copies, owner.st_uid, owner.st_gid)
        say("A restore goes to a new place. It never overwrites anything.")
        show(host, "restore", "yours", "--to", str(copies / path.name))


if __name__ == "__main__":
    sys.exit(main())
