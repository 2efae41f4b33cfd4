"""The audit log: which user asked for what and how it ended; append-only JSON lines in a hash chain.

1. An entry is one line: canonical JSON with `prev`, the hash of the entry before, and `hash`, the SHA-256 of the line
   without `hash`. Any changed, removed, added or moved byte breaks the chain or the line's own hash.
2. An append is durable (fsync) before it returns, so an intent is on disk before the action that it announces.
3. The head is anchored outside the file: in the catalog after each append, and through `witness` (the journal). A file
   that is shorter than its anchor, or whose end was replaced, does not verify.
4. A line that a crash left torn is preserved in the entry that reports it. Nothing is repaired silently, and every
   later verification reports again a break that was found at start.
A chain does not stop an attacker who can rewrite file, catalog and journal; a remote copy of the journal does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dbguardd.catalog.times import to_text
from dbguardd.durable import sync_directory
from dbguardd.errors import AuditBroken, Degraded, GuardError, SecondInstance, Usage, of_file
from dbguardd.frozen import frozen

_ANCHOR = "audit_head"
_START = "0" * 64
_NOTE_BYTES = 4096
_FINDINGS = 100
_WINDOW_BYTES = 1 << 20
_BROKEN = "audit.broken"
_UNANCHORED = "audit.unanchored"
_NO_ENTRY = (ValueError, TypeError, KeyError, RecursionError)
"""What reading a line raises that is not an entry."""


@frozen
class Who:
    """The user who acted, as the kernel reported it; uid and pid are None for the daemon itself."""

    user: str
    uid: int | None = None
    pid: int | None = None
    role: str = ""


@frozen
class Entry:
    """One line of the log."""

    seq: int
    at: str
    actor: Who
    action: str
    object: str
    outcome: str  # intent | done | failed | denied | noted ...
    facts: Mapping[str, Any] = field(default_factory=dict)
    prev: str = _START
    hash: str = ""


@frozen
class Verified:
    """A chain that verifies. `notes`: what a user should still compare with the journal."""

    entries: int
    head: str
    notes: tuple[str, ...] = ()


class Anchor(Protocol):
    """Where the head is stored outside the file; Settings of the catalog."""

    def get(self, key: str) -> str | None: ...

    def put(self, key: str, value: str) -> None: ...


class Audit:
    """The open log. It has one writer, which holds a lock."""

    def __init__(self, path: Path, anchor: Anchor, witness: Callable[[Entry], None]) -> None:
        self._path = path
        self._anchor = anchor
        self._witness = witness
        self._file = -1
        self._seq = 0
        self._head = _START

    @classmethod
    def open(cls, path: Path, anchor: Anchor, now: datetime, witness: Callable[[Entry], None]) -> Audit:
        """Open or create; a torn or broken end is recorded as an entry. Raises SecondInstance, Degraded."""
        audit = cls(path, anchor, witness)
        try:
            audit._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(audit._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_directory(path.parent)
            audit._resume(now)
        except BlockingIOError as error:
            audit.close()
            raise SecondInstance(f"{path}: another process writes the audit log") from error
        except OSError as error:
            audit.close()
            raise _outcome(path, error) from error
        except BaseException:
            audit.close()
            raise
        return audit

    def append(
        self,
        now: datetime,
        actor: Who,
        *,
        action: str,
        object: str,
        outcome: str,
        facts: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Write one entry, durable on return. Raises NoSpace, Degraded: then the announced action must not happen."""
        body = asdict(Entry(self._seq + 1, to_text(now), actor, action, object, outcome, dict(facts or {}), self._head))
        del body["hash"]
        line = {**body, "hash": _digest(body)}
        try:
            self._write(_canonical(line) + b"\n")
        except OSError as error:
            raise _outcome(self._path, error) from error
        entry = _entry(line)
        self._seq, self._head = entry.seq, entry.hash
        self._anchor.put(_ANCHOR, f"{entry.seq}:{entry.hash}")
        self._witness(entry)
        return entry

    def show(self, after: int, limit: int) -> list[Entry]:
        """Return the first `limit` entries after a number; if negative, the last ones. Unreadable lines are skipped."""
        entries: list[Entry] = []
        for line in deque(self._lines(), maxlen=limit) if after < 0 else self._lines():
            with suppress(*_NO_ENTRY):
                entry = _entry(json.loads(line))
                if entry.seq > after:
                    entries.append(entry)
                if len(entries) == limit:
                    break
        return entries

    def verify(self) -> Verified:
        """Check every byte. Raises AuditBroken with all findings."""
        return self.verification()()

    def verification(self) -> Callable[[], Verified]:
        """Return a function that verifies the log as of now, in any thread. 100,000 entries take a second."""
        try:
            return partial(self._verify, self._anchor.get(_ANCHOR), self._path.stat().st_size)
        except OSError as error:
            raise _outcome(self._path, error) from error

    def _verify(self, anchor: str | None, size: int) -> Verified:
        findings: list[str] = []
        notes: list[str] = []
        expected, head, seen, entries = 0, _START, {0: _START}, 0
        anchored = int((anchor or "0").partition(":")[0])
        for entries, line in enumerate(self._lines(size), start=1):
            expected += 1
            entry, finding = _check(line, expected, head)
            if finding and len(findings) < _FINDINGS:
                findings.append(f"line {entries}: {finding}")
            if entry is not None:
                expected, head = entry.seq, entry.hash
                said = f"line {entries}: {entry.at}: {entry.facts.get('finding', '')}"
                if entry.action == _BROKEN:
                    findings.append(said)
                elif entry.action == _UNANCHORED:
                    notes.append(said)
            if expected == anchored:
                seen[expected] = head
        seen[expected] = head
        findings += _against_anchor(anchor, seen)
        if findings:
            raise AuditBroken(
                f"{self._path}: the audit log was changed",
                detail="\n".join(findings[:20]),
                facts={"findings": findings, "entries": entries},
            )
        return Verified(entries, head, tuple(notes))

    def head(self) -> tuple[int, str]:
        """Return the number and the hash of the last entry."""
        return self._seq, self._head

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)  # the next line must not follow half a line
            raise

    def _lines(self, size: int = sys.maxsize) -> Iterator[bytes]:
        """Yield every line that ends within the first `size` bytes, without its line end.

        A last line without a line end is yielded with a mark, so that it never verifies.
        """
        with self._path.open("rb") as file:
            for line in file:
                size -= len(line)
                if size < 0:
                    return
                yield line[:-1] if line.endswith(b"\n") else line + b"\0torn"

    def _resume(self, now: datetime) -> None:
        """Find the head; record a torn line, and whatever does not match the anchor."""
        size = os.fstat(self._file).st_size
        data = os.pread(self._file, _WINDOW_BYTES, max(0, size - _WINDOW_BYTES))
        torn = data[data.rfind(b"\n") + 1 :]
        known = (self._anchor.get(_ANCHOR) or "0:").partition(":")[0]
        seen: dict[int, str] = {}
        for line in data.split(b"\n")[:-1]:  # verify() reports lines that cannot be read
            with suppress(*_NO_ENTRY):
                entry = _entry(json.loads(line))
                self._seq, self._head = entry.seq, entry.hash
                seen[entry.seq] = entry.hash
        if int(known) not in seen:  # the anchored entry should be near the end: something is wrong, so read everything
            seen = {0: _START, **{entry.seq: entry.hash for entry in self.show(0, sys.maxsize)}}
        lost = self._anchor.get(_ANCHOR) is None and max(seen) > 0
        breaks = [] if lost else _against_anchor(self._anchor.get(_ANCHOR), seen)
        if torn:
            os.ftruncate(self._file, size - len(torn))
            os.fsync(self._file)
            note = {"bytes": len(torn), "text": torn[:_NOTE_BYTES].decode("utf-8", "backslashreplace")}
            self._note(now, "audit.repaired", note)
        if lost:  # a lost catalog does not prove that the log was changed, but now only the journal can tell
            self._note(now, _UNANCHORED, {"finding": f"the anchor of the {self._seq} entries before is lost"})
        for finding in breaks:
            self._note(now, _BROKEN, {"finding": finding})

    def _note(self, now: datetime, action: str, facts: Mapping[str, Any]) -> None:
        self.append(now, Who("dbguardd"), action=action, object=self._path.name, outcome="noted", facts=facts)


def _against_anchor(anchor: str | None, seen: Mapping[int, str]) -> list[str]:
    """Compare the hashes of the entries that were read, by number, with the anchor; return the findings."""
    if anchor is None:
        return [] if max(seen) == 0 else ["the catalog has no anchor for this log"]
    number, _, digest = anchor.partition(":")
    found = seen.get(int(number))
    if found is None:
        return [f"the log ends before entry {number}, which the catalog knows"]
    return [] if found == digest else [f"entry {number} is not the one that the catalog knows"]


def _check(line: bytes, expected: int, head: str) -> tuple[Entry | None, str]:
    try:
        value = json.loads(line)
        entry, written = _entry(value), _canonical(value)
    except _NO_ENTRY:
        return None, "not an entry"
    body = {name: item for name, item in value.items() if name != "hash"}
    if written != line:
        return entry, "not in the form in which it was written"
    if _digest(body) != entry.hash:
        return entry, f"entry {entry.seq} was changed"
    if entry.prev != head or entry.seq != expected:
        return entry, f"entry {entry.seq} does not follow the one before it"
    return entry, ""


def _entry(value: Mapping[str, Any]) -> Entry:
    """Parse a line that was read from the file. Raises one of _NO_ENTRY."""
    entry = Entry(**{**value, "actor": Who(**value["actor"])})
    if type(entry.seq) is not int or not isinstance(entry.hash, str) or not isinstance(entry.facts, dict):
        raise TypeError("a member has the wrong type")
    return entry


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()


def _outcome(path: Path, error: OSError) -> GuardError:
    problem = of_file(f"{path}: the audit log cannot be written", error)
    return Degraded(problem.message, detail=problem.detail) if isinstance(problem, Usage) else problem
