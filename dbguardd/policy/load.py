"""Loads the policy: the main file, then conf.d/*.toml beside it in name order, checked as a whole.

1. No content is trusted that another user could have written: each file must be regular, belong to root or the daemon's
   user, and be writable by no one else; so must its directory. A file is opened once, and the opened file is checked.
2. Tables that are keyed by a name (database, class, storage, key) merge by name; in every table a later file wins key
   by key. Values that are tables themselves (keep, retry, ...) are replaced as a whole.
3. All mistakes in all files are found at once.
"""

from __future__ import annotations

import copy
import re
import shlex
import stat
import tomllib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dbguardd.errors import PolicyInvalid, PolicyUnsafe
from dbguardd.frozen import frozen
from dbguardd.policy import mistakes
from dbguardd.policy.accounts import gid_of_group, uid_of_user
from dbguardd.policy.judge import judge
from dbguardd.policy.mistakes import Mistake
from dbguardd.policy.policy import Policy
from dbguardd.policy.scan import MAX_BYTES, scan_text, scan_values
from dbguardd.policy.translate import translate

NAMED = frozenset(("database", "class", "storage", "key"))
"""Tables of tables, keyed by a name."""

_SYNTAX = re.compile(r"(?P<what>.*?) ?\(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
_UNREAD = "further mistakes show once this is corrected"
_ROUNDS = 4
Json = dict[str, Any]


@frozen
class Source:
    """One file, with its text and values."""

    path: str
    text: str
    values: Json = dataclass_field(default_factory=dict)


@frozen
class Host:
    """What the check needs from the host: the state directory, and its accounts."""

    state: str = "/var/lib/dbguard"
    uid_of: Callable[[str], int] = uid_of_user
    gid_of: Callable[[str], int] = gid_of_group


@frozen
class Loaded:
    """A valid policy, the origin of each key, and its warnings."""

    policy: Policy
    origins: Mapping[str, str]
    """by dotted key, for each key in a file: the file and line, "/etc/dbguard/policy.toml:9" """
    warnings: tuple[Mistake, ...]
    files: tuple[str, ...]


def load(path: Path, owner: int = 0, host: Host | None = None) -> Loaded:
    """Return the policy in `path` and its drop-ins; `owner` is the uid that is trusted besides root.

    Raises PolicyInvalid with every mistake (text in `detail`, objects in the fact `mistakes`), PolicyUnsafe.
    """
    policy, sources, found = check(path, owner, host)
    errors = [mistake for mistake in found if mistake.severity == "error"]
    if policy is None or errors:
        raise mistakes.refusal(str(path), found)
    return Loaded(policy, origins(sources), tuple(found), tuple(source.path for source in sources))


def check(
    path: Path, owner: int = 0, host: Host | None = None
) -> tuple[Policy | None, Sequence[Source], list[Mistake]]:
    """Return the policy (None if it is invalid), the files that were read, and every mistake in them.

    Raises PolicyUnsafe; PolicyInvalid only if there is no file.
    """
    found: list[Mistake] = []
    sources = [parse(str(file), read(file, owner), found) for file in policy_files(path, owner)]
    return check_sources(sources, found, host or Host())


def check_sources(
    sources: Sequence[Source], found: list[Mistake], host: Host
) -> tuple[Policy | None, Sequence[Source], list[Mistake]]:
    """Return what check() does; `found` are the mistakes that parse() has found."""
    if any(mistake.code == "config/syntax" for mistake in found):
        return None, sources, found  # checking half a policy would only produce false mistakes
    merged, owners = merge(sources)
    spans: dict[str, Mapping[mistakes.Path, mistakes.Spans]] = {}

    def locate(mistake: Mistake, of_key: bool) -> Mistake:
        return _locate(mistake, of_key, sources, owners, spans)

    scanned = dict(scan_values(merged))
    for where, what in scanned.items():
        found.append(locate(Mistake("error", "config/bad-value", f"{mistakes.dotted(where)}: {what}", where), False))
    policy: Policy | None
    try:
        policy = Policy.model_validate(merged)
    except ValidationError as error:
        translated = [pair for pair in translate(error, merged) if pair[0].path not in scanned]
        found += [locate(mistake, of_key) for mistake, of_key in translated]
        found += [locate(mistake, False) for mistake in _beside(merged, error, host)]
        policy = None
    else:
        found += [locate(mistake, False) for mistake in judge(policy, host.state, host.uid_of, host.gid_of)]
    order = {source.path: index for index, source in enumerate(sources)}
    found.sort(key=lambda mistake: (order.get(mistake.file, 0), mistake.line, mistake.column))
    return policy, sources, found


def _beside(merged: Json, error: ValidationError, host: Host) -> list[Mistake]:
    """Return the errors that judge() finds when the invalid values are left out.

    A table that lacks something it needs is left out as a whole, and errors that only follow from an omission are
    dropped.
    """
    wrong = [mistake.path for mistake, _ in translate(error, merged)]
    rest = {**copy.deepcopy(merged), "version": 1}
    policy, left_out = None, wrong
    for _ in range(_ROUNDS):
        for path in left_out:
            _leave_out(rest, path)
        try:
            policy = Policy.model_validate(rest)
            break
        except ValidationError as again:
            left_out = [mistake.path for mistake, _ in translate(again, rest)]
    if policy is None:
        return []
    return [
        mistake
        for mistake in judge(policy, host.state, host.uid_of, host.gid_of)
        if mistake.severity == "error" and not _follows(mistake, merged, wrong)
    ]


def _leave_out(values: Json, path: mistakes.Path) -> None:
    """Remove the setting at a path from a policy; if it is not there, the table that lacks it."""
    for end in range(min(len(path), 3 if path[:1] and path[0] in NAMED else 2), 0, -1):
        table: Any = values
        for part in path[: end - 1]:
            table = table.get(part) if isinstance(table, dict) else None
        if isinstance(table, dict) and path[end - 1] in table:
            del table[path[end - 1]]
            return


def _follows(mistake: Mistake, merged: Json, wrong: Sequence[mistakes.Path]) -> bool:
    """Return whether a mistake only follows from another: it names an omitted table, or a key checked in part."""
    if mistake.code == "config/missing-key" and mistake.path in wrong:
        return True
    if mistake.path[:1] == ("key",):
        return any(path[:2] == mistake.path[:2] for path in wrong)
    kind = mistake.code.removeprefix("config/no-such-")
    if kind == mistake.code:
        return False
    named: Any = merged
    for part in mistake.path:
        named = named[part]
    return isinstance(named, str) and named in (merged.get(kind) or {})


def policy_files(path: Path, owner: int) -> list[Path]:
    """Return the main file and its drop-ins in the order in which they apply.

    Raises PolicyUnsafe if another user could have put one there, PolicyInvalid if the directories cannot be read.
    """
    drop_ins = path.parent / "conf.d"
    files = [path]
    try:
        for folder in (path.parent, drop_ins):
            if folder.is_dir():
                _trust(folder, folder.stat(), owner)
        if drop_ins.is_dir():
            files += sorted(file for file in drop_ins.iterdir() if file.suffix == ".toml" and file.name[0] != ".")
    except OSError as error:
        raise _unreadable(drop_ins, error) from error
    return files


def read(file: Path, owner: int) -> bytes:
    """Return the content of one file of the policy, up to one byte more than the limit.

    Raises PolicyUnsafe if another user could have written it, PolicyInvalid if it cannot be read.
    """
    try:
        _trust(file, file.stat(), owner, regular=True)  # before opening: opening a pipe would block
        with file.open("rb") as opened:
            _trust(file, Path(f"/proc/self/fd/{opened.fileno()}").stat(), owner, regular=True)  # what was opened
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> PolicyInvalid:
    name = shlex.quote(str(file))
    begin = f"dbguardctl init --policy {name}" if isinstance(error, FileNotFoundError) else "man 5 dbguard.toml"
    return PolicyInvalid(f"{file}: cannot be read", detail=error.strerror or str(error), hints=[f"ls -l {name}", begin])


def _trust(file: Path, status: Any, owner: int, *, regular: bool = False) -> None:
    mode, name = status.st_mode, shlex.quote(str(file))
    if regular and not stat.S_ISREG(mode):
        raise PolicyUnsafe(f"{file}: not a regular file", detail="A policy is read from regular files only.")
    sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        raise PolicyUnsafe(
            f"{file}: other users may write to it",
            detail=f"Its mode is {stat.S_IMODE(mode):04o}; group and others must not have write permission.",
            hints=[f"chmod go-w {name}"],
        )
    if status.st_uid not in (0, owner):
        raise PolicyUnsafe(
            f"{file}: has another owner",
            detail=f"Its owner is uid {status.st_uid}; it must be root or uid {owner}, who reads it. "
            "By hand: run this as root or as its owner.",
            hints=[f"chown {'root' if regular else owner} {name}  # if what is in it is to be trusted"],
        )


def parse(name: str, data: bytes, found: list[Mistake]) -> Source:
    """Return one file with its values; add what is wrong with its TOML to `found`."""
    if len(data) > MAX_BYTES:
        found.append(Mistake("error", "config/syntax", f"the file is larger than {MAX_BYTES // 1024} KiB", file=name))
        return Source(name, "")
    try:
        text = data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        what = f"the file is not UTF-8 (byte {error.start})"
        found.append(Mistake("error", "config/syntax", what, file=name))
        return Source(name, "")
    hostile = [
        Mistake("error", "config/syntax", what, file=name, **mistakes.place(text, start, end))
        for start, end, what in scan_text(text)
    ]
    if hostile:
        found += hostile
        return Source(name, text)
    try:
        return Source(name, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        found.append(_syntax(name, text, str(error)))
    except (RecursionError, ValueError) as error:  # such as a number of 5,000 digits
        found.append(Mistake("error", "config/syntax", f"not TOML: {error}", file=name))
    return Source(name, text)


def _syntax(name: str, text: str, message: str) -> Mistake:
    match = _SYNTAX.fullmatch(message)
    what = match["what"] if match else message
    if match is None or match["line"] is None:
        start = len(text.rstrip("\n"))
    else:
        lines = text.split("\n")
        start = sum(len(line) + 1 for line in lines[: int(match["line"]) - 1]) + int(match["column"]) - 1
    where = mistakes.place(text, min(start, len(text)), start + 1)
    key = where["source"].partition("=")[0].strip()
    if what.startswith("Cannot overwrite a value") and key:
        what = f'the key "{key}" is given twice'
    elif what.startswith("Cannot declare") and key:
        what = f"the table {key} is given twice"
    what = f"not TOML: {what[:1].lower()}{what[1:]}"
    return Mistake("error", "config/syntax", what, file=name, hint=_UNREAD, **where)


def merge(sources: Sequence[Source]) -> tuple[Json, Mapping[mistakes.Path, int]]:
    """Return the combined values of all files, and for each merged key the index of the file that it comes from."""
    merged: Json = {}
    owners: dict[mistakes.Path, int] = {}
    for index, source in enumerate(sources):
        for table, values in source.values.items():
            _merge(merged, owners, (table,), values, index)
    return merged, owners


def _merge(into: Json, owners: dict[mistakes.Path, int], path: mistakes.Path, value: Any, index: int) -> None:
    key, named = str(path[-1]), path[0] in NAMED
    owners.setdefault(path, index)
    there = into.get(key)
    if len(path) <= (2 if named else 1) and isinstance(value, dict) and (there is None or isinstance(there, dict)):
        table = into.setdefault(key, {})
        for name, item in value.items():
            _merge(table, owners, (*path, name), item, index)
        return
    into[key] = value
    owners[path] = index


def _locate(
    mistake: Mistake,
    of_key: bool,
    sources: Sequence[Source],
    owners: Mapping[Any, int],
    spans: dict[str, Mapping[mistakes.Path, mistakes.Spans]],
) -> Mistake:
    """Return the mistake with the file, line and column of the key or value that its path names."""
    path = mistake.path
    owner = next((owners[path[:end]] for end in range(len(path), 0, -1) if path[:end] in owners), 0)
    if not sources:
        return mistake
    source = sources[owner]
    if source.path not in spans:
        spans[source.path] = mistakes.find_spans(source.text)
    span = mistakes.span_of(spans[source.path], path, of_key=of_key)
    where = mistakes.place(source.text, span.start, span.stop, path) if span else {}
    return Mistake(mistake.severity, mistake.code, mistake.message, path, source.path, hint=mistake.hint, **where)


def origins(sources: Sequence[Source]) -> Mapping[str, str]:
    """Return the file and line that decide each key in the files, by dotted key."""
    _, owners = merge(sources)
    spans = [mistakes.find_spans(source.text) for source in sources]
    ends = [[match.start() for match in re.finditer("\n", source.text)] for source in sources]
    known: dict[str, str] = {}
    for path, index in owners.items():
        span = mistakes.span_of(spans[index], path, of_key=True)
        line = f":{bisect_left(ends[index], span.start) + 1}" if span else ""
        known[mistakes.dotted(path)] = f"{sources[index].path}{line}"
    return known
