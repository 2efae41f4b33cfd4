"""What both halves do first: die with their parent, keep to themselves, and notice that they should stop."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522


def settle(parent: int) -> Callable[[], bool]:
    """Prepare this process; return the question whether it was asked (SIGTERM) to stop.

    `parent` is the pid of the daemon: if it died before the kernel was told to signal us, we end at once.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _drop_capabilities(libc)
    if os.getppid() != parent:
        sys.exit(1)
    os.umask(0o077)
    _go_first()
    keep_to_itself()
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the daemon, which decides
    return stop.is_set


def keep_to_itself() -> None:
    """Leave no core dump, and let nobody of the same user look into this process: there are keys in it, and rows.

    Where a program takes core dumps (core(5): a pipe), the limit alone does not keep it from that. Whatever this
    process wants to write below /proc/self has to be written before.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit("cannot keep core dumps away")


def _go_first() -> None:
    """Be what the kernel kills when memory runs out: a job is repeated, the application beside us must live.

    The daemon is kept from that (OOMScoreAdjust= of its unit), and we inherited it. Anybody may raise his own score.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up what let the daemon become the database's owner, for good; root itself keeps being root.

    Ambient capabilities survive a change from one ordinary user to another: without this, an engine half could become
    anybody. An empty permitted set cannot be filled again under no_new_privs (capabilities(7)).
    """
    if os.geteuid() == 0:
        return
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if libc.capset(header, bytes(24)) != 0:
        sys.exit("cannot drop capabilities")
