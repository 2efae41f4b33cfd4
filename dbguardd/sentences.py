"""Turns an event into a sentence: the template of its row in the table, filled with its facts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, tzinfo
from typing import Any

from dbguardd.events import Facts, kind_of
from dbguardd.humanize import UNKNOWN, absolute, count, humanized, safe, size, span

_PIECES = re.compile(r"\[([^\]]*)\]|([^\[]+)")
_FACT = re.compile(r"\{(\w+)(?::(\w+))?\}")
_LONGEST = 400  # characters of one fact
_MEASURABLE = 1e18  # excludes infinity and NaN
_NOTHING: tuple[Any, ...] = (None, "", [], (), {})
_KNOWN = frozenset(("event", "database", "level", "job", "exception", "timestamp"))


def plain(event: Facts) -> dict[str, Any]:
    """Return an event's facts under the names that sentences and the journal use.

    `event` has the event's name, database, job and facts in one mapping. Workers and the catalog name some facts
    differently: there, a problem is an object, and the backup that an event is about is its `id`.
    """
    facts = dict(event)
    if isinstance(problem := facts.get("problem"), Mapping):
        facts |= {name: problem.get(name) for name in ("code", "detail", "hints")}
        facts |= {"problem": problem.get("message"), "backup": facts.get("backup", problem.get("backup"))}
    if str(facts.get("event")).startswith("backup.") and "id" in facts:
        facts.setdefault("backup", facts.pop("id"))
    if "verb" in facts:
        facts.setdefault("action", facts.pop("verb"))
    findings = facts.get("findings")
    for finding in findings if isinstance(findings, list | tuple) else ():
        if isinstance(finding, Mapping) and finding.get("outcome") == "failed":
            facts.setdefault("step", finding.get("name"))
    return {name: value for name, value in facts.items() if value is not None}


def sentence(event: Facts, zone: tzinfo | None = UTC) -> str:
    """Return an event as one line for people; nothing in it can pass for another line or a terminal command."""
    facts = plain(event)
    kind = kind_of(facts)
    about = _about(facts, "" if kind is None else kind.sentence)
    if kind is None:
        rest = ", ".join(f"{name} {_value(name, value, zone)}" for name, value in facts.items() if name not in _KNOWN)
        return f"{about}{safe(facts.get('event', ''))}{f': {rest}' if rest else ''}"
    return about + "".join(_pieces(kind.sentence, {**facts, **_shortened(facts, about)}, zone))


def _about(facts: Facts, template: str) -> str:
    """Return the subject that precedes a sentence: the database or storage, unless the sentence names it."""
    if database := facts.get("database"):
        return f"{safe(database)}: "
    storage = facts.get("storage")
    return f"storage {safe(storage)}: " if storage and "{storage}" not in template else ""


def _shortened(facts: Facts, about: str) -> dict[str, Any]:
    """Return `problem` without the subject that is already shown, and `detail` unless it has several lines."""
    problem, detail = facts.get("problem"), str(facts.get("detail") or "").strip()
    detail = "" if "\n" in detail else humanized(detail).removesuffix(".")
    return {"problem": problem and str(problem).removeprefix(about), "detail": detail}


def _pieces(template: str, facts: Facts, zone: tzinfo | None) -> Iterator[str]:
    """Yield the parts of a sentence. The text of a fact is never interpreted as part of the template."""
    for optional, always in _PIECES.findall(template):
        piece = optional or always
        unknown = any(facts.get(name) in _NOTHING for name, _ in _FACT.findall(piece))
        if not (optional and unknown):
            yield _FACT.sub(lambda found: _fact(found[1], found[2], facts, zone), piece)


def _fact(name: str, noun: str, facts: Facts, zone: tzinfo | None) -> str:
    value = facts.get(name)
    if noun and isinstance(value, int | list | tuple):
        return count(value if isinstance(value, int) else len(value), noun)
    return _value(name, value, zone)


def _value(name: str, value: Any, zone: tzinfo | None) -> str:
    """Return a fact's value formatted for people."""
    match value:
        case None:
            return UNKNOWN
        case int() | float() if name.endswith("bytes") and abs(value) < _MEASURABLE:
            return size(value)
        case int() | float() if name.endswith("seconds") and abs(value) < _MEASURABLE:
            return span(value)
        case str() if name.endswith("_at"):
            return absolute(value, zone)
        case list() | tuple():
            return ", ".join(_value(name, item, zone) for item in value)
    text = safe(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\N{HORIZONTAL ELLIPSIS}"
