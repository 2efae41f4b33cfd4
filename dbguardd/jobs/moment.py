"""Finds the moment that a restore reaches: that of a backup alone, or of a backup with the log stored since."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from dbguardd.errors import NotFound, ObjectMissing, Usage
from dbguardd.facts import LogPosition, Target
from dbguardd.flow import Tree
from dbguardd.frozen import frozen
from dbguardd.humanize import count, some, span
from dbguardd.jobs.base import Run, excluded, instant, left_out, log_view, read_progress
from dbguardd.jobs.choose import choose, existing, states_of
from dbguardd.repository import BYTES, Backup, LogRange
from dbguardd.repository import Tree as Kept
from dbguardd.rules import moment as rule
from dbguardd.rules.chains import Chain, LogView, end_of
from dbguardd.rules.coverage import Logged, logged
from dbguardd.rules.moment import Base, Ending
from dbguardd.rules.requested import to_moment

_NEAR, _ROUNDED = timedelta(seconds=2), timedelta(milliseconds=1)
_RECORD_BYTES = 256  # the record of a restore point ends within this, including page headers
_DAY, _DRAWS = timedelta(days=1), 8  # a proof takes a moment of the last day, drawing this often to hit one


@frozen
class Moment:
    """What would be restored: `backup`, with the log up to `until`, as it was at `at`."""

    backup: Backup
    at: datetime
    until: LogRange | None
    warnings: list[str]
    size: int = 0  # in bytes, if the log has it
    sum: str = ""  # of its pages, if the log has it
    place: LogPosition | None = None  # its place in the database's log, if known
    next: tuple[datetime, str] | None = None  # what can be restored after a moment that cannot; its id if a backup

    def plan(self) -> dict[str, Any]:
        """Return its part of a plan."""
        segments = 0 if self.until is None else self.until.last - self.until.after
        log = self.size - self.backup.source_bytes if self.until is not None and self.until.form == BYTES else None
        target = Target() if self.until is None else self.until.target
        return {
            "backup": self.backup.id,
            "created_at": self.shown,
            "segments": segments,
            "log_bytes": log,
            "lsn": target.lsn or None,
            "name": target.name or None,
            "next_at": self.next_at,
            "next_backup": None if self.next is None else self.next[1] or None,
        }

    @property
    def next_at(self) -> str | None:
        """The next moment that can be restored, as displayed."""
        if self.next is None:
            return None
        return instant(self.next[0]) if self.next[1] else _up(self.next[0])

    @property
    def grain(self) -> int:
        """The grain of the log there: one moment per this many seconds; 0 if it has every moment."""
        pieces = self.until.chain.pieces if self.until is not None else ()
        last = self.until.last if self.until is not None else 0
        return next((piece.grain for piece in pieces if piece.first <= last <= piece.last), 0)

    def describe_log(self) -> str:
        """Return how much of the log it includes, and whether a sum shows that it equals the database."""
        segments = 0 if self.until is None else self.until.last - self.until.after
        shown = "its page checksum equals the database's" if self.compared else "no page checksum is known"
        if self.until is not None and self.until.form == BYTES:
            shown = f"everything committed by {instant(self.at)}"
        return f"{count(segments, 'segment')} without a gap, {shown}"

    @property
    def compared(self) -> bool:
        """Whether a restore compares the result with a sum recorded at that moment."""
        return bool(self.sum)

    @property
    def shown(self) -> str:
        """The moment as displayed: exact if it was requested, else rounded up to milliseconds.

        So requesting the displayed time finds it again.
        """
        if self.until is None:
            return instant(self.at)
        if self.until.target.at and self.at == datetime.fromisoformat(self.until.target.at):
            return instant(self.at, exact=True)
        return _up(self.at)

    @property
    def which(self) -> dict[str, str]:
        """The facts of an event that tell which moment it is. The time of a log position is not known."""
        lsn = "" if self.until is None else self.until.target.lsn
        return {"lsn": lsn} if lsn else {"as_of_at": self.shown}

    @property
    def told(self) -> str:
        """The same for a sentence."""
        which = self.which
        return f"at {which['lsn']} in its log" if "lsn" in which else f"of {which['as_of_at']}"

    @property
    def bytes(self) -> int:
        """The size of the database."""
        return self.size or self.backup.source_bytes


def opened(run: Run, moment: Moment, there: Kept | None = None) -> AbstractContextManager[Tree]:
    """Open a moment for reading. `there` is a backup of what it is written over. Raises what the repository raises."""
    if moment.until is None:
        return run.repository.tree(moment.backup, read_progress(run, moment.bytes), there=there)
    if moment.until.form == BYTES:
        return run.repository.with_log(moment.backup, moment.until, read_progress(run, moment.bytes), there=there)
    return run.repository.moment(moment.backup, moment.until, read_progress(run, moment.bytes))


def reach(run: Run, id: str = "", at: str = "") -> Moment:
    """Return the backup with that id; or the newest reliable moment, at or before `at` (RFC 3339).

    Raises what choose() raises. A moment much earlier than the requested one has a warning, and so has one that is the
    last before a gap, however short.
    """
    backup, warnings = choose(run, id, at)
    alone = Moment(backup, backup.created_at, None, [*warnings, *_left_out(backup)])
    if id:
        return alone
    log, wanted = log_view(run), to_moment(at) if at else None
    known = _sound(run) if log.chains else {}
    ending = rule.newest(log, [*map(base_of, known.values())], base_of(backup), wanted)
    if ending is None:
        best = alone
    else:
        within = Target(at=wanted.isoformat()) if ending.link.form == BYTES and wanted is not None else None
        best = _moment(known[ending.base.id], ending, within)
        if any(best.at < made.created_at <= (wanted or made.created_at) for made in known.values()):
            best.warnings.extend(warnings)  # of newer backups that no log leads to
        best.warnings.extend(_doubts(log, ending, wanted))
    if wanted is not None and wanted - best.at > _ROUNDED:
        found, why = _early(run, log, best, wanted)
        if wanted - best.at > _NEAR or _in_gap(log, found):
            early, best = span((wanted - best.at).total_seconds()), found
            best.warnings.append(f"this is {early} before the requested moment: {why}")
    return best


def base_of(backup: Backup) -> Base:
    """Return what the rules need to know of a backup to find where its log leads."""
    log_start, log_position = backup.facts.log_start, backup.facts.log_position
    if log_start is None:
        return Base(backup.id, backup.created_at, place=log_position)
    return Base(backup.id, backup.created_at, log_start.chain, log_start.after, log_position)


def tell_log(run: Run, name: str, chains: Iterable[Chain], backups: Iterable[Backup]) -> None:
    """Tell the catalog what is stored of a database's log, replacing all that it knew of that.

    `backups` are all of the database, including expired ones: one may be recalled.
    """
    bases = [base_of(backup) for backup in backups]
    told = [_told(chain.id, logged(chain, bases)) for chain in chains]
    run.report("log.known", database=name, chains=told)


def _told(chain: str, log: Logged) -> dict[str, Any]:
    thinned = {str(grain): instant(until) for grain, until in log.thinned.items()}
    return {"chain": chain, "since_at": instant(log.since), "until_at": instant(log.until), "thinned": thinned}


def _sound(run: Run) -> dict[str, Backup]:
    """Return the reliable backups by id, newest first."""
    backups = existing(run)
    sound = {b.id for b in states_of(run, backups) if not b.failed and not b.safety}
    return {backup.id: backup for backup in backups if backup.id in sound}


def _doubts(log: LogView, ending: Ending, wanted: datetime | None) -> Iterator[str]:
    """Yield warnings about later moments in the log, or missing ones."""
    if (lacks := rule.missing_segments(log, ending.chain, wanted)) is not None:
        lost = f"the log lacks its segments {lacks[0]} to {lacks[1]}"
        yield f"{lost}: commits after {instant(ending.chain.until)} cannot be restored"
    if wanted is not None and rule.shown_again(log, ending, wanted):
        said = "the clock was set back later and passed the requested moment twice: this is the first time"
        yield f"{said}; without --at, or with a later one, later commits are included"


def _early(run: Run, log: LogView, best: Moment, wanted: datetime) -> tuple[Moment, str]:
    """Return why nothing closer to the requested moment can be restored, and `best` with the next one that can."""
    chain, last = _end(log, best)
    rest = () if chain is None else log.links(chain, last + 1)
    commit = next((link.at for link in rest if link.size and link.at > wanted), None)
    if commit is not None and not best.grain:
        return best, f"the log has no commit in between; the next one is of {_up(commit)}"
    stored = None if commit is not None or chain is None else _stored_until(run, log, chain)
    if stored is not None and stored >= wanted:
        return best, "nothing was committed in between"
    later = [(backup.created_at, backup.id) for backup in _sound(run).values() if backup.created_at > wanted]
    best = replace(best, next=min([*later, *([(commit, "")] if commit else [])], default=None))
    if best.grain:
        return best, f"this part of the log has one moment every {span(best.grain)}"
    rested = f"nothing was committed up to {instant(stored)}; " if stored is not None and stored > best.at else ""
    why = f"{rested}later commits, if any, are not stored" if log.chains else "no reliable backup was made in between"
    return best, why if best.next is None else f"{why}; the next moment that can be restored is {best.next_at}"


def _in_gap(log: LogView, early: Moment) -> bool:
    """Return whether the log ends at a moment and begins anew only after the requested one."""
    return early.next is not None and not early.grain and _end(log, early)[0] is not None


def _end(log: LogView, moment: Moment) -> tuple[Chain | None, int]:
    """Return the part of the log in which a moment ends, or which continues from its backup, and its last segment."""
    if moment.until is not None:
        return moment.until.chain, moment.until.last
    base = base_of(moment.backup)
    return next((chain for chain in log.chains if next(rule.bases_of(chain, [base]), None)), None), base.after


def _stored_until(run: Run, log: LogView, chain: Chain) -> datetime | None:
    """Return up to when the daemon knows that everything committed is stored in a chain; None if there is a gap."""
    known = (run.spec.get("log_stored") or {}).get(chain.id)
    return None if known is None or rule.missing_segments(log, chain, None) is not None else to_moment(known)


def _up(moment: datetime) -> str:
    """Return a moment as text, rounded up to milliseconds: requesting the text finds the moment again."""
    return instant(moment + timedelta(microseconds=999))


def _left_out(backup: Backup) -> Iterator[str]:
    """Yield which rows the policy has left out of a backup, and what else is not in it."""
    if names := left_out(backup):
        yield f"nothing of {some(names)} is included: it could not be read"
    names, tables = excluded(backup)
    if tables:
        yield f"the rows of {count(tables, 'table')} are not included, excluded by the policy: {some(names, tables)}"


def at_lsn(run: Run, lsn: str) -> Moment:
    """Return the moment at a place in the log of a cluster ("16/B374D848"). Raises Usage, NotFound."""
    written = re.fullmatch("([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", lsn)
    if written is None:
        raise Usage(f"{lsn!r} is not a log position", detail="Write it as PostgreSQL does: 16/B374D848.")
    position = int(written[1], 16) << 32 | int(written[2], 16)
    log = log_view(run)
    known = _sound(run) if log.chains else {}
    ending = rule.at_position(log, [*map(base_of, known.values())], position)
    if ending is None:
        raise _not_covered(run, f"{lsn} is not covered by the log of any backup")
    return _moment(known[ending.base.id], ending, Target(position=position, lsn=lsn))


def at_restore_point(run: Run, name: str) -> Moment:
    """Return the moment of the last restore point with that name; the newest log is searched first.

    Raises like at_lsn().
    """
    log = log_view(run)
    known = _sound(run) if log.chains else {}
    for chain in reversed(log.chains):
        last = chain.last
        for base in rule.bases_of(chain, map(base_of, known.values())):
            if base.after >= last or base.place is None or run.find_restore_point is None:
                continue
            backup, until = known[base.id], LogRange(chain, base.after, last, BYTES)
            with run.repository.with_log(backup, until) as tree:
                position, at = run.find_restore_point(tree, name, run.progress) or (-1, None)
            if position >= base.place.position:
                link = rule.reaching(log, chain, base, position + _RECORD_BYTES) or log.end(chain)
                if rule.continues(base.place, end_of(link)):
                    found = Ending(base, chain, link, at or link.at)
                    return _moment(backup, found, Target(position=position, name=name))
            last = min(last, base.after + 1)  # one more: the record may span both
    raise _not_covered(run, f"no log of a backup has a restore point {name!r}")


def _not_covered(run: Run, what: str) -> NotFound:
    return NotFound(
        f"{run.name}: {what}",
        detail="Positions are covered from the first backup that was made while the log was followed.",
        hints=[f"dbguardctl list {run.name}"],
    )


def random_moment(run: Run) -> Moment | None:
    """Return a random moment of the last day that only the log has, preferably one with a sum; None if there is none.

    A log of bytes has no sums: only those of its moments that are a backup's can be compared with anything.
    """
    day = run.now() - _DAY
    chains = [chain for chain in log_view(run).chains if chain.until > day]
    if not chains:
        return None
    start, end = max(day, min(chain.begun_at for chain in chains)), max(chain.until for chain in chains)
    found: Moment | None = None
    for _ in range(_DRAWS):
        with suppress(NotFound):  # before the first backup
            moment = reach(run, at=(start + (end - start) * run.chance()).isoformat())
            if moment.until is not None and moment.until.form == BYTES:
                return None
            if moment.until is not None and moment.at >= day and (found is None or moment.compared):
                found = moment
        if found is not None and found.compared:
            break
    return found


def read_log(run: Run, moment: Moment | None) -> None:
    """Read the whole log up to a moment, which shows that it is complete and authentic. Raises if not."""
    log, until = run.repository.log(run.name), None if moment is None else moment.until
    for link in () if log is None or until is None else log.links(until.chain, until.after + 1, until.last):
        run.progress("log", link.number, None)


def backup_at(run: Run, moment: Moment) -> Backup | None:
    """Return a backup made at exactly the place in the log where a moment ends, if there is one."""
    place = moment.place
    if place is None or not place.position:
        return None
    made = ((backup, backup.facts.log_position) for backup in existing(run))
    return next((b for b, at in made if at and (at.round, at.position) == (place.round, place.position)), None)


def log_leading_to(run: Run, backup: Backup) -> Moment | None:
    """Return the end of the log from an earlier backup to `backup`: restored, it equals that backup.

    None if there is no such log. Raises ObjectMissing if it has a gap.
    """
    log, later = log_view(run), base_of(backup)
    known = _sound(run) if log.chains else {}
    older = [other for other in map(base_of, known.values()) if rule.before(other, later)]
    for chain in reversed([chain for chain in log.chains if chain.id == later.chain]):
        if bases := list(rule.bases_of(chain, older)):
            if chain.last < later.after:
                what = f"the log {chain.id} lacks its segment {chain.last + 1}"
                raise ObjectMissing(what, detail=f"of {bases[0].after + 1} to {later.after}")
            ending = rule.up_to(log, chain, bases, later)
            if ending is None or later.place is None or later.place.end is None:
                return None if ending is None else _moment(known[ending.base.id], ending)
            moment = _moment(known[ending.base.id], ending, Target(backup=backup.raw_facts))
            return replace(moment, place=later.place)
    return None


def _moment(backup: Backup, ending: Ending, target: Target | None = None) -> Moment:
    """Return the moment at the end of a log applied to a backup, or at a target within its last segment."""
    base, link, end, size = ending.base, ending.link, end_of(ending.link), ending.link.size
    if link.form == BYTES and base.place is not None:
        size = backup.source_bytes + end.position - base.place.position
    until = LogRange(ending.chain, base.after, link.number, link.form, target or Target())
    return Moment(backup, ending.at, until, [], size, link.sum, None if target else end)
