"""Logging: structlog events as journal entries with fields, else as lines for people or JSON for machines.

Secrets go first: whatever looks like one is replaced before any renderer sees it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from dbguardd.daemon.lean import structlog
from dbguardd.errors import OUTCOMES, message_id

_SOCKET = "/run/systemd/journal/socket"
_MAX_FIELD = 32 << 10
_PATIENCE_SECONDS = 0.2
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_FIELDS = frozenset(
    (
        *("code", "database", "engine", "action", "job", "backup", "storage", "step", "result", "bytes", "actor"),
        *("actor_uid", "last_proven", "seq", "hash", "event"),
    )
)
_SECRET_NAMES = re.compile(r"(pass(word|phrase|wd)?|secret|token|identity|credential|private|machine_key)s?$", re.I)
_SECRET_VALUES = re.compile(r"AGE-SECRET-KEY-1[0-9A-Z]+|-----BEGIN [A-Z ]*PRIVATE KEY-----.*", re.I | re.S)
_HIDDEN = "***"

EventDict = MutableMapping[str, Any]
Send = Callable[[bytes], None]


def setup(*, level: int = logging.INFO, json_lines: bool = False) -> Any:
    """Configure structlog for this process and return its logger."""
    processors: list[Any] = [structlog.processors.add_log_level, redact, structlog.processors.format_exc_info]
    if to_journal():
        factory: Any = _Silent
        processors.append(JournalSender(_datagrams(_SOCKET)))
    else:
        factory = structlog.PrintLoggerFactory(sys.stderr)
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
        if json_lines:
            processors.append(structlog.processors.JSONRenderer(default=str))
        else:
            processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger()


def to_journal() -> bool:
    """True if standard error is the stream that systemd connected to the journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino)) and Path(_SOCKET).exists()


def redact(logger: Any, method: str, event: EventDict) -> EventDict:
    """Replace what looks like a secret, by name or by form."""
    del logger, method
    return {name: _clean(name, value) for name, value in event.items()}


def _clean(name: str, value: Any) -> Any:
    if _SECRET_NAMES.search(name) and value is not None:
        return _HIDDEN
    if isinstance(value, str):
        return _SECRET_VALUES.sub(_HIDDEN, value)
    if isinstance(value, Mapping):
        return {str(key): _clean(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean("", item) for item in value]
    return value


class JournalSender:
    """The last processor: sends the event in the journal's native form and keeps nothing for a logger."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def __call__(self, logger: Any, method: str, event: EventDict) -> str:
        del logger, method
        self._send(encode(fields(event)))
        raise structlog.DropEvent


def fields(event: Mapping[str, Any]) -> dict[str, str]:
    """Return the journal fields of an event."""
    known = {name: value for name, value in event.items() if value is not None}
    name, level = str(known.get("event", "")), str(known.get("level", "info"))
    found = {
        "MESSAGE": sentence(known),
        "PRIORITY": str(_PRIORITIES.get(level, 6)),
        "SYSLOG_IDENTIFIER": "dbguardd",
        "MESSAGE_ID": message_id(str(known["code"]) if known.get("code") in OUTCOMES else name),
        "DBGUARD_EVENT": name,
    }
    if known.get("code") in OUTCOMES:
        found["DOCUMENTATION"] = "man:dbguard-errors(7)"
    for field in _FIELDS & known.keys() - {"event"}:
        found[f"DBGUARD_{field.upper()}"] = _text(known[field])
    if "seconds" in known:
        found["DBGUARD_DURATION_USEC"] = str(int(float(known["seconds"]) * 1e6))
    return found


def sentence(event: Mapping[str, Any]) -> str:
    """Return an event as one line: its name, then its facts."""
    left = {name: value for name, value in event.items() if name not in ("event", "level", "exception", "timestamp")}
    facts = " ".join(f"{name}={_text(value)}" for name, value in left.items())
    trace = f"\n{event['exception']}" if "exception" in event else ""
    return f"{event.get('event', '')} {facts}".strip() + trace


def encode(entry: Mapping[str, str]) -> bytes:
    """Return an entry in the journal's native protocol: NAME=value, or NAME and a length where there are lines."""
    parts = []
    for name, value in entry.items():
        data = value.encode("utf-8", "backslashreplace")[:_MAX_FIELD]
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _datagrams(path: str) -> Send:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    opened.settimeout(_PATIENCE_SECONDS)

    def send(data: bytes) -> None:
        try:
            opened.sendto(data, path)
        except (TimeoutError, BlockingIOError):
            # It does not read, and may not for long: from here on nobody waits until it does. Standard error leads to
            # the journal as well, so there is nobody to tell.
            opened.settimeout(0)
            return
        except OSError as error:  # a full or restarting journal must not stop backups
            print(f"dbguardd: the journal took no entry: {error}", file=sys.stderr)  # noqa: T201
        opened.settimeout(_PATIENCE_SECONDS)

    return send


class _Silent:
    """What structlog hands an event that was sent already; it never gets one."""

    def msg(self, message: str) -> None:
        del message

    debug = info = warning = error = critical = exception = msg
