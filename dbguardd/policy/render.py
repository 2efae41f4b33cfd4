"""Writes policy: the drop-in of `protect`, in the form in which a person would write it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import tomli_w
from pydantic import ValidationError

from dbguardd.errors import PolicyInvalid
from dbguardd.policy import mistakes
from dbguardd.policy.policy import Policy
from dbguardd.policy.reference import SCHEMA_PATH
from dbguardd.policy.translate import translate


def render_database(name: str, settings: Mapping[str, Any], now: datetime, reason: str = "") -> str:
    """Return the text of conf.d/NAME.toml for one database.

    `settings` are keys of [database.NAME] in their TOML form (durations and sizes as text); `reason` is the command
    that asked for it. Raises PolicyInvalid.
    """
    values = {"version": 1, "database": {name: dict(settings)}}
    try:
        Policy.model_validate(values)
    except ValidationError as error:
        found = [mistake for mistake, _ in translate(error, values)]
        raise mistakes.refusal(f"database {name}", found) from error
    if any(char < " " or char == "\x7f" for char in reason):
        raise PolicyInvalid(f"database {name}: the reason contains control characters")
    written = f"Written by `{reason}`" if reason else "Written by dbguard"
    return (
        f"#:schema {SCHEMA_PATH}\n"
        f"# {written} at {now:%Y-%m-%d %H:%M} UTC. It is yours: change it, then\n"
        "#   dbguardctl config check      dbguardctl reload\n"
        "# What is not said here comes from [defaults] in policy.toml. Every key: man 5 dbguard.toml\n\n"
        f"{tomli_w.dumps({'database': {name: dict(settings)}})}"
    )
