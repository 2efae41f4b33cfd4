"""The log: every event as a sentence for people and as facts for machines.

Under systemd each event is a journal entry with fields, and the catalog explains it (`journalctl -x`). Otherwise it is
a line on standard error, or a JSON object with --json-log. Messages of libraries take the same way. Anything that looks
like a secret is replaced first.
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
from dbguardd.events import EVENTS, Kind, kind_of
from dbguardd.humanize import HIDDEN, UNKNOWN, discreet, safe
from dbguardd.sentences import plain, sentence

_SOCKET = "/run/systemd/journal/socket"
_MESSAGE_BYTES = 32 << 10
_FIELD_BYTES = 4 << 10
_LONG_SECONDS = 1e10  # excludes infinity and NaN
_CATALOG_BYTES = 240  # journalctl does not fill in a value that is longer than 256 bytes with its name
_PATIENCE_SECONDS = 0.2
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_COLOURS = {"warning": "33", "error": "1;31", "critical": "1;31"}
_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]{0,50}")
_NO_FACTS = frozenset(("event", "level", "exception", "timestamp", "message", "pathname", "lineno", "func_name"))
_SECRET_NAMES = re.compile(r"(pass(word|phrase|wd)?|secret|token|identity|credential|private|machine_key)s?$", re.I)

EventDict = MutableMapping[str, Any]
Send = Callable[[bytes], None]


def setup(*, level: int = logging.INFO, json_lines: bool = False) -> Any:
    """Configure structlog and logging for this process and return the daemon's logger.

    The output for people has events of `level` and above; the outputs for machines have all events, with their levels.
    """
    processors: list[Any] = [structlog.processors.add_log_level, structlog.processors.format_exc_info, redact]
    journal = to_journal()
    if journal:
        factory: Any = _Silent
        processors += [_where(), JournalSender(_datagrams(_SOCKET))]
    else:
        factory = structlog.PrintLoggerFactory(sys.stderr)
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
        processors.append(as_json if json_lines else Lines(colour=sys.stderr.isatty()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if journal or json_lines else level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    logger = structlog.get_logger()
    logging.basicConfig(handlers=[Libraries(logger)], level=logging.WARNING, force=True)
    return logger


def to_journal() -> bool:
    """True if standard error is the stream that systemd connected to the journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino)) and Path(_SOCKET).exists()


def redact(logger: Any, method: str, event: EventDict) -> EventDict:
    """Replace the values of an event that look like secrets, by their name or their form."""
    del logger, method
    return {name: _clean(name, value) for name, value in event.items()}


def _clean(name: str, value: Any) -> Any:
    if _SECRET_NAMES.search(name) and value is not None:
        return HIDDEN
    if isinstance(value, str):
        return discreet(value)
    if isinstance(value, Mapping):
        return {str(key): _clean(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean("", item) for item in value]
    return value


# ------------------------------------------------------------------------------------------------ for people


def message(event: Mapping[str, Any]) -> str:
    """Return an event for people: one sentence, and below it any multi-line detail (mistakes, a trace)."""
    detail = str(plain(event).get("detail") or "").strip()
    more = [detail if "\n" in detail else "", str(event.get("exception") or "")]
    return "\n".join([sentence(event), *(safe(line) for text in more for line in text.splitlines())])


class Lines:
    """The last processor without a journal: one line for each event, with its time; further lines are indented."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, logger: Any, method: str, event: EventDict) -> str:
        del logger, method
        first, *more = message(event).splitlines()
        level = str(event.get("level", "info"))
        mark = f"{level:<7}"
        if self._colour and level in _COLOURS:
            mark = f"\x1b[{_COLOURS[level]}m{mark}\x1b[0m"
        at = str(event.get("timestamp", ""))[:19].replace("T", " ") + "Z"
        return "\n".join([f"{at} {mark} {first} [{safe(event.get('event', ''))}]", *(f"    {line}" for line in more)])


def as_json(logger: Any, method: str, event: EventDict) -> str:
    """Return an event as a JSON object in one line: its facts, and the sentence as `message`."""
    del logger, method
    return json.dumps({**event, "message": sentence(event)}, default=str)


class Libraries(logging.Handler):
    """Passes on what is logged without structlog: events from the API, and messages of libraries."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record as an event."""
        text, level = record.getMessage(), min(max(record.levelno // 10, 1), 5) * 10
        bug = {"exc_info": record.exc_info} if record.exc_info else {}
        if text in EVENTS:
            self._logger.log(level, text, **getattr(record, "facts", {}), **bug)
        else:
            first, _, more = text.partition("\n")
            self._logger.log(level, "library.said", logger=record.name, text=first, detail=more and text, **bug)


# ------------------------------------------------------------------------------------------------ for the journal


class JournalSender:
    """The last processor with a journal: sends the event in the native protocol and leaves nothing for a logger."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def __call__(self, logger: Any, method: str, event: EventDict) -> str:
        del logger, method
        self._send(encode(fields(event)))
        raise structlog.DropEvent


def fields(event: Mapping[str, Any]) -> dict[str, str]:
    """Return the journal fields of an event: the sentence, its name, where in the code it was logged, every fact."""
    facts = plain(event)
    kind, name, code = kind_of(facts), str(facts.get("event", "")), str(facts.get("code", ""))
    known = code if code in OUTCOMES else ""
    found = {
        "MESSAGE": message(event),
        "PRIORITY": str(_PRIORITIES.get(str(facts.get("level", "info")), 6)),
        "SYSLOG_IDENTIFIER": "dbguardd",
        "MESSAGE_ID": _explained_by(kind, known or name),
        "DOCUMENTATION": "man:dbguard-errors(7)" if known else "man:dbguardd(8)",
        "DBGUARD_EVENT": safe(name),
    }
    if known:
        found |= {"DBGUARD_LAST_PROVEN": UNKNOWN, "DBGUARD_HINT": _hints(facts.get("hints"), known)}
    places = (("CODE_FILE", "pathname"), ("CODE_LINE", "lineno"), ("CODE_FUNC", "func_name"))
    found |= {field: str(facts[place]) for field, place in places if place in facts}
    for fact, value in {**_derived(name, facts), **facts}.items():
        if fact not in _NO_FACTS and fact != "hints" and _FIELD_NAME.fullmatch(fact):
            found[f"DBGUARD_{fact.upper()}"] = safe(_text(value), keep="\n" if fact == "detail" else "")
    return found


def _explained_by(kind: Kind | None, other: str) -> str:
    """Return the id of the catalog entry: the event's own if it has one, else that of its error."""
    return kind.message_id if kind is not None and (kind.title or kind.name == other) else message_id(other)


def _derived(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that all kinds of events share: the result, the number of bytes, and the duration."""
    noun, _, verb = name.partition(".")
    results = [facts.get("grade"), facts.get("outcome"), verb if noun == "job" else None]
    amounts = [facts.get("stored_bytes"), facts.get("freed_bytes")]
    seconds = facts.get("seconds")
    usec = int(seconds * 1e6) if isinstance(seconds, int | float) and abs(seconds) < _LONG_SECONDS else None
    found = {"result": _first(results), "bytes": _first(amounts), "duration_usec": usec}
    return {fact: value for fact, value in found.items() if value is not None}


def _first(values: list[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _hints(hints: Any, code: str) -> str:
    """Return the hints, one a line, as many as fit into the catalog's text."""
    text = ""
    for hint in hints if isinstance(hints, list | tuple) else ():
        longer = f"{text}\n  {safe(hint)}" if text else safe(hint)
        if len(longer.encode()) > _CATALOG_BYTES:
            break
        text = longer
    return text or f"dbguardctl explain {code}"


def encode(entry: Mapping[str, str]) -> bytes:
    """Return an entry in the journal's native protocol: NAME=value, or NAME and a length if there are line breaks."""
    parts = []
    for name, value in entry.items():
        limit = _MESSAGE_BYTES if name == "MESSAGE" else _FIELD_BYTES
        data = value.encode("utf-8", "backslashreplace")
        if len(data) > limit:
            data = data[:limit].decode(errors="ignore").encode()
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _where() -> Any:
    """Return the processor that notes where in the code an event was logged, ignoring functions that pass it on."""
    place = structlog.processors.CallsiteParameter
    return structlog.processors.CallsiteParameterAdder(
        {place.PATHNAME, place.LINENO, place.FUNC_NAME},
        additional_ignores=["logging", "dbguardd.daemon.log", "dbguardd.daemon.events", "dbguardd.daemon.recorder"],
    )


def _datagrams(path: str) -> Send:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    opened.settimeout(_PATIENCE_SECONDS)

    def send(data: bytes) -> None:
        try:
            opened.sendto(data, path)
        except (TimeoutError, BlockingIOError):
            # The journal does not read, perhaps for long: until it does, do not wait for it. Standard error leads to
            # the journal as well, so the loss cannot be reported.
            opened.settimeout(0)
            return
        except OSError as error:  # a full or restarting journal must not stop backups
            print(f"dbguardd: the journal took no entry: {error}", file=sys.stderr)  # noqa: T201
        opened.settimeout(_PATIENCE_SECONDS)

    return send


class _Silent:
    """The logger for events that were sent already; structlog never calls it."""

    def msg(self, message: str) -> None:
        del message

    debug = info = warning = error = critical = exception = msg
