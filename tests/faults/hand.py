"""Runs `dbguardd run` in a directory of its own, hundreds of times, and kills it.

The interpreter and dbguard's parent process are loaded once and forked for each run (main() of the real
`dbguardd`, then the real worker halves), so that hundreds of runs fit in a test. Run as a module it is that parent.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.workload import consistent, seed

SECONDS = 120.0
"""How long a test waits for anything before it fails; nothing is measured with it."""

SIDES = ("", "-wal", "-shm", "-journal")


@dataclass
class Ended:
    """How a run ended: its exit status (negative: the signal), its messages and its problem."""

    status: int
    messages: list[dict[str, Any]]
    problem: dict[str, Any]
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The result of a run that finished; a check exits with 3 or 4 if it found something."""
        assert self.status in (0, 3, 4), f"ended with {self.status}: {self.stderr}"
        (found,) = [message["result"] for message in self.messages if message["type"] == "result"]
        return found

    def said(self, event: str) -> list[dict[str, Any]]:
        """The facts of every report of an event."""
        return [m["facts"] for m in self.messages if m["type"] == "report" and m["event"] == event]


class Press:
    """A process with everything imported, which is forked for each run."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.hand"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.ask()

    def ask(self, **question: Any) -> Any:
        """Send a question and wait for the answer; without a question, wait until everything is imported."""
        assert self.process.stdin is not None and self.process.stdout is not None
        if question:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(SECONDS)
        self.process.stdout.close()


def main() -> None:
    """Fork a dbguardd for each question, and wait for those that a question names."""
    import dbguardd.daemon.state_directory
    import dbguardd.policy
    import dbguardd.worker.by_hand  # noqa: F401
    from dbguardd.__main__ import main as dbguardd

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])), flush=True)
            continue
        child = os.fork()
        if child:
            print(json.dumps(child), flush=True)
            continue
        os.setsid()
        for number, name in enumerate(("/dev/null", question["out"], question["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), number)
        sys.argv = ["dbguardd", *question["argv"]]
        code = 70
        try:
            code = dbguardd()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


class Running:
    """A run in progress."""

    def __init__(self, press: Press, argv: Sequence[str], place: Path) -> None:
        self._press = press
        self.out, self.err = place / "out", place / "err"
        for path in (self.out, self.err):
            path.unlink(missing_ok=True)
            path.touch(0o600)
        self.pid: int = press.ask(argv=list(argv), out=str(self.out), err=str(self.err))
        self._pidfd = os.pidfd_open(self.pid)

    def ended(self, seconds: float = 0.0) -> bool:
        """Wait at most `seconds`; return whether it has ended."""
        return bool(select.select([self._pidfd], [], [], seconds)[0])

    def heard(self, event: str) -> bool:
        """Wait until an event was reported or the run ended; return whether it was reported."""
        wanted = f'"event": "{event}"'.encode()
        deadline = time.monotonic() + SECONDS
        while wanted not in self.out.read_bytes():
            if self.ended(0.002):
                return wanted in self.out.read_bytes()
            assert time.monotonic() < deadline, f"{event} never came"
        return True

    def halves(self) -> dict[str, int]:
        """Return the pids of the worker halves that run now."""
        found = {}
        with suppress(OSError):
            for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                words = _command(int(pid))
                if "dbguardd.worker" in words:
                    found[words[words.index("dbguardd.worker") + 1]] = int(pid)
        return found

    def kill(self, dice: random.Random) -> str:
        """SIGKILL the parent, a half or all that run; return which, or "" if all had ended."""
        there = {**self.halves(), "parent": self.pid}
        if self.ended():
            return ""
        victim = dice.choice([*there, "all"])
        for name, pid in there.items():
            if victim in (name, "all"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return victim

    def kill_all(self) -> None:
        """SIGKILL the parent and both halves."""
        for pid in (*self.halves().values(), self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self) -> Ended:
        """Wait for the end of the run and of all its children. Fails if any of them survives."""
        assert self.ended(SECONDS), f"it hangs:\n{self.out.read_text()}{self.err.read_text()}"
        status = self._press.ask(wait=self.pid)
        os.close(self._pidfd)
        nobody_left(self.pid)
        lines = self.out.read_bytes().split(b"\n")
        messages = [json.loads(line) for line in lines[:-1]]  # a killed parent may have torn the last line
        stderr = self.err.read_text()
        problem: dict[str, Any] = {}
        for line in stderr.splitlines():
            with suppress(ValueError):
                problem = json.loads(line)
        return Ended(status, messages, problem, stderr)


@dataclass
class Hand:
    """A database, its policy, a state directory and a storage."""

    place: Path
    press: Press
    owner: int = field(default_factory=os.geteuid)
    wal: bool = True
    settings: str = ""
    storage: str = ""
    runs: int = 0
    acknowledged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.live.mkdir(exist_ok=True)
        self.write_policy()

    @property
    def live(self) -> Path:
        """The directory of the live database."""
        return self.place / "live"

    @property
    def path(self) -> Path:
        """The live database."""
        return self.live / "shop.db"

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.place / "state"

    @property
    def store(self) -> Path:
        """The storage."""
        return self.place / "store"

    def seed(self, bookings: int = 2000, **more: Any) -> None:
        """Make the shop."""
        seed(self.path, accounts=50, bookings=bookings, documents=more.pop("documents", 20), wal=self.wal, **more)
        if self.owner != os.geteuid():
            for path in (self.live, *self.live.iterdir()):
                os.chown(path, self.owner, pwd.getpwuid(self.owner).pw_gid)

    def write_policy(self, text: str = "") -> None:
        """Write the policy: one database on one storage."""
        policy = self.place / "policy.toml"
        policy.write_text(
            f'version = 1\n[database.shop]\nengine = "sqlite"\npath = "{self.path}"\nverify = "off"\n{self.settings}\n'
            f'[storage.local]\ntype = "directory"\npath = "{self.store}"\nkeep_free = "0B"\n{self.storage}\n{text}'
        )
        policy.chmod(0o600)

    def start(self, *words: str) -> Running:
        """Start `dbguardd run WORDS`."""
        self.runs += 1
        argv = ["--policy", str(self.place / "policy.toml"), "--state", str(self.state), "run", "--json", *words]
        return Running(self.press, argv, self.place)

    def run(self, *words: str) -> Ended:
        """Run `dbguardd run WORDS` to its end, and note what it acknowledged."""
        return self.noted(self.start(*words).wait())

    def noted(self, ended: Ended) -> Ended:
        """Note what a run acknowledged, whether it succeeded or not."""
        self.acknowledged += [facts["id"] for facts in ended.said("backup.stored") if facts["database"] == "shop"]
        return ended

    def backup(self, *words: str) -> str:
        """Make a backup, which must succeed; return its id."""
        return str(self.run("backup", "shop", *words).result["backup"]["id"])

    def fails(self, code: str, status: int, *words: str) -> dict[str, Any]:
        """Run a command that must fail with this code and exit status; return the problem, which must have advice."""
        ended = self.run(*words)
        assert (ended.problem.get("code"), ended.status) == (code, status), ended.stderr
        assert ended.problem["message"]
        assert not ended.said("backup.stored")
        self.is_tidy()
        return ended.problem

    def is_tidy(self, allowed: Sequence[str] = ()) -> None:
        """Assert that nothing unexpected lies beside the live database, and nothing in staging."""
        ours = {f"shop.db{side}" for side in SIDES} | set(allowed)
        assert {path.name for path in self.live.iterdir()} <= ours
        assert list((self.state / "staging").iterdir()) == []

    def repository(self) -> Any:
        """Open the repository in this process, for inspection."""
        from dbguardd.keys import open_wrappers
        from dbguardd.repository import Repository
        from dbguardd.storage import open_storage

        storage = open_storage({"name": "local", "type": "directory", "path": str(self.store)})
        key = {"name": "main", "type": "machine", "path": str(self.state / "machine.key")}
        return Repository.open(storage, open_wrappers(key))

    def listed(self) -> list[str]:
        """Return the ids of all visible backups, newest first."""
        return [backup.id for backup in self.repository().backups("shop")]

    def restores(self, *ids: str) -> None:
        """Restore these backups with `dbguardd run`; the application's sums must agree in each."""
        target = self.place / "restored"
        for id in ids:
            with removed(target):
                target.mkdir(mode=0o700)
                os.chown(target, self.owner, -1)
                self.run("restore", "shop", "--backup", id, "--to", str(target / "shop.db")).result  # noqa: B018
                assert consistent(target / "shop.db"), id

    def reads(self, ids: Sequence[str]) -> None:
        """Read these backups without an engine, which is faster; the application's sums must agree in each."""
        repository = self.repository()
        with tempfile.TemporaryDirectory(dir=self.place) as place:
            for id in ids:
                path = Path(place) / "shop.db"
                with path.open("w+b") as file, repository.tree(repository.backup(id)) as tree:
                    for name in tree.names():
                        tree.deliver(name, file.fileno())
                assert consistent(path), id
                path.unlink()

    def is_clean(self) -> None:
        """Assert that every stored byte is correct."""
        findings = self.run("check", "shop", "--data").result["findings"]
        bad = [f for f in findings if f["outcome"] == "failed" and not f["name"].startswith(("key ", "proof"))]
        assert not bad, bad


@contextmanager
def removed(path: Path) -> Iterator[None]:
    """Remove a directory when the block ends."""
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def a_place() -> Iterator[Path]:
    """Yield a new directory with a short name that every user may enter; remove it afterwards."""
    place = Path(tempfile.mkdtemp(prefix="dbg-"))
    with removed(place):
        place.chmod(0o755)
        yield place


def other_user() -> int:
    """Return the uid of an unprivileged user who can run dbguard, if this process may become one; else our own."""
    nobody = pwd.getpwnam("nobody").pw_uid
    with suppress(OSError):
        argv = [sys.executable, "-I", "-c", "import dbguardd.worker.channel"]
        if subprocess.run(argv, user=nobody, capture_output=True, check=False, cwd="/").returncode == 0:
            return nobody
    return os.geteuid()


@contextmanager
def writing(path: Path, owner: int, rate: int = 60) -> Iterator[None]:
    """Let the application write until the block ends. None of its transactions may fail."""
    argv = [sys.executable, "-m", "tests.workload", str(path), "86400", str(rate)]
    user = {} if owner == os.geteuid() else {"user": owner, "group": pwd.getpwuid(owner).pw_gid, "extra_groups": []}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **user)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        yield
        assert process.poll() is None, process.communicate()[1].decode()
    finally:
        process.kill()
        process.communicate()


def nobody_left(parent: int) -> None:
    """Wait until all worker halves that `parent` started have ended."""
    deadline = time.monotonic() + SECONDS
    while left := [pid for pid in _pids() if _is_half_of(_command(pid), parent)]:
        assert time.monotonic() < deadline, f"processes {left} outlive process {parent}"
        time.sleep(0.002)


def children_of(pid: int) -> list[int]:
    """Return the children of a process."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def moment(dice: random.Random, seconds: float) -> float:
    """Return a random time within a duration."""
    return dice.random() * seconds


def _is_half_of(words: list[str], parent: int) -> bool:
    if "dbguardd.worker" not in words:
        return False
    place = words.index("dbguardd.worker")
    return words[place + 2 : place + 3] == [str(parent)]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


if __name__ == "__main__":
    main()
