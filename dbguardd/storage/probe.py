"""Finds out what a storage really does by trying it, because some servers and file systems only pretend."""

from __future__ import annotations

from dbguardd.errors import Conflict
from dbguardd.storage.base import Storage


def try_out(storage: Storage, name: str, now: float) -> tuple[bool, bool, float]:
    """Write `name`, write it again with the same and with other bytes, read it back, delete it.

    Returns whether it is create-only, whether it reads what was written, and the clock skew in seconds (storage minus
    host; `now` is the host's clock just before the call).
    """
    mine, other = f"mine {name}".encode(), f"other {name}".encode()
    try:
        storage.put(name, mine)
        skew = storage.stat(name).modified_at.timestamp() - now
        storage.put(name, mine)
        try:
            storage.put(name, other)
            create_only = False
        except Conflict:
            create_only = True
        reads = storage.get(name) == mine and [entry.size for entry in storage.list(name)] == [len(mine)]
    finally:
        storage.delete(name)
    return create_only, reads, skew
