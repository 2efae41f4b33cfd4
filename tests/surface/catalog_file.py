"""Makes systemd/dbguard.catalog from the tables: python -m tests.surface.catalog_file > systemd/dbguard.catalog.

journalctl -x shows the text of an entry's MESSAGE_ID and fills in the entry's fields for the names between @ signs.
"""

from __future__ import annotations

import re
import textwrap

from dbguardd.errors import OUTCOMES, GuardError, message_id
from dbguardd.events import KINDS, Kind

HEAD = """\
# The journal's catalog of dbguard: what journalctl -x says below an entry.
# Made from dbguardd/errors.py and dbguardd/events.py by tests/surface/catalog_file.py. Edit those.
"""
PROVEN = " Last proven backup: {last_proven}."
_COMMAND = re.compile(r"(?:dbguardctl|journalctl|systemctl|lslocks)(?: [\w{}-]+){1,3}")
_KEPT = "\N{NO-BREAK SPACE}"


def catalog() -> str:
    """Return the whole file."""
    outcomes = [_outcome(kind) for _, kind in sorted(OUTCOMES.items())]
    return HEAD + "".join([*outcomes, *(_event(kind) for kind in KINDS if kind.title)])


def _outcome(kind: type[GuardError]) -> str:
    what = " ".join((kind.__doc__ or "").replace("`", "").split())
    meaning = f"{what} {kind.meaning}{PROVEN if kind.code[4] in '26' else ''}"
    advice = kind.advice.replace("NAME", "{database}").replace("show ID", "show {backup}")
    subject = f"{kind.title} ({kind.code})"
    return _entry(message_id(kind.code), subject, "dbguard-errors(7)", meaning, [_filled(advice), "  {hint}"])


def _event(kind: Kind) -> str:
    return _entry(kind.message_id, kind.title, "dbguardd(8)", kind.meaning, [f"  {line}" for line in kind.advice])


def _entry(id: str, subject: str, manual: str, meaning: str, advice: list[str]) -> str:
    head = f"-- {id}\nSubject: {subject}\nDefined-By: dbguard\nDocumentation: man:{manual}\n"
    text = "\n".join([head, _filled(meaning), "", "What to do:", *advice, ""])
    return "\n" + re.sub(r"\{(\w+)\}", lambda name: f"@DBGUARD_{name[1].upper()}@", text)


def _filled(words: str) -> str:
    """Return prose in lines; a command stays in one."""
    kept = _COMMAND.sub(lambda command: command[0].replace(" ", _KEPT), words)
    return textwrap.fill(kept, 78, break_long_words=False, break_on_hyphens=False).replace(_KEPT, " ")


if __name__ == "__main__":
    print(catalog(), end="")
