"""Makes the list of events in man/dbguardd.8 from their table: python -m tests.docs.events."""

from __future__ import annotations

import textwrap
from pathlib import Path

from dbguardd.events import EVENTS, Kind
from tests.docs.source import reported

PAGE = Path(__file__).parents[2] / "man" / "dbguardd.8"
BEGIN, END = ".Sh EVENTS\n", ".Ss Audit\n"
HEAD = """\
Each event has a name.
.Ql dbguardctl log
shows events as sentences,
.Ql dbguardctl events
shows them with their facts, and
.Ql GET /v1/events
streams them:
"""
BETWEEN = """\
.Pp
These events are only in the log
.Pq in the journal, field Ev DBGUARD_EVENT :
"""


def section() -> str:
    """Return the section as it should be."""
    told = reported()
    return f"{BEGIN}{HEAD}{_list(told['kept'])}{BETWEEN}{_list(told['logged'])}"


def page() -> str:
    """Return the whole page with that section in its place."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{section()}{END}{rest.partition(END)[2]}"


def summary(name: str) -> Kind:
    """Return the row that says what an event is."""
    return next(kind for kind in EVENTS[name] if kind.summary)


def _list(names: set[str]) -> str:
    rows = [f".It Sy {name}\n{textwrap.fill(summary(name).summary, 78)}\n" for name in sorted(names)]
    return f".Pp\n.Bl -tag -width Ds -compact\n{''.join(rows)}.El\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
