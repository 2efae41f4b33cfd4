"""Publishing in a process of its own: killed at any moment, and with every system call failing."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dbguardd.storage import Directory
from tests.faults import publish_victim
from tests.faults.publish_victim import BEGIN, OBJECTS, name_of

VICTIM = [sys.executable, "-I", "-B", "-S", publish_victim.__file__]
SYSTEM_CALLS = (
    *("openat", "mkdir", "mkdirat", "writev", "fsync", "link", "linkat", "unlink", "unlinkat", "close"),
    *("fstat", "newfstatat", "fstatfs", "getdents64", "pread64", "readlink", "fcntl"),
)
FULL = frozenset(("openat", "mkdir", "mkdirat", "writev", "linkat"))


def assert_sound(root: Path, acknowledged: Sequence[str]) -> int:
    """Whatever happened: every object is whole, and everything acknowledged is there. Return how many there are."""
    if not root.exists():
        assert not acknowledged
        return 0
    storage = Directory(root)
    found = {entry.name for entry in storage.list("")}
    for name in found:
        assert hashlib.sha256(storage.get(name)).hexdigest() == name.rpartition("/")[2], f"{name} is torn"
    assert set(acknowledged) <= found, "acknowledged, then lost"
    return len(found)


@pytest.mark.parametrize("names", ["nameless", "named"])
def test_killed_at_any_moment_nothing_is_torn_or_lost(tmp_path: Path, names: str) -> None:
    root = tmp_path / "store"
    done = subprocess.run([*VICTIM, "nursery", root, names, "200", "7"], capture_output=True, text=True, check=True)
    acknowledged = done.stdout.split()
    assert len(acknowledged) > 50
    assert_sound(root, acknowledged)
    assert (names == "named") == (int(done.stderr) > 0), "only temporary names leave something, and kills must hit them"
    assert [path for path in root.iterdir() if path.name.startswith(".tmp-")] == []


def traced(root: Path, names: str, trace: Path, *more: str) -> tuple[subprocess.CompletedProcess[bytes], list[str]]:
    watched = f"trace=write,{','.join(f'?{call}' for call in SYSTEM_CALLS)}"
    command = ["strace", "-o", str(trace), "-e", watched, "-e", "signal=none", *more, *VICTIM, "once", str(root), names]
    done = subprocess.run(command, capture_output=True, check=False)
    return done, trace.read_text(errors="replace").splitlines()


def cases(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield every system call after the beginning, as strace numbers it, with the ways in which it may fail."""
    begun, count, total = False, Counter[str](), Counter(line.partition("(")[0] for line in lines)
    for line in lines:
        call = line.partition("(")[0]
        count[call] += 1
        begun = begun or (call == "write" and BEGIN.decode().strip() in line)
        if begun and call in SYSTEM_CALLS:
            for error in ("EIO", "ENOSPC") if call in FULL else ("EIO",):
                yield call, f"error={error}:when={count[call]}"
            if call in FULL | {"fsync"} and count[call] < total[call]:
                yield call, f"error=EIO:when={count[call]}+"


@pytest.mark.slow
@pytest.mark.parametrize("names", ["nameless", pytest.param("named", marks=pytest.mark.soak)])
def test_every_system_call_may_fail(tmp_path: Path, names: str) -> None:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed: NO SYSTEM CALL WAS MADE TO FAIL")
    done, lines = traced(tmp_path / "good", names, tmp_path / "trace")
    if done.returncode:
        pytest.skip(f"strace cannot trace here: NO SYSTEM CALL WAS MADE TO FAIL: {done.stderr.decode()[-300:]}")
    assert done.stdout.split() == [name_of(data).encode() for data in OBJECTS]
    hit: Counter[str] = Counter()
    refused = 0
    for number, (call, how) in enumerate(cases(lines)):
        root = tmp_path / f"{number}"
        done, seen = traced(root, names, tmp_path / "trace", "-e", f"inject={call}:{how}")
        begin = next(place for place, line in enumerate(seen) if BEGIN.decode().strip() in line)
        injected = [place for place, line in enumerate(seen) if "(INJECTED)" in line]
        if not injected or injected[0] < begin:
            continue  # the start of the interpreter took another way this time
        hit[call] += 1
        about = f"{call} {how}: {done.stderr.decode()}"
        assert done.returncode in (0, 3), about
        assert b"Traceback" not in done.stderr, about
        codes = set(re.findall(r"^DBG-\d+", done.stderr.decode(), re.MULTILINE))
        assert codes <= {"DBG-3001", "DBG-3002", "DBG-3005"}, about
        assert (done.returncode == 3) == bool(codes)
        refused += bool(codes)
        assert_sound(root, done.stdout.decode().split())
        again = Directory(root, create=True)
        for data in OBJECTS:
            again.put(name_of(data), data)
        assert assert_sound(root, [name_of(data) for data in OBJECTS]) == len(OBJECTS), about
        shutil.rmtree(root)
    assert {"openat", "writev", "fsync", "linkat", "close"} <= set(hit), hit
    assert sum(hit.values()) > 60
    assert refused > 30
