"""A standby: a copy of a database that follows its log, and is consistent for its readers at any time.

While it follows, the copy is in a rollback mode, so that it can be changed under SQLite's locks (`overwrite`). So its
first page differs from that of the database in the mode fields, and in the change counter by which readers invalidate
their caches. Beside it lies NAME.standby: the state of the copy before the last change and after it, made durable
before the change. The sum of its pages tells which of the two states the copy has, and that nobody else wrote to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from struct import pack
from typing import Any

from dbguardd.durable import replace_file, sync_directory
from dbguardd.engines.base import Finding, Progress, ProofQuery
from dbguardd.engines.landing import SIDES, outcome
from dbguardd.engines.sqlite.examine import examine
from dbguardd.engines.sqlite.live import MAGIC, Header
from dbguardd.engines.sqlite.overwrite import Change, overwrite, page_at, settle, sides
from dbguardd.engines.sqlite.publish import fresh, only_name
from dbguardd.engines.sqlite.rights import give
from dbguardd.errors import (
    Damaged,
    GuardError,
    NotFound,
    ProofFailed,
    SourceInvalid,
    StandbyChanged,
    TargetExists,
    TargetInUse,
    Unsupported,
)
from dbguardd.flow import Facts, Tree
from dbguardd.frozen import frozen
from dbguardd.sums import added, as_text, file_sum, page_hash

SUFFIX = ".standby"
_HEAD = 100
_NUMBER_BYTES = 4


@frozen
class State:
    """The state of a copy: `mark` is what its maker recorded about it, `head` the start of its first page in the log.

    `counter` is the change counter that it has instead. It is `plain` once it no longer follows.
    """

    mark: Facts
    sum: int
    pages: int
    page_size: int
    head: bytes
    counter: int
    plain: bool = False

    def dressed(self) -> bytes:
        """Return the start of the first page in the copy."""
        head = bytearray(self.head)
        if not self.plain:
            head[18:20] = b"\1\1"  # rollback mode
        head[24:32] = pack(">II", self.counter, self.pages)
        head[92:96] = pack(">I", self.counter)
        return bytes(head)

    def facts(self) -> dict[str, Any]:
        """Return the stored form."""
        plain = {name: getattr(self, name) for name in ("pages", "page_size", "counter", "plain")}
        return {**plain, "mark": dict(self.mark), "sum": as_text(self.sum), "head": self.head.hex()}

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> State:
        """Parse what facts() returned."""
        return cls(**{**facts, "sum": int(facts["sum"], 16), "head": bytes.fromhex(facts["head"])})


class SqliteStandby:
    """Implements engines.base.Standby for one copy at a time."""

    def __init__(self, staging: Path, stream: str, wait_seconds: float) -> None:
        self._staging, self._stream, self._wait_seconds = staging, stream, wait_seconds
        self._file = -1
        self._state: State | None = None
        self._half = False  # a change of the copy failed in the middle: its journal is hot

    # ------------------------------------------------------------------------------------------ what is there

    def found(self, target: Path, progress: Progress) -> Facts | None:
        note, there = _note(target), os.path.lexists(target)
        if not note.exists():
            if there:
                raise TargetExists(
                    f"{target}: is no standby",
                    detail=f"There is no {note.name} beside it: it is something else, or was promoted.",
                    hints=[f"ls -l {target}", "choose another place with --to"],
                )
            return None
        if not there:
            return None  # killed before it was there, or deleted: it is made again
        inode, states = _read(note)
        _only_ours(target, note)
        only_name(target)
        settle(target)
        self._open(target)
        if os.fstat(self._file).st_ino != inode:
            raise StandbyChanged(f"{target}: is another file than the one that followed the log", hints=_anew(target))
        self._state = self._which(target, states, progress)
        return {**self._state.mark, "promoted": self._state.plain}

    def _which(self, target: Path, states: Sequence[State], progress: Progress) -> State:
        """Return which of the states the copy has. Raises StandbyChanged if none."""

        def tick(done: int) -> None:
            progress("look at the copy", done, size)

        size = os.fstat(self._file).st_size
        for state in reversed(states):
            same = os.pread(self._file, _HEAD, 0) == state.dressed() and size == state.pages * state.page_size
            if same and file_sum(self._file, size, state.page_size, tick, state.head) == state.sum:
                return state
        raise StandbyChanged(f"{target}: something else has written to it", hints=_anew(target))

    def _open(self, target: Path) -> None:
        try:
            self._file = os.open(target, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise TargetInUse(f"{target}: another process keeps it up to date", hints=[f"fuser -v {target}"]) from None
        except OSError as error:
            raise outcome(target, error) from error

    def close(self) -> None:
        """Close the copy."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._state = -1, None

    # ------------------------------------------------------------------------------------------ changing it

    def make(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> Sequence[str]:
        if tree.facts.get("method") != "pages":
            raise Unsupported(f"{target}: only a backup by the method pages can follow a log")
        progress("restore", 0, None)
        self.close()
        with fresh(target, int(tree.facts.get("mode", 0o600))) as work:
            self._file = os.open(work, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                size = tree.deliver(self._stream, self._file)
                lost = give(work, tree.facts)
                head = os.pread(self._file, _HEAD, 0)
                state = _state(mark, head, size, file_sum(self._file, size, _page_size(head), lambda _: None))
                os.pwrite(self._file, state.dressed(), 0)
                os.fsync(self._file)
                _write(target, os.fstat(self._file).st_ino, [state])
            except OSError as error:
                raise outcome(target, error) from error
            finally:
                self.close()
        self._open(target)
        self._state = state
        return lost

    def advance(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> None:
        state = self._there(target)
        with tempfile.TemporaryFile(dir=self._staging) as spool:
            length = tree.deliver(self._stream, spool.fileno())
            step = _NUMBER_BYTES + state.page_size
            if tree.facts["page_size"] != state.page_size or length % step:
                raise Damaged(f"{target}: what came of the log is not of pages of {state.page_size} bytes")
            places = {
                int.from_bytes(os.pread(spool.fileno(), _NUMBER_BYTES, at), "big"): at + _NUMBER_BYTES
                for at in range(0, length, step)
            }
            after = tree.facts["size"] // state.page_size
            self._change(target, mark, (spool.fileno(), places, after), str(tree.facts.get("sum", "")))

    def rebase(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> None:
        state = self._there(target)
        with tempfile.TemporaryFile(dir=target.parent) as work:
            file, page_size = work.fileno(), state.page_size
            size = tree.deliver(self._stream, file)
            if _page_size(os.pread(file, _HEAD, 0)) != page_size:
                raise Unsupported(
                    f"{target}: the pages of the database have another size now, so it cannot be made equal to that",
                    hints=_anew(target),
                )
            places = dict[int, int]()
            for at in range(0, size, page_size):
                new = page_at(file, at, page_size)
                if at >= state.pages * page_size or not at or page_at(self._file, at, page_size) != new:
                    places[at // page_size + 1] = at
                progress("compare", at, size)
            self._change(target, mark, (file, places, size // page_size), "")

    def _there(self, target: Path) -> State:
        """Return the state of the copy. Raises StandbyChanged if another process wrote to it since."""
        if self._half:
            self.close()
            self.found(target, lambda *_: None)  # rolls back
            self._half = False
        if self._state is None:
            raise NotFound(f"{target}: no standby is open")
        _only_ours(target, _note(target))
        try:
            same = os.stat(target, follow_symlinks=False).st_ino == os.fstat(self._file).st_ino
        except OSError:
            same = False
        if not same or os.pread(self._file, _HEAD, 0) != self._state.dressed():
            raise StandbyChanged(f"{target}: something else has written to it", hints=_anew(target))
        return self._state

    def _change(
        self, target: Path, mark: Facts, what: tuple[int, Mapping[int, int], int], expected: str, *, plain: bool = False
    ) -> None:
        """Change the copy as `what` says (open file, places of pages in it, pages afterwards), and set its mark."""
        images, places, after = what
        old = self._there(target)
        page_size = old.page_size
        was = old.head + page_at(self._file, 0, page_size)[_HEAD:]
        first = page_at(images, places[1], page_size) if 1 in places else was
        change = Change(old.pages, after, page_size, images, places, {1: first})
        total = self._sum_after(old, was, change)
        if expected and as_text(total) != expected:
            raise Damaged(
                f"{target}: what the log makes of it is not what the database was",
                detail=f"The sum of its pages would be {as_text(total)} instead of {expected}; nothing was changed.",
            )
        new = replace(_state(mark, first[:_HEAD], after * page_size, total), counter=old.counter + 1, plain=plain)
        change = replace(change, patched={1: new.dressed() + first[_HEAD:]})
        inode = os.fstat(self._file).st_ino
        try:
            overwrite(target, self._file, change, lambda: _write(target, inode, [old, new]), self._wait_seconds)
        except GuardError:
            self._half = bool(sides(target))
            raise
        self._state = new

    def _sum_after(self, old: State, was: bytes, change: Change) -> int:
        """Return the sum of the copy after a change, with the first page as in the log before and after."""

        def hash_now(number: int) -> int:
            at = (number - 1) * old.page_size
            return page_hash(number, was if number == 1 else page_at(self._file, at, old.page_size))

        numbers, zeros = change.numbers(), bytes(old.page_size)
        gone = [*(number for number in numbers if number <= old.pages), *range(change.after + 1, old.pages + 1)]
        grown = set(range(old.pages + 1, change.after + 1)) - set(numbers)
        more = sum(page_hash(number, change.image(number)) for number in numbers)
        more += sum(page_hash(number, zeros) for number in grown)
        return added(old.sum, more, sum(hash_now(number) for number in gone))

    # ------------------------------------------------------------------------------------------ its end

    def promote(self, target: Path, queries: Sequence[ProofQuery], progress: Progress) -> Sequence[Finding]:
        state = self._there(target)
        os.close(self._file)  # SQLite opens it in this process now
        self._file = -1
        findings = examine(target, queries, progress).findings
        if failed := [found for found in findings if found.outcome == "failed"]:
            raise ProofFailed(
                f"{target}: is not sound, and stays a standby",
                detail="; ".join(f"{found.name}: {found.detail}" for found in failed),
            )
        self._open(target)
        if not state.plain:
            self._change(target, state.mark, (self._file, {}, state.pages), "", plain=True)
        self.close()
        _note(target).unlink()
        sync_directory(target.parent)
        return findings


def _state(mark: Facts, head: bytes, size: int, total: int) -> State:
    counter = int.from_bytes(head[24:28], "big") + 1
    return State(mark, total, size // _page_size(head), _page_size(head), head, counter)


def _page_size(head: bytes) -> int:
    page_size = Header.parse(head.ljust(_HEAD, b"\0")).page_size
    if not head.startswith(MAGIC) or page_size not in (1 << bits for bits in range(9, 17)):
        raise SourceInvalid("what came of the backup is no SQLite database", detail=f"It begins with {head[:20]!r}.")
    return page_size


def _note(target: Path) -> Path:
    return target.with_name(f"{target.name}{SUFFIX}")


def _only_ours(target: Path, note: Path) -> None:
    """Raise StandbyChanged if there is a side file that only another program can have made."""
    strange = [side for side in sides(target) if not side.name.endswith("-journal")]
    if strange:
        raise StandbyChanged(
            f"{target}: something else has written to it", detail=f"{strange[0].name} is there.", hints=_anew(target)
        )


def _read(note: Path) -> tuple[int, list[State]]:
    try:
        kept = json.loads(note.read_bytes())
        return int(kept["file"]), [State.read(state) for state in kept["states"]]
    except OSError as error:
        raise outcome(note, error) from error
    except (KeyError, TypeError, ValueError) as error:
        raise StandbyChanged(f"{note}: is not as it was written", detail=repr(error)) from error


def _write(target: Path, inode: int, states: Sequence[State]) -> None:
    """Record the states that the copy may have from now on; durable on return."""
    text = json.dumps({"file": inode, "states": [state.facts() for state in states]}, indent=1)
    replace_file(_note(target), text.encode())


def _anew(target: Path) -> list[str]:
    """Return how to start over. Nothing is deleted for the user: what was written to the copy is in no log."""
    names = shlex.join(f"{target}{end}" for end in ("", *SIDES, SUFFIX))
    return [f"rm -f {names}  # if nothing in it is needed; then begin it again", "or choose another place with --to"]
