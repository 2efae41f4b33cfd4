"""Identifies the peer of a Unix socket from what the kernel reports; nothing comes from the request.

SO_PEERCRED gives process, user and group at the time of connect(), SO_PEERGROUPS the supplementary groups at that time.
getsockopt returns at most 1024 bytes to Python (256 groups); for more groups the user database is asked.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
import struct
from typing import Protocol

from dbguardd.api.service import Actor

_SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module has no name for it
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Peered(Protocol):
    """A connected Unix socket, or asyncio's view of one."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


def identify(connection: Peered) -> Actor:
    """Return the user who connected. Raises OSError if the connection is gone."""
    pid, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = f"uid {uid}"
    return Actor(uid=uid, gid=gid, pid=pid, user=user, groups=_groups(connection, user, gid))


def _groups(connection: Peered, user: str, gid: int) -> frozenset[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError as error:
        if error.errno not in (errno.ERANGE, errno.ENOPROTOOPT):  # more groups than fit, or a kernel before 4.13
            raise
        try:
            return frozenset(os.getgrouplist(user, gid))
        except KeyError:  # a user without an entry has only the group of the connection
            return frozenset((gid,))
    return frozenset((gid, *struct.unpack(f"{len(raw) // 4}I", raw)))
