"""The replication slot that makes a server keep WAL for us: created, checked, dropped.

A slot keeps the server from removing WAL that was not received yet. So nothing is lost while nobody reads it, but if
nobody ever does, the disk fills. So the server has to limit the slot, and we drop it before the disk is full.
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
  restart_lsn)::int8, (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size')
FROM pg_replication_slots WHERE slot_name = %s
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
    """Return the name of the slot that belongs to a staging directory: unique for each database and daemon."""
    return PREFIX + hashlib.sha256(staging.encode()).hexdigest()[:16]


def patiently(act: Callable[[], T]) -> T:
    """Retry what fails while a slot is in use: a server needs a moment to notice that a reader is gone."""
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
        """Return whether the slot exists and the server keeps WAL for it."""
        return rows(self._keeper, _STATE, self.name) == [(True,)]

    def since(self) -> int | None:
        """Return the place from which on it keeps WAL; None if it keeps none."""
        return next((at for (at,) in rows(self._keeper, _SINCE, self.name)), None)

    def take(self) -> str:
        """Create the slot if it is missing or has lost its WAL. Return what had happened to it; "" if it is fine."""
        if self.holds():
            return ""
        lost = bool(rows(self._keeper, _STATE, self.name))
        self.drop()
        rows(self._keeper, _MAKE, self.name)
        return "its slot held more than max_slot_wal_keep_size" if lost else "its slot was gone"

    def drop(self) -> None:
        """Drop the slot, so that the server can remove WAL. A reader that is just leaving is waited for."""
        patiently(lambda: rows(self._keeper, _DROP, self.name))


def bound(keeper: Connection) -> int | None:
    """Return how many bytes of WAL the server keeps at most for a slot; None if it sets no limit."""
    (size,) = row(keeper, (int,), _BOUND)
    return None if size < 0 else int(size) * _MIB


def check_bound(keeper: Connection, room: int | None, slot: Slot | None, about: str) -> None:
    """Raise Unsupported if a slot that nobody reads may hold more than there is room for.

    An existing slot has already used its part of the room, and the room is watched while it is read. `room` is None for
    a server elsewhere, whose free space is unknown here: its administrator has to set a limit.
    """
    most = bound(keeper)
    if most is not None and (room is None or most <= room or (slot is not None and slot.holds())):
        return
    size = "any number of bytes" if most is None else f"{most} bytes, and {room} bytes are free"
    fit = _MIB_ELSEWHERE if room is None else max(1, min(64 << 10, room // 2 // _MIB))
    raise Unsupported(
        f"{about}: an unread slot could fill the disk of its WAL",
        detail=f"max_slot_wal_keep_size lets a slot hold {size}. While dbguard is stopped nothing takes that away, and "
        "a server without room for its log stops.",
        hints=[statements(keeper, f"ALTER SYSTEM SET max_slot_wal_keep_size = '{fit}MB'", RELOAD) + "  # no restart"],
    )


def check_own(directory: DataDirectory, slot: str, system: int) -> None:
    """Raise SourceInvalid unless `directory` belongs to the server with the slot: each slot is a directory in it.

    The system identifier alone does not suffice: a standby or a copy on this host has the same.
    """
    found = int.from_bytes(directory.control()[:_SYSTEM_BYTES], sys.byteorder)
    if found != system or "/" in slot or not directory.has(f"pg_replslot/{slot}"):
        raise SourceInvalid(
            f"{directory.path}: is not the data directory of the server that was asked",
            detail=f"the server is {system}, the directory {found}; the server may run on another host",
            hints=['set method = "dump" for a server elsewhere'],
        )


def check_room(keeper: Connection, slot: str, directory: DataDirectory, what: str, hints: Sequence[str]) -> None:
    """Raise NoSpace if a slot holds more WAL than the server has free space: a server without any stops at once.

    But not if it holds less than one file of WAL: without the slot, the server would keep that file too.
    """
    free = directory.free_for_log()
    held, file = next(((held, file) for held, file in rows(keeper, _HELD, slot) if held is not None), (0, 0))
    if held > free and held >= file:
        raise NoSpace(
            f"{directory.path}/{WAL}: the server needs the space that its WAL takes {what}",
            detail=f"The retained WAL has {held} bytes, and {free} bytes are free; a server without space for "
            "its WAL stops. The retained WAL is released now.",
            hints=hints,
            facts={"needed_bytes": held, "free_bytes": free},
        )
