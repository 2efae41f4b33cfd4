"""What lies in the data directory of a cluster, and which of it belongs in a physical backup.

For a running cluster the rules are those of pg_basebackup; for a stopped one nearly everything belongs. No link is
followed. Tablespaces are where the server says they are. Anything else that is neither file nor directory is reported
and left out, or refused if no cluster is whole without it. Every name is opened relative to the directory that was
listed, never by a path that somebody could have changed in between.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from dbguardd.engines.postgresql.physical import configuration
from dbguardd.errors import GuardError, SourceChanged, SourceDamaged, SourceDenied, SourceInvalid, SourceMissing
from dbguardd.frozen import frozen

TABLESPACES = "pg_tblspc"
CONTROL = "global/pg_control"
WAL = "pg_wal"

_EMPTY = frozenset(
    (WAL, "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans")
)
"""Directories whose content does not outlive a server, or (WAL) is stored separately."""
MADE_ANEW = frozenset(
    (
        *("backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old", "backup_manifest"),
        *("postmaster.pid", "postmaster.opts", "postgresql.auto.conf.tmp", "current_logfiles.tmp"),
        *("recovery.signal", "standby.signal", configuration.DIRECTORY),
    )
)
"""Files at the top level that a restore or a server start creates anew."""
_LEFT_OUT_ANYWHERE = ("pgsql_tmp", "pg_internal.init")
_LEFT_OUT_AT_REST = frozenset(("postmaster.pid", "postmaster.opts"))
_WITH_RELATIONS = re.compile(rf"global|base/\d+|{TABLESPACES}/\d+/PG_\d+_\d+/\d+")
_IN_DATABASE = re.compile(rf"(base/\d+|{TABLESPACES}/\d+/PG_\d+_\d+/\d+)/")
_RELATION = re.compile(r"(?P<node>\d+)(?:_(?P<fork>fsm|vm|init))?(?:\.\d+)?")
_NEEDED = re.compile(
    rf"base(?:/\d+)?|global|pg_(?:xact|multixact|commit_ts|twophase|logical|tblspc)|{TABLESPACES}/\d+/PG_\d+_\d+(?:/\d+)?"
)
"""Directories that every whole cluster has."""
_TEMPORARY = re.compile(r"t\d+_\d+(?:_(?:fsm|vm|init))?(?:\.\d+)?")

_CONTROL_BYTES = 512  # its fields end before this, so a disk writes them atomically
_READINGS, _BETWEEN_SECONDS = 50, 0.01

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@frozen
class Member:
    """Something that belongs in the backup. `path` is relative to the data directory. A `relation` has pages."""

    path: str
    directory: bool
    relation: bool
    _above: int  # the open directory that contains it
    _name: str

    @contextmanager
    def opened(self) -> Iterator[int | None]:
        """Open the file; yield None if it has gone, as a dropped relation does. Raises SourceDenied."""
        try:
            file = os.open(self._name, _FILE, dir_fd=self._above)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise denied(self.path, error) from error
        try:
            yield file if stat.S_ISREG(os.fstat(file).st_mode) else None
        finally:
            os.close(file)


class DataDirectory:
    """The opened data directory of a cluster. `tablespaces`: their places according to the server, by OID.

    `left_out` lists the paths that members() neither followed nor recognized, at most `_TOLD`. A `resting` cluster (its
    server is stopped) includes all that its server would find again.
    """

    _TOLD = 50

    def __init__(
        self, path: str, tablespaces: Mapping[str, str], version_directory: str, *, resting: bool = False
    ) -> None:
        self.path, self._tablespaces, self._version = path, tablespaces, version_directory
        self._resting, self._empty = resting, frozenset[str]() if resting else _EMPTY
        self._within = frozenset(os.path.relpath(place, path) for place in tablespaces.values())
        self.left_out: list[str] = []
        self._walked = set[str]()
        try:
            self.file = os.open(path, _DIRECTORY)
        except FileNotFoundError as error:
            raise SourceMissing(
                f"{path}: the data directory is not on this host",
                detail="A physical backup reads the files of the cluster, so it runs where they are.",
                hints=['set method = "dump" for a server elsewhere'],
            ) from error
        except OSError as error:
            raise denied(path, error) from error
        self._owner = os.fstat(self.file).st_uid

    def close(self) -> None:
        """Close the directory."""
        os.close(self.file)

    def has(self, path: str) -> bool:
        """Return whether something exists at a path in the data directory."""
        try:
            os.stat(path, dir_fd=self.file, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read(self, path: str, most: int = 1 << 20) -> bytes:
        """Return the first `most` bytes of a file in the data directory. Raises SourceDenied."""
        try:
            file = os.open(path, _FILE, dir_fd=self.file)
        except OSError as error:
            raise denied(path, error) from error
        try:
            return os.read(file, most)
        finally:
            os.close(file)

    def written_at(self, path: str) -> datetime | None:
        """Return when a file in the data directory was last written (UTC); None if it is not there."""
        try:
            found = os.stat(path, dir_fd=self.file, follow_symlinks=False)
        except OSError:
            return None
        return datetime.fromtimestamp(found.st_mtime, UTC)

    def control(self) -> bytes:
        """Return pg_control as it is between two writes by the server.

        Raises SourceDamaged if its checksum stays wrong.
        """
        for _ in range(_READINGS):
            if is_control(found := self.read(CONTROL)):
                return found
            time.sleep(_BETWEEN_SECONDS)
        raise SourceDamaged(
            f"{self.path}/{CONTROL}: its checksum is wrong",
            detail="No server starts with that file; this one read it when it started.",
            hints=["keep the server running, and dump it: pg_dumpall"],
        )

    def free_for_log(self) -> int:
        """Return how many bytes the server can still write where its WAL is, perhaps on a disk of its own."""
        try:
            file = os.open(WAL, _DIRECTORY, dir_fd=self.file)
            try:
                disk = os.fstatvfs(file)
            finally:
                os.close(file)
        except OSError as error:
            raise denied(WAL, error) from error
        return disk.f_bavail * disk.f_frsize

    def members(self) -> Iterator[Member]:
        """Yield what belongs in the backup, each directory before its content, except pg_control, which is copied last.

        A member can be opened until the next one is requested. A file that appears or disappears meanwhile may be
        missed.
        """
        self.left_out = []
        self._walked.clear()
        yield from self._below(self.file, "")

    def met(self, path: str) -> None:
        """Note a directory that a server has sent: one with this version's name shows that a tablespace exists."""
        above, _, number = os.path.dirname(path).rpartition("/")
        if above == TABLESPACES and os.path.basename(path) == self._version:
            self._walked.add(number)

    def check_walked(self) -> None:
        """Raise SourceInvalid if members() or met() has not come across a tablespace: it was dropped, or is missing."""
        for number in sorted(set(self._tablespaces) - self._walked):
            raise SourceInvalid(
                f"{self._tablespaces[number]}: a tablespace of the server is missing",
                detail=f"{TABLESPACES}/{number} has to be a link to an absolute path, and a directory has to be there. "
                "A backup would lack its content.",
            )

    def _below(self, above: int, path: str) -> Iterator[Member]:
        with os.scandir(above) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        with_relations = _WITH_RELATIONS.fullmatch(path) is not None
        unlogged = _unlogged(entries) if not self._resting and with_relations else frozenset()
        for entry in entries:
            inner = f"{path}/{entry.name}" if path else entry.name
            if inner in _LEFT_OUT_AT_REST if self._resting else _skipped(path, entry.name, inner):
                continue
            if entry.is_symlink():
                yield from self._link(above, entry.name, inner)
            elif entry.is_dir(follow_symlinks=False):
                yield Member(inner, True, False, above, entry.name)
                if inner not in self._empty and inner not in self._within:  # reached by its link
                    yield from self._inside(above, entry.name, inner)
            elif entry.is_file(follow_symlinks=False):
                found = _RELATION.fullmatch(entry.name) if with_relations else None
                if found and found["node"] in unlogged and found["fork"] != "init":
                    continue
                if inner != CONTROL:
                    yield Member(inner, False, found is not None, above, entry.name)
            else:
                self._leave(inner)

    def _inside(self, above: int, name: str, path: str) -> Iterator[Member]:
        try:
            directory = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        except FileNotFoundError:
            return  # a dropped database
        except NotADirectoryError:
            self.leave(path, self.path)
            return
        except OSError as error:
            raise denied(path, error) from error
        try:
            yield from self._below(directory, path)
        finally:
            os.close(directory)

    def _link(self, above: int, name: str, path: str) -> Iterator[Member]:
        """A link is a tablespace that the server knows at that place, or a directory whose content is not kept.

        Any other link is left out. Raises SourceInvalid or SourceDenied where something would be missing.
        """
        if path in _EMPTY:
            yield Member(path, True, False, above, name)
            if path not in self._empty:
                yield from self._led(above, name, path)
            return
        location = self._tablespaces.get(name) if os.path.dirname(path) == TABLESPACES else None
        try:
            if location is None or os.readlink(name, dir_fd=above) != location or not os.path.isabs(location):
                self.leave(path, self.path)
                return
            place = os.open(location, _DIRECTORY)
        except FileNotFoundError:
            return  # a dropped tablespace
        except OSError as error:
            raise denied(location or path, error) from error
        try:
            if os.fstat(place).st_uid != self._owner:
                raise SourceDenied(
                    f"{location}: the tablespace there belongs to another user than the data directory",
                    detail="It is not read, and a backup would lack its content.",
                    hints=[shlex.join(["chown", str(self._owner), location])],
                )
            with suppress(FileNotFoundError):  # without it this is the empty mount point of a missing disk
                os.stat(self._version, dir_fd=place, follow_symlinks=False)
                self._walked.add(name)
            yield Member(path, True, False, above, name)
            inner = f"{path}/{self._version}"  # files of other versions may lie beside it
            yield Member(inner, True, False, place, self._version)
            yield from self._inside(place, self._version, inner)
        finally:
            os.close(place)

    def _led(self, above: int, name: str, path: str) -> Iterator[Member]:
        """A directory that lies elsewhere, as the WAL directory does after initdb --waldir."""
        try:
            place = os.open(name, _DIRECTORY, dir_fd=above)
        except OSError as error:
            raise denied(path, error) from error
        try:
            yield from self._below(place, path)
        finally:
            os.close(place)

    def leave(self, path: str, at: str) -> None:
        """Leave out a link in the data directory `at`. Raises SourceInvalid if no cluster is whole without it."""
        if _NEEDED.fullmatch(path) or is_relation(path):
            raise SourceInvalid(
                f"{at}/{path}: is a link that the server did not make",
                detail="It is not followed, and a backup without its target would be incomplete.",
                hints=["stop the server, and move its target back in its place", 'set method = "dump"'],
            )
        self._leave(path)

    def _leave(self, path: str) -> None:
        if len(self.left_out) < self._TOLD:
            self.left_out.append(os.fsencode(path).decode("utf-8", "backslashreplace")[:200])


def is_control(data: bytes) -> bool:
    """Return whether this is a whole pg_control. Its fields end with their CRC-32C; the version determines where."""
    crc = 0xFFFFFFFF
    for at in range(0, min(len(data), _CONTROL_BYTES) - 3, 4):
        word = data[at : at + 4]
        if at and crc ^ 0xFFFFFFFF == int.from_bytes(word, sys.byteorder):
            return True
        for byte in word:
            crc = crc >> 8 ^ _CRC_32C[(crc ^ byte) & 0xFF]
    return False


def _crc_32c(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_32C = tuple(_crc_32c(byte) for byte in range(256))


def is_relation(path: str) -> bool:
    """Return whether a path in a data directory is that of a relation file."""
    above, _, name = path.rpartition("/")
    return _WITH_RELATIONS.fullmatch(above) is not None and _RELATION.fullmatch(name) is not None


def database_of(path: str) -> str:
    """Return the directory of the database in which a path in a data directory lies, "" if it lies in none."""
    found = _IN_DATABASE.match(path)
    return found[1] if found else ""


def belongs(path: str) -> bool:
    """Return whether a path of a running server belongs in a backup; members() yields no others."""
    parts = path.split("/")
    wholes = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    named = zip(["", *wholes], parts, wholes, strict=False)
    return not _EMPTY.intersection(wholes[:-1]) and not any(_skipped(*one) for one in named)


def _skipped(above: str, name: str, path: str) -> bool:
    return (
        name.startswith(_LEFT_OUT_ANYWHERE)
        or path in MADE_ANEW
        or (_TEMPORARY.fullmatch(name) is not None and _WITH_RELATIONS.fullmatch(above) is not None)
    )


def _unlogged(entries: list[os.DirEntry[str]]) -> frozenset[str]:
    """Return the numbers of relations with an init fork (unlogged): no WAL makes their other forks consistent."""
    found = (_RELATION.fullmatch(entry.name) for entry in entries)
    return frozenset(match["node"] for match in found if match is not None and match["fork"] == "init")


def denied(path: str, error: OSError) -> GuardError:
    """Return the error for something in the data directory that cannot be read."""
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    if isinstance(error, PermissionError):
        return SourceDenied(
            f"{shown}: cannot be read",
            detail=error.strerror or str(error),
            hints=["set run_as to the owner of the data directory"],
        )
    return SourceChanged(f"{shown}: cannot be read", detail=error.strerror or str(error))
