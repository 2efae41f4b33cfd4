"""Signs that a server works for us although it sends nothing: it reads dead rows, or a catalog of a million objects.

Where we can see its processes, their processor time tells. Elsewhere the server does: a session that it shows on a
processor, or with another query than before, is at work. One that waits whenever it is looked at (for a lock, a disk, a
network) is not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dbguardd.engines.postgresql.connect import Address, Connection, connected, listener_of, rows, text
from dbguardd.errors import GuardError

_SAMPLES, _PAUSE_SECONDS = 20, 0.05
_SESSIONS = b"""
SELECT pid::int8, state = 'active' AND wait_event IS NULL, query_start::text FROM pg_stat_activity
WHERE application_name = ANY (string_to_array(%s, ',')) OR pid::text = ANY (string_to_array(%s, ','))
"""


class Signs:
    """What is known of the sessions, and of the programs on this host, from which data should come."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._watched = set[str | int]()
        self._seen = dict[int, object]()  # by process, when it was last looked at

    @contextmanager
    def of(self, one: str | int) -> Iterator[None]:
        """Watch during the block: a session (the name of its application, or its process), or a program's process."""
        self._watched.add(one)
        try:
            yield
        finally:
            self._watched.discard(one)

    def at_work(self) -> bool:
        """Return whether any is seen at work, now or since the last look. Takes a second if none is."""
        names = ",".join(one for one in self._watched if isinstance(one, str))
        with suppress(GuardError), connected(self._address) as connection:
            server = listener_of(connection)
            for _ in range(_SAMPLES):
                if any([*self._programs(), *self._sessions(connection, server, names)]):
                    return True
                time.sleep(_PAUSE_SECONDS)
        return any([*self._programs()])

    def _programs(self) -> Iterator[bool]:
        """Yield for each program whether it is at work."""
        for one in self._watched:
            if isinstance(one, int):
                yield self._has_moved(one, _ticks(one))

    def _sessions(self, connection: Connection, server: int, names: str) -> Iterator[bool]:
        """Yield for each session whether it is at work. `server` is the server's process, if it can be seen."""
        for pid, on_processor, began in rows(connection, _SESSIONS, names, names):
            ticks = _ticks(pid, server) if server else None
            moved = self._has_moved(pid, text(began) if ticks is None else ticks)
            yield moved or (ticks is None and on_processor)

    def _has_moved(self, process: int, mark: object) -> bool:
        before = self._seen.get(process)
        self._seen[process] = mark
        return before is not None and before != mark


def _ticks(process: int, parent: int = 0) -> int | None:
    """Return the processor time of a process; None if it cannot be seen, or is not a child of `parent`."""
    with suppress(OSError, ValueError, IndexError):
        told = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        if not parent or int(told[1]) == parent:
            return int(told[11]) + int(told[12])
    return None
