"""Gives up the rights of a process permanently: capabilities(7), by direct system calls."""

from __future__ import annotations

import ctypes
import os
import pwd
import struct
from pathlib import Path

from dbguardd.errors import PlaceDenied

_PR_SET_KEEPCAPS = 8
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_KILL, _CAP_SETGID, _CAP_SETUID = 5, 6, 7


def drop_capabilities() -> None:
    """Give up permanently what let the daemon become the database's owner; root stays root.

    Ambient capabilities survive a change from one ordinary user to another: without this, an engine half could become
    any user. An empty permitted set cannot be filled again under no_new_privs (capabilities(7)).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.geteuid() == 0:
        return
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _hold(libc, 0)


def become_nobody() -> None:
    """Continue as nobody, if this process may change users: what it reads next may be hostile.

    The process does it by itself, after loading all that it needs, so that nobody need not be able to read our code.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    try:
        user = pwd.getpwnam("nobody")
    except KeyError:
        raise SystemExit("there is no user nobody") from None
    try:
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except PermissionError:
        if os.geteuid() == 0:
            raise


def go_on_as_owner(state: Path, policy: Path) -> None:
    """If root runs this with the state of another user, continue as that user, who could not use files written by root.

    If only root can have written the policy, keep what the unit gives to that user's service: opening each database as
    its owner, and stopping what hangs. A policy of that user's own gets no rights from root. Without a state directory
    yet, root stays root. Raises PlaceDenied.
    """
    if os.geteuid() != 0:
        return
    try:
        owner, authors = state.stat().st_uid, {policy.stat().st_uid, policy.parent.stat().st_uid}
    except OSError:
        return  # the code that needs the missing path reports it
    if owner == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        user = pwd.getpwuid(owner)
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(owner, owner, owner)
    except (KeyError, OSError) as error:
        raise PlaceDenied(
            f"{state}: belongs to uid {owner}, and root cannot go on as that user here",
            detail="there is no such user" if isinstance(error, KeyError) else str(error.strerror),
            hints=[f"ls -ld {state}"],
        ) from error
    _hold(libc, 1 << _CAP_KILL | 1 << _CAP_SETGID | 1 << _CAP_SETUID if authors == {0} else 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _hold(libc: ctypes.CDLL, mask: int) -> None:
    """Keep these capabilities and no others; child processes inherit none."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if libc.capset(header, struct.pack("=6I", mask, mask, 0, 0, 0, 0)) != 0:
        raise SystemExit("cannot drop capabilities")
