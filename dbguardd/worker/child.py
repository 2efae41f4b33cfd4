"""What both halves do first: die with their parent, protect their memory, and notice a request to stop."""

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
    """Prepare this process; return a function that tells whether it was asked to stop (SIGTERM).

    `parent` is the pid of the daemon: if it died before the kernel was told to signal us, exit at once. `become` may
    change the user: that user cannot write below /proc/self, and the change resets the request to the kernel.
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
    """Prevent core dumps, and access by other processes of the same user: this process holds keys, and rows.

    If a program collects core dumps (core(5): a pipe), the limit alone does not prevent them. Anything that this
    process must write below /proc/self has to be written before.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit("cannot keep core dumps away")


def _prefer_oom_kill() -> None:
    """Let the kernel kill this process first if memory runs out: a job can be repeated, the application must live.

    The daemon is protected from that (OOMScoreAdjust= of its unit), and we inherited it. A process may raise its own
    score.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
