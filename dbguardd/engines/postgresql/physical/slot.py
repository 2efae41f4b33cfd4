"""The slot that holds the log of a server for us: made, watched, let go.

A slot keeps a server from removing what of its log was not taken yet. So nothing is lost while nobody takes it, and a
disk fills where nobody ever does: it has to be bounded by the server, and is let go of before the last room is taken.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from psycopg import errors

from dbguardd.engines.postgresql.connect import Connection, row, rows
from dbguardd.engines.postgresql.physical.datadir import WAL, DataDirectory
from dbguardd.engines.postgresql.typed import statements
from dbguardd.errors import NoSpace, SourceInvalid, Unsupported

PREFIX = "dbguard_"
RELOAD = "SELECT pg_reload_conf()"

_HELD = b"""
SELECT pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
  restart_lsn)::int8 FROM pg_replication_slots WHERE slot_name = %s
"""
_STATE = b"SELECT restart_lsn IS NOT NULL AND wal_status <> 'lost' FROM pg_replication_slots WHERE slot_name = %s"
_SINCE = b"SELECT pg_wal_lsn_diff(restart_lsn, '0/0')::int8 FROM pg_replication_slots WHERE slot_name = %s"
_MAKE = b"SELECT pg_create_physical_replication_slot(%s, true)"
_DROP = b"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s"
_BOUND = b"SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"
_MIB, _MIB_ELSEWHERE = 1 << 20, 4 << 10
_SYSTEM_BYTES = 8
_LEAVING_SECONDS, _AGAIN_SECONDS = 5.0, 0.05

T = TypeVar("T")


def name_of(staging: str) -> str:
    """Return the name of the slot of who works in a staging directory: no two databases, or daemons, have the same."""
    return PREFIX + hashlib.sha256(staging.encode()).hexdigest()[:16]


def patiently(act: Callable[[], T]) -> T:
    """Do what needs a slot that nobody reads any more: a server needs a moment to see that a reader is gone."""
    deadline = time.monotonic() + _LEAVING_SECONDS
    while True:
        try:
            return act()
        except errors.ObjectInUse:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_AGAIN_SECONDS)


class Slot:
    """One permanent physical slot, seen from a connection of a superuser."""

    def __init__(self, keeper: Connection, name: str) -> None:
        self._keeper, self.name = keeper, name

    def holds(self) -> bool:
        """Say if it is there, and the server keeps the log for it."""
        return rows(self._keeper, _STATE, self.name) == [(True,)]

    def since(self) -> int | None:
        """Return from which place on it holds the log; None for nothing."""
        return next((at for (at,) in rows(self._keeper, _SINCE, self.name)), None)

    def take(self) -> str:
        """Make the slot if it is not there, or holds nothing any more; say what became of it, nothing if it is well."""
        if self.holds():
            return ""
        lost = bool(rows(self._keeper, _STATE, self.name))
        self.drop()
        rows(self._keeper, _MAKE, self.name)
        return "its slot held more than max_slot_wal_keep_size" if lost else "its slot was gone"

    def drop(self) -> None:
        """Let the server remove its log: the slot is gone. Who has streamed from it may be about to leave."""
        patiently(lambda: rows(self._keeper, _DROP, self.name))


def bound(keeper: Connection) -> int | None:
    """Return how many bytes of its log the server keeps for a slot at most; None: any number."""
    (size,) = row(keeper, (int,), _BOUND)
    return None if size < 0 else int(size) * _MIB


def check_bound(keeper: Connection, room: int | None, slot: Slot | None, about: str) -> None:
    """Raise Unsupported if a slot may hold more than there is room for, when nobody takes what it holds.

    One that is there already took its part of the room, and what else takes it is watched as long as it is read. How
    much room there is on another host is not seen from here (None): its administrator is to say.
    """
    most = bound(keeper)
    if most is not None and (room is None or most <= room or (slot is not None and slot.holds())):
        return
    size = "any number of bytes" if most is None else f"{most} bytes, and {room} bytes are free"
    fit = _MIB_ELSEWHERE if room is None else max(1, min(64 << 10, room // 2 // _MIB))
    raise Unsupported(
        f"{about}: a slot that nobody reads could fill the disk of its log",
        detail=f"max_slot_wal_keep_size lets a slot hold {size}. While dbguard is stopped nothing takes that away, and "
        "a server without room for its log stops.",
        hints=[statements(keeper, f"ALTER SYSTEM SET max_slot_wal_keep_size = '{fit}MB'", RELOAD) + "  # no restart"],
    )


def check_own(directory: DataDirectory, slot: str, system: int) -> None:
    """Raise SourceInvalid if `directory` is not that of the server that has the slot: a slot is a directory in there.

    The number of the cluster alone would not do: a standby or a copy on this host has the same.
    """
    found = int.from_bytes(directory.control()[:_SYSTEM_BYTES], sys.byteorder)
    if found != system or "/" in slot or not directory.has(f"pg_replslot/{slot}"):
        raise SourceInvalid(
            f"{directory.path}: is not the data directory of the server that was asked",
            detail=f"the server is {system}, the directory {found}; the server may run on another host",
            hints=['set method = "dump" for a server elsewhere'],
        )


def check_room(keeper: Connection, slot: str, directory: DataDirectory, what: str, hints: Sequence[str]) -> None:
    """Raise NoSpace if a slot holds more of the log than the server has room for: without any, it stops at once."""
    free = directory.free_for_log()
    held = next((int(held) for (held,) in rows(keeper, _HELD, slot) if held is not None), 0)
    if held > free:
        raise NoSpace(
            f"{directory.path}/{WAL}: the server needs the room that its log takes {what}",
            detail=f"The log that is held has {held} bytes, and {free} bytes are free; a server that has no room "
            "for its log stops. The server lets go of it now.",
            hints=hints,
            facts={"needed_bytes": held, "free_bytes": free},
        )
