"""A separate journal: systemd's journald in a mount namespace, with the catalog of this checkout.

Nothing of the host is touched: /run and the directories of the catalog are file systems of that namespace. It takes
root, and the tools of systemd and util-linux; where one is missing, tests say that they could not run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.process.house import House, until

CATALOG = Path(__file__).parents[2] / "systemd" / "dbguard.catalog"
DIRECTORY = "/run/log/journal"
ID = "0123456789abcdef0123456789abcdef"
CONF = "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nReadKMsg=no\nAudit=no\nForwardToWall=no\nCompress=no\n"

BEGIN = f"""
set -e
mount -t tmpfs none /run
mkdir -p {DIRECTORY}/{ID} /run/systemd/journald.conf.d
printf '%s' "$CONF" > /run/systemd/journald.conf.d/test.conf
echo {ID} > /run/id
mount --bind /run/id /etc/machine-id
mount -t tmpfs none /usr/lib/systemd/catalog
cp "$CATALOG" /usr/lib/systemd/catalog/
mount -t tmpfs none /var/lib/systemd
mkdir /var/lib/systemd/catalog
journalctl --update-catalog
"$JOURNALD" &
journald=$!
echo $journald
read end || true
kill $journald
wait $journald || true
"""

STREAM = """
import os, socket, sys
stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
stream.connect("/run/systemd/journal/stdout")
stream.sendall(b"dbguardd\\n\\n6\\n0\\n0\\n0\\n0\\n")
for number in (1, 2):
    os.dup2(stream.fileno(), number)
about = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{about.st_dev}:{about.st_ino}"
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Starts a program with its output connected to the journal, as systemd does for a service."""


class Journal:
    """A running journald, its entries, and commands in its namespace."""

    def __init__(self, holder: int, nsenter: str) -> None:
        self.root = Path(f"/proc/{holder}/root")
        self._inside = [nsenter, f"--target={holder}", "--mount", "--wd=/"]

    def run(self, *argv: str | Path) -> str:
        """Run a command in the namespace; return what it printed."""
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(CATALOG.parents[1])}
        done = subprocess.run([*self._inside, *argv], env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode(errors="replace")

    def service(self, house: House) -> None:
        """Start the daemon of a house with its output connected to this journal."""
        house.become = [*self._inside, sys.executable, "-c", STREAM]

    def journalctl(self, *words: str) -> str:
        """Query the journal after everything that was sent has arrived."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--directory", DIRECTORY, "--no-pager", *words)

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """Return entries with all their fields."""
        said = self.journalctl("--output=json", "--all", *matches)
        return [json.loads(line) for line in said.splitlines()]

    def raw(self) -> bytes:
        """Return every byte of the files of the journal."""
        self.run("journalctl", "--sync")
        files = (self.root / DIRECTORY.lstrip("/")).rglob("*.journal")
        return b"".join(path.read_bytes() for path in files)


@contextmanager
def a_journal() -> Iterator[Journal]:
    """Run a journald; skip with the reason where that is impossible."""
    tools = {name: shutil.which(name) for name in ("unshare", "nsenter", "journalctl", "mount")}
    tools["systemd-journald"] = shutil.which("systemd-journald", path="/usr/lib/systemd:/lib/systemd")
    missing = [name for name, path in tools.items() if path is None]
    if missing or os.geteuid() != 0 or not Path("/etc/machine-id").exists():
        pytest.skip(f"NOT RUN, the journal was not tried: missing {', '.join(missing) or 'root or /etc/machine-id'}")
    environment = {
        "PATH": os.environ["PATH"],
        "CONF": CONF,
        "CATALOG": str(CATALOG),
        "JOURNALD": str(tools["systemd-journald"]),
    }
    argv = [str(tools["unshare"]), "--mount", "sh", "-c", BEGIN]
    with subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        try:
            if not (pid := holder.stdout.readline().strip()):
                holder.wait()
                pytest.skip("NOT RUN, the journal was not tried: this machine lets nobody mount (a container?)")
            journal = Journal(holder.pid, str(tools["nsenter"]))
            sockets = [journal.root / "run/systemd/journal" / name for name in ("socket", "stdout")]
            until(lambda: all(path.exists() for path in sockets), f"journald {pid}")
            yield journal
        finally:
            holder.stdin.close()
            try:
                holder.wait(30)
            except subprocess.TimeoutExpired:
                holder.send_signal(signal.SIGKILL)
