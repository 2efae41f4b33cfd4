"""Finds the processes that keep the WAL of a live database from restarting: its readers, as named by the kernel.

A reader in WAL mode holds a lock on a read mark in the WAL index (-shm; wal.c). proc(5) shows locks and their processes
to everybody, and also the command and user of a process, unless /proc is mounted with restrictions.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from struct import unpack

from dbguardd.errors import SourceLocked

_FIRST, _LAST = 123, 127  # bytes of -shm that are locked for the read marks 0 to 4 (os_unix.c, UNIX_SHM_BASE)
_VALUES = 100  # offset in -shm of the frame numbers of the read marks, 4 bytes each (WalCkptInfo)
_HOLD, _KEEP = b"hold.py", b"keep.py"
_PAUSE_SECONDS = 0.05
_BEGAN = 19  # in /proc/PID/stat, after the name: when the process began

Stay = tuple[int, int, int]
"""A process, its read mark, and the frame of that mark: if all are the same later, it has been reading all the time."""


def readers(shm: int, ours: Collection[int]) -> set[Stay]:
    """Return which process holds which read mark in the open WAL index, except `ours`; process 0 means unknown."""
    found = os.fstat(shm)
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    values = unpack("=5I", os.pread(shm, 20, _VALUES).ljust(20, b"\0"))
    stays = set[Stay]()
    with suppress(OSError), open("/proc/locks", encoding="ascii") as table:
        for row in (line.split() for line in table if "->" not in line):
            if len(row) == 8 and row[5] == file and row[6].isdecimal() and row[7].isdecimal():
                for mark in range(max(int(row[6]), _FIRST), min(int(row[7]), _LAST) + 1):
                    stays.add((max(int(row[4]), 0), mark - _FIRST, values[mark - _FIRST]))
    return {stay for stay in stays if stay[0] not in ours}


def refuse_second(path: str, shm: int, ours: int, seconds: float, alive: Callable[[], None]) -> None:
    """Raise SourceLocked if a WAL was followed before our child `ours` began, and still is after `seconds`.

    A WAL restarts only when all followers have read it to its end. Two of them never have at the same time while the
    application writes, so it would grow until its disk is full. A follower that was just killed ends soon.
    """
    deadline = time.monotonic() + seconds
    while other := _earlier(shm, ours):
        if time.monotonic() >= deadline:
            raise SourceLocked(
                f"{path}: another dbguard follows its log",
                detail=f"It is {named(other)}. Beside two followers the WAL of a busy application could never be reset "
                "and would fill its disk. Only one of them may protect the database with `continuous`.",
                hints=[f"ps -fp {other}"],
            )
        alive()
        time.sleep(_PAUSE_SECONDS)


def _earlier(shm: int, ours: int) -> int:
    """Return a process that follows a WAL since before `ours` did; 0 if there is none."""
    found = ((_began(pid), pid) for pid, _, _ in readers(shm, (ours,)) if pid and _runs(pid, _KEEP))
    return next((pid for began, pid in sorted(found) if (began, pid) < (_began(ours), ours)), 0)


def _began(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[_BEGAN])
    return 0


def _runs(pid: int, script: bytes) -> bool:
    """Return whether a process runs one of our scripts."""
    with suppress(OSError):
        return any(word.endswith(script) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
    return False


def named(pid: int) -> str:
    """Return a description of a process: its number, command and user."""
    if not pid:
        return "a process that cannot be named from here"
    place, words = Path(f"/proc/{pid}"), list[str]()
    with suppress(OSError):
        words.append(place.joinpath("comm").read_text(encoding="utf-8", errors="replace").strip())
    if _runs(pid, _HOLD):
        words.append("a backup by dbguard")
    with suppress(OSError):
        uid = place.stat().st_uid
        try:
            words.append(f"user {pwd.getpwuid(uid).pw_name}")
        except KeyError:
            words.append(f"uid {uid}")
    return f"process {pid} ({', '.join(words)})" if words else f"process {pid}"
