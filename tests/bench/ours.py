"""dbguard, measured like its peers: as whole processes, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.measure import Figures, PeakMemory, size_of


class Ours:
    """One database, one repository, in the foreground (`dbguardd run`)."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.policy = place / "etc" / "policy.toml"
        self.policy.parent.mkdir(parents=True)
        self.policy.write_text(f'version = 1\n[database.bench]\nengine = "sqlite"\npath = "{place / "src" / "db"}"\n')
        os.chmod(self.policy, 0o600)
        (place / "state").mkdir()

    def backup(self, *options: str) -> Figures:
        """Back up; `wall` ends when the backup is acknowledged: durable, read back, restorable."""
        return self._run("backup", "bench", *options)

    def restore(self, target: Path) -> Figures:
        """Restore to a new place, compared byte by byte with what was stored and row by row with the fingerprint."""
        return self._run("restore", "bench", "--to", str(target))

    def _run(self, verb: str, *words: str) -> Figures:
        argv = [str(Path(sys.executable).parent / "dbguardd"), "--policy", str(self.policy)]
        argv += ["--state", str(self.place / "state"), "run", "--json", verb, *words]
        before = size_of(self.place / "state" / "store")
        usage = os.times()
        started = time.monotonic()
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        acknowledged = 0.0
        with PeakMemory(process.pid) as memory, process.stdout:
            for line in process.stdout:
                message = json.loads(line)
                if message.get("event") in ("backup.stored", "restore.written"):
                    acknowledged = time.monotonic() - started
        if process.wait():
            raise SystemExit(f"{argv}: {process.returncode}")
        whole = time.monotonic() - started
        spent = os.times()
        cpu = spent.children_user + spent.children_system - usage.children_user - usage.children_system
        stored = size_of(self.place / "state" / "store") - before
        return Figures(acknowledged or whole, cpu, memory.bytes, stored, whole)
