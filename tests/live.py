"""A real dbguardd for tests: its own policy, state and socket, started as this user, driven through dbguardctl.

What is asked again and again until it is so is asked of the API from here: a client for each question takes the time
of the daemon.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dbguardctl.client import Daemon
from dbguardd.errors import GuardError

SECONDS = 120.0
"""How long a test waits for anything before it fails; nothing is measured with it."""

BIN = Path(sys.executable).parent


class Broken(Exception):
    """A command that had to succeed failed."""


class Live:
    """One daemon in one directory, whose name is short: the kernel limits the length of a socket's path."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.policy, self.state = place / "policy.toml", place / "state"
        self.socket, self.log = place / "api.sock", place / "dbguardd.log"
        self.api = Daemon(str(self.socket))
        self.environment = {**os.environ, "DBGUARD_SOCKET": str(self.socket), "COLUMNS": "120"}
        self.process: subprocess.Popen[bytes] | None = None

    def write_policy(self, text: str) -> None:
        """Write the policy; this user may do everything."""
        user = pwd.getpwuid(os.geteuid()).pw_name
        self.policy.write_text(f'version = 1\n{text}\n[access]\nadmin = ["{user}"]\n')
        self.policy.chmod(0o600)

    def argv(self, *words: str) -> list[str]:
        """Return the command line of dbguardd for this directory."""
        return [str(BIN / "dbguardd"), "--policy", str(self.policy), "--state", str(self.state), *words]

    def launch(self) -> subprocess.Popen[bytes]:
        """Start a daemon without waiting for anything."""
        with self.log.open("ab") as log:
            argv = self.argv("--socket", str(self.socket), "--json-log")
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start(self) -> Self:
        """Start the daemon and wait until it takes connections."""
        self.process = self.launch()
        deadline = time.monotonic() + SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Broken(f"dbguardd does not start ({self.process.poll()}):\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as end, suppress(OSError):
            end.connect(str(self.socket))
            return True
        return False

    @property
    def pid(self) -> int:
        """The process id of the daemon."""
        assert self.process is not None
        return self.process.pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop the daemon with a signal and return how it ended."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Broken(f"dbguardd does not end on signal {number}:\n{self.log.read_text()[-4000:]}") from None

    def kill(self) -> None:
        """Send SIGKILL and wait for its end."""
        self.stop(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop(signal.SIGKILL if error else signal.SIGTERM)

    # ------------------------------------------------------------------------------------------------ dbguardctl

    def ctl(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Run `dbguardctl --json WORDS`; return its exit status and its answer, or the problem."""
        argv = [BIN / "dbguardctl", "--json", *words]
        done = subprocess.run(argv, env=self.environment, capture_output=True, check=False, timeout=SECONDS * 3)
        with suppress(ValueError):
            return done.returncode, json.loads(done.stdout or done.stderr)
        return done.returncode, {"message": (done.stdout + done.stderr).decode(errors="replace")[-2000:]}

    def must(self, *words: str) -> dict[str, Any]:
        """Run a command that has to succeed; an exit status of 3 (attention needed) is a success."""
        status, answer = self.ctl(*words)
        if status not in (0, 3):
            raise Broken(f"dbguardctl {' '.join(words)} ended with {status}: {json.dumps(answer)[:2000]}")
        return answer

    def backup(self, *words: str) -> str:
        """Make a backup of the shop and return its id."""
        return str(self.must("backup", "shop", *words)["job"]["result"]["backup"]["id"])

    def submit(self, *words: str) -> str:
        """Start a job and return its id."""
        return str(self.must(*words, "--no-wait")["job"]["id"])

    def job(self, id: str) -> dict[str, Any]:
        """Return one job."""
        found: dict[str, Any] = self._asked("jobs", id)["job"]
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """Return the newest jobs."""
        return list(self._asked("jobs")["jobs"])

    def _asked(self, *parts: str, **query: Any) -> dict[str, Any]:
        try:
            return self.api.get(*parts, **query)
        except GuardError as error:
            raise Broken(f"{'/'.join(parts)}: {error}") from error

    def until(self, id: str, *states: str) -> dict[str, Any]:
        """Wait until a job is in one of these states."""
        until(lambda: self.job(id)["state"] in states, f"job {id} is one of {states}")
        return self.job(id)

    def idle(self) -> None:
        """Wait until no job runs or waits: after a kill the next daemon repeats interrupted jobs."""
        until(lambda: not self._busy(), "an end of all jobs")

    def _busy(self) -> bool:
        return any(row["state"] in ("queued", "running") for row in self.jobs())

    def listed(self) -> list[str]:
        """Return the ids of all backups of the shop that dbguard says it has."""
        return [row["id"] for row in self._asked("databases", "shop", "backups", all=True)["backups"]]

    # ------------------------------------------------------------------------------------------------ looking inside

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines with that event."""
        found = []
        for line in self.log.read_bytes().splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("event") == name:
                    found.append(entry)
        return found

    def workers(self) -> list[int]:
        """Return the processes that the daemon has started."""
        with suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + SECONDS:
            raise Broken(f"it never came to this: {what}")
        rest(began)


def rest(began: float) -> None:
    """Pause before a condition is looked at again: shortly at first, and a fiftieth of what was waited in the end.

    What takes long is not kept from its processor by who looks whether it is over.
    """
    time.sleep(min(0.2, 0.01 + (time.monotonic() - began) / 50))


def gone(pids: list[int]) -> None:
    """Wait until all these processes have ended."""
    deadline = time.monotonic() + SECONDS
    for pid in pids:
        with suppress(ProcessLookupError):
            file = os.pidfd_open(pid)
            try:
                if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise Broken(f"process {pid} does not end")
            finally:
                os.close(file)


@contextmanager
def asking(live: Live, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dbguardctl --json WORDS` while the block runs; end it with the block."""
    argv = [BIN / "dbguardctl", "--json", *words]
    process = subprocess.Popen(argv, env=live.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
