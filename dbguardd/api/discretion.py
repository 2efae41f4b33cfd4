"""Hides from users who may only read what others look for in the past, and errors about that (decision 0077).

A search condition may identify people. Users who may ask the same see it, and the audit log keeps it permanently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbguardd.api.service import Json
from dbguardd.errors import bare
from dbguardd.requests import QUESTION_VERBS, RESERVED
from dbguardd.states import Role


def job(row: Json, role: Role) -> Json:
    """Return a job as this role may see it; hidden fields of its request are null."""
    if role is not Role.READ or row["verb"] not in QUESTION_VERBS:
        return row
    problem = None if row["problem"] is None else bare(row["problem"])
    return {**row, "request": _without(row["request"]), "problem": problem, "stderr_tail": ""}


def entry(row: Json, role: Role) -> Json:
    """Return an entry of the audit log as this role may see it."""
    asked = row["facts"].get("request")
    if role is not Role.READ or not isinstance(asked, Mapping):
        return row
    return {**row, "facts": {**row["facts"], "request": _without(asked)}}


def _without(request: Mapping[str, Any]) -> Json:
    return {name: None if value and name in RESERVED else value for name, value in request.items()}
