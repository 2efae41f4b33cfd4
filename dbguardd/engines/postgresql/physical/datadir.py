"""What lies in the data directory of a cluster, and what of it belongs into a physical backup.

Of one that runs, the rules are those of pg_basebackup; of one that rests, it is nearly all. No link is followed:
tablespaces are where the server says they are, and whatever else is no file and no directory is named and left out;
where no cluster is whole without it, it is refused. Every name is opened below the directory that was listed, never by
a path that somebody could have changed meanwhile.
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
from dataclasses import dataclass

from dbguardd.engines.postgresql.physical import configuration
from dbguardd.errors import GuardError, SourceChanged, SourceDamaged, SourceDenied, SourceInvalid, SourceMissing

TABLESPACES = "pg_tblspc"
CONTROL = "global/pg_control"
WAL = "pg_wal"

_EMPTY = frozenset(
    (WAL, "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans")
)
"""What is in there does not outlive a server, or (the log) is kept by itself."""
MADE_ANEW = frozenset(
    (
        *("backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old", "backup_manifest"),
        *("postmaster.pid", "postmaster.opts", "postgresql.auto.conf.tmp", "current_logfiles.tmp"),
        *("recovery.signal", "standby.signal", configuration.DIRECTORY),
    )
)
"""What is at the top and is made anew by whoever restores or starts a cluster."""
_LEFT_OUT_ANYWHERE = ("pgsql_tmp", "pg_internal.init")
_LEFT_OUT_AT_REST = frozenset(("postmaster.pid", "postmaster.opts"))
_WITH_RELATIONS = re.compile(rf"global|base/\d+|{TABLESPACES}/\d+/PG_\d+_\d+/\d+")
_RELATION = re.compile(r"(?P<node>\d+)(?:_(?P<fork>fsm|vm|init))?(?:\.\d+)?")
_NEEDED = re.compile(
    rf"base(?:/\d+)?|global|pg_(?:xact|multixact|commit_ts|twophase|logical|tblspc)|{TABLESPACES}/\d+/PG_\d+_\d+(?:/\d+)?"
)
"""Directories that no cluster is whole without."""
_TEMPORARY = re.compile(r"t\d+_\d+(?:_(?:fsm|vm|init))?(?:\.\d+)?")

_CONTROL_BYTES = 512  # its fields end before: so a disk writes them whole
_READINGS, _BETWEEN_SECONDS = 50, 0.01

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Member:
    """Something that belongs into the backup. `path` is relative to the data directory; `relation`: it has pages."""

    path: str
    directory: bool
    relation: bool
    _above: int  # the open directory that it was found in
    _name: str

    @contextmanager
    def opened(self) -> Iterator[int | None]:
        """Open the file; None if it has gone meanwhile, as a dropped relation does. Raises SourceDenied."""
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
    """The data directory of a cluster, opened. `tablespaces` are where the server says they are, by their number.

    `left_out` are the paths that members() met and did not follow or know, at most so many. Of a cluster that is
    `resting` all belongs to it that its server finds again.
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
        """Let go of the directory."""
        os.close(self.file)

    def has(self, path: str) -> bool:
        """Say if there is something at a path below."""
        try:
            os.stat(path, dir_fd=self.file, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read(self, path: str, most: int = 1 << 20) -> bytes:
        """Return the first bytes of a file below. Raises SourceDenied."""
        try:
            file = os.open(path, _FILE, dir_fd=self.file)
        except OSError as error:
            raise denied(path, error) from error
        try:
            return os.read(file, most)
        finally:
            os.close(file)

    def control(self) -> bytes:
        """Return pg_control as it is between two writes of the server. Raises SourceDamaged if it is never whole."""
        for _ in range(_READINGS):
            if is_control(found := self.read(CONTROL)):
                return found
            time.sleep(_BETWEEN_SECONDS)
        raise SourceDamaged(
            f"{self.path}/{CONTROL}: its checksum is wrong",
            detail="No server starts on that file; this one read it when it started.",
            hints=["keep the server running, and dump it: pg_dumpall"],
        )

    def free_for_log(self) -> int:
        """Return how many bytes the server may still write where its log lies: a disk of its own, perhaps."""
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
        """Yield what belongs into the backup, a directory before what is in it, but pg_control: it comes last of all.

        A member can be opened until the next is asked for. What comes or goes meanwhile, is there or not.
        """
        self.left_out = []
        self._walked.clear()
        yield from self._below(self.file, "")

    def met(self, path: str) -> None:
        """Note that a directory came that a server has sent: with that of its version a tablespace is there."""
        above, _, number = os.path.dirname(path).rpartition("/")
        if above == TABLESPACES and os.path.basename(path) == self._version:
            self._walked.add(number)

    def check_walked(self) -> None:
        """Raise SourceInvalid if members(), or what was met, has not come to a tablespace: dropped, or not there."""
        for number in sorted(set(self._tablespaces) - self._walked):
            raise SourceInvalid(
                f"{self._tablespaces[number]}: the tablespace that the server has there is not there",
                detail=f"{TABLESPACES}/{number} has to be a link to an absolute path, and a directory has to be there. "
                "A backup without it would lack all that is in it.",
            )

    def _below(self, above: int, path: str) -> Iterator[Member]:
        with os.scandir(above) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        unlogged = _unlogged(entries) if not self._resting and _WITH_RELATIONS.fullmatch(path) else frozenset()
        for entry in entries:
            inner = f"{path}/{entry.name}" if path else entry.name
            if inner in _LEFT_OUT_AT_REST if self._resting else _skipped(path, entry.name, inner):
                continue
            if entry.is_symlink():
                yield from self._link(above, entry.name, inner)
            elif entry.is_dir(follow_symlinks=False):
                yield Member(inner, True, False, above, entry.name)
                if inner not in self._empty and inner not in self._within:  # a tablespace in here is met by its link
                    yield from self._inside(above, entry.name, inner)
            elif entry.is_file(follow_symlinks=False):
                found = _RELATION.fullmatch(entry.name) if _WITH_RELATIONS.fullmatch(path) else None
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
            return  # a database that was dropped
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
        """A link is a tablespace that the server knows at that very place, or a directory of which nothing is kept.

        Else it is left out. Raises SourceInvalid, SourceDenied where something would be missing.
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
            return  # a tablespace that was dropped
        except OSError as error:
            raise denied(location or path, error) from error
        try:
            if os.fstat(place).st_uid != self._owner:
                raise SourceDenied(
                    f"{location}: the tablespace there belongs to another user than the data directory",
                    detail="It is not read, and a backup without it would lack all that is in it.",
                    hints=[shlex.join(["chown", str(self._owner), location])],
                )
            with suppress(FileNotFoundError):  # else an empty directory is there, where its disk is not
                os.stat(self._version, dir_fd=place, follow_symlinks=False)
                self._walked.add(name)
            yield Member(path, True, False, above, name)
            inner = f"{path}/{self._version}"  # another version's files may lie beside
            yield Member(inner, True, False, place, self._version)
            yield from self._inside(place, self._version, inner)
        finally:
            os.close(place)

    def _led(self, above: int, name: str, path: str) -> Iterator[Member]:
        """A directory that lies elsewhere, as the log does where initdb was told so."""
        try:
            place = os.open(name, _DIRECTORY, dir_fd=above)
        except OSError as error:
            raise denied(path, error) from error
        try:
            yield from self._below(place, path)
        finally:
            os.close(place)

    def leave(self, path: str, at: str) -> None:
        """Leave out a link in the data directory `at`. Raises SourceInvalid where no cluster is whole without it."""
        if _NEEDED.fullmatch(path) or is_relation(path):
            raise SourceInvalid(
                f"{at}/{path}: is a link, and no link of the server's own making",
                detail="It is not followed, and a backup without what it leads to would not be whole.",
                hints=["stop the server, and move what it leads to back in its place", 'set method = "dump"'],
            )
        self._leave(path)

    def _leave(self, path: str) -> None:
        if len(self.left_out) < self._TOLD:
            self.left_out.append(os.fsencode(path).decode("utf-8", "backslashreplace")[:200])


def is_control(data: bytes) -> bool:
    """Say if this is pg_control, whole: its fields end with the CRC-32C of all before. Where, each version says."""
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
    """Say if a path in a data directory is that of a relation's file."""
    above, _, name = path.rpartition("/")
    return _WITH_RELATIONS.fullmatch(above) is not None and _RELATION.fullmatch(name) is not None


def belongs(path: str) -> bool:
    """Say if what a running server has at a path belongs into a backup; members() yields nothing else."""
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
    """Return the numbers of the relations that have an init fork: no log makes what else they have whole."""
    found = (_RELATION.fullmatch(entry.name) for entry in entries)
    return frozenset(match["node"] for match in found if match is not None and match["fork"] == "init")


def denied(path: str, error: OSError) -> GuardError:
    """Return what it means that something in the data directory cannot be read."""
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    if isinstance(error, PermissionError):
        return SourceDenied(
            f"{shown}: cannot be read",
            detail=error.strerror or str(error),
            hints=["set run_as to the owner of the data directory"],
        )
    return SourceChanged(f"{shown}: cannot be read", detail=error.strerror or str(error))
