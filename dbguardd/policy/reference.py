"""The language of the policy: every key with its description, the JSON schema, and the difference of two policies."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from dbguardd.errors import NotFound, did_you_mean
from dbguardd.frozen import frozen
from dbguardd.policy.model import Database, Key, Settings, Storage, Table
from dbguardd.policy.policy import Policy
from dbguardd.policy.translate import model_in

Json = dict[str, Any]
SCHEMA_PATH = "/usr/share/dbguard/policy.schema.json"
_NAMED: Mapping[str, type[Table]] = {"class": Settings, "database": Database, "storage": Storage, "key": Key}


@frozen
class Documented:
    """One key of the language. `key` is dotted, with NAME for names and [] for list entries."""

    key: str
    text: str
    kind: str
    default: Any  # a JSON value, or None
    required: bool


@frozen
class Change:
    """One key whose effective value differs between two policies; None where the key is absent."""

    key: str
    old: Any
    new: Any

    def to_json(self) -> Json:
        """Return it as a JSON object."""
        return {"key": self.key, "old": self.old, "new": self.new}


def json_schema() -> Json:
    """Return the JSON schema of a policy file, for editors."""
    schema = Policy.model_json_schema(by_alias=True)
    for model in _tables(Policy):
        own = schema if model is Policy else schema["$defs"][model.__name__]
        defaults = _defaults(model)
        for key, found in own["properties"].items():
            described = own["properties"][key] = dict(sorted({**found, "description": _text(model, key)}.items()))
            described.pop("default", None)  # pydantic does not write durations and schedules as a policy does
            if defaults.get(key) not in (None, {}, []):
                described["default"] = defaults[key]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "dbguard policy",
        "description": "The policy of dbguardd: dbguard.toml(5).",
    }


def _tables(model: type[BaseModel]) -> set[type[BaseModel]]:
    inner = {found for field in model.model_fields.values() if (found := model_in(field.annotation))}
    return {model}.union(*(_tables(table) for table in inner))


def _text(model: type[BaseModel], key: str) -> str:
    """Return the line under a key, in the table itself or in the one that it inherits the key from."""
    name = next(name for name, field in model.model_fields.items() if key in (name, field.alias))
    return next(text for table in model.__mro__ if (text := _texts(table.__module__).get((table.__name__, name))))


@cache
def _texts(module: str) -> dict[tuple[str, str], str]:
    """Return the strings that follow the fields of all classes of a module."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        (table.name, field.target.id): inspect.cleandoc(line.value.value)
        for table in tree.body
        if isinstance(table, ast.ClassDef)
        for field, line in pairwise(table.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
    }


def _defaults(model: type[BaseModel]) -> Json:
    """Return the default of every key that has one, as JSON."""
    return model.model_construct().model_dump(mode="json", exclude_none=True, warnings=False)


def documented() -> Iterator[Documented]:
    """Yield every key of the language in order; keys that classes and databases inherit appear once, as [defaults]."""
    schema = json_schema()
    for name, field in Policy.model_fields.items():
        table = field.alias or name
        prefix = f"{table}.NAME" if table in _NAMED else table
        model = model_in(field.annotation)
        if model is None:
            yield _documented(table, Policy, name, schema)
        elif model is not Settings or table == "defaults":
            inherited = Settings.model_fields if model is Database else {}
            yield from _fields(prefix, model, schema, without=inherited)


def _fields(prefix: str, model: type[BaseModel], schema: Json, without: Mapping[str, Any]) -> Iterator[Documented]:
    for name, field in model.model_fields.items():
        if name in without:
            continue
        key = f"{prefix}.{field.alias or name}"
        yield _documented(key, model, name, schema)
        inner = model_in(field.annotation)
        if inner is not None:
            yield from _fields(f"{key}[]" if "tuple" in str(field.annotation) else key, inner, schema, {})


def _documented(key: str, model: type[BaseModel], name: str, schema: Json) -> Documented:
    field = model.model_fields[name]
    own = schema if model is Policy else schema["$defs"][model.__name__]
    described = own["properties"][field.alias or name]
    text = " ".join(described["description"].split())
    return Documented(key, text, _kind(described, schema), described.get("default"), field.is_required())


def _kind(described: Json, schema: Json) -> str:
    """Return the type of a key in words."""
    if "anyOf" in described:
        kinds = {_kind(option, schema): None for option in described["anyOf"] if option.get("type") != "null"}
        if "number" in kinds:
            kinds.pop("whole number", None)
        return " or ".join(kinds)
    for member, words in (("x-kind", str), ("$ref", lambda _: "table"), ("const", _quoted), ("enum", _choice)):
        if member in described:
            return words(described[member])
    match described.get("type"):
        case "boolean":
            return "true or false"
        case "array":
            return f"list of {_kind(described.get('items', {}), schema)}"
        case "integer" | "number" as kind:
            low, high = described.get("minimum"), described.get("maximum")
            name = "whole number" if kind == "integer" else "number"
            return name if low is None or high is None else f"{name}, {low} to {high}"
    return "text"


def _choice(values: list[Any]) -> str:
    return " or ".join(map(_quoted, values))


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def explain(key: str, policy: Policy | None = None) -> Json:
    """Return what a key means: "keep", "keep.daily", "database.app.keep", "storage.local.path".

    With a policy, `value` is the value in force, null if the key does not name one place. Raises NotFound.
    """
    parts = key.replace("[", ".[").split(".")
    parts = [part for part in parts if not part.startswith("[")]
    pattern = _pattern(parts)
    known = {entry.key.replace("[]", ""): entry for entry in documented()}
    found = [entry for name, entry in known.items() if name == pattern]
    if not found:
        found = [entry for name, entry in known.items() if name.split(".", 2 if ".NAME." in name else 1)[-1] == key]
    if not found and (own_keys := _keys_of(parts, known)):
        names = list(getattr(policy, parts[0])) if policy and len(parts) == 2 else []
        near = "" if parts[-1] in names else did_you_mean(parts[-1], names)
        raise NotFound(
            f"{key}: no key of the policy, but a table of them",
            detail=f"{near} Keys of [{'.'.join(_table_of(parts))}]: {', '.join(own_keys)}.".strip(),
            hints=[f"dbguardctl config explain {'.'.join(_table_of(parts))}.{own_keys[0]}"],
        )
    if not found:
        short = {name.split(".", 2 if ".NAME." in name else 1)[-1]: name for name in known}
        own = [f"database.NAME.{name.removeprefix('defaults.')}" for name in known if name.startswith("defaults.")]
        close = [name for name in short if name.endswith(f".{key}")]
        close = close or get_close_matches(pattern, [*known, *own], 1, 0.8)
        close = close or get_close_matches(key, [*known, *short], 1, 0.7)
        raise NotFound(
            f"{key}: no such key in the policy",
            detail=f"Did you mean {close[0]}?" if close else "dbguard.toml(5) has them all.",
            hints=[f"dbguardctl config explain {close[0]}"] if close else ["man 5 dbguard.toml"],
        )
    entry = found[0]
    inherited = entry.key.startswith("defaults.")
    bare = inherited and parts[0] not in ("defaults", "class", "database")
    where = ["[defaults]", "[class.NAME]", "[database.NAME]"] if inherited else [f"[{_table(entry.key)}]"]
    return {
        "key": key,
        "means": entry.text,
        "type": entry.kind,
        "default": entry.default,
        "required": entry.required,
        "tables": where if _table(entry.key) else [],
        "value": None if policy is None else _value(policy, ["defaults", *parts] if bare else parts),
    }


def _table_of(parts: list[str]) -> list[str]:
    return [parts[0], "NAME"] if parts[0] in _NAMED else parts[:1]


def _keys_of(parts: list[str], known: Mapping[str, Any]) -> list[str]:
    """Return the keys of a table, if `parts` name one and no key in it."""
    table = _table_of(parts)
    if len(parts) > len(table):
        return []
    prefixes = [".".join(table) + ".", *(["defaults."] if parts[0] in ("class", "database") else [])]
    found = [name.removeprefix(prefix) for prefix in prefixes for name in known if name.startswith(prefix)]
    return list(dict.fromkeys(name for name in found if "." not in name))


def _pattern(parts: list[str]) -> str:
    """Return the documented form of a concrete key: database.app.keep is defaults.keep."""
    if len(parts) < 2 or parts[0] not in _NAMED:
        return ".".join(parts)
    table, _, *rest = parts
    inherited = table in ("class", "database") and rest and rest[0] in Settings.model_fields
    return ".".join(["defaults", *rest] if inherited else [table, "NAME", *rest])


def _table(key: str) -> str:
    parts = key.split(".")
    return ".".join(parts[: 2 if parts[0] in _NAMED else 1]) if len(parts) > 1 else ""


def _value(policy: Policy, parts: list[str]) -> Any:
    here: Any = effective(policy)
    for part in parts:
        if not isinstance(here, dict) or part not in here:
            return None
        here = here[part]
    return here


def effective(policy: Policy, state: str = "", storages: Sequence[str] = ()) -> Json:
    """Return the policy as JSON with every default filled in and every class applied.

    Each of `storages` that no file names is included with its implicit settings, below the directory `state`.
    """
    values = policy.model_dump(mode="json")
    for name in storages:
        values["storage"].setdefault(name, policy.storage_of(name, state).model_dump(mode="json"))
    values["database"] = {name: policy.guarded(name).model_dump(mode="json") for name in policy.database}
    return values


def diff(old: Policy, new: Policy) -> list[Change]:
    """Return every key whose effect differs, by name; databases, storages and keys that appear or vanish as a whole."""
    before, after = _told(old, new), _told(new, old)
    changes: list[Change] = []
    for table in ("database", "storage", "key"):
        _diff(before.pop(table), after.pop(table), (table,), 1, changes)
    if not old.database and not new.database:
        _diff(before, after, (), 2, changes)
    else:
        _diff({"access": before["access"], "daemon": before["daemon"]}, after, (), 2, changes)
    return sorted(changes, key=lambda change: change.key)


def _told(policy: Policy, other: Policy) -> Json:
    """Return the settings in force; for a table that `other` lacks, only what is written in the files."""
    values = effective(policy)
    for table in ("database", "storage", "key"):
        mine, theirs = getattr(policy, table), getattr(other, table)
        for name in mine.keys() - theirs.keys():
            values[table][name] = mine[name].model_dump(mode="json", exclude_unset=True)
    return values


def _diff(old: Json, new: Json, path: tuple[str, ...], depth: int, changes: list[Change]) -> None:
    for key in dict.fromkeys((*old, *new) if path else old):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if depth and isinstance(before, dict) and isinstance(after, dict):
            _diff(before, after, (*path, key), depth - 1, changes)
        else:
            changes.append(Change(".".join((*path, key)), before, after))
