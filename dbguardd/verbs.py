"""The verbs of `dbguardd run`: those of the socket, and those of a standby, whose host usually has no daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbguardd.frozen import frozen
from dbguardd.kinds import KINDS
from dbguardd.requests import ENGINE_VERBS, QUESTION_VERBS, REQUESTS, Request, option


@frozen
class Standby(Request):
    """Keep a copy of a database up to date from its backups and its log, until it is stopped or promoted."""

    database: str
    to: str = option("path of the copy, which is made or gone on with; if not given, beside the live one")


@frozen
class Promote(Request):
    """End a standby: bring it up to the end of the log, check it, and make it an ordinary database."""

    database: str
    to: str = option("path of the copy; if not given, beside the live one")


STANDBY: Mapping[str, type[Request]] = {"standby": Standby, "promote": Promote}
"""Verbs that only read the repository and write to a copy of their own: they can run beside a daemon."""

BY_HAND: Mapping[str, type[Request]] = {**REQUESTS, **STANDBY}
"""Every verb that can be run by hand, and its request."""


def staging_suffix(verb: str, request: Mapping[str, Any]) -> str:
    """Return what separates the staging directory of a job from that of other jobs of its database; empty if shared."""
    if verb in QUESTION_VERBS:
        return "question"
    return f"{verb} {request.get('to', '')}" if verb == "follow" or verb in STANDBY else ""


def has_engine_half(verb: str, engine: str | None) -> bool:
    """Return whether the worker of a job has an engine half, which opens a database, live or restored."""
    kind = KINDS.get(engine or "")
    return verb in ENGINE_VERBS or (verb in QUESTION_VERBS and kind is not None and kind.asked_in_server)
