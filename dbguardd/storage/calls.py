"""The system calls that change a directory storage, in one place, so that tests can record, refuse and fake them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from dbguardd.frozen import frozen


@frozen
class Calls:
    """The system calls for publishing. All are relative to an open directory, never to a path."""

    open: Callable[..., int] = os.open
    writev: Callable[[int, Sequence[memoryview]], int] = os.writev
    fsync: Callable[[int], None] = os.fsync
    link: Callable[..., None] = os.link
    unlink: Callable[..., None] = os.unlink
    mkdir: Callable[..., None] = os.mkdir
    close: Callable[[int], None] = os.close
    statvfs: Callable[[int], os.statvfs_result] = os.fstatvfs
    random: Callable[[int], bytes] = os.urandom
    now: Callable[[], float] = time.time
