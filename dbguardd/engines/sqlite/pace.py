"""How a log of SQLite is followed: how often, in what portions, within which limits."""

from __future__ import annotations

from dbguardd.frozen import frozen


@frozen
class Pace:
    """How often the WAL is read, how large a segment becomes, when the WAL is to be restarted."""

    stream: str = "database"
    look_seconds: float = 0.5
    segment_bytes: int = 4 << 20
    turn_frames: int = 1000  # like SQLite's automatic checkpoint; from this length on we checkpoint
    behind_bytes: int = 1 << 30  # of the WAL that may wait to be read: until it is, the WAL cannot restart
    least_room_bytes: int = 256 << 20  # a WAL shorter than this is kept, however full its file system is
    max_block_seconds: float = 0.1
    lock_timeout_seconds: float = 10.0
    staging: str = ""
    scan_bytes: int = 32 << 20  # bytes of the main file read beside each look, until every page was read (see watch)
    audit_seconds: float = 86_400.0  # between two comparisons of the live file with its WAL
