"""Which moment a restore reaches: a backup alone, or one with the log that was stored since put over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby, takewhile
from typing import Any

from dbguardd.errors import NotFound, ObjectMissing, Usage
from dbguardd.flow import TURNS, Facts, Tree
from dbguardd.jobs.base import Run, excluded, instant, reading
from dbguardd.jobs.choose import choose, dated, existing, to_moment
from dbguardd.jobs.history import holds, leads
from dbguardd.repository import BYTES, Backup, Chain, Link, Log, Piece, Until
from dbguardd.words import count, some, span

_NEAR = timedelta(seconds=2)
_RECORD_BYTES = 256  # that of a restore point ends within, heads of pages included
_BURST = timedelta(minutes=1)  # in which much is stored that has one moment
_DAY, _DRAWS = timedelta(days=1), 8  # of which a proof takes a moment, and how often it draws to hit one


@dataclass(frozen=True, slots=True)
class Moment:
    """What would be restored: `backup`, with the log up to `until`, as it was at `at`."""

    backup: Backup
    at: datetime
    until: Until | None
    warnings: list[str]
    size: int = 0  # in bytes, where the log says it
    sum: str = ""  # of its pages, where the log says it
    place: Facts = field(default_factory=dict)  # where in the log of the database it is, where that says it

    def plan(self) -> dict[str, Any]:
        """Return what a plan says of it."""
        segments = 0 if self.until is None else self.until.last - self.until.after
        log = self.size - self.backup.source_bytes if self.until is not None and self.until.form == BYTES else None
        target = {} if self.until is None else {name: self.until.target.get(name) for name in ("lsn", "name")}
        return {
            "backup": self.backup.id,
            "created_at": instant(self.shown),
            "segments": segments,
            "log_bytes": log,
            "lsn": target.get("lsn"),
            "name": target.get("name"),
        }

    @property
    def grain(self) -> int:
        """How fine the log is there: one moment in so many seconds; 0 where it has every one."""
        pieces = self.until.chain.pieces if self.until is not None else ()
        last = self.until.last if self.until is not None else 0
        return next((piece.grain for piece in pieces if piece.first <= last <= piece.last), 0)

    def said(self) -> str:
        """Say what of the log is in it, and whether its sum showed that it is what the database was."""
        segments = 0 if self.until is None else self.until.last - self.until.after
        shown = "the sum of its pages is that of the database" if self.compared else "no sum of its pages is known"
        if self.until is not None and self.until.form == BYTES:
            shown = f"all that had committed by {instant(self.at)}"
        return f"{count(segments, 'segment')} without a gap, {shown}"

    @property
    def compared(self) -> bool:
        """Say if a restore compares what comes out with what was written down then."""
        return bool(self.sum)

    @property
    def shown(self) -> datetime:
        """The moment as it is shown in milliseconds, not before it: who asks for that gets this one."""
        return self.at + timedelta(microseconds=999) if self.until else self.at

    @property
    def bytes(self) -> int:
        """How large the database was."""
        return self.size or self.backup.source_bytes


def opened(run: Run, moment: Moment, there: Backup | None = None) -> AbstractContextManager[Tree]:
    """Open what a moment is read from; `there` is a backup of what it goes over. Raises what the repository raises."""
    if moment.until is None:
        return run.repository.tree(moment.backup, reading(run, moment.bytes), there=there)
    if moment.until.form == BYTES:
        return run.repository.with_log(moment.backup, moment.until, reading(run, moment.bytes), there=there)
    return run.repository.moment(moment.backup, moment.until, reading(run, moment.bytes))


def reach(run: Run, id: str = "", at: str = "") -> Moment:
    """Return the backup with that id; or the newest moment to rely on that is not younger than `at`.

    Raises what choose() raises. A moment that is earlier than the one asked for is said to be.
    """
    backup, warnings = choose(run, id, at)
    alone = Moment(backup, backup.created_at, None, [*warnings, *_left_out(backup)])
    if id:
        return alone
    wanted = to_moment(at) if at else None
    best = alone
    for moment in _moments(run, wanted, backup):
        if moment.backup.id == backup.id:
            best = moment  # it is the newest, whatever the clock said meanwhile
            break  # and what is wrong with an older log does not matter
        best = max(moment, best, key=lambda moment: moment.at)
    if best.until is not None and (lacking := _lacking(run, best.until.chain, wanted)):
        best.warnings.append(lacking)
    if best.until is not None and wanted is not None and _shown_again(run, best.until, wanted):
        said = "the clock was set back later on, and came to the moment asked for again: this is the first time"
        best.warnings.append(f"{said}; without --at, or with a later one, what was committed since is there, too")
    if wanted is not None and wanted - best.at > _NEAR and (why := _early(best)):
        early = (wanted - best.at).total_seconds()
        best.warnings.append(f"that is {early:.0f} s before the moment asked for: {why}")
    return best


def _early(moment: Moment) -> str:
    """Say why nothing nearer to what was asked for can be restored; nothing if it is as it was then, too."""
    if moment.grain:
        return f"nothing nearer can be restored, where the log has one moment in {span(moment.grain)}"
    if moment.until is None:
        return "nothing nearer can be restored" if moment.backup.facts.get("log") is not None else ""
    whole = moment.until.last < moment.until.chain.last  # what comes next was committed later
    return "" if whole else "nothing that may have been committed since is stored"


def _left_out(backup: Backup) -> Iterator[str]:
    """Say which rows the policy has left out of a backup."""
    names, tables = excluded(backup)
    if tables:
        yield f"the rows of {count(tables, 'table')} are not in it, by `exclude` of the policy: {some(names, tables)}"


def at_place(run: Run, lsn: str) -> Moment:
    """Return the moment that is a place in the log of a cluster ("16/B374D848"). Raises Usage, NotFound."""
    try:
        high, low = (int(part, 16) for part in lsn.split("/"))
        position = high << 32 | low
    except ValueError:
        raise Usage(f"{lsn!r} is no place in a log", detail="Write it as PostgreSQL does: 16/B374D848.") from None
    for log, chain in _cluster_log(run):
        for backup in _bases(run, chain, None):
            if backup.facts["log_place"]["position"] < position:
                link = _reaching(log, chain, backup, position)
                if link is None:
                    break  # no older one goes on further
                if leads(backup.facts["log_place"], link.until):
                    return _moment(backup, chain, link, {"position": position, "lsn": lsn}, link.at)
    raise _not_covered(run, f"{lsn} is not covered by the log of a backup")


def at_point(run: Run, name: str) -> Moment:
    """Return the moment of the last restore point of that name; of the newest log first. Raises as at_place()."""
    for log, chain in _cluster_log(run):
        last = chain.last
        for backup in _bases(run, chain, None):
            after = backup.facts["log"]["after"]
            if after >= last or run.find is None:
                continue
            until = Until(chain, after, last, BYTES)
            with run.repository.with_log(backup, until) as tree:
                position, at = run.find(tree, name, run.progress) or (-1, None)
            if position >= backup.facts["log_place"]["position"]:
                link = _reaching(log, chain, backup, position + _RECORD_BYTES) or _end(log, chain)
                if leads(backup.facts["log_place"], link.until):
                    return _moment(backup, chain, link, {"position": position, "name": name}, at)
            last = min(last, after + 1)  # one more: it may lie across the two
    raise _not_covered(run, f"no log of a backup has a restore point {name!r}")


def _reaching(log: Log, chain: Chain, backup: Backup, position: int) -> Link | None:
    """Return the segment that comes to a place on the way to the end of the log, along the timelines that lead there.

    What is stored of a timeline behind the place where it was left is on no such way.
    """
    left = {round: at for round, at, *_ in _end(log, chain).until.get(TURNS) or ()}
    for link in _links(log, chain, backup.facts["log"]["after"] + 1):
        if link.until["position"] >= position and left.get(link.until["round"], position) >= position:
            return link
    return None


def _end(log: Log, chain: Chain) -> Link:
    return log.open(chain.pieces[-1])[-1]


def _cluster_log(run: Run) -> Iterator[tuple[Log, Chain]]:
    """Yield the chains of the log of a cluster, the newest first."""
    if (log := run.repository.log(run.name)) is not None:
        yield from ((log, chain) for chain in reversed(log.chains()))


def _not_covered(run: Run, what: str) -> NotFound:
    return NotFound(
        f"{run.name}: {what}",
        detail="A place is covered from the first backup on that was made while the log was followed.",
        hints=[f"dbguardctl list {run.name}"],
    )


def drawn(run: Run) -> Moment | None:
    """Return a random moment of the last day that the log is needed for, rather one with a sum, or None.

    A log of bytes has no sums: of its moments only those of backups can be compared with anything.
    """
    log, day = run.repository.log(run.name), run.now() - _DAY
    chains = [] if log is None else [chain for chain in log.chains() if chain.until > day]
    if not chains:
        return None
    start, end = max(day, min(chain.since for chain in chains)), max(chain.until for chain in chains)
    found: Moment | None = None
    for _ in range(_DRAWS):
        with suppress(NotFound):  # of before the first backup
            moment = reach(run, at=(start + (end - start) * run.chance()).isoformat())
            if moment.until is not None and moment.until.form == BYTES:
                return None
            if moment.until is not None and moment.at >= day and (found is None or moment.compared):
                found = moment
        if found is not None and found.compared:
            break
    return found


def read_through(run: Run, moment: Moment | None) -> None:
    """Read all of the log up to a moment, which shows that it is there, authentic and in a row. Raises if not."""
    log, until = run.repository.log(run.name), None if moment is None else moment.until
    for link in () if log is None or until is None else log.links(until.chain, until.after + 1, until.last):
        run.progress("log", link.number, None)


def same_place(run: Run, moment: Moment) -> Backup | None:
    """Return a backup that was made at the very place in the log at which a moment ends, if there is one."""
    place = {name: moment.place.get(name) for name in ("round", "position")}
    if not place["position"]:
        return None
    return next((b for b in existing(run) if place.items() <= (b.facts.get("log_place") or {}).items()), None)


def between(run: Run, backup: Backup) -> Moment | None:
    """Return the moment up to which the log goes from the backup before it to `backup`, None if there is no such log.

    It begins with the one before and ends with the last segment that was stored when `backup` began. Raises
    ObjectMissing if it has a hole.
    """
    log, mine = run.repository.log(run.name), backup.facts.get("log") or {}
    if log is None:
        return None
    for chain in reversed([chain for chain in log.chains() if chain.id == mine.get("chain")]):
        bases = [b for b in _bases(run, chain, None) if b.created_at < backup.created_at]
        if not bases:
            continue
        if chain.last < mine["after"]:
            what = f"the log {chain.id} lacks its segment {chain.last + 1}"
            raise ObjectMissing(what, detail=f"of {bases[0].facts['log']['after'] + 1} to {mine['after']}")
        if "end" in (backup.facts.get("log_place") or {}):
            return _at_backup(log, chain, bases, backup)
        link = _last(log, chain, bases[0], None, mine["after"])
        return None if link is None else _moment(bases[0], chain, link)
    return None


def _at_backup(log: Log, chain: Chain, bases: Sequence[Backup], backup: Backup) -> Moment | None:
    """Return the moment that a backup is of, reached by its engine from one before; None if the log ends earlier.

    That is the newest of `bases` which the log leads on from. The place of the backup is known exactly, so the log
    comes to what that is, or is wrong. It has to go on behind that place, to its `end`: so a recovery knows that
    nothing lies between.
    """
    far = {**backup.facts["log_place"], "position": backup.facts["log_place"]["end"]}
    link = next((one for one in _links(log, chain, backup.facts["log"]["after"]) if holds(one, far, one.at)), None)
    base = None if link is None else next((b for b in bases if leads(b.facts.get("log_place"), link.until)), None)
    if link is None or base is None:
        return None
    moment = _moment(base, chain, link, {"backup": dict(backup.facts)}, backup.created_at)
    return replace(moment, place=backup.facts["log_place"])


def _moment(
    backup: Backup, chain: Chain, link: Link, target: Facts | None = None, at: datetime | None = None
) -> Moment:
    """Return the moment of a backup with the log up to a segment, or up to a target within that."""
    until = Until(chain, backup.facts["log"]["after"], link.number, link.form, target or {})
    size = link.size
    if link.form == BYTES:
        size = backup.source_bytes + link.until["position"] - backup.facts["log_place"]["position"]
    return Moment(backup, at or link.at, until, [], size, link.sum, {} if target else link.until)


def _lacking(run: Run, chain: Chain, wanted: datetime | None) -> str:
    """Say what a log lacks after a chain that ends before its end, if that was wanted; else nothing."""
    log = run.repository.log(run.name)
    rest = [] if log is None else [other for other in log.chains() if other.id == chain.id and other.first > chain.last]
    if not rest or (wanted is not None and wanted <= chain.until):
        return ""
    lost = f"the log lacks its segments {chain.last + 1} to {rest[0].first - 1}"
    return f"{lost}: what it has after {instant(chain.until)} cannot be restored"


def _moments(run: Run, wanted: datetime | None, newest: Backup) -> Iterator[Moment]:
    """Yield the newest moment of each chain that has a backup to begin with, the newest chain first.

    What ends before the `newest` backup, and does not go on from it, is not even read: it may be damaged.
    """
    log, mine = run.repository.log(run.name), (newest.facts.get("log") or {}).get("chain")
    for chain in [] if log is None else reversed(log.chains()):
        if chain.id != mine and chain.until < newest.created_at:
            continue
        for backup in _bases(run, chain, wanted):
            link = _last(log, chain, backup, wanted) if log is not None else None
            if link is not None and not leads(backup.facts.get("log_place"), link.until):
                continue  # from an older one, the log leads there
            if link is not None and link.form == BYTES and wanted is not None:
                # Also of the last one: what it has was committed by then, and more, perhaps.
                yield _moment(backup, chain, link, {"at": wanted.isoformat()}, min(link.at, wanted))
                break
            if link is not None:
                yield _moment(backup, chain, link)
                break


def _bases(run: Run, chain: Chain, wanted: datetime | None) -> Iterator[Backup]:
    """Yield the backups to rely on that a chain goes on from and that are not younger than `wanted`, newest first."""
    backups = existing(run)
    sound = {b.id for b in dated(run, backups) if not b.failed and not b.safety}
    for backup in backups:
        said = backup.facts.get("log") or {}
        goes_on = said.get("chain") == chain.id and chain.first <= said["after"] + 1 <= chain.last + 1
        if goes_on and backup.id in sound and (wanted is None or backup.created_at <= wanted):
            yield backup


def _last(log: Log, chain: Chain, backup: Backup, wanted: datetime | None, most: int | None = None) -> Link | None:
    """Return the last segment that ends a transaction, is not younger than `wanted`, and reaches past the backup.

    Its number is at most `most`. If segments have bytes of the log, the moment may lie within the one after that.
    """
    after, place = backup.facts["log"]["after"], backup.facts.get("log_place") or {}
    at = backup.created_at
    reaching = next((link for link in _links(log, chain, after) if holds(link, place, at)), None)
    if reaching is None:
        return None
    least, most = max(reaching.number, after + 1), chain.last if most is None else most
    pieces = [piece for piece in chain.pieces if piece.last >= least and piece.first <= most]

    def ends(piece: Piece) -> list[Link]:
        return [link for link in log.open(piece) if least <= link.number <= most and link.size]

    past = len(pieces) if wanted is None else sum(1 for _ in takewhile(lambda piece: piece.until <= wanted, pieces))
    found = next((link for piece in reversed(pieces[:past]) for link in reversed(ends(piece))), None)
    for piece in pieces[past:]:  # one, unless the clock was set back: names do not go back with it
        for link in ends(piece):
            if wanted is not None and link.at > wanted:
                return link if link.form == BYTES and not _turns_after(link, wanted) else found
            found = link
    return found


def _shown_again(run: Run, until: Until, wanted: datetime) -> bool:
    """Say if the clock came to a moment once more, behind the end of what is restored: it had been set back.

    Then objects in a row have the same moment in their names: the one that was reached before. So have those of a
    burst, which are not read: they were stored one after the other, and soon.
    """
    log = run.repository.log(run.name)
    rest = [piece for piece in until.chain.pieces if log is not None and piece.last >= until.last]
    for number, (reached, row) in enumerate(groupby(rest, key=lambda piece: piece.until)):
        same = list(row)
        burst = timedelta() <= same[-1].stored_at - same[0].stored_at < _BURST
        if log is None or (number and burst) or log.open(same[-1])[-1].at >= reached:
            continue
        behind = (link for piece in same for link in log.open(piece) if link.number > until.last)
        if any(link.at < reached and link.at <= wanted for link in behind):
            return True
    return False


def _turns_after(link: Link, wanted: datetime) -> bool:
    """Say if a segment leaves a round later than a moment: then that is of this round, with all that was stored."""
    turns: Sequence[Any] = link.until.get(TURNS) or ()
    return len(turns) > len(link.since.get(TURNS) or ()) and datetime.fromisoformat(turns[-1][3]) > wanted


def _links(log: Log, chain: Chain, first: int) -> Iterator[Link]:
    for piece in chain.pieces:
        if piece.last >= first:
            yield from (link for link in log.open(piece) if link.number >= first)
