"""dbguard, measured like its peers: `dbguardctl` from start to end, asking a daemon that runs already."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.bench.measure import Figures, PeakMemory, cpu_seconds, size_of
from tests.bench.sampling import sampled

BIN = Path(sys.executable).parent
NICE = ("nice", "-n", "10")  # as systemd/dbguardd.service starts it: applications come first


class Ours:
    """One database, one repository, one daemon. Leave the block to stop it. `sampling` slows it down, to say why."""

    def __init__(self, place: Path, *lines: str, source: str = "", sampling: bool = False) -> None:
        self.place, self._sampling = place, sampling
        self._short = Path(tempfile.mkdtemp(prefix="dbg-"))  # the path of a socket has at most 107 bytes
        self.socket = self._short / "api.sock"
        policy = place / "etc" / "policy.toml"
        policy.parent.mkdir(parents=True)
        policy.write_text(
            'version = 1\n[defaults]\nverify = "off"\nexpire = "off"\n'
            '[database.bench]\nbackup = "daily 03:00"\n'
            + (source or f'engine = "sqlite"\npath = "{place / "src" / "db"}"')
            + "\n"
            + "".join(f"{line}\n" for line in lines)
        )
        os.chmod(policy, 0o600)
        argv = [*NICE, BIN / "dbguardd", "--policy", policy, "--state", place / "state", "--socket", self.socket]
        self._daemon = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        while not self.socket.exists():
            if self._daemon.poll() is not None:
                raise SystemExit("dbguardd did not start")
            time.sleep(0.01)

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.terminate()
        self._daemon.wait()
        shutil.rmtree(self._short)

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self._daemon.pid

    def backup(self, *options: str) -> Figures:
        """Back up; `wall` ends when the backup is acknowledged: durable, read back, restorable."""
        return self._run("backup.stored", "backup", "bench", *options)

    def restore(self, target: Path, *options: str) -> Figures:
        """Restore to a new place; `wall` ends when every byte is there, durable and checked.

        `whole` also has the comparison with the fingerprint, row by row, which no peer does.
        """
        return self._run("restore.written", "restore", "bench", "--to", str(target), *options)

    def restore_over(self) -> Figures:
        """Restore the oldest backup in place; `whole` has the safety copy before and the comparison behind."""
        oldest = min(str(backup["id"]) for backup in self.backups())
        return self._run("restore.written", "restore", "bench", "--id", oldest, "--in-place", "--confirm", "bench")

    def backups(self) -> list[dict[str, object]]:
        """Return all backups, as `list` does."""
        return list(self._asked("list", "bench")["backups"])

    def plan(self, *options: str) -> dict[str, object]:
        """Return the plan of a restore to a new place."""
        target = str(self.place / "planned")
        return dict(self._asked("restore", "bench", "--to", target, "--dry-run", *options)["plan"])

    def _asked(self, *words: str) -> dict[str, Any]:
        argv = [str(BIN / "dbguardctl"), "--socket", str(self.socket), "--json", *words]
        return dict(json.loads(subprocess.run(argv, capture_output=True, check=True).stdout))

    def _run(self, acknowledged: str, *words: str) -> Figures:
        before, spent = size_of(self.place / "state" / "store"), cpu_seconds(self._daemon.pid)
        watch = _Watch(self.socket, acknowledged)
        own = os.times()
        sampling = sampled(self._daemon.pid) if self._sampling else nullcontext(dict[str, float]())
        with sampling as busy, PeakMemory(self._daemon.pid, children_only=True, without="postgres") as memory:
            started = time.monotonic()
            argv = [str(BIN / "dbguardctl"), "--socket", str(self.socket), "--json", *words]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            whole = time.monotonic() - started
        if done.returncode not in (0, 3):
            raise SystemExit(f"{argv}: {done.returncode}\n{done.stderr}")
        ended = os.times()
        cpu = cpu_seconds(self._daemon.pid) - spent
        cpu += ended.children_user + ended.children_system - own.children_user - own.children_system
        stored = size_of(self.place / "state" / "store") - before
        at, facts = watch.seen()
        figures = Figures(at - started, cpu, memory.bytes, stored, whole)
        figures.profile, figures.busy = _profile(figures.wall, facts, json.loads(done.stdout)), busy
        return figures


def _profile(wall: float, facts: dict[str, float], answer: dict[str, dict[str, float]]) -> dict[str, float]:
    """Say where the time until the acknowledgement went, in seconds."""
    start = {"start client and worker": round(wall - facts["seconds"], 3)}
    if "facts" not in answer:
        return {**start, "fetch, open, decompress, check, write": facts["seconds"]}
    return {
        **start,
        "compare, compress, seal, prove, store": facts["seconds"],
        "meanwhile, stage a snapshot": round(answer["facts"].get("copy_seconds", 0.0), 3),
    }


class _Watch:
    """Listens to the daemon's events on a connection of its own and notes when one comes."""

    def __init__(self, path: Path, event: str) -> None:
        self._at = 0.0
        self._facts: dict[str, float] = {}
        connection = http.client.HTTPConnection("dbguardd")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("GET", "/v1/events?limit=1000")
        known = json.loads(connection.getresponse().read())["events"]
        after = known[-1]["id"] if known else 0
        connection.request("GET", f"/v1/events?after={after}", headers={"Accept": "text/event-stream"})
        self._answer = connection.getresponse()
        self._connection = connection
        self._thread = threading.Thread(target=self._listen, args=(event,), daemon=True)  # a job may fail
        self._thread.start()

    def _listen(self, event: str) -> None:
        for line in self._answer:
            if line.startswith(b"data:") and (found := json.loads(line[5:])).get("event") == event:
                self._at, self._facts = time.monotonic(), found["facts"]
                return

    def seen(self) -> tuple[float, dict[str, float]]:
        """Return when the event came, on the monotonic clock, and its facts."""
        self._thread.join()
        self._connection.close()
        return self._at, self._facts
