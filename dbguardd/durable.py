"""Writes files so that all of their bytes are there, and stay there after a crash. Every function may raise OSError."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME_LETTERS = 200  # of a file's name in the name of its draft: more would leave no room for the rest


def write_at(file: int, data: bytes | bytearray | memoryview, at: int) -> None:
    """Write all of `data` at an offset of an open file, which the caller makes durable."""
    rest = memoryview(data)
    while rest:
        done = os.pwrite(file, rest, at)
        rest, at = rest[done:], at + done


def create_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Create a file of this mode. Its content is durable on return, its name is not. Raises FileExistsError."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(file, "wb") as out:
        os.fchmod(file, mode)
        out.write(data)
        out.flush()
        os.fsync(file)


def publish_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Create a file all or nothing, durable on return. Raises FileExistsError."""
    with _drafted(path, data, mode) as draft:
        os.link(draft, path)
    sync_directory(path.parent)


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Create or replace a file all or nothing, durable on return."""
    with _drafted(path, data, mode) as draft:
        draft.replace(path)
    sync_directory(path.parent)


@contextmanager
def _drafted(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """Create a hidden file beside `path`; what the block leaves of it is removed."""
    draft = path.with_name(f".{path.name[:_NAME_LETTERS]}.{os.getpid()}.tmp")
    try:
        draft.unlink(missing_ok=True)  # left by a killed process
        create_file(draft, data, mode)
        yield draft
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make the entries of a directory durable: a new file survives a crash only if its directory was synced, too."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
