"""Mistakes in the policy, and how they are shown: what, where, the source line, and a suggestion."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from spanned_toml import loads as loads_with_spans

from dbguardd.errors import PolicyInvalid
from dbguardd.frozen import frozen
from dbguardd.places import POLICY

Path = tuple[str | int, ...]
MAX_SHOWN = 100
_HIDDEN_NAME = r"(?:pass(?:word|wd|phrase)?|pwd|secret|token)"
_SHY = re.compile(rf"(?i).*{_HIDDEN_NAME}s?$")
_LITERAL = re.compile(rf"(?i)({_HIDDEN_NAME}[\"']?\s*=\s*)(?!\{{)\S.*")  # a table only refers to a secret: show it
_BROKEN = re.compile(rf"(?i)({_HIDDEN_NAME}[\w\"'.\s]*=\s*)\S.*")  # in invalid TOML the value may be the secret
_HARMLESS = ("type", "path", "credential", "recovery")
_IN_ADDRESS = re.compile(r"(://[^\s/@:\"']*:)[^\s/@\"']+(?=@)")
_IDENTITY = re.compile(r"(?i)(AGE-SECRET-KEY-)[A-Z0-9-]+")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


@frozen
class Mistake:
    """One error or warning. Lines and columns count from 1; line 0 means that the place is unknown."""

    severity: str  # error | warning
    code: str  # config/unknown-key, config/bad-value, ...
    message: str
    path: Path = ()
    file: str = ""
    line: int = 0
    column: int = 0
    length: int = 0
    source: str = ""
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "severity": self.severity,
            "code": self.code,
            "message": self.message,
            "key": dotted(self.path),
            "file": self.file or None,
            "line": self.line or None,
            "column": self.column or None,
            "length": self.length or None,
            "source": self.source if self.line else None,
            "hint": self.hint or None,
        }

    def to_text(self) -> str:
        """Return it as text for people, with the source line and carets."""
        head = f"{self.severity}[{self.code}]: {self.message}"
        if not self.line:
            place = f"\n --> {self.file}" if self.file else ""
            return f"{head}{place}" + (f"\n   = {self.hint}" if self.hint else "")
        margin = " " * len(str(self.line))
        marks = "^" * max(1, min(self.length, len(self.source) - self.column + 1))
        indent = re.sub(r"[^\t]", " ", self.source[: self.column - 1])
        return (
            f"{head}\n{margin}--> {self.file}:{self.line}:{self.column}\n{margin} |\n"
            f"{self.line} | {self.source}\n{margin} | {indent}{marks} {self.hint}".rstrip()
        )


def dotted(path: Path) -> str:
    """Return a path as a dotted TOML key: database.app.proof.queries[0].sql."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _BARE.fullmatch(part) else f'"{part}"'
            text += f".{key}" if text else key
    return text


@frozen
class Spans:
    """The positions of the key and the value of a path in a text."""

    key: slice | None = None
    value: slice | None = None


def find_spans(text: str) -> Mapping[Path, Spans]:
    """Return the positions of every key and value in a TOML text; empty if this parser cannot read it."""
    try:
        values = loads_with_spans(text)
    except Exception:  # noqa: BLE001 - it only helps to point at a mistake; without it the dotted key is shown
        return {}
    found: dict[Path, Spans] = {}
    _walk(values, (), found)
    return found


def _walk(value: Any, path: Path, found: dict[Path, Spans]) -> None:
    inner = _plain(value)
    if isinstance(inner, dict):
        for key, item in inner.items():
            here = (*path, _plain(key))
            found[here] = Spans(_real(key), _real(item))
            _walk(item, here, found)
    elif isinstance(inner, list):
        for index, item in enumerate(inner):
            found[(*path, index)] = Spans(None, _real(item))
            _walk(item, (*path, index), found)


def span_of(spans: Mapping[Path, Spans], path: Path, *, of_key: bool) -> slice | None:
    """Return the position of the key or the value of a path, or of the nearest table around it."""
    for end in range(len(path), 0, -1):
        here = spans.get(path[:end])
        if here is None:
            continue
        exact = end == len(path)
        span = (here.key or here.value) if of_key or not exact else (here.value or here.key)
        if span is not None:
            return span
    return None


def _plain(key: Any) -> Any:
    return key.inner() if hasattr(key, "inner") else key


def _real(item: Any) -> slice | None:
    span = item.span() if hasattr(item, "span") else None
    return span if isinstance(span, slice) and span.stop > span.start else None


def place(text: str, start: int, end: int, path: Path = ()) -> dict[str, Any]:
    """Return line, column, length and source of a Mistake for the text from `start` to `end`, which has this path.

    Anything that looks like a secret is masked: mistakes are printed, logged and sent.
    """
    begin = text.rfind("\n", 0, start) + 1
    stop = text.find("\n", start)
    stop = len(text) if stop < 0 else stop
    return {
        "line": text.count("\n", 0, start) + 1,
        "column": start - begin + 1,
        "length": max(1, min(end, stop) - start),
        "source": _masked(text[begin:stop], path),
    }


def _masked(line: str, path: Path) -> str:
    """Return a line without anything that is, or could have been meant as, a secret."""
    within_key = path[:1] == ("key",) and len(path) > 2 and path[2] not in _HARMLESS
    if within_key or any(_SHY.fullmatch(str(part)) for part in path[:-1]):
        line = re.sub(r"=.*", "= ***", line)
    line = (_LITERAL if path else _BROKEN).sub(r"\1***", line)
    return _IDENTITY.sub(r"\1***", _IN_ADDRESS.sub(r"\1***", line))


def report(mistakes: Sequence[Mistake], *, running: str = "") -> str:
    """Return all mistakes as `config check` prints them, followed by a line that counts them."""
    shown = "\n\n".join(mistake.to_text() for mistake in mistakes[:MAX_SHOWN])
    return f"{shown}\n\n{summary(mistakes, running=running)}" if mistakes else summary(mistakes, running=running)


def summary(mistakes: Sequence[Mistake], *, running: str = "") -> str:
    """Return one line: "3 errors in /etc/dbguard/policy.toml."; `running` is a sentence to append."""
    counts = [
        f"{number} {kind}{'' if number == 1 else 's'}"
        for kind in ("error", "warning")
        if (number := sum(mistake.severity == kind for mistake in mistakes))
    ]
    files = sorted({mistake.file for mistake in mistakes if mistake.file})
    where = f" in {', '.join(files)}" if files else ""
    line = f"{' and '.join(counts)}{where}." if counts else "No mistakes."
    return f"{line} {running}".rstrip()


def checking(policy: str) -> str:
    """Return the command that checks a policy: the daemon's default one, or one at another path."""
    return "dbguardd --check-config" if policy == POLICY else f"dbguardd --policy {shlex.quote(policy)} --check-config"


def refusal(policy: str, mistakes: Sequence[Mistake], facts: Mapping[str, Any] | None = None) -> PolicyInvalid:
    """Return the error for a policy with mistakes: text for people in `detail`, objects in the fact `mistakes`."""
    count = summary(mistakes).removesuffix(".").removesuffix(f" in {policy}")
    return PolicyInvalid(
        f"{policy}: {count}",
        detail="\n\n".join(mistake.to_text() for mistake in mistakes[:MAX_SHOWN]),
        hints=[checking(policy)],
        facts={"mistakes": [mistake.to_json() for mistake in mistakes[:MAX_SHOWN]], **(facts or {})},
    )
