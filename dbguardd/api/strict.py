"""Strict parsing of what peers send: bodies, query strings, paths. Every mistake is reported, none is tolerated.

Python's json takes the last of duplicate keys, NaN and infinity, and any depth. A role check and a handler must never
see different values, so none of that is accepted here.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl, unquote

from dbguardd.errors import Usage
from dbguardd.frozen import frozen

MAX_DEPTH = 32
MAX_TEXT = 4096

# Control characters except tab and line ends, surrogates, and marks that change the direction of displayed text.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_TRUTH: Mapping[str, bool] = {"": True, "1": True, "true": True, "0": False, "false": False}


@frozen
class Param:
    """One query parameter: its type, its default and its bounds (inclusive)."""

    name: str
    kind: type
    help: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


def parse(body: bytes) -> Any:
    """Return the JSON value of a body; an empty body is an empty object. Raises Usage."""
    if not body.strip():
        return {}
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError as error:
        raise Usage(f"request: nested deeper than {MAX_DEPTH}") from error
    except ValueError as error:
        raise Usage("request: not valid JSON", detail=str(error)) from error
    _fit(value)
    return value


def body(kind: type, value: Any) -> dict[str, Any]:
    """Return the fields of a request, checked against its dataclass, defaults filled in. Raises Usage."""
    name = kind.__name__.lower()
    if not isinstance(value, dict):
        raise Usage(f"{name}: a JSON object is expected", detail=f"got {_called(value)}")
    hints = typing.get_type_hints(kind)
    known = {member.name: member for member in fields(kind)}
    mistakes = [_unknown(key, known) for key in value if key not in known]
    result: dict[str, Any] = {}
    for key, member in known.items():
        if key in value:
            result[key] = value[key]
            if not _is(value[key], hints[key]):
                mistakes.append(f"{key}: {_wanted(hints[key])} is expected, got {_called(value[key])}")
        elif member.default is MISSING:
            mistakes.append(f"{key}: missing")
        else:
            result[key] = member.default
    _refuse(name, mistakes)
    return result


def query(params: Sequence[Param], text: str) -> dict[str, Any]:
    """Return every parameter of a query string, typed, absent ones with their default. Raises Usage."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=32)
    except ValueError as error:
        raise Usage("query: not valid", detail=str(error)) from error
    known = {param.name: param for param in params}
    result = {param.name: param.default for param in params}
    mistakes: list[str] = []
    seen: set[str] = set()
    for key, value in pairs:
        if key not in known:
            mistakes.append(_unknown(key, known))
        elif key in seen:
            mistakes.append(f"{key}: given twice")
        elif unfit(value):
            mistakes.append(f"{key}: control characters, or longer than {MAX_TEXT}")
        else:
            try:
                result[key] = _typed(known[key], value)
            except ValueError as error:
                mistakes.append(f"{key}: {error}")
        seen.add(key)
    _refuse("query", mistakes)
    return result


def segments(path: str) -> list[str]:
    """Return the decoded parts of a raw request path, without the leading slash. Raises Usage."""
    try:
        parts = [unquote(part, errors="strict") for part in path.removeprefix("/").split("/")]
    except UnicodeDecodeError as error:
        raise Usage("path: not valid UTF-8") from error
    if any(unfit(part) for part in parts):
        raise Usage(f"path: control characters, or a part longer than {MAX_TEXT}")
    return parts


def unfit(text: str) -> bool:
    """Return whether a text is too long, or has characters that do not belong in a name, a path or a remark."""
    return len(text) > MAX_TEXT or _UNFIT.search(text) is not None


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ', did you mean "x"?', or an empty text if no known word is similar."""
    near = get_close_matches(word, list(known), n=1)
    return f', did you mean "{near[0]}"?' if near else ""


def _unknown(key: str, known: Iterable[str]) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in key[:64])
    return f"{shown}: unknown" + suggestion(shown, known)


def _refuse(name: str, mistakes: list[str]) -> None:
    if mistakes:
        raise Usage(f"{name}: {mistakes[0]}", detail="\n".join(mistakes), facts={"mistakes": mistakes})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _fit(value: Any) -> None:
    """Refuse excessive depth, unfit text and numbers beyond a double, without recursion."""
    level: list[Any] = [value]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH and any(isinstance(item, dict | list) for item in level):
            raise Usage(f"request: nested deeper than {MAX_DEPTH}")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and unfit(item):
                raise Usage(f"request: a text holds control characters, or is longer than {MAX_TEXT}")
            elif isinstance(item, float) and not math.isfinite(item):
                raise Usage("request: a number is out of range")
        level = below


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is(value: Any, hint: Any) -> bool:
    for option in _options(hint):
        if option is type(None):
            if value is None:
                return True
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
                return True
        elif isinstance(value, option) and isinstance(value, bool) == (option is bool):
            return not isinstance(value, int) or abs(value) < 1 << 63  # what a database column can hold
    return False


_NAMES: Mapping[Any, str] = {
    **{str: "a text", bool: "true or false", int: "a whole number", float: "a number"},
    **{dict: "an object", list: "a list", type(None): "null"},
}


def _wanted(hint: Any) -> str:
    return " or ".join(_NAMES.get(option, str(option)) for option in _options(hint))


def _called(value: Any) -> str:
    return _NAMES.get(type(value), "something else")


def _typed(param: Param, text: str) -> Any:
    """Return the value of a parameter. Raises ValueError with what was expected."""
    if param.kind is bool:
        if text.lower() not in _TRUTH:
            raise ValueError("true or false is expected")
        return _TRUTH[text.lower()]
    if param.kind is str:
        if not text:
            raise ValueError("must not be empty")
        if param.choices and text not in param.choices:
            raise ValueError(f"one of {', '.join(param.choices)} is expected" + suggestion(text, param.choices))
        return text
    if not re.fullmatch(r"[0-9]{1,18}" if param.kind is int else r"[0-9]{1,15}(\.[0-9]{1,9})?", text):
        raise ValueError(f"{_NAMES[param.kind]} is expected")
    number = param.kind(text)
    if (param.low is not None and number < param.low) or (param.high is not None and number > param.high):
        raise ValueError(f"{param.low:g} to {param.high:g} is expected" if param.high else f"at least {param.low:g}")
    return number
