"""A machine: a Debian whose own systemd has booted as PID 1, in a container without a network.

Its processes, mounts and files live in namespaces that are gone when the process that booted it is, however that ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.process.house import SECONDS, Completed, until

_ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "TERM=dumb")
_BOOT = """
set -eu
umount --lazy /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/"$NAME"
echo 0 >/sys/fs/cgroup/"$NAME"/cgroup.procs
mount -t tmpfs -o mode=0755 tmpfs "$PLACE"
mkdir "$PLACE/upper" "$PLACE/work" "$PLACE/root"
mount -t overlay -o lowerdir="$TREE",upperdir="$PLACE/upper",workdir="$PLACE/work" overlay "$PLACE/root"
exec systemd-nspawn --quiet --directory="$PLACE/root" --machine="$NAME" --boot --register=no --keep-unit \\
  --link-journal=no --private-network --resolv-conf=off --timezone=off --console=pipe \\
  --system-call-filter="landlock_create_ruleset landlock_add_rule landlock_restrict_self"  # as any host allows them
"""
_ENDED_BY = signal.SIGRTMIN + 4  # systemd(1): power off


class Machine:
    """A booted machine. `booted()` makes one."""

    def __init__(self, name: str, suite: str, nspawn: subprocess.Popen[bytes], console: Path) -> None:
        self.name = name
        self.suite = suite
        self._nspawn = nspawn
        self._console = console
        self._init = 0

    # ------------------------------------------------------------------------------------------------ life

    def wait_for_boot(self) -> None:
        """Wait until everything that the boot starts has started."""
        until(self._has_init, self._console.read_text)
        until(lambda: self._state() in ("running", "degraded"), lambda: (self._state(), self._console.read_text()))
        assert self._state() == "running", self.run("systemctl", "--failed", "--no-pager").out

    def power_off(self) -> None:
        """End it as an administrator would, and if that takes too long, at once."""
        if self._init:
            with suppress(ProcessLookupError):
                os.kill(self._init, _ENDED_BY)
        try:
            self._nspawn.wait(30)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()  # and with it the whole namespace
            self._nspawn.wait()

    def _has_init(self) -> bool:
        assert self._nspawn.poll() is None, self._console.read_text()
        first = _children(self._nspawn.pid)  # of unshare: the shell that became systemd-nspawn
        second = [pid for parent in first for pid in _children(parent)]
        for pid in second:
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    self._init = pid
        return bool(self._init)

    def _state(self) -> str:
        return self.run("systemctl", "is-system-running", check=False).out.strip()

    # ------------------------------------------------------------------------------------------------ in it

    def run(self, *argv: str, user: str = "root", check: bool = True, stdin: str = "") -> Completed:
        """Run a command in it, as root or as another user with his groups; it must end with 0 unless check=False."""
        with self.starting(*argv, user=user) as process:
            out, err = process.communicate(stdin, timeout=SECONDS * 2)
        said = Completed(process.returncode, out, err)
        assert not check or said.status == 0, (argv, said)
        return said

    @contextmanager
    def starting(self, *argv: str, user: str = "root") -> Iterator[subprocess.Popen[str]]:
        """Start a command in it; it has ended when the block ends."""
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        enter = ["nsenter", f"--target={self._init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
                 "--root", "--wd", "--", "env", "-i", *_ENVIRONMENT]  # fmt: skip
        process = subprocess.Popen([*enter, *become, *argv], text=True, errors="replace", stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def path(self, inside: str) -> Path:
        """Return how this process reaches a file in it (not over absolute symbolic links)."""
        return Path(f"/proc/{self._init}/root", inside.lstrip("/"))

    def put(self, source: Path | str, to: str, *, owner: str = "root", mode: int = 0o644) -> str:
        """Copy a file, or write a text, to a path in it; its directory is made. Return the path."""
        target = self.path(to)
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path):
            shutil.copyfile(source, target)
        else:
            target.write_text(source)
        target.chmod(mode)
        self.run("chown", f"{owner}:", to)
        return to

    def python(self, program: str, *argv: str, user: str = "root") -> str:
        """Run a program text with the system's Python; return what it printed."""
        return self.run("/usr/bin/python3", "-I", "-c", program, *argv, user=user).out

    # ------------------------------------------------------------------------------------------------ dbguard

    def install(self, package: Path) -> Completed:
        """Install a package with apt, which asks nothing."""
        self.put(package, f"/root/{package.name}")
        return self.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", f"/root/{package.name}")

    def ctl(self, *words: str, user: str = "root", stdin: str = "") -> Completed:
        """Run dbguardctl, however it ends."""
        return self.run("dbguardctl", *words, user=user, check=False, stdin=stdin)

    def does(self, *words: str, user: str = "root") -> Any:
        """Run dbguardctl --json, which must succeed or have something to say; return the answer."""
        said = self.ctl("--json", *words, user=user)
        assert said.status in (0, 3), (words, said)
        return said.json

    def job(self, id: str) -> Any:
        """Return a job as it is now."""
        return self.does("job", "show", id)["job"]

    # ------------------------------------------------------------------------------------------------ its systemd

    def show(self, name: str, unit: str = "dbguardd.service") -> str:
        """Return a property of a unit, such as ActiveState, MainPID, NRestarts."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).out.strip()

    def journal(self, *matches: str, unit: str = "dbguardd.service") -> list[dict[str, Any]]:
        """Return the entries of a unit with all their fields; matches are such as DBGUARD_EVENT=backup.done."""
        said = self.run("journalctl", "--output=json", "--all", "--no-pager", f"--unit={unit}", *matches)
        return [json.loads(line) for line in said.out.splitlines()]

    def until_active(self) -> None:
        """Wait until the daemon is ready."""
        until(lambda: self.show("ActiveState") == "active", self.why)

    def why(self) -> str:
        """Return what systemd says of the daemon, and the end of its log."""
        return self.run("systemctl", "status", "--full", "--no-pager", "--lines=40", "dbguardd", check=False).out


@contextmanager
def booted(tree: Path, suite: str, place: Path) -> Iterator[Machine]:
    """Boot a machine on a layer above `tree`; `place` is an empty directory."""
    name = f"dbguard-{os.getpid()}-{time.monotonic_ns() % 1_000_000}"
    console = place / "console"
    room = place / "room"
    room.mkdir()
    with console.open("wb") as out:
        nspawn = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
             "--propagation", "private", "sh", "-c", _BOOT],
            env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "NAME": name, "PLACE": str(room), "TREE": str(tree)},
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    machine = Machine(name, suite, nspawn, console)
    try:
        machine.wait_for_boot()
        yield machine
    finally:
        machine.power_off()
        _forget(name)


def _children(pid: int) -> Sequence[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _forget(name: str) -> None:
    """Remove the control groups that the machine made; nothing runs in them any more."""
    remove = 'find "/mnt/$NAME" -depth -type d -exec rmdir {} + 2>/dev/null || true'
    subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"mount -t cgroup2 cgroup2 /mnt; {remove}"],
        env={"PATH": os.environ["PATH"], "NAME": name}, check=False, capture_output=True,
    )  # fmt: skip
