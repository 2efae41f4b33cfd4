"""The role that the policy gives to a peer, and how often its requests were refused."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from dbguardd.errors import PolicyInvalid
from dbguardd.policy.accounts import gid_of_group
from dbguardd.policy.model import Access
from dbguardd.states import Role

_QUIET_SECONDS = 60.0
_KINDS = 20  # how many different refusals of one peer are recorded within _QUIET_SECONDS
_MOST = 1_000


class Peer(Protocol):
    """The user behind a request, as the kernel reports it; api.service.Actor."""

    @property
    def uid(self) -> int: ...

    @property
    def gid(self) -> int: ...

    @property
    def pid(self) -> int: ...

    @property
    def user(self) -> str: ...

    @property
    def groups(self) -> frozenset[int]: ...


def role_of(peer: Peer, access: Access) -> Role | None:
    """Return the highest role of a peer. Root and the daemon's own user are admin: they could do everything anyway."""
    if peer.uid in (0, os.geteuid()):
        return Role.ADMIN
    groups = {peer.gid, *peer.groups}
    wanted = {account[6:] for account in (*access.read, *access.operate, *access.admin) if account.startswith("group:")}
    return access.role(peer.user, [name for name in wanted if _gid(name) in groups])


def _gid(name: str) -> int | None:
    try:
        return gid_of_group(name)
    except PolicyInvalid:
        return None


class Refusals:
    """Keeps a peer from filling the audit log with refused requests."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], tuple[float, int]] = {}

    def count(self, uid: int, action: str, now: float) -> int | None:
        """Return how many of these refusals were left out since the last one recorded; None to leave out this one."""
        key = (uid, action)
        recent = sum(other == uid and now - at < _QUIET_SECONDS for (other, _), (at, _) in self._last.items())
        if key not in self._last and recent >= _KINDS:
            key = (uid, "")  # it tries many paths: count them as one
        at, left_out = self._last.get(key, (-_QUIET_SECONDS, 0))
        if now - at < _QUIET_SECONDS:
            self._last[key] = (at, left_out + 1)
            return None
        if len(self._last) >= _MOST:
            self._last = dict(_recent(self._last.items(), now))
        self._last[key] = (now, 0)
        return left_out


def _recent(
    items: Iterable[tuple[tuple[int, str], tuple[float, int]]], now: float
) -> Iterable[tuple[tuple[int, str], tuple[float, int]]]:
    return [item for item in items if now - item[1][0] < _QUIET_SECONDS][-_MOST // 2 :]
