"""Asks for the full name of a database before an action that nobody wants to do by mistake."""

from __future__ import annotations

import shlex
import sys

import click

from dbguardctl.app import PROGRAM
from dbguardctl.screen import Cell, text
from dbguardctl.session import Session
from dbguardd.errors import ConfirmMissing
from dbguardd.humanize import size


def can_ask(session: Session) -> bool:
    """True if there is a user to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty() and not session.json


def confirmed(session: Session, database: str, given: str, what: str, how: str = "") -> str:
    """Return the typed name. On a terminal the user is asked; a script must pass --confirm."""
    if not given and can_ask(session):
        live = next((row for row in session.daemon.get("status")["databases"] if row["name"] == database), None)
        much = f" ({size(live['source_bytes'])})" if live and live["source_bytes"] else ""
        session.err.show([text(Cell(f'This {what} "{database}"{much}{how}.', "bad"))])
        given = str(click.prompt(f"Type {database} to go on", default="", show_default=False, err=True)).strip()
    if given != database:
        why = f"--confirm says {given!r}" if given else "--confirm is not given"
        words = list(session.arguments)
        if "--confirm" in words:  # remove the wrong name
            at = words.index("--confirm")
            del words[at : at + 2]
        raise ConfirmMissing(f"{database}: this {what}{how}, which needs the name typed in full", detail=f"{why}.",
                             hints=[shlex.join([PROGRAM, *words, "--confirm", database])])  # fmt: skip
    return given
