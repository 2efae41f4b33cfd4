"""Storages, which hold bytes under names.

STORAGES is the table of kinds; open_storage opens one as a policy describes it. A new kind needs a new row, a module
that keeps the promises of storage/base.py, and a line in tests/storage/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dbguardd.errors import PolicyInvalid
from dbguardd.storage.base import MAX_OBJECT, Buffer, Capabilities, Entry, Storage
from dbguardd.storage.directory import Directory
from dbguardd.storage.room import Limits

__all__ = [
    "MAX_OBJECT",
    "STORAGES",
    "Buffer",
    "Capabilities",
    "Directory",
    "Entry",
    "Limits",
    "Storage",
    "open_storage",
]


def _directory(settings: Mapping[str, Any], create: bool) -> Storage:
    limits = Limits.of(settings.get("keep_free", 0), settings.get("max_bytes"))
    return Directory(Path(settings["path"]), create=create, limits=limits)


STORAGES: Mapping[str, Callable[[Mapping[str, Any], bool], Storage]] = {"directory": _directory}
"""Every kind of storage: its type in the policy, and the function that opens it."""


def open_storage(settings: Mapping[str, Any], *, create: bool = False) -> Storage:
    """Open a storage as the job spec describes it: type, and for a directory path, keep_free and max_bytes.

    `create` creates the place if it is missing (but no repository in it). Raises PolicyInvalid, Unreachable.
    """
    kind = settings.get("type", "directory")
    if kind not in STORAGES:
        raise PolicyInvalid(f"{settings.get('name', 'storage')}: unknown type {kind!r}", detail=", ".join(STORAGES))
    return STORAGES[kind](settings, create)
