"""Detects what a path or a server is, chooses a name for it, and writes or removes its drop-in."""

from __future__ import annotations

import errno
import os
import pwd
import re
import shlex
import tomllib
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field
from datetime import datetime
from pathlib import Path
from typing import Any

from dbguardd.catalog import Catalog
from dbguardd.daemon import adopting
from dbguardd.daemon.environment import Look
from dbguardd.daemon.inforce import PolicyInForce
from dbguardd.durable import publish_file, sync_directory
from dbguardd.errors import (
    PolicyInvalid,
    SourceDenied,
    SourceEncrypted,
    SourceInvalid,
    SourceMissing,
    Unsupported,
    Usage,
)
from dbguardd.frozen import frozen
from dbguardd.humanize import count, size
from dbguardd.kinds import KINDS, engine_of
from dbguardd.policy.addresses import named_in, socket_of, whole, wrong_with
from dbguardd.policy.load import Loaded
from dbguardd.policy.model import NAME
from dbguardd.policy.policy import Policy
from dbguardd.policy.render import render_database

_MAGIC = b"SQLite format 3\0"
_NOT_IN_NAMES = re.compile(r"[^a-z0-9_-]+")
_SPELLED = str.maketrans(
    {
        "\N{LATIN SMALL LETTER A WITH DIAERESIS}": "ae",
        "\N{LATIN SMALL LETTER O WITH DIAERESIS}": "oe",
        "\N{LATIN SMALL LETTER U WITH DIAERESIS}": "ue",
        "\N{LATIN SMALL LETTER SHARP S}": "ss",
    }
)
_MAX_NAME = 63
_ALL = "36500d"  # longer than the `keep` of any lost policy


@frozen
class Found:
    """What was detected: its real path, or the address of its server, and a description."""

    path: str
    what: str
    wal: bool = False  # it has a log that can be followed
    engine: str = "sqlite"
    method: str = ""  # the method, if not the default
    lacks: str = ""  # why its log cannot be followed
    mends: Sequence[str] = ()  # what the user can do about that
    closely: Mapping[str, Any] = field(default_factory=dict)  # what is known of its content


@frozen
class Wanted:
    """What the user asks for: a name (empty: made from the path), and whether the log is to be followed.

    `adopt` is the name of a database that only has backups, and that this database is said to be; `confirm` repeats the
    name to insist although the database does not look like it.
    """

    name: str = ""
    continuous: bool = False
    adopt: str = ""
    confirm: str = ""

    @property
    def options(self) -> str:
        """What is typed behind the path to ask for this."""
        named = f" --name {shlex.quote(self.name)}" if self.name else ""
        return named + " --continuous" * self.continuous + (f" --adopt {shlex.quote(self.adopt)}" if self.adopt else "")


@frozen
class Plan:
    """What protect would do; nothing is done yet."""

    database: str
    engine: str
    path: str
    found: str  # the description of what was detected
    file: Path
    text: str
    spared: int = 0  # backups that the default `keep` would delete at once: it gets a `keep` that keeps all
    successor: bool = False  # the user says that it continues the database of these backups


async def detect(path: str, wanted: Wanted, look: Look, state: Path) -> Found:
    """Detect what is at `path`. Raises Usage, Unsupported, SourceMissing, -Denied, -Invalid, -Encrypted ..."""
    if (engine := engine_of(path)) is not None:
        return await _detect_server(engine, whole(path), wanted, look)
    if "://" in path:
        raise Unsupported(
            f"{path}: is the address of an unknown kind of server",
            detail="This version protects SQLite database files (a path) and PostgreSQL servers (postgresql:///).",
        )
    return await _detect_file(path, look, state)


async def _detect_file(path: str, look: Look, state: Path) -> Found:
    if not os.path.isabs(path) or any(char < " " or char == "\x7f" for char in path):
        raise Usage(f"{path!r}: an absolute path is needed")
    try:
        seen = await look(path)
    except FileNotFoundError as error:
        raise SourceMissing(f"{path}: there is no such file", hints=[f"ls -l {shlex.quote(path)}"]) from error
    except OSError as error:
        raise _unseen(path, error) from error
    if Path(seen["path"]).is_relative_to(os.path.realpath(state)):
        raise Usage(
            f"{path}: is one of dbguard's own files",
            detail=f"Files in {state} need no backup: a lost catalog is rebuilt from the backups.",
        )
    _refuse_side_file(str(seen["path"]))
    if not seen["regular"]:
        raise Unsupported(
            f"{path}: is not a regular file",
            detail="This version protects SQLite database files and PostgreSQL servers (postgresql:///).",
            hints=["dbguardctl protect postgresql:///" if "postgres" in path else f"ls -l {shlex.quote(path)}"],
        )
    head = bytes.fromhex(seen["head"])[: len(_MAGIC)]
    if head and head != _MAGIC and _readable(head):
        raise SourceInvalid(f"{path}: is not a database, it looks like text")
    if head and head != _MAGIC:
        raise SourceEncrypted(
            f"{path}: does not begin like a SQLite database",
            detail="It is encrypted, or of a kind that is not supported.",
        )
    if not seen["size_bytes"]:
        raise SourceInvalid(f"{path}: is empty", detail="Protect it once the application has written to it.")
    if not head:
        raise SourceDenied(f"{path}: its owner may not read it", hints=[f"ls -l {shlex.quote(path)}"])
    what = f"SQLite database, {size(seen['size_bytes'])}, owned by uid {seen['uid']}"
    closely, real = {"empty": seen.get("empty")}, _writable(str(seen["path"]), path)
    return Found(real, what, wal=bytes.fromhex(seen["head"])[18:20] == b"\2\2", closely=closely)


def _writable(real: str, path: str) -> str:
    """Return the real path, or `path` if the real one contains characters that a policy must not have."""
    try:
        real.encode()
    except UnicodeEncodeError:
        return path
    return path if any(unicodedata.category(char) == "Cc" for char in real) else real


def _unseen(path: str, error: OSError) -> SourceDenied:
    """Return the error for a path that could not be examined, with a hint to the target if it is a link."""
    if not os.path.islink(path) or error.errno == errno.ELOOP:
        return SourceDenied(f"{path}: cannot be examined", detail=error.strerror or str(error))
    there = os.path.join(os.path.dirname(path), os.readlink(path))
    hints = [f"dbguardctl protect {shlex.quote(there)}"]
    return SourceDenied(f"{path}: is a link to {there}", detail="The link's owner has no access there.", hints=hints)


async def _detect_server(engine: str, url: str, wanted: Wanted, look: Look) -> Found:
    """Examine a server; raise Unsupported if something is missing that a backup or its proof needs."""
    if wrong := wrong_with(url):
        raise Usage(f"this address {wrong}", hints=["man 5 dbguard.toml  # POSTGRESQL"])
    try:
        seen = await look(url)
    except PolicyInvalid as error:  # its hints name policy files, but there is none for this database yet
        raise Usage(error.message, detail=error.detail, hints=["man 5 dbguard.toml  # POSTGRESQL"]) from error
    probe = seen["probe"]
    lacking = [found["detail"] for found in probe["findings"] if found["outcome"] == "failed"]
    if lacking:
        if any("run_as" in said for said in lacking):
            lacking.append(
                "Its policy does not exist yet: write [database.NAME] with engine, url, method and run_as into a new "
                "file in conf.d, then: dbguardctl reload"
            )
        raise Unsupported(
            f"{url}: it cannot be backed up and proven yet, something is missing",
            detail="\n".join(lacking),
            hints=[f"dbguardctl protect {shlex.quote(url)}{wanted.options}"],
        )
    databases = int(probe["facts"]["databases"])
    many = count(databases, "database")
    server = f"{KINDS[engine].title} {probe['version']}"
    what = f"{server}, {many}, {size(probe['size_bytes'])}, opened as {_user(seen['uid'])}"
    method, wal = str(probe["facts"].get("method", "")), bool(probe["facts"].get("followed"))
    lacks = next((found["detail"] for found in probe["findings"] if found["name"] == "following its log"), "")
    lacks = lacks or "a log needs backups by pages, which are not possible here"
    closely = {name: probe["facts"].get(name) for name in ("empty", "system", "position")}
    return Found(url, what, wal, engine, method, lacks, probe["facts"].get("mends", ()), closely)


def _refuse_side_file(path: str) -> None:
    """Raise Usage for a WAL or a journal of SQLite, which is a part of the database beside it."""
    for side in ("-wal", "-shm", "-journal"):
        if path.endswith(side):
            whole = path.removesuffix(side)
            raise Usage(
                f"{path}: is a part of a database, not the database",
                detail=f"It belongs to {whole}, and each backup of that includes its content.",
                hints=[f"dbguardctl protect {shlex.quote(whole)}"],
            )


def _readable(head: bytes) -> bool:
    """Return whether the first bytes of a file are text, which encrypted data hardly ever is."""
    with suppress(UnicodeDecodeError):
        return all(char.isprintable() or char.isspace() for char in head.decode())
    return False


def plan(found: Found, wanted: Wanted, inforce: PolicyInForce, catalog: Catalog, now: datetime) -> Plan:
    """Plan the drop-in for what was detected. Raises Usage if it is protected already, and what adopting.py raises."""
    real, policy = found.path, inforce.policy
    for other in policy.names():
        theirs = policy.guarded(other)
        if _meant(real) == _meant(theirs.source):
            raise _guarded_already(real, other, inforce, follows=not wanted.continuous or bool(theirs.continuous))
    if wanted.continuous and not found.wal:
        raise _not_followed(found, wanted)
    if wanted.confirm not in ("", wanted.adopt):
        raise Usage(f"{real}: --confirm must repeat the adopted name, not {wanted.confirm!r}")
    if wanted.name and wanted.adopt:
        raise Usage(f"{real}: an adopted database keeps its name, {wanted.adopt}")
    chosen = choose_name(wanted.adopt or wanted.name, real, policy)
    asked = f"dbguardctl protect {shlex.quote(real)}{' --continuous' * wanted.continuous}"
    seen = adopting.Seen(real, found.engine, **found.closely)
    ways = adopting.Ways(asked, _numbered(chosen, [*policy.names(), *catalog.backups.databases()]))
    adopting.check_left(chosen, seen, wanted.adopt, catalog, ways)
    if wanted.adopt and wanted.confirm != wanted.adopt:
        adopting.check_same(chosen, seen, catalog, ways)
    file = inforce.path.parent / "conf.d" / f"{chosen}.toml"
    if file.exists():
        raise Usage(f"{file}: exists already", hints=[f"{asked} --name OTHER"])
    settings: dict[str, str | bool | Mapping[str, str]] = {"engine": found.engine, KINDS[found.engine].where: real}
    settings |= {"method": found.method} if found.method not in ("", KINDS[found.engine].methods[0]) else {}
    settings |= {"continuous": True} if wanted.continuous else {}
    spared, logged = adopting.goes_with(chosen, settings, inforce) if wanted.adopt else (0, False)
    settings |= {"keep": {"within": _ALL}} if spared else {}
    settings |= {"keep_log": _ALL} if logged else {}
    text = render_database(chosen, settings, now, f"dbguardctl protect {shlex.quote(real)}{wanted.options}")
    moved = engine_of(real) is None  # a file may have been moved, and written anew since
    successor = bool(wanted.adopt) and (moved or adopting.is_another(chosen, seen, catalog))
    return Plan(chosen, found.engine, real, found.what, file, text, spared, successor)


def _guarded_already(real: str, name: str, inforce: PolicyInForce, *, follows: bool) -> Usage:
    """Return the error that names the existing protection and, if needed, says how to follow the log."""
    message, hints = f"{real}: is already protected as database {name}", [f"dbguardctl status {name}"]
    if follows:
        return Usage(message, hints=hints)
    file = inforce.path.parent / "conf.d" / f"{name}.toml"
    where = f"{file}, in its table" if file.exists() else "the policy, in the table"
    detail = f"To follow its log from now on, add to {where} [database.{name}]: continuous = true"
    return Usage(message, detail=detail, hints=["dbguardctl reload", f"dbguardctl check {name}"])


def _not_followed(found: Found, wanted: Wanted) -> Unsupported:
    """Return the error that says why a log cannot be followed, and what helps."""
    named = f" --name {wanted.name}" if wanted.name else f" --adopt {wanted.adopt}" if wanted.adopt else ""
    without = f"dbguardctl protect {shlex.quote(found.path)}{named}"
    if found.engine != "sqlite":
        said = found.lacks.partition(" Fix: ")[0] if len(found.mends) == 1 else found.lacks  # the fix is a hint
        without += "  # without its log"
        return Unsupported(f"{found.path}: its log cannot be followed", detail=said, hints=[*found.mends, without])
    return Unsupported(
        f"{found.path}: it has no log to follow (journal mode is not WAL)",
        detail="Only in WAL mode can each commit be read beside the application. dbguard never changes it. "
        'Without: backup = "every 1min" in its policy makes a point each minute, which is what can be restored.',
        hints=[f"sqlite3 {shlex.quote(found.path)} 'PRAGMA journal_mode=WAL'", without],
    )


def _meant(place: str) -> str:
    """Return a canonical name of a place: the real path of a file, or the socket of a server and its database."""
    if engine_of(place) is None:
        return os.path.realpath(place)
    socket = socket_of(place)
    return place if socket is None else f"{os.path.realpath(socket)} {named_in(place)}"


def choose_name(name: str, path: str, policy: Policy) -> str:
    """Return the requested name, or one made from the path or address. Raises Usage if it is invalid or taken."""
    called = Path(path).stem if engine_of(path) is None else named_in(path) or str(engine_of(path))
    plain = unicodedata.normalize("NFKD", called.lower().translate(_SPELLED))
    letters = "".join(char for char in plain if not unicodedata.combining(char))
    stem = _NOT_IN_NAMES.sub("-", letters).strip("-_")[:_MAX_NAME].rstrip("-_") or "database"
    if name:
        if not re.fullmatch(NAME, name):
            raise Usage(
                f"{name!r}: is not a valid name for a database",
                detail=f"A name has at most {_MAX_NAME} of a-z, 0-9, - and _, and starts with a letter or a digit.",
                hints=[f"dbguardctl protect {shlex.quote(path)} --name {stem}"],
            )
        if name in policy.names():
            raise Usage(f"{name}: a database of that name exists already", hints=["dbguardctl status"])
        return name
    return _numbered(stem, policy.names())


def _numbered(stem: str, taken: Collection[str]) -> str:
    """Return the first name that is not taken: `stem`, or `stem` with a number."""
    names = (stem if number == 1 else f"{stem[: _MAX_NAME - 4]}-{number}" for number in range(1, 1000))
    return next(candidate for candidate in names if candidate not in taken)


def write(planned: Plan) -> None:
    """Write the drop-in, complete and durable on return; never replace a file. Raises PolicyInvalid."""
    try:
        planned.file.parent.mkdir(mode=0o750, exist_ok=True)
        publish_file(planned.file, planned.text.encode(), 0o640)
    except OSError as error:
        raise PolicyInvalid(
            f"{planned.file}: the drop-in cannot be written",
            detail=error.strerror or str(error),
            hints=["write it yourself, then: dbguardctl reload"],
        ) from error


def undo(planned: Plan) -> None:
    """Remove the drop-in again: the policy with it was refused."""
    with suppress(OSError):
        planned.file.unlink(missing_ok=True)
        sync_directory(planned.file.parent)


def drop_in(name: str, loaded: Loaded, policy_file: Path) -> Path:
    """Return the drop-in that contains a database and nothing else. Raises NotFound; Usage if there is none."""
    loaded.policy.guarded(name)
    said = {file: tomllib.loads(Path(file).read_text(encoding="utf-8")) for file in loaded.files}
    places = [file for file, tables in said.items() if name in tables.get("database", {})]
    alone = [file for file in places if list(said[file]) == ["database"] and list(said[file]["database"]) == [name]]
    if places != alone or len(alone) != 1 or Path(alone[0]).parent != policy_file.parent / "conf.d":
        raise Usage(
            f"{name}: its policy is not in a file of its own, so nothing was removed",
            detail=f"Remove [database.{name}] from {' and '.join(places)}, then reload. Its backups stay.",
            hints=["dbguardctl reload"],
        )
    return Path(alone[0])


@contextmanager
def away(file: Path) -> Iterator[None]:
    """Move a drop-in aside while the block reloads the policy; put it back if that fails. Raises PolicyInvalid."""
    aside = file.with_name(f".{file.name}.{os.getpid()}.away")  # hidden files are not read
    try:
        file.rename(aside)
    except OSError as error:
        raise PolicyInvalid(
            f"{file}: the drop-in cannot be removed",
            detail=error.strerror or str(error),
            hints=["remove it yourself, then: dbguardctl reload"],
        ) from error
    try:
        yield
    except BaseException:
        aside.rename(file)
        raise
    aside.unlink(missing_ok=True)
    sync_directory(file.parent)


def _user(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"uid {uid}"
