"""Who keeps the log of a live database from beginning anew: the processes that read it, as the kernel names them.

A reader in WAL mode holds a lock on a mark in the index (-shm; wal.c). proc(5) lists locks with their processes to
everybody; command and user of a process are seen by everybody, too, but where /proc is mounted otherwise.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from struct import unpack

_FIRST, _LAST = 123, 127  # bytes of -shm that are locked for the marks 0 to 4 (os_unix.c, UNIX_SHM_BASE)
_VALUES = 100  # where in -shm the frames stand that the marks are at, 4 bytes each (WalCkptInfo)
_HOLD = b"hold.py"

Stay = tuple[int, int, int]
"""A process, its mark, and the frame that it is at: who has the same later has read all the time."""


def readers(shm: int, ours: Collection[int]) -> set[Stay]:
    """Return who holds which read mark in the open index, but for `ours`; process 0 is one that cannot be named."""
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


def named(pid: int) -> str:
    """Say which process that is: its number, its command and its user."""
    if not pid:
        return "a process that cannot be named from here"
    place, words = Path(f"/proc/{pid}"), list[str]()
    with suppress(OSError):
        words.append(place.joinpath("comm").read_text(encoding="utf-8", errors="replace").strip())
    with suppress(OSError):
        if any(word.endswith(_HOLD) for word in place.joinpath("cmdline").read_bytes().split(b"\0")):
            words.append("a backup by dbguard")
    with suppress(OSError):
        uid = place.stat().st_uid
        try:
            words.append(f"user {pwd.getpwuid(uid).pw_name}")
        except KeyError:
            words.append(f"uid {uid}")
    return f"process {pid} ({', '.join(words)})" if words else f"process {pid}"
