"""The demo: on a database of the user's own it changes nothing, it ends with one clear error, it cleans up."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.live import until
from tests.process.house import a_place
from tests.workload import seed

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def scratch() -> Iterator[Path]:
    with a_place() as place:  # a short name: the demo has a socket in it
        yield place


def environment(scratch: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "TMPDIR": str(scratch), "TERM": "dumb", "LC_ALL": "C.UTF-8"}


@pytest.fixture
def demo(scratch: Path) -> Run:
    def run(path: Path, **options: object) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "tests.demo", str(path)]
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            argv,
            cwd=ROOT,
            env=environment(scratch),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    return run


def contents(directory: Path) -> dict[str, tuple[object, ...]]:
    """Every file with its bytes and everything that a write would change, and the directory's own times."""
    found: dict[str, tuple[object, ...]] = {".": (directory.stat().st_mtime_ns,)}
    for path in sorted(directory.iterdir()):
        seen = path.stat()
        facts = (seen.st_mode, seen.st_uid, seen.st_ino, seen.st_size, seen.st_mtime_ns)
        found[path.name] = (hashlib.sha256(path.read_bytes()).hexdigest(), *facts)
    return found


def wal(path: Path) -> None:
    seed(path, bookings=300, documents=10)


def rollback(path: Path) -> None:
    seed(path, bookings=300, documents=10, wal=False)


def killed(path: Path) -> None:
    """A log that was never checkpointed: what an application leaves that was killed."""
    seed(path.with_name("before.db"), bookings=300, documents=10)
    with closing(sqlite3.connect(path.with_name("before.db"))) as db:
        db.execute("pragma wal_autocheckpoint = 0")
        db.execute("update account set owner = 'nobody' where id = 1")
        db.commit()
        for end in ("", "-wal"):
            shutil.copy(f"{path.with_name('before.db')}{end}", f"{path}{end}")
    for left in path.parent.glob("before.db*"):
        left.unlink()


@pytest.mark.parametrize("make", [wal, rollback, killed], ids=lambda make: make.__name__)
def test_a_database_of_the_user_stays_as_it_was(make: Callable[[Path], None], demo: Run, tmp_path: Path,
                                                scratch: Path) -> None:  # fmt: skip
    home = tmp_path / "home"
    home.mkdir()
    make(home / "mine.db")
    before = contents(home)
    done = demo(home / "mine.db")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("proven  yours can be restored") == 2
    assert contents(home) == before
    assert list(scratch.iterdir()) == []


def test_a_database_in_use_stays_as_it_was(demo: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    wal(home / "mine.db")
    with closing(sqlite3.connect(home / "mine.db")) as db:
        db.execute("update account set owner = 'nobody' where id = 1")
        db.commit()
        before = contents(home)
        assert demo(home / "mine.db").returncode == 0
        after = contents(home)
        for side in (before, after):
            side.pop("mine.db-shm")  # where readers of a log say that they read
        assert after == before


def nothing(path: Path) -> None:
    """Nothing lies there."""


def directory(path: Path) -> None:
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("This is not a database, but it is long enough to have been one. " * 100)


@pytest.mark.parametrize(("make", "code"), [(nothing, "DBG-2001"), (directory, "DBG-2002"), (text, "DBG-2002")],
                         ids=["nothing", "directory", "text"])  # fmt: skip
def test_what_is_no_database_is_one_clear_error(make: Callable[[Path], None], code: str, demo: Run, tmp_path: Path,
                                                scratch: Path) -> None:  # fmt: skip
    make(tmp_path / "mine.db")
    done = demo(tmp_path / "mine.db")
    assert done.returncode not in (0, 3)
    assert done.stderr.count(f"error[{code}]") == 1
    assert "Traceback" not in done.stderr
    assert f"{tmp_path}/mine.db" in done.stderr
    assert "dbguardctl" not in done.stdout  # nothing was started
    assert list(scratch.iterdir()) == []


def test_who_reads_only_the_beginning_sees_no_traceback(tmp_path: Path, scratch: Path) -> None:
    wal(tmp_path / "mine.db")
    argv = [sys.executable, "-m", "tests.demo", str(tmp_path / "mine.db")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, cwd=ROOT, env=environment(scratch), text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(120) == 0
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
    assert list(scratch.iterdir()) == []


def test_too_large_for_the_place_is_said_before_anything_is_copied(demo: Run, tmp_path: Path, scratch: Path) -> None:
    with (tmp_path / "huge.db").open("wb") as file:
        file.truncate(1 << 43)
    done = demo(tmp_path / "huge.db")
    assert done.returncode == 11
    assert "TMPDIR" in done.stderr
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupted_demo_leaves_nothing(number: signal.Signals, scratch: Path) -> None:
    argv = [sys.executable, "-m", "tests.demo"]
    demo = subprocess.Popen(
        argv, cwd=ROOT, env=environment(scratch), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "dbguardctl protect" in line:
                break
        os.killpg(demo.pid, number)  # as a terminal does
        rest = demo.stdout.read()
    assert demo.returncode == 128 + number
    assert "all files of the demo were removed" in rest
    assert list(scratch.iterdir()) == []
    until(lambda: not processes_below(scratch), "the end of all that works there")


def processes_below(scratch: Path) -> list[str]:
    """The command lines of processes that still work there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(scratch) in words:
            found.append(words)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to have a database of somebody else")
def test_root_can_show_it_with_a_database_of_somebody_else(demo: Run, tmp_path: Path, scratch: Path) -> None:
    somebody = pwd.getpwnam("nobody")
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & 0o001:
            if directory.stat().st_uid != os.geteuid() or directory == Path("/root"):
                pytest.skip(f"{directory} is closed to others")
            directory.chmod(0o711)
    home = tmp_path / "home"
    home.mkdir()
    wal(home / "mine.db")
    for path in (home, home / "mine.db"):
        os.chown(path, somebody.pw_uid, somebody.pw_gid)
    before = contents(home)
    done = demo(home / "mine.db")
    if "cannot run" in done.stderr:
        pytest.skip("nobody may not run this Python")
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(home) == before
    assert list(scratch.iterdir()) == []
