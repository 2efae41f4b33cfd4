"""Finds text that a policy file must not contain, before it is parsed.

tomllib accepts NUL in strings, inf and nan, and text that displays as something else (bidirectional overrides); it
fails on deep nesting with a RecursionError, and takes seconds for a key with 20,000 dots.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16

_OPAQUE = re.compile(
    r'"""(?:\\.|[^\\])*?"""'  # the four kinds of strings, and comments: brackets in them do not nest
    r"|'''.*?'''"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*",
    re.DOTALL,
)
_BRACKETS = re.compile(r"[\[{\]}]")
_DOTTED = re.compile(rf"(?:[^.\n=,{{}}\[\]]*\.){{{MAX_DEPTH}}}")
_HIDDEN = frozenset("\u061c\u200b\u200e\u200f\u2028\u2029\ufeff") | {chr(code) for code in range(0x2060, 0x2070)}


def forbidden(char: str) -> str:
    """Return what is wrong with a character, or an empty text."""
    if char in "\t\n\r" or " " <= char <= "~":
        return ""
    kind = unicodedata.category(char)
    if kind == "Cc":
        return f"the control character U+{ord(char):04X}"
    if char in _HIDDEN or unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI"):
        return f"the invisible character U+{ord(char):04X}, which can make text look like something else"
    return ""


def scan_text(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, what is wrong) for text that no parser should see; at most one of each kind."""
    for at, char in enumerate(text):
        if what := forbidden(char):
            yield at, at + 1, f"the file contains {what}"
            break
    code = _OPAQUE.sub(lambda match: " " * len(match[0]), text)
    depth = 0
    for bracket in _BRACKETS.finditer(code):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            yield bracket.start(), bracket.end(), f"tables and lists are nested deeper than {MAX_DEPTH}"
            break
    if dotted := _DOTTED.search(code):
        yield dotted.start(), dotted.start() + 1, f"a key has more than {MAX_DEPTH} parts"


def scan_values(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield (path, what is wrong) for parsed values that an escape or a keyword produced: NUL, inf, nan."""
    if isinstance(value, dict):
        for key, item in value.items():
            if what := next(filter(None, map(forbidden, key)), ""):
                yield (*path, key), f"a key contains {what}"
            yield from scan_values(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from scan_values(item, (*path, index))
    elif isinstance(value, str):
        if what := next(filter(None, map(forbidden, value)), ""):
            yield path, f"the text contains {what}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, "must be a finite number"
