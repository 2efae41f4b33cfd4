"""Plain copies: verified files beside the repository that can be restored with `cp`.

A copy is NAME_YYYYMMDDTHHMMSSZ.EXT with a checksum file beside it (sha256sum format). The second and later backups of
one second are NAME_YYYYMMDDTHHMMSSZ_ID.EXT. NAME_latest.EXT is a link that only ever points to the newest copy of a
proven backup whose bytes were read back. The newest `count` copies are kept.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from dbguardd.durable import create_file, sync_directory
from dbguardd.errors import FULL, NoSpace, Unreachable
from dbguardd.jobs.base import Run, read_progress
from dbguardd.repository import Backup

_WHEN = r"\d{8}T\d{6}Z(_[0-9A-Z]{26})?"


def keep_plain(run: Run, backup: Backup) -> str | None:
    """Write a plain copy of a proven backup if the policy asks for it; return its path.

    Return None also if `count` copies of newer backups exist. An existing copy is written again if it does not match
    its checksum. Raises NoSpace and Unreachable; a failure leaves the older copies and the link as they were.
    """
    wanted, count = run.database["keep_plain"], int(run.database["keep_plain"]["count"])
    if not count:
        return None
    place = Path(wanted["path"])
    suffix = Path(str(run.database["settings"]["path"])).suffix or ".db"
    stem, suffix = run.name, ".sql" if backup.method == "dump" else suffix
    made: dict[str, str] = {}
    for other in reversed(run.repository.backups(run.name, expired=True)):
        made.setdefault(_name(other, stem, suffix), other.id)  # the first backup of a second has the short name
        made[_name(other, stem, suffix, f"_{other.id}")] = other.id
    copy = place / _name(backup, stem, suffix, f"_{backup.id}")
    if made[_name(backup, stem, suffix)] == backup.id and not copy.exists():
        copy = place / _name(backup, stem, suffix)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        if sum(made.get(other.name, "") > backup.id for other in _copies(place, stem, suffix, made)) >= count:
            return None
        if not _intact(copy):
            _sweep_temporary(place, stem)
            _write(run, backup, copy)
        copies = _copies(place, stem, suffix, made)
        _point(place / f"{stem}_latest{suffix}", copies[-1].name)
        for old in copies[:-count]:
            old.unlink(missing_ok=True)
            old.with_name(f"{old.name}.sha256").unlink(missing_ok=True)
    except OSError as error:
        kind = NoSpace if error.errno in FULL else Unreachable
        raise kind(
            f"{run.name}: no plain copy could be written to {place}", detail=error.strerror or str(error)
        ) from error
    run.report("plain.written", backup=backup.id, path=str(copy))
    return str(copy)


def _name(backup: Backup, stem: str, suffix: str, id: str = "") -> str:
    return f"{stem}_{backup.created_at:%Y%m%dT%H%M%SZ}{id}{suffix}"


def _copies(place: Path, stem: str, suffix: str, made: Mapping[str, str]) -> list[Path]:
    """Return the copies of one database, oldest first; only files with names made by this module.

    Their order is that of the ids in `made`: the time in a name may come from a clock that was ahead. Copies whose
    backup no longer exists come first.
    """
    pattern = re.compile(rf"{re.escape(stem)}_{_WHEN}{re.escape(suffix)}")
    found = (path for path in place.iterdir() if pattern.fullmatch(path.name))
    return sorted(found, key=lambda path: (made.get(path.name, ""), path.name))


def _intact(copy: Path) -> bool:
    """Return whether a copy exists and has the digest in its checksum file."""
    try:
        said = copy.with_name(f"{copy.name}.sha256").read_text().partition(" ")[0]
        file = os.open(copy, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    with os.fdopen(file, "rb") as found:
        return hashlib.file_digest(found, "sha256").hexdigest() == said


def _write(run: Run, backup: Backup, copy: Path) -> None:
    """Write, read back, make durable, then rename to its final name."""
    name = backup.streams[0].name
    temporary = copy.with_name(f".tmp-{copy.name}")
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with run.repository.tree(backup, read_progress(run, backup.source_bytes)) as tree:
            tree.deliver(name, file)
        os.fsync(file)
        os.lseek(file, 0, os.SEEK_SET)
        with os.fdopen(os.dup(file), "rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        checksum = temporary.with_name(f"{temporary.name}.sha256")
        create_file(checksum, f"{digest}  {copy.name}\n".encode())
        os.replace(checksum, copy.with_name(f"{copy.name}.sha256"))
        os.replace(temporary, copy)
    finally:
        os.close(file)
        temporary.unlink(missing_ok=True)
    sync_directory(copy.parent)


def _point(link: Path, name: str) -> None:
    """Let `link` point to `name` in one durable step."""
    temporary = link.with_name(f".tmp-{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, link)
    sync_directory(link.parent)


def _sweep_temporary(place: Path, stem: str) -> None:
    """Delete what a killed worker left; only one job per database runs, so no other process writes these names."""
    pattern = re.compile(rf"\.tmp-{re.escape(stem)}_({_WHEN}|latest)(\..*)?")
    for path in place.iterdir():
        if pattern.fullmatch(path.name):
            path.unlink(missing_ok=True)
