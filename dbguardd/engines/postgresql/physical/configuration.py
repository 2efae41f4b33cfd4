"""The configuration files of a cluster that lie outside its data directory, as on Debian.

A server does not start without them, and a lost machine has lost them too. The backup holds them in a directory of
their own, and a restored cluster can be started with them there. Nothing copies them back automatically.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Protocol

import psycopg
from psycopg import errors

from dbguardd.engines.postgresql.connect import Connection, row, rows
from dbguardd.errors import SourceInvalid

DIRECTORY = "dbguard-config"
"""The directory that holds them below a restored data directory."""

MAIN = f"{DIRECTORY}/postgresql.conf"
"""The name in a backup of the main file, postgresql.conf."""

_ELSEWHERE = "elsewhere"
_FILES = (("config_file", "postgresql.conf"), ("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf"))
_INCLUDED = b"SELECT DISTINCT sourcefile FROM pg_file_settings WHERE sourcefile IS NOT NULL"
_READ = b"SELECT pg_read_binary_file(%s, 0, %s, true)"
_DIRECTORIES = b"""
SELECT name FROM pg_ls_dir(%s) AS name WHERE (pg_stat_file(%s || '/' || name, true)).isdir
"""
_DEBIAN = re.compile(r"/etc/postgresql/(\d+)/([\w.]+)/postgresql\.conf")
_MOST_BYTES, _MOST_FILES = 1 << 20, 200


def outside(connection: Connection, directory: str) -> dict[str, str]:
    """Return the files outside the data directory: the path of each, by its name in a backup.

    Files that postgresql.conf includes keep their path relative to it; others go below "elsewhere" with their whole
    path.
    """
    told = {}
    for setting, name in _FILES:
        (place,) = row(connection, (bytes,), b"SELECT coalesce(current_setting(%s), '')", setting)
        told[name] = path = os.fsdecode(place)
        if PurePath(path).parent == PurePath(directory) and os.path.islink(path):  # links are not backed up
            told[name] = os.path.realpath(path)
    main, inside = PurePath(told["postgresql.conf"]), PurePath(directory)
    found = {f"{DIRECTORY}/{name}": place for name, place in told.items() if place}
    if main.parent == inside:  # already in every backup
        found = {name: place for name, place in found.items() if PurePath(place).parent != inside}
    included_files = list[tuple[object, ...]]()
    with suppress(errors.InsufficientPrivilege):  # then the included files are not backed up
        included_files = rows(connection, _INCLUDED)
    for place in (place for one in included_files for place in one if isinstance(place, bytes)):
        included = PurePath(os.fsdecode(place))
        if not included.is_relative_to(inside) and str(included) not in told.values():
            beside = included.is_relative_to(main.parent)
            name = str(included.relative_to(main.parent)) if beside else f"{_ELSEWHERE}{included}"
            found.setdefault(f"{DIRECTORY}/{name}", str(included))
    return dict(sorted(found.items())[:_MOST_FILES])


class ConfigurationFiles(Protocol):
    """Reads configuration files on a host. What cannot be read counts as missing."""

    def read(self, path: str) -> bytes | None:
        """Return the content of a file; None if it is missing, unreadable or too large."""

    def directories(self, path: str) -> list[str]:
        """Return the names of the directories in a directory."""


class LocalFiles:
    """The host that this process runs on."""

    def read(self, path: str) -> bytes | None:
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        with os.fdopen(file, "rb") as opened:
            about = os.fstat(file)
            fits = stat.S_ISREG(about.st_mode) and about.st_size <= _MOST_BYTES
            return opened.read() if fits else None

    def directories(self, path: str) -> list[str]:
        with suppress(OSError), os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
        return []


class ServerFiles:
    """The host of a server, read through its SQL functions."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(self, path: str) -> bytes | None:
        with suppress(psycopg.Error, SourceInvalid):  # the role may lack the right, or the file is gone
            (data,) = row(self._connection, (bytes,), _READ, path, _MOST_BYTES + 1)
            return bytes(data) if len(data) <= _MOST_BYTES else None
        return None

    def directories(self, path: str) -> list[str]:
        with suppress(psycopg.Error, SourceInvalid):
            found = rows(self._connection, _DIRECTORIES, path, path)
            return [os.fsdecode(name) for one in found for name in one if isinstance(name, bytes)]
        return []


def contents(files: Mapping[str, str], host: ConfigurationFiles) -> Iterator[tuple[str, bytes | None]]:
    """Yield each directory (with None) and each file with its content. Missing and unreadable files are left out.

    If postgresql.conf itself is unreadable, nothing is yielded: no server starts with the rest. Directories beside
    postgresql.conf are yielded even when empty: an include_dir may name one, which no server reports, and a server does
    not start if it is missing.
    """
    if (main := files.get(MAIN)) is not None and host.read(main) is None:
        return
    made = _directories(files, host)
    for name in sorted(filter(_leads_below, made)):
        yield name, None
    for name, place in files.items():
        content = host.read(place) if _leads_below(name) else None
        if content is not None:  # a restore without an unreadable file can still be started with another one
            yield name, content


def _leads_below(name: str) -> bool:
    """Return whether a name is safe as a relative path in a backup: a server may send anything."""
    return "\0" not in name and not {"", ".", ".."}.intersection(name.split("/"))


def _directories(files: Mapping[str, str], host: ConfigurationFiles) -> set[str]:
    found = {str(above) for name in files for above in PurePath(name).parents if above.name}
    if main := files.get(MAIN):
        found |= {f"{DIRECTORY}/{name}" for name in host.directories(os.path.dirname(main)) if "/" not in name}
    return set(sorted(found)[:_MOST_FILES])


def service(files: Mapping[str, str]) -> str:
    """Return the systemd unit of the server, if its configuration lies where Debian puts it; else ""."""
    found = _DEBIAN.fullmatch(files.get(MAIN, ""))
    return "" if found is None else f"postgresql@{found[1]}-{found[2]}"


def options(work: Path, target: Path) -> str:
    """Return the options, quoted for a shell, that start a server on the cluster in `work` with these files.

    "" if there are no such files. `target` is where the cluster will be.
    """
    if not (work / DIRECTORY).is_dir():
        return ""
    told = {name: target / DIRECTORY / file for name, file in _FILES if (work / DIRECTORY / file).is_file()}
    settings = {**told, "data_directory": target, "external_pid_file": ""}
    return " ".join(f"-c {name}={shlex.quote(str(value))}" for name, value in settings.items())
