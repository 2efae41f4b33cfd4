"""One run of dbguardctl: the global options, the connection to the daemon, and the output to the user."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from typing import Any, TextIO

from dbguardctl.client import Daemon, Json
from dbguardctl.humanize import when, zoned
from dbguardctl.screen import Block, Cell, Screen, text
from dbguardd.errors import GuardError, NotFound, did_you_mean
from dbguardd.humanize import hint_word, humanized
from dbguardd.places import SOCKET


class Session:
    """Parsing the global options fills the fields; commands use the rest."""

    def __init__(self, now: datetime | None = None, zone: tzinfo | None = None) -> None:
        self.now = now or datetime.now(UTC)
        self.zone = zone
        self.json = False
        self.color = "auto"
        self.quiet = False
        self.verbose = False
        self.socket = ""
        self.arguments: list[str] = []
        """What the user typed after the program name."""
        self.wanted_database = ""
        """The name that the user typed, for a suggestion if there is no such database."""
        self.left: tuple[str, str] | None = None
        """What remains if this run is interrupted, as a sentence, and the command that ends it."""
        self.asking = False
        """Whether the daemon has been asked for a job and has not answered yet."""
        self.looks_on: dict[str, str] = {}
        """The names of the jobs that this run watches, by id: they go on if it is interrupted."""

    @property
    def daemon(self) -> Daemon:
        """The daemon at --socket, $DBGUARD_SOCKET, or the default path."""
        return Daemon(self.socket or os.environ.get("DBGUARD_SOCKET") or SOCKET, self.say)

    def screen(self, stream: TextIO) -> Screen:
        """Return the screen on a stream; --color, NO_COLOR and TERM decide about colours."""
        terminal = stream.isatty()
        colour = self.color == "always" or (
            self.color == "auto"
            and terminal
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM", "dumb") != "dumb"
        )
        return Screen(stream, terminal=terminal, colour=colour, utf8=speaks_utf8(), program=self._program())

    def _program(self) -> str:
        """Return how to call this program here, with the given socket, so that pasted commands work."""
        called = sys.argv[0]
        found = (os.path.join(place, "dbguardctl") for place in os.environ.get("PATH", "").split(os.pathsep))
        first = next(filter(os.path.exists, found), None)
        usual = os.path.basename(called) != "dbguardctl" or (first and os.path.samefile(first, called))
        socket = f" --socket {shlex.quote(self.socket)}" if self.socket else ""
        return ("dbguardctl" if usual else shlex.quote(called)) + socket

    @property
    def out(self) -> Screen:
        """The screen for results."""
        return self.screen(sys.stdout)

    @property
    def err(self) -> Screen:
        """The screen for messages."""
        return self.screen(sys.stderr)

    def answer(self, answer: Json, blocks: Iterable[Block]) -> None:
        """Print an answer: the JSON object with --json, else the blocks."""
        if self.json:
            self.print_json(answer)
        else:
            self.out.show(blocks)

    def print_json(self, answer: Any) -> None:
        """Print one JSON object on a line of its own; indented on a terminal."""
        indent = 2 if sys.stdout.isatty() else None
        sys.stdout.write(json.dumps(answer, indent=indent) + "\n")
        sys.stdout.flush()

    def say(self, *cells: Cell | str) -> None:
        """Print a message that is not the result; --quiet and --json suppress it."""
        if not (self.quiet or self.json):
            self.err.show([text(*cells)])

    def interrupted(self) -> None:
        """Tell what goes on after Ctrl-C: jobs live in the daemon."""
        if self.asking:
            self.say("interrupted while a job was requested: it may run. See: ", Cell("dbguardctl job list", "try"))
        elif not self.looks_on:
            self.say("interrupted")
        for id, what in self.looks_on.items():
            self.say(f"{what} goes on. Watch it: ", Cell(f"dbguardctl job watch {id}", "try"),
                     "   stop it: ", Cell(f"dbguardctl job cancel {id}", "try"))  # fmt: skip
        if self.left:
            stays, end = self.left
            self.say(f"{stays} To end that: ", Cell(end, "try"))

    def report(self, error: GuardError) -> None:
        """Print an error to stderr: its problem object with --json, else what happened, why, the data, what to do."""
        self._suggest(error)
        if isinstance(error, NotFound):  # `log --since yesterday 09:00` asks for a database 09:00
            from dbguardctl.mistyped import unquoted  # noqa: PLC0415 - only on the way to an error

            unquoted(self, error)
        if self.json:
            sys.stderr.write(json.dumps(error.problem()) + "\n")
        else:
            self.err.show(error_blocks(error, self.now, self.zone, self.verbose))

    def _suggest(self, error: GuardError) -> None:
        wanted = self.wanted_database
        if not isinstance(error, NotFound) or not wanted or "did you mean" in error.detail.lower():
            return
        try:
            names = [str(row["name"]) for row in self.daemon.get("status")["databases"]]
        except (GuardError, KeyError, TypeError):
            return
        if wanted not in names:
            error.detail = " ".join(part for part in (error.detail, did_you_mean(wanted, names)) if part)


def speaks_utf8() -> bool:
    """True if the user's locale is UTF-8."""
    from dbguardctl import screen  # noqa: PLC0415 - its function has the same name

    return screen.speaks_utf8(os.environ, bool(sys.flags.utf8_mode))


def error_blocks(error: GuardError, now: datetime, zone: tzinfo | None, verbose: bool) -> list[Block]:
    """Return an error as text for people; commands to paste come last."""
    message, detail = (zoned(humanized(words), now, zone, exact=True) for words in (error.message, error.detail))
    blocks: list[Block] = [text(Cell(f"error[{error.code}]", "bad"), ": ", Cell(message, "strong"))]
    blocks += [text(line, indent=7) for line in detail.splitlines()]
    if error.meaning:
        blocks.append(text(error.meaning, indent=7))
    if proven := error.facts.get("last_proven_at"):
        blocks.append(text(f"Last proven backup: {when(str(proven), now, zone)}.", indent=7))
    if error.facts.get("instance") and verbose:
        blocks.append(text(f"At {error.facts['instance']}, HTTP status {error.http_status}.", indent=7))
    if (advice := error.advice_for()) and (verbose or not error.hints):
        blocks.append(text(Cell("try  ", "dim"), advice, indent=7))
    blocks += [text(Cell(f"{hint_word(hint)}  ", "dim"), Cell(hint, "try"), indent=7) for hint in error.hints]
    return blocks
