"""Translates pydantic's errors into sentences about the policy: the key, what it must be, what may be meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dbguardd.policy.mistakes import MAX_SHOWN, Mistake, Path
from dbguardd.policy.model import NAME, Access, Daemon, Database, Key, Settings, Storage
from dbguardd.policy.policy import Policy

SECRET_FORMS = '{ credential = "NAME" }, { file = "/path" } or { command = ["/path", "..."] }'  # noqa: S105
_SECRETIVE = ("password", "passphrase", "secret", "token", "passwd")
_ALIASES: Mapping[str, str] = {
    "schedule": "backup",
    "cron": "backup",
    "retention": "keep",
    "retain": "keep",
    "user": "run_as",
    "compression": "compress",
    "tz": "timezone",
    "file": "path",
    "databases": "database",
    "classes": "class",
    "storages": "storage",
    "keys": "key",
    "start_fast": "checkpoint",
    "immediate_checkpoint": "checkpoint",
}
"""Names that other programs use for these settings."""
_TABLES: Mapping[str, type[BaseModel]] = {
    "[defaults]": Settings,
    "[class.NAME]": Settings,
    "[database.NAME]": Database,
    "[storage.NAME]": Storage,
    "[key.NAME]": Key,
    "[access]": Access,
    "[daemon]": Daemon,
}
_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number with a fraction",
    str: "text",
    list: "a list",
}
_TYPES: Mapping[str, str] = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list in brackets",
    "list_type": "a list in brackets",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table of tables",
}
_PATTERNS: Mapping[str, str] = {
    NAME: "must be a name of a-z, 0-9, - and _, at most 63 long, that starts with a letter or digit",
    "zstd": 'must be "zstd:1" to "zstd:19"',
    "age1": 'must be an age recipient: "age1" and 58 more letters and digits',
    "group:": 'must be a user or "group:NAME"',
    "[^.]": 'must be "schema.table" or "database.schema.table", with * for any letters',
    "255": "must be the name of a systemd credential: letters, digits, . _ -",
}


def translate(error: ValidationError, values: Mapping[str, Any]) -> Iterator[tuple[Mistake, bool]]:
    """Yield each mistake of a ValidationError once, and whether to point at its key instead of its value."""
    seen: set[tuple[Path, str]] = set()
    for item in error.errors(include_url=False)[: 4 * MAX_SHOWN]:
        path = _path(item["loc"], values)
        mistake, of_key = _translate(item["type"], path, item)
        if (path, mistake.code) not in seen:  # a union reports the error once for each member
            seen.add((path, mistake.code))
            yield mistake, of_key


def owner_of(path: Path) -> str:
    """Return the name of the table that a path begins with, for people: database "app"."""
    head = path[0] if path else ""
    if head in ("database", "class", "storage", "key") and len(path) > 1:
        return f'{head} "{path[1]}"'
    return str(head)


def rest_of(path: Path) -> str:
    """Return the part of a path after its table, as people write it."""
    named = path[:1] and path[0] in ("database", "class", "storage", "key")
    rest = path[2:] if named else path[1:]
    text = ""
    for part in rest:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _path(loc: Sequence[str | int], values: Any) -> Path:
    """Return pydantic's `loc` without parts that are not keys in the file (union members, "[key]")."""
    path: list[str | int] = []
    here = values
    for number, part in enumerate(loc):
        if _has(here, part):
            here = here[part]
        elif number < len(loc) - 1 or not isinstance(here, dict) or part == "[key]":
            continue  # not a place in the file
        path.append(part)
    return tuple(path)


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _translate(kind: str, path: Path, item: Any) -> tuple[Mistake, bool]:
    owner, key = owner_of(path), rest_of(path)
    if kind == "extra_forbidden":
        return _unknown(path, item["input"]), True
    if kind == "missing":
        table = f"{owner} needs" if owner and key else "the policy needs"
        return Mistake("error", "config/missing-key", f'{table} the setting "{path[-1]}"', path), True
    if item["loc"] and item["loc"][-1] == "[key]":
        what = f'"{path[-1] if path else ""}" is not a valid name: it {_PATTERNS[NAME]}'
        return Mistake("error", "config/bad-name", what, path), True
    subject = f"{owner}: {key}" if key else owner
    reason, hint = _reason(kind, item)
    if path and any(word in str(path[-1]) for word in _SECRETIVE) and isinstance(item["input"], str):
        reason, hint = f"must not be written here; refer to it: {SECRET_FORMS}", ""
        return Mistake("error", "config/literal-secret", f"{subject} {reason}", path), False
    separator = ": " if reason.startswith('"') else " "
    return Mistake("error", "config/bad-value", f"{subject}{separator}{reason}", path, hint=hint), False


def _unknown(path: Path, value: Any) -> Mistake:
    name = str(path[-1])
    owner = owner_of(path[:-1])
    inner = rest_of(path[:-1])
    known = _keys_of(path[:-1])
    if any(word in name.lower() for word in _SECRETIVE) and isinstance(value, str):
        what = f'{owner}: "{name}" looks like a secret, and secrets are never written in the policy: {SECRET_FORMS}'
        return Mistake("error", "config/literal-secret", what, path)
    holder = f"{owner}: {inner}" if inner else owner or "the policy"
    aliases = {alias: key for alias, key in _ALIASES.items() if key in known}
    close = [aliases.get(word, word) for word in get_close_matches(name.lower(), [*known, *aliases], 1, 0.7)]
    what = f'{holder} has no setting "{name}"' if owner else f'there is no table or setting "{name}"'
    if elsewhere := [table for table, model in _TABLES.items() if name in _names(model)]:
        hint = f'"{name}" belongs in {" or ".join(elsewhere)}'
    elif close:
        hint = f'did you mean "{close[0]}"?'
    else:
        hint = f"known here: {', '.join(known)}" if known and len(known) <= 12 else ""
    return Mistake("error", "config/unknown-key", what, path, hint=hint)


def _keys_of(path: Path) -> list[str]:
    model: type[BaseModel] | None = Policy
    parts = [part for part in path if isinstance(part, str)]
    while parts and model is not None:
        part = parts.pop(0)
        field = next((f for n, f in model.model_fields.items() if (f.alias or n) == part), None)
        model = None if field is None else model_in(field.annotation)
        if model is not None and len(path) > 1 and part in ("database", "class", "storage", "key") and parts:
            parts.pop(0)
    return [] if model is None else _names(model)


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the table class inside an annotation: X for `X | None`, `tuple[X, ...]` and `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_in(part))), None)


def _reason(kind: str, item: Any) -> tuple[str, str]:
    context = item.get("ctx") or {}
    value = item["input"]
    if kind == "policy":
        hint = context["hint"]
        return context["reason"], f"did you mean {hint}?" if hint else ""
    if kind == "literal_error":
        allowed = [word.strip().strip("'") for word in context["expected"].replace(" or ", ",").split(",")]
        close = get_close_matches(value, allowed, 1, 0.5) if isinstance(value, str) else []
        choice = f"one of {', '.join(allowed)}" if len(allowed) > 1 else f'"{allowed[0]}"'
        if not isinstance(value, str) and allowed == ["1"]:
            choice = "1"
        return f"must be {choice}", f'did you mean "{close[0]}"?' if close else ""
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, not {_kind(value)}", ""
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        return next((text for part, text in _PATTERNS.items() if part in pattern), f"must match {pattern}"), ""
    limits = {
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "too_short": "must not be empty",
        "too_long": f"must have at most {context.get('max_length')} entries",
        "string_too_short": "must not be empty",
        "string_too_long": f"must be at most {context.get('max_length')} characters long",
        "finite_number": "must be a finite number",
    }
    return limits.get(kind, f"is wrong: {item['msg'][:1].lower()}{item['msg'][1:]}"), ""


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a table"
    return _KINDS.get(type(value), "a date or time")
