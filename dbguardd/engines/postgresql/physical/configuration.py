"""The files that configure a cluster and lie outside of its data directory, as Debian has them.

A server does not start without them, and a machine that is lost has lost them, too. In a backup they lie in a directory
of their own, from where a restored cluster can be started; nothing takes them from there by itself.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath

from dbguardd.engines.postgresql.connect import Connection, rows

DIRECTORY = "dbguard-config"
"""Where they lie below a restored data directory."""

_FILES = (("config_file", "postgresql.conf"), ("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf"))
_INCLUDED = b"SELECT DISTINCT sourcefile FROM pg_file_settings WHERE sourcefile IS NOT NULL"
_DEBIAN = re.compile(r"/etc/postgresql/(\d+)/([\w.]+)/postgresql\.conf")
_MOST_BYTES, _MOST_FILES = 1 << 20, 200


def outside(connection: Connection, directory: str) -> dict[str, str]:
    """Return the files outside of the data directory: where each is, by the name that it has in a backup.

    Those that postgresql.conf includes keep their place beside it. Empty if that is in the data directory itself.
    """
    told = {}
    for setting, name in _FILES:
        ((place,),) = rows(connection, b"SELECT current_setting(%s)", setting)
        told[name] = path = os.fsdecode(place or b"")
        if PurePath(path).parent == PurePath(directory) and os.path.islink(path):  # of links there is no backup
            told[name] = os.path.realpath(path)
    main = PurePath(told["postgresql.conf"])
    if main.parent == PurePath(directory):
        return {}
    found = {f"{DIRECTORY}/{name}": place for name, place in told.items() if place}
    for (place,) in rows(connection, _INCLUDED):
        included = PurePath(os.fsdecode(place))
        if included.is_relative_to(main.parent) and not included.is_relative_to(directory):
            found.setdefault(f"{DIRECTORY}/{included.relative_to(main.parent)}", str(included))
    return dict(sorted(found.items())[:_MOST_FILES])


def contents(files: Mapping[str, str]) -> Iterator[tuple[str, bytes | None]]:
    """Yield each directory (None) and each file with its content; what is gone or cannot be read is left out.

    Directories beside postgresql.conf are there although nothing is in them: that it includes one without files is told
    by no server, and without it none starts.
    """
    made = _directories(files)
    for name in sorted(made):
        yield name, None
    for name, place in files.items():
        try:
            file = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # a restore that lacks it can be started by another one
        with os.fdopen(file, "rb") as opened:
            about = os.fstat(file)
            if stat.S_ISREG(about.st_mode) and about.st_size <= _MOST_BYTES:
                yield name, opened.read()


def _directories(files: Mapping[str, str]) -> set[str]:
    found = {str(above) for name in files for above in PurePath(name).parents if above.name}
    main = files.get(f"{DIRECTORY}/postgresql.conf")
    with suppress(OSError):
        for entry in os.scandir(os.path.dirname(main)) if main else ():
            if entry.is_dir():
                found.add(f"{DIRECTORY}/{entry.name}")
    return set(sorted(found)[:_MOST_FILES])


def service(files: Mapping[str, str]) -> str:
    """Return the unit of the server that these files configure, where they lie as Debian has them; else nothing."""
    found = _DEBIAN.fullmatch(files.get(f"{DIRECTORY}/postgresql.conf", ""))
    return "" if found is None else f"postgresql@{found[1]}-{found[2]}"


def options(target: Path) -> str:
    """Return the options of a server that starts on a restored cluster with those files; quoted for a shell."""
    place = target / DIRECTORY
    told = {setting: place / name for setting, name in _FILES}
    settings = {**told, "data_directory": target, "external_pid_file": ""}
    return " ".join(f"-c {name}={shlex.quote(str(value))}" for name, value in settings.items())
