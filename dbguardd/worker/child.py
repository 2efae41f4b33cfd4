"""What both halves do first: die with their parent, keep to themselves, and notice that they should stop."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event

from dbguardd.worker.rights import drop_capabilities

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def prepare(parent: int, become: Callable[[], None] = lambda: None) -> Callable[[], bool]:
    """Prepare this process; return the question whether it was asked (SIGTERM) to stop.

    `parent` is the pid of the daemon: if it died before the kernel was told to signal us, we end at once. `become`
    may make us another user, who may write nothing below /proc/self and whom the kernel has to be told anew.
    """
    _prefer_oom_kill()
    become()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    drop_capabilities()
    if os.getppid() != parent:
        sys.exit(1)
    os.umask(0o077)
    forbid_inspection()
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the daemon, which decides
    return stop.is_set


def forbid_inspection() -> None:
    """Leave no core dump, and let nobody of the same user look into this process: there are keys in it, and rows.

    Where a program takes core dumps (core(5): a pipe), the limit alone does not keep it from that. Whatever this
    process wants to write below /proc/self has to be written before.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit("cannot keep core dumps away")


def _prefer_oom_kill() -> None:
    """Be what the kernel kills when memory runs out: a job is repeated, the application beside us must live.

    The daemon is kept from that (OOMScoreAdjust= of its unit), and we inherited it. Anybody may raise his own score.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
