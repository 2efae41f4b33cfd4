"""Guesses what was meant by a command line that says something else. Loaded only on the way to an error."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

from dbguardctl.app import PROGRAM
from dbguardctl.moments import parse_moment, parse_span
from dbguardctl.session import Session
from dbguardd.errors import GuardError, Usage

_OTHER_NAMES = {
    "--backup": "--id", "--snapshot": "--id", "--time": "--at", "--when": "--at", "--target": "--to",
    "--output": "--to", "--yes": "--confirm", "--force": "--confirm",
}  # fmt: skip
"""What other tools call an option of ours; click itself suggests names that are spelled alike."""

_STANDBY = "dbguardd run standby NAME --to PATH"
_ELSEWHERE = {
    "coverage": "dbguardctl list NAME", "snapshots": "dbguardctl list NAME", "standby": _STANDBY,
    "promote": "dbguardd run promote NAME --to PATH", "--follow": _STANDBY,
}  # fmt: skip
"""Where something is that people look for in another place: words after dbguardctl, and options of its restore."""

_MOMENTS = ("--at", "--since", "--until", "--from", "--to")
_SPANS = ("--for", "--timeout")
_TEXTS = ("--reason", "--note", "--where")
_PLACED = 2  # words that stand before an option if the command and its argument do


def other_name(error: click.UsageError) -> str:
    """Return our name for an option that only other tools have; empty if there is none."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return ""
    ours = _OTHER_NAMES.get(error.option_name, "")
    return ours if any(ours in param.opts for param in error.ctx.command.params) else ""


def elsewhere(error: click.UsageError) -> str:
    """Return the command for what an unknown option of a restore does with other tools; empty if it is none of those.

    A copy that is kept up to date is no job of the daemon.
    """
    if not isinstance(error, click.NoSuchOption) or error.ctx is None or error.ctx.command.name != "restore":
        return ""
    return _ELSEWHERE.get(error.option_name, "")


def other_command(word: str) -> str:
    """Return the command that does what an unknown command is looked for; empty if there is none."""
    return _ELSEWHERE.get(word, "")


def unquoted(session: Session, error: GuardError) -> GuardError:
    """Add to an error the command line with quotes, if the value of an option consists of several words.

    The shell splits `--for 2 hours`; words that together are a moment or a length of time belong together.
    """
    if whole := _quoted(session):
        error.detail, error.hints = "A value of several words needs quotes.", (whole,)
    return error


def _quoted(session: Session) -> str:
    """Return the command line with quotes around the words that are one value; empty if there are none."""
    words = session.arguments
    for at, option in enumerate(words):
        for end in range(len(words), at + 2, -1):
            value = words[at + 1 : end]
            if not any(word.startswith("-") for word in value) and _is_value(session, option, words, at, end):
                return shlex.join([PROGRAM, *words[: at + 1], " ".join(value), *words[end:]])
    return ""


def _is_value(session: Session, option: str, words: Sequence[str], at: int, end: int) -> bool:
    """Return whether the words after an option, up to `end`, can be its value."""
    text = " ".join(words[at + 1 : end])
    try:
        if option in _MOMENTS:
            parse_moment(text, session.now, session.zone)
        elif option in _SPANS:
            parse_span(text)
        else:
            whole = end == len(words) or words[end].startswith("-")
            return option in _TEXTS and whole and sum(not word.startswith("-") for word in words[:at]) >= _PLACED
    except Usage:
        return False
    return True
