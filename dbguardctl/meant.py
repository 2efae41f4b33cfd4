"""Finds the moment that a user means: perhaps that of a backup, typed as a screen shows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dbguardctl.humanize import utc_text
from dbguardctl.moments import parse_moment, unit_of
from dbguardctl.screen import Cell
from dbguardctl.session import Session
from dbguardd.errors import GuardError
from dbguardd.humanize import absolute, count
from dbguardd.states import SAFETY_NOTE

Json = dict[str, Any]

_NAMES = {60.0: "minute", 1.0: "second"}


def meant_moment(session: Session, database: str, text: str) -> str:
    """Return the moment that `text` means for a database, in the form of the API. Raises Usage.

    Screens show the time of a backup in whole seconds or minutes: the backup was made a little later than what they
    show. So a time that is typed like that means the backup that was made within this second or minute, if there is
    exactly one, and if the log does not have the typed moment itself. The user is told. A backup that no time selects,
    because it failed or is a safety copy, is not meant either.
    """
    moment, unit = parse_moment(text, session.now, session.zone), unit_of(text)
    if not unit:
        return utc_text(moment)
    try:
        listed = session.daemon.get("databases", database, "backups", all=True)
    except GuardError:
        return utc_text(moment)  # the job will fail for the same reason, and says more
    within = [row for row in listed["backups"] if moment < datetime.fromisoformat(row["created_at"]) < moment + unit]
    if not within:
        return utc_text(moment)
    logged = any(_has(row, moment) for row in listed.get("log") or ())
    while_shown = f"within that {_NAMES[unit.total_seconds()]}"
    if len(within) == 1 and not logged and not (within[0]["failure"] or within[0]["note"] == SAFETY_NOTE):
        at = str(within[0]["created_at"])
        session.say(f"{database}: the backup {within[0]['id']} was made {while_shown}, at {_exactly(at, session)}")
        return at
    made = f"{count(len(within), 'backup')}, made {while_shown} but after this moment, can be named instead: "
    session.say(f"{database}: {made}", Cell(" or ".join(f"--id {row['id']}" for row in within), "try"))
    return utc_text(moment)


def _has(row: Json, moment: datetime) -> bool:
    """Return whether a part of the log has exactly this moment, not only one near it."""
    since, until = (datetime.fromisoformat(row[name]) for name in ("since_at", "until_at"))
    return not row["grain_seconds"] and since <= moment <= until


def _exactly(text: str, session: Session) -> str:
    """Return a moment in full, with its milliseconds."""
    shown, (_, _, rest) = absolute(text, session.zone), text.partition(".")
    return f"{shown[:19]}.{rest[:3]}{shown[19:]}" if rest else shown
